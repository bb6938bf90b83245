import re
from types import SimpleNamespace

import numpy as np
import pytest

from minionerec.eval.compare import compare
from minionerec.eval.slices import parts_of_lists
from minionerec.report.build import write_report
from minionerec.report.diagnosis import LevelChange, SliceChange, level_changes, over_sharpened, reading, slice_changes
from minionerec.report.evaluated import read_evaluated
from tests.report.run_folder import make_run
from tests.report.test_page import Page, plain
from tests.small import reseal

NOTHING = SimpleNamespace(calibration=None, exposure=None, rows=40)  # metrics that say nothing about the lists


def cell(value, half=0.01):
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "p": 0.5,
        "detectable": 0.02,
        "noise": abs(value) <= half,
    }


def differences(top, deep):
    return {"HR@1": cell(top), "HR@10": cell(0.0), "HR@50": cell(deep), "NDCG@10": cell(0.0)}


@pytest.mark.parametrize(
    ("top", "deep", "expected"),
    [(0.02, -0.03, True), (0.005, -0.03, False), (0.02, -0.005, False), (-0.02, -0.03, False)],
)
def test_over_sharpened(top, deep, expected):
    assert over_sharpened(differences(top, deep)) is expected


def level(k, prefix, value):
    return LevelChange(k, prefix, sft=0.1, rl=0.1 + value, change=cell(value))


def part(answer, value):
    return SliceChange("user", answer, share=0.5, sft=cell(0.1), rl=cell(0.1 + value), change=cell(value))


def test_the_reading_names_what_is_beyond_noise():
    log = [{"step": 1, "kl": 0.1, "entropy": 2.0}, {"step": 2, "kl": 0.05, "entropy": 1.5}]
    text = " ".join(reading(NOTHING, NOTHING, differences(0.02, -0.03), [], [], log))
    assert "The policy has 2.000 nats of entropy per token in the first tenth of training, and 1.500 in the last." in text
    assert "better than SFT beyond noise at HR@1." in text and "worse than SFT beyond noise at HR@50." in text
    assert "4 metrics were tested. If RL changed nothing, about one test in twenty would still" in text
    assert "over-sharpened" in text and "0.0500 at the end, 0.1000 at most" in text
    quiet = " ".join(reading(NOTHING, NOTHING, differences(0.0, 0.0), [], [], []))
    assert "At no cut-off" in quiet and "0.0200 in NDCG@10" in quiet and "over-sharpened" not in quiet
    assert "No sign of over-sharpening: no loss beyond noise at HR@50." in quiet
    short = {name: cell for name, cell in differences(0.0, 0.0).items() if name != "HR@50"}
    assert "too short for HR@20 and HR@50" in " ".join(reading(NOTHING, NOTHING, short, [], [], []))
    assert "without a gain beyond noise at the top" in " ".join(reading(NOTHING, NOTHING, differences(0.0, -0.03), [], [], []))


def test_what_the_test_of_pairs_calls_noise_is_no_gain():
    """The interval excludes zero and p is .078: six steps of RL had been called better beyond noise."""
    changes = differences(0.02, 0.0)
    changes["HR@1"] |= {"p": 0.078, "noise": True}
    log = [{"step": step, "kl": 0.1} for step in range(1, 7)]
    text = " ".join(reading(NOTHING, NOTHING, changes, [], [], log))
    assert "better" not in text and text.startswith("RL made 6 optimiser steps. At no cut-off is RL's change beyond noise.")


def test_the_reading_says_whose_step_the_model_is():
    def sentences(best):
        log = [{"step": 128, "kl": 0.1}, {"step": 128, "best_step": best, "best_NDCG@10": 0.1}]
        return reading(NOTHING, NOTHING, differences(0.0, 0.0), [], [], log)

    def first(best):
        return sentences(best)[0]

    assert first(26) == "RL made 128 optimiser steps. Its model is that of step 26, the best on the valid split."
    assert "None of them was better than SFT on the valid split, so the RL model is the SFT model." in first(0)
    assert "No sign of over-sharpening" not in " ".join(sentences(0))  # two equal models show nothing


def test_the_reading_of_levels_and_slices():
    levels = [level("50", "L1", 0.0), level("50", "L1+L2", -0.02), level("3", "L1", 0.5)]
    slices = [part("new", 0.03), part("old", 0)]
    text = plain(" ".join(reading(NOTHING, NOTHING, differences(0.0, 0.0), levels, slices, [])))
    assert "worse beyond noise at L1+L2 in the top 50 (-0.0200)" in text and "the right branch stays" in text
    assert "better beyond noise" not in text and "gains beyond noise on user: new (+0.0300)" in text
    levels, slices = [level("50", "L1", -0.02)], [part("old", 0)]
    text = " ".join(reading(NOTHING, NOTHING, differences(0.0, 0.0), levels, slices, []))
    assert "whole branches" in text and "On none of the 1 parts" in text
    assert "no change is beyond noise in the top" in " ".join(
        reading(NOTHING, NOTHING, differences(0, 0), [level("1", "L1", 0)], [], [])
    )


def test_changes_per_level_and_slice_are_paired(tmp_path):
    config = make_run(tmp_path, users=40)
    rl = tmp_path / "eval/rl/predictions.jsonl"
    rl.write_text("".join(reversed(rl.read_text().splitlines(keepends=True))))  # the order of the file does not matter
    reseal(tmp_path / "eval/rl")
    sft, rl = (read_evaluated(tmp_path / "eval" / name) for name in ("sft", "rl"))
    rows = level_changes(sft, rl, config)
    whole = compare(sft.lists, rl.lists, config.eval.resamples, config.seed)
    for row in rows:
        if row.prefix == "L1+L2+L3":
            expected = whole[f"HR@{row.k}"]
            assert row.change["value"] == pytest.approx(expected["value"]) and row.change["p"] == expected["p"]
            assert row.change["low"] == pytest.approx(expected["low"], abs=0.06)  # other resamples
        for method, name in ((sft, "sft"), (rl, "rl")):
            assert getattr(row, name) == pytest.approx(method.metrics.levels["cumulative"][row.k][row.prefix])
    parts = parts_of_lists(sft.lists) | {"all": {"of them": np.ones(len(sft.lists), dtype=bool)}}
    for method in (sft, rl):
        method.metrics.slices["all"] = {"of them": {"share": 1.0, **method.metrics.sid}}
    changes = {(row.question, row.answer): row for row in slice_changes(sft, rl, parts, config)}
    assert changes["all", "of them"].change["value"] == pytest.approx(whole["HR@10"]["value"])
    repeat = changes["target in the history", "repeat"]
    assert repeat.change["value"] == pytest.approx(repeat.rl["value"] - repeat.sft["value"])


def test_the_page_of_a_run(tmp_path):
    config = make_run(tmp_path, users=40)
    write_report(config)
    page = Page(tmp_path / "report/rl.html")
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == ["reading", "cutoffs", "levels", "slices", "sharpness", "training"]
    for words in ("MRR@50", "target popularity", "diversity", "Entropy of the policy", "KL divergence from the SFT model"):
        assert words in page.words
    assert not re.search(r"built-in|object at 0x|Undefined|\bNone\b|\bnan\b", page.words)
    pages = {"index.html", "rl.html", "comparison.html", "comparison.json", "paper_gap.html", "paper_gap.md", "paper_gap.json"}
    assert pages | {"plotly.min.js", "manifest.json"} == {path.name for path in (tmp_path / "report").iterdir()}
