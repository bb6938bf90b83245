import numpy as np
import pytest

from minionerec.statistics.intervals import intervals, standard_error
from minionerec.statistics.pair_metrics import ScoredPairs, auc, per_user
from minionerec.statistics.pair_results import compare, measure, metric_names

pytestmark = pytest.mark.fast


def scored(users=120, signal=1.0, seed=0, noise=0):
    """Users with a like among four candidates; scores that know the labels as far as the signal goes."""
    rng = np.random.default_rng([seed, noise])
    numbers, labels = np.repeat(np.arange(users), 4), np.tile([1, 0, 0, 0], users)
    return ScoredPairs(numbers, labels, signal * labels + rng.normal(0, 1, 4 * users))


def test_every_metric_has_an_interval_around_it():
    results = measure(scored(), probability=True, resamples=300, seed=1)
    assert tuple(results) == metric_names()
    assert all(interval.low <= interval.value <= interval.high for interval in results.values())
    assert all(interval.low < interval.high for interval in results.values() if interval.value < 1)
    plain = measure(scored(), probability=False, resamples=300, seed=1)
    assert set(results) - set(plain) == {"F1", "LogLoss"} and all(plain[name] == results[name] for name in plain)


def test_the_interval_of_auc_is_that_of_real_resampling():
    pairs, rng = scored(60), np.random.default_rng(5)
    real = []
    for _ in range(400):
        rows = (rng.integers(0, 60, 60)[:, None] * 4 + np.arange(4)).ravel()
        real.append(auc(ScoredPairs(pairs.users[rows], pairs.labels[rows], pairs.scores[rows]))[0])
    interval = measure(pairs, probability=False, resamples=2000, seed=0)["AUC"]
    assert interval.value == auc(pairs)[0]
    np.testing.assert_allclose([interval.low, interval.high], np.percentile(real, [2.5, 97.5]), atol=0.012)


def test_means_over_users_are_those_of_the_shared_intervals():
    pairs = scored()
    assert (
        measure(pairs, probability=False, resamples=200, seed=3)["GAUC"] == intervals(per_user(pairs)["GAUC"][None], 200, 3)[0]
    )


def test_a_planted_difference_is_found_and_none_is_not():
    weak, strong = scored(signal=0.2), scored(signal=2.0)
    changes = compare(weak, strong, probability=True, resamples=400, seed=0)
    assert tuple(changes) == metric_names()
    assert all(changes[name]["p"] < 0.05 and not changes[name]["noise"] for name in ("AUC", "GAUC", "F1", "NDCG@5"))
    same = compare(weak, weak, probability=True, resamples=400, seed=0)
    assert all(change["value"] == 0 and change["noise"] and change["p"] == 1 for change in same.values())
    # Differences share their resamples: the same change of both sides cancels.
    shifted = ScoredPairs(weak.users, weak.labels, weak.scores + 1)
    assert compare(weak, shifted, probability=False, resamples=400, seed=0)["AUC"]["high"] == 0
    assert compare(weak, shifted, probability=True, resamples=400, seed=0)["LogLoss"]["value"] > 0


def test_the_test_of_auc_errs_as_often_as_it_says():
    small = sum(
        compare(scored(40, noise=2 * n), scored(40, noise=2 * n + 1), probability=False, resamples=60, seed=n)["AUC"]["p"]
        < 0.05
        for n in range(60)
    )
    assert small <= 10  # 3 of 60 expected; more than 10 has a chance of 1 in 2,000
    change = compare(scored(200, noise=1), scored(200, noise=2), probability=False, resamples=800, seed=0)["AUC"]
    assert change["detectable"] == pytest.approx(2.8 * (change["high"] - change["low"]) / 3.92, rel=0.1)
    gain = compare(scored(200, noise=1), scored(200, noise=2), probability=False, resamples=200, seed=0)["GAUC"]
    users = per_user(scored(200, noise=2))["GAUC"] - per_user(scored(200, noise=1))["GAUC"]
    assert gain["detectable"] == pytest.approx(2.8 * standard_error(users), rel=0.01)
