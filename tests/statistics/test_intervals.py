import warnings

import numpy as np
import pytest
from scipy import stats

from minionerec.statistics import intervals as module
from minionerec.statistics.differences import differences
from minionerec.statistics.intervals import (
    Interval,
    across_seeds,
    beyond_noise,
    binomial_interval,
    detectable,
    intervals,
    paired,
    permutation,
    standard_error,
)

pytestmark = pytest.mark.fast


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).random((2, 100))
    assert intervals(values, 200, 1) == intervals(values, 200, 1)
    assert intervals(values, 200, 1) != intervals(values, 200, 2)


def test_constant_values_give_a_point_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert intervals(np.zeros((1, 20)), 100, 0) == [(0.0, 0.0, 0.0)]
        assert intervals(np.ones((1, 20)), 100, 0) == [(1.0, 1.0, 1.0)]
        assert intervals(np.array([[0.5]]), 100, 0) == [(0.5, 0.5, 0.5)]


def test_width_is_that_of_the_normal_approximation():
    values = (np.random.default_rng(0).random((1, 2000)) < 0.2).astype(float)
    (found,) = intervals(values, 2000, 0)
    expected = 2 * 1.96 * values.std() / np.sqrt(2000)
    assert abs((found.high - found.low) / expected - 1) < 0.1


def test_memory_bound_keeps_the_interval(monkeypatch):
    values = np.random.default_rng(0).random((3, 50))
    monkeypatch.setattr(module, "_BATCH_BYTES", values.nbytes)  # one resample at a time
    (narrow, *_) = intervals(values, 300, 0)
    assert narrow.low < values[0].mean() < narrow.high


def test_paired_is_narrower_than_the_difference_of_intervals():
    first = np.random.default_rng(0).random((1, 300))
    second = first + 0.01
    (found,) = paired(first, second, 200, 0)
    assert np.allclose(found, 0.01)
    (reverse,) = paired(second, first, 200, 0)
    assert np.isclose(reverse.value, -found.value)


def test_intervals_are_those_of_scipys_bootstrap():
    values = np.random.default_rng(1).choice([0.0, 0.3, 0.5, 1.0], size=(1, 400), p=[0.7, 0.1, 0.1, 0.1])
    (ours,) = intervals(values, 20000, 0)
    theirs = stats.bootstrap(values, np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(0))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_users_are_resampled_with_all_their_rows():
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(100), 5)
    values = np.repeat(rng.random(100) < 0.3, 5).astype(float)[None]  # a user's rows are alike
    (rows,), (whole,) = intervals(values, 4000, 0), intervals(values, 4000, 0, users)
    (single,) = intervals(values[:, ::5], 4000, 0)
    assert whole.high - whole.low == pytest.approx(single.high - single.low, rel=0.1)
    assert whole.high - whole.low > 1.8 * (rows.high - rows.low)
    assert standard_error(values[0], users) == pytest.approx(standard_error(values[0, ::5]))


def test_permutation_is_the_sign_test_and_scipys():
    first, second = np.zeros(60), np.zeros(60)
    second[:15], first[15:20] = 1, 1  # 15 users gain, 5 lose
    (ours,) = permutation(first[None], second[None], 20000, 0)
    assert ours == pytest.approx(stats.binomtest(15, 20).pvalue, abs=0.01)
    a, b = np.random.default_rng(3).random((2, 40)) + np.array([[0.0], [0.12]])
    (ours,) = permutation(a[None], b[None], 20000, 0)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(y - x, axis=axis),
        permutation_type="samples",
        n_resamples=20000,
        vectorized=True,
        rng=1,
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.01)


def test_equal_runs_differ_by_nothing():
    values = np.random.default_rng(4).random((2, 30))
    assert permutation(values, values, 100, 0) == [1.0, 1.0]


def test_noise_needs_the_interval_and_the_test_to_agree():
    excludes, holds = Interval(0.02, 0.001, 0.04), Interval(0.02, -0.001, 0.04)
    assert beyond_noise(excludes, 0.049) and beyond_noise(Interval(-0.02, -0.04, -0.001), 0.049)
    assert not beyond_noise(excludes, 0.05) and not beyond_noise(holds, 0.01)


def test_few_users_are_never_beyond_noise():
    """The interval of three users who all gain excludes zero; signs of three differences prove nothing."""
    change = differences({"HR@1": np.zeros(3)}, {"HR@1": np.ones(3)}, 500, 0, None)["HR@1"]
    assert change["low"] > 0 and change["p"] > 0.2 and change["noise"] and change["detectable"] is None


def test_a_binomial_interval_is_scipys():
    for hits, rows in ((0, 40), (1, 40), (7, 9), (9, 9)):
        theirs = stats.binomtest(hits, rows).proportion_ci(method="wilson")
        assert binomial_interval(hits / rows, rows) == pytest.approx((hits / rows, theirs.low, theirs.high))


def test_detectable_difference_is_found_in_four_of_five_experiments():
    rng, users, base = np.random.default_rng(5), 2000, 0.1
    effect = detectable((rng.random(users) < base).astype(float))
    found = 0
    for _ in range(400):
        drawn = rng.random(users) < base + effect
        found += abs(drawn.mean() - base) > 1.96 * drawn.std() / np.sqrt(users)
    assert 0.7 < found / 400 < 0.9


def test_seeds():
    assert across_seeds([0.1]) == {"runs": 1, "mean": pytest.approx(0.1), "sd": None, "low": None, "high": None}
    found = across_seeds([0.1, 0.2, 0.3])
    assert (found["mean"], found["sd"]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert found["high"] == pytest.approx(0.2 + 4.302653 * 0.1 / np.sqrt(3))
    two = across_seeds([0.01, 0.03], (0.0, 1.0))  # the t-interval of two seeds is wide
    assert two["low"] == 0 and 0.1 < two["high"] < 1 and across_seeds([0.01, 0.03])["low"] < 0
