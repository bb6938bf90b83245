import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import CUTOFFS
from minionerec.statistics.ranking import gains, hit_rate, hits, ndcg, per_user
from tests.examples import examples

pytestmark = pytest.mark.fast

RANKS = st.lists(st.one_of(st.integers(0, 80).map(float), st.just(math.inf)), min_size=1, max_size=30).map(np.array)


@examples(100)
@given(RANKS)
def test_bounds_and_monotone_in_k(target_ranks):
    values = per_user(target_ranks)
    for name in ("HR", "NDCG"):
        rows = np.stack([values[f"{name}@{k}"] for k in CUTOFFS])
        assert ((rows >= 0) & (rows <= 1)).all()
        assert (np.diff(rows, axis=0) >= 0).all()
    for small, large in itertools.pairwise(CUTOFFS):
        grown = hit_rate(target_ranks, large) - hit_rate(target_ranks, small)
        gained = ndcg(target_ranks, large) - ndcg(target_ranks, small)
        # The arithmetic every published table with one target per user must obey.
        assert grown / math.log2(large + 1) - 1e-12 <= gained <= grown / math.log2(small + 2) + 1e-12
    assert all((gains(target_ranks, k) <= hits(target_ranks, k)).all() for k in CUTOFFS)
    assert hit_rate(target_ranks, 1) == ndcg(target_ranks, 1)


def test_negative_rank_is_a_miss():
    assert hits(np.array([-1, 0]), 5).tolist() == [0, 1]
    assert gains(np.array([-1, 0]), 5).tolist() == [0, 1]
