import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import CUTOFFS
from minionerec.errors import DataError
from minionerec.eval.metrics import gains, hit_rate, hits, measure, ndcg, per_user, ranks
from tests.eval.samples import prediction, random_predictions

RANKS = st.lists(st.one_of(st.integers(0, 80).map(float), st.just(math.inf)), min_size=1, max_size=30).map(np.array)


def test_hand_computed_values():
    found = ranks([
        prediction("a", (1, 1), (1, 1), (0, 0)),
        prediction("b", (1, 1), (0, 0), (2, 2), (1, 1)),
        prediction("c", (1, 1), (1, 0), (0, 1)),
        prediction("d", (1, 1)),
    ])  # fmt: skip
    assert found.tolist() == [0, 2, math.inf, math.inf]
    assert (hit_rate(found, 1), hit_rate(found, 3), hit_rate(found, 50)) == (0.25, 0.5, 0.5)
    assert ndcg(found, 1) == 0.25
    assert ndcg(found, 3) == pytest.approx((1 + 1 / 2) / 4)


def test_item_rank_is_of_the_item_not_of_its_sid():
    one = prediction("a", (1, 1), (1, 1), item=7, items=(5, 7))
    assert ranks([one], "sid").tolist() == [0]
    assert ranks([one], "item").tolist() == [1]


@pytest.mark.parametrize("on", ["sid", "item"])
def test_against_a_slow_loop(on):
    predictions = random_predictions()
    found = ranks(predictions, on)
    for k in CUTOFFS:
        hit, gain = 0.0, 0.0
        for one in predictions:
            ranked, target = (one.sids, one.target_sid) if on == "sid" else (one.items, one.target)
            for place in range(min(k, len(ranked))):
                if ranked[place] == target:
                    hit += 1
                    gain += 1 / math.log2(place + 2)
        assert hit_rate(found, k) == pytest.approx(hit / len(predictions))
        assert ndcg(found, k) == pytest.approx(gain / len(predictions))


@given(RANKS)
def test_bounds_and_monotone_in_k(found):
    values = per_user(found)
    for name in ("HR", "NDCG"):
        rows = np.stack([values[f"{name}@{k}"] for k in CUTOFFS])
        assert ((rows >= 0) & (rows <= 1)).all()
        assert (np.diff(rows, axis=0) >= 0).all()
    for small, large in itertools.pairwise(CUTOFFS):
        grown = hit_rate(found, large) - hit_rate(found, small)
        gained = ndcg(found, large) - ndcg(found, small)
        # The arithmetic every published table with one target per user must obey.
        assert grown / math.log2(large + 1) - 1e-12 <= gained <= grown / math.log2(small + 2) + 1e-12
    assert all((gains(found, k) <= hits(found, k)).all() for k in CUTOFFS)
    assert hit_rate(found, 1) == ndcg(found, 1)


def test_negative_rank_is_a_miss():
    assert hits(np.array([-1, 0]), 5).tolist() == [0, 1]
    assert gains(np.array([-1, 0]), 5).tolist() == [0, 1]


def test_measure_is_json_and_deterministic():
    predictions = random_predictions()
    found = measure(predictions, resamples=50, seed=1)
    assert found == measure(predictions, resamples=50, seed=1)
    assert json.loads(json.dumps(found)) == found
    assert found["users"] == 40 and found["exact"] == 1.0
    assert list(found["sid"]) == [f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in CUTOFFS]
    for part in ("sid", "item"):
        for cell in found[part].values():
            assert cell["low"] <= cell["value"] <= cell["high"]
    assert found["levels"]["cumulative"]["10"]["L1+L2+L3"] == pytest.approx(found["sid"]["HR@10"]["value"])


def test_measure_of_nobody():
    with pytest.raises(DataError, match="no predictions"):
        measure([])


def test_importing_metrics_does_not_import_torch():
    code = "import sys, minionerec.eval, minionerec.eval.calc_level; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
