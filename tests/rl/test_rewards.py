import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.rl.rewards import ranking, ranking_only, rule

GROUP = [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_hand_computed():
    weights = [1 / math.log2(rank + 2) for rank in range(4)]
    assert rule(GROUP, [5, 6]) == [0, 0, 1, 0]
    expected = [-weights[0], -weights[1], 0, -weights[3]]
    assert ranking_only(GROUP, [5, 6]) == pytest.approx([value / sum(weights) for value in expected])
    assert ranking(GROUP, (5, 6))[2] == 1


def test_no_hit_is_zero_everywhere():
    assert rule(GROUP, [9, 9]) == ranking_only(GROUP, [9, 9]) == ranking(GROUP, [9, 9]) == [0, 0, 0, 0]


def test_the_papers_sixteen_weights():
    group = [[rank] for rank in range(16)]
    penalties = ranking_only(group, [15])
    assert penalties[0] == pytest.approx(-0.164, abs=1e-3)  # measured on the reference, G = 16
    assert ranking_only(group, [0])[15] == pytest.approx(-0.040, abs=1e-3)


@given(st.integers(2, 32), st.data())
def test_only_the_hit_is_rewarded_and_higher_misses_cost_more(size, data):
    hit = data.draw(st.integers(0, size - 1))
    values = ranking([[rank] for rank in range(size)], [hit])
    misses = [value for rank, value in enumerate(values) if rank != hit]
    assert values[hit] == 1
    assert misses == sorted(misses)
    assert all(-1 < value < 0 for value in misses)
