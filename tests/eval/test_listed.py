import pytest

from minionerec.baselines import trivial
from minionerec.config import Config, EvalConfig
from minionerec.eval.listed import listed_predictions
from tests.eval.samples import DATASET, DISTINCT, INDICES


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
