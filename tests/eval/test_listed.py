import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.artifacts import Manifest, Recipe
from minionerec.baselines import trivial
from minionerec.config import NAMING, Config, EvalConfig, SftConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError
from minionerec.eval import listed
from minionerec.eval.listed import left_out, listed_predictions, stored_lists
from minionerec.eval.metrics import values_per_row
from minionerec.training.ranking import TIES, frame, rank_rows
from minionerec.training.ranking_data import from_dataset
from tests.eval.samples import DATASET, DISTINCT, INDICES
from tests.examples import examples


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("kind", INDICES)
def test_lists_are_those_of_the_trivial_recommenders(kind, split):
    config, index = Config(eval=EvalConfig(num_beams=5, split=split)), INDICES[kind]
    rows = DATASET.split(split)
    rankings = {
        "popularity": trivial.popularity(DATASET, 5, split),
        "repeat": trivial.repeat_last(rows, 5),
    }
    for name, expected in rankings.items():
        predictions = listed_predictions(name, config, DATASET, index)
        assert [p.items for p in predictions] == [ranking.tolist() for ranking in expected]
        assert [p.user for p in predictions] == rows["user"].to_list()
        for prediction in predictions:
            sids = [tuple(index.codes[item].tolist()) for item in prediction.items]
            assert prediction.sids == [list(sid) for sid in dict.fromkeys(sids)]


def test_lists_leave_out_the_history_if_it_is_excluded():
    config, rows = Config(eval=EvalConfig(num_beams=5, exclude_history=True)), DATASET.split("test")
    every = trivial.popularity(DATASET, 20)[0].tolist()
    expected = [[item for item in every if item not in history][:5] for history in rows["history"].to_list()]
    assert [p.items for p in listed_predictions("popularity", config, DATASET, DISTINCT)] == expected
    assert not any(p.items for p in listed_predictions("repeat", config, DATASET, DISTINCT))


@examples(30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([*INDICES]), st.booleans(), st.integers(1, 20))
def test_targets_of_equal_scores_count_in_expectation(seed, kind, exclude, length):
    """However early the list is cut: at most `length` items, of which the last ones may tie with others behind the end."""
    data, index, rng = from_dataset(DATASET, 10), INDICES[kind], np.random.default_rng(seed)
    rows = data.rows["test"]
    scores = rng.integers(0, 4, (len(rows), 21)).astype(float)
    ranking = rank_rows(lambda part: torch.from_numpy(scores.copy()), rows, data.protocol, 20, left_out=True)
    config = Config(eval=EvalConfig(num_beams=length, exclude_history=exclude))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listed, "_of_baseline", lambda *_: listed._read_table(frame(data, "test", ranking), config))
        predictions = listed_predictions("sasrec", config, DATASET, index)
    k = max(1, length - 1)
    measured = {on: values_per_row(predictions, (k,), on)[f"HR@{k}"] for on in ("item", "sid")}
    for row, prediction in enumerate(predictions):
        left = [item for item in range(20) if not (exclude and item in prediction.history)]
        of_item = scores[row, 1:]
        found = []
        for _ in range(30):
            order = sorted(rng.permutation(left).tolist(), key=lambda item: -of_item[item])
            found.append(prediction.target in order[:k])
        target = prediction.target
        above = sum(of_item[item] > of_item[target] for item in left)
        level = sum(of_item[item] == of_item[target] for item in left)
        expected = np.clip(k - above, 0, level) / level if target in left else 0
        assert measured["item"][row] == pytest.approx(expected)
        assert expected not in (0, 1) or set(found) == {bool(expected)}  # the formula is that of random orders
        if kind == "distinct":
            assert measured["sid"][row] == measured["item"][row]


def test_lists_that_are_too_short_for_histories_are_named_after_one_look_at_the_data(tmp_path, monkeypatch):
    data = Recipe("data", tmp_path / "data", {}, {}, 0)
    with data.write() as draft:
        DATASET.save(draft.path)
    digest = Manifest.load(tmp_path / "data").digest
    for name, top, ties in (("sasrec", 5, TIES), ("gru4rec", 20, TIES), ("markov", 5, TIES), ("hstu", 20, {})):
        settings = {"baseline": {"top": top, **ties}}
        with Recipe(f"baselines/{name}", tmp_path / "baselines" / name, settings, {"data": digest}, 0).write():
            pass
    loads, load = [], Dataset.load
    monkeypatch.setattr(Dataset, "load", lambda folder: loads.append(folder) or load(folder))
    config = Config(out=str(tmp_path), eval=EvalConfig(num_beams=5, exclude_history=True))
    names = ["popularity", "sasrec", "gru4rec", "markov", "hstu", "sft"]
    reasons = left_out(config, names)
    assert list(reasons) == ["sasrec", "markov", "hstu"] and len(loads) == 1
    assert "an earlier version made these lists" in reasons["hstu"] and "--baseline.model hstu --replace" in reasons["hstu"]
    assert "the lists have 5 items, but" in reasons["markov"] and "--baseline.model markov --replace" in reasons["markov"]
    assert list(left_out(Config(out=str(tmp_path), eval=EvalConfig(num_beams=5)), names)) == ["hstu"]
    titles = Config(out=str(tmp_path), sft=SftConfig(tasks=[NAMING], best_metric="loss"))
    assert "have no SID as an answer" in left_out(titles, ["sft"])["sft"]  # its lists would look like any others
    assert len(loads) == 1


def test_lists_that_are_not_read_need_not_say_ties(tmp_path):
    """A TIGER of an earlier version is asked by its weights; training it again would change nothing."""
    for name in ("tiger", "hstu"):
        with Recipe(f"baselines/{name}", tmp_path / "baselines" / name, {"baseline": {"top": 5}}, {"data": "its"}, 0).write():
            pass
    assert stored_lists(tmp_path, "tiger", {"data": "its"}).stage == "baselines/tiger"
    with pytest.raises(ArtifactError, match=r"hstu: an earlier version made these lists"):
        stored_lists(tmp_path, "hstu", {"data": "its"})
