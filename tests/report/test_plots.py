import json
import re

import plotly.graph_objects as go
import pytest

from minionerec.report.plots import changes, counts, curves, forests, funnels

pytestmark = pytest.mark.fast


def _data(fragment):
    return json.loads(re.search(r"json\">(.*)</script>", fragment)[1])["data"]


def test_panels_follow_what_was_logged():
    log = [
        {"step": 1, "epoch": 0.1, "loss": 3.0, "eval_loss": 4.0, "other": 1},
        {"step": 2, "epoch": 0.2, "loss": 2.0, "kl": None},
    ]
    drawn = dict(curves(log))
    assert list(drawn) == ["Loss"]
    loss, held_out = _data(drawn["Loss"])
    assert (loss["name"], loss["x"], loss["y"]) == ("loss", [1, 2], [3, 2])
    assert (held_out["name"], held_out["x"]) == ("eval_loss", [1])
    assert curves([]) == []


def test_rl_panels():
    log = [
        {
            "step": 1,
            "reward": 0.1,
            "reward_std": 0.2,
            "kl": 0.0,
            "groups_with_signal": 0.3,
            "first_codes": 4.0,
            "entropy": 1.0,
            "entropy/level_1": 2.0,
            "rewards/rule/mean": 0.1,
            "HR@10": 0.2,
        }
    ]
    drawn = dict(curves(log))
    assert list(drawn) == [
        "Reward",
        "KL divergence from the SFT model",
        "Entropy of the policy",
        "Different first codes in a group",
        "Beam groups with a reward signal",
        "Accuracy",
    ]
    assert [trace["name"] for trace in _data(drawn["Reward"])] == ["reward", "rewards/rule/mean"]


def test_long_series_are_smoothed_and_keep_their_level():
    raw, smooth = _data(curves([{"step": step, "kl": 0.5} for step in range(100)])[0][1])
    assert raw["opacity"] < 1 and len(smooth["y"]) == 100
    assert all(abs(value - 0.5) < 1e-9 for value in smooth["y"])


def test_funnel_draws_the_cumulative_shares():
    levels = {"sft": {"cumulative": {"10": {"L1": 0.5, "L1+L2": 0.25}}}}
    ((k, plot),) = funnels(levels, {"sft": "SFT"}, [10], 100)
    (bars,) = _data(plot)
    assert k == 10
    assert bars["x"] == ["1 code", "2 codes"] and bars["y"] == [0.5, 0.25]
    low, high = (0.5 - bars["error_y"]["arrayminus"][0], 0.5 + bars["error_y"]["array"][0])
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson's interval of 50 in 100


def _scale(fragment):
    return json.loads(re.search(r"json\">(.*)</script>", fragment)[1])["layout"]["yaxis"]["range"]


def test_plots_that_stand_together_share_one_scale():
    shares = {"1": {"L1": 0.2, "L1+L2": 0.1}, "10": {"L1": 0.6, "L1+L2": 0.5}}
    drawn = funnels({"sft": {"cumulative": shares}}, {"sft": "SFT"}, [1, 10], 100)
    low, high = _scale(drawn[0][1])
    assert [k for k, _ in drawn] == [1, 10] and _scale(drawn[1][1]) == [low, high]
    assert low == 0 and 0.69 < high < 0.73  # the interval of 60 in 100 ends at 0.691
    cell = {"value": 0.2, "low": 0.1, "high": 0.3}
    hits, gains = forests({}, {"ours": {"HR@10": cell, "NDCG@10": {**cell, "high": 0.25}}}).values()
    assert _scale(hits) == _scale(gains) == [0, pytest.approx(0.309)]


def test_names_cannot_close_the_script():
    (title, fragment), *_ = curves([{"step": 1, "rewards/</script>/mean": 1.0}])
    assert title == "Reward" and fragment.count("</script>") == 1


def test_plotly_knows_every_property_of_a_layout():
    """It takes no part in writing them, and its script ignores what it does not know."""
    cell = {"value": 0.2, "low": 0.1, "high": 0.3}
    drawn = [funnels({"sft": {"cumulative": {"1": {"L1": 0.2}}}}, {"sft": "SFT"}, [1], 100)[0][1]]
    drawn += [forests({}, {"ours": {"HR@10": cell}})["HR"], changes({"HR@10": cell}), counts({"train": {1: 2}}, "x", "y")]
    drawn += [plot for _, plot in curves([{"step": 1, "loss": 1.0}])]
    assert len(drawn) == 5
    for plot in drawn:
        content = json.loads(re.search(r"json\">(.*)</script>", plot)[1])
        assert go.Figure(content, layout_template="none").to_plotly_json()["layout"]["xaxis"] == content["layout"]["xaxis"]
        content["layout"]["heigth"] = 1
        with pytest.raises(ValueError, match="heigth"):
            go.Figure(content)
