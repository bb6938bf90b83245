import warnings

import numpy as np

from minionerec.eval import intervals as module
from minionerec.eval.intervals import intervals, paired


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
