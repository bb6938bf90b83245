import dataclasses
import json
import math

import pytest

from minionerec.config import CUTOFFS
from minionerec.errors import DataError
from minionerec.eval.metrics import item_ranks, measure, ranks
from minionerec.statistics.ranking import hit_rate, ndcg
from tests.eval.samples import prediction, random_predictions

pytestmark = pytest.mark.fast


def test_hand_computed_values():
    target_ranks = ranks([
        prediction("a", (1, 1), (1, 1), (0, 0)),
        prediction("b", (1, 1), (0, 0), (2, 2), (1, 1)),
        prediction("c", (1, 1), (1, 0), (0, 1)),
        prediction("d", (1, 1)),
    ])  # fmt: skip
    assert target_ranks.tolist() == [0, 2, math.inf, math.inf]
    assert (hit_rate(target_ranks, 1), hit_rate(target_ranks, 3), hit_rate(target_ranks, 50)) == (0.25, 0.5, 0.5)
    assert ndcg(target_ranks, 1) == 0.25
    assert ndcg(target_ranks, 3) == pytest.approx((1 + 1 / 2) / 4)


def test_item_rank_is_of_the_item_not_of_its_sid():
    example = prediction("a", (1, 1), (1, 1), item=7, items=(5, 7))
    assert ranks([example], "sid").tolist() == [0]
    assert ranks([example], "item").tolist() == [1]


def test_a_hidden_target_is_no_hit_on_items_though_another_item_has_its_sid():
    """Items 7 and 8 share a SID, 7 is in the history and left out; some other SID of the list has two items."""
    shown = dataclasses.replace(prediction("a", (1, 1), (1, 1), (2, 2), item=7, items=(8, 5, 6)), sizes=[1, 2])
    assert ranks([shown], "sid").tolist() == [0]
    best, ties = item_ranks([shown])
    assert (best.tolist(), ties.tolist()) == ([math.inf], [1])
    on_items = measure([shown], [1, 2], 10).item
    assert [on_items[f"HR@{k}"][part] for k in (1, 2) for part in ("value", "best", "worst")] == [0] * 6
    there = dataclasses.replace(shown, items=[7, 8, 5], sizes=[2, 1])
    assert [ranks_or_ties.tolist() for ranks_or_ties in item_ranks([there])] == [[0], [2]]


@pytest.mark.parametrize("on", ["sid", "item"])
def test_against_a_slow_loop(on):
    predictions = random_predictions()
    target_ranks = ranks(predictions, on)
    for k in CUTOFFS:
        hit, gain = 0.0, 0.0
        for example in predictions:
            ranked, target = (example.sids, example.target_sid) if on == "sid" else (example.items, example.target)
            for position in range(min(k, len(ranked))):
                if ranked[position] == target:
                    hit += 1
                    gain += 1 / math.log2(position + 2)
        assert hit_rate(target_ranks, k) == pytest.approx(hit / len(predictions))
        assert ndcg(target_ranks, k) == pytest.approx(gain / len(predictions))


def test_measure_is_json_and_deterministic():
    predictions = random_predictions()
    metrics = measure(predictions, resamples=50, seed=1)
    assert metrics == measure(predictions, resamples=50, seed=1)
    assert json.loads(json.dumps(metrics.as_dict())) == metrics.as_dict()
    assert metrics.users == 40 and metrics.exact == 1.0
    assert list(metrics.sid) == [f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (1, 3, 5, 10, 20)]  # none has 50
    for part in (metrics.sid, metrics.item):
        for cell in part.values():
            assert cell["low"] <= cell["value"] <= cell["high"]
    assert metrics.levels["cumulative"]["10"]["L1+L2+L3"] == pytest.approx(metrics.sid["HR@10"]["value"])


@pytest.mark.parametrize(("length", "cutoffs"), [(10, [1, 3, 5, 10]), (4, [1, 3]), (1, [1])])
def test_no_metric_has_a_cut_off_beyond_the_lists(length, cutoffs):
    lists = [
        dataclasses.replace(row, sids=row.sids[:length], scores=row.scores[:length], items=row.items[:length])
        for row in random_predictions()
    ]
    metrics = measure(lists, resamples=20)
    names = {f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in cutoffs}
    assert metrics.cutoffs == cutoffs and metrics.lengths == {"shortest": length, "longest": length}
    assert set(metrics.sid) == set(metrics.item) == set(metrics.detectable) == names
    assert set(metrics.levels["cumulative"]) == set(metrics.levels["independent"]) == set(map(str, cutoffs))


def test_a_ranking_of_ten_items_has_ten_places_however_many_sids_they_share():
    ranking = [prediction("a", (1, 1), (0, 0), (1, 1), item=3, items=tuple(range(10)))]
    assert measure(ranking, resamples=20).cutoffs == [1, 3, 5, 10]
    ten_items_of_two_sids = [dataclasses.replace(ranking[0], sizes=[5, 5])]  # a model's list of two SIDs
    assert measure(ten_items_of_two_sids, resamples=20).cutoffs == [1]


def test_no_hit_among_few_users_is_not_certain():
    misses = [prediction(f"u{user}", (1, 1), (0, 0)) for user in range(40)]
    metrics = measure(misses, resamples=20)
    assert metrics.sid["HR@1"] == {"value": 0, "low": 0, "high": pytest.approx(0.0876, abs=1e-4)}  # Wilson's, of 0 in 40
    assert metrics.detectable["HR@1"] is None
    hits = measure([prediction(f"u{user}", (1, 1), (1, 1)) for user in range(40)], resamples=20)
    assert hits.sid["HR@1"] == {"value": 1, "low": pytest.approx(1 - 0.0876, abs=1e-4), "high": 1}


def test_measure_of_nobody():
    with pytest.raises(DataError, match="no predictions"):
        measure([])
