"""What is noise: bootstrap intervals with users as units, paired tests between runs, and several seeds together.

Users with equal values are of one kind. Resampling users with replacement draws how many users there are of each kind, and
these numbers are multinomial. There are few kinds (a rank is one of fifty, or a miss). Drawing the numbers instead of the users
therefore gives exactly the bootstrap's distribution, at a cost that does not grow with the users. The tests compare with scipy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_BATCH_BYTES = 64e6  # of draws held at once: bounds the memory, whatever `resamples` is
POWER = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))  # two-sided 5 % level, 80 % power
_Z = float(stats.norm.ppf(0.975))  # a normal variable lies within this many standard deviations with a probability of 95 %
SIGNIFICANCE = 0.05  # a p-value below it is small


class Interval(NamedTuple):
    """A mean over users and its 95 % interval."""

    value: float
    low: float
    high: float


def _kinds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kinds of users.

    Args:
        values: (metrics, users).

    Returns:
        The distinct columns of `values`, (metrics, kinds), and how many users have each, (kinds,).
    """
    # Sorting whole columns is slow (`np.unique(axis=1)`), so one random combination of a user's values stands for them. Two
    # distinct columns could have equal combinations; every row is compared, and a difference falls back to the slow way.
    mixed = np.random.default_rng(0).standard_normal(len(values)) @ values
    _, first, kind, counts = np.unique(mixed, return_index=True, return_inverse=True, return_counts=True)
    columns = values[:, first]
    for row, column in zip(values, columns, strict=True):
        if not np.array_equal(column[kind], row):
            return np.unique(values, axis=1, return_counts=True)
    return columns, counts


def _by_unit(values: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """Sums over the rows of each user.

    The number of rows comes last, so that a resample's mean is a ratio of two of its sums.

    Args:
        values: (metrics, rows).
        units: (rows,) the number of each row's user; None if every row is a user.

    Returns:
        (metrics + 1, users).
    """
    if units is None:
        return np.concatenate([values, np.ones((1, values.shape[1]))])
    sums = [np.bincount(units, weights=row) for row in values]
    return np.stack([*sums, np.bincount(units).astype(float)])


def intervals(values: np.ndarray, resamples: int, seed: int, units: np.ndarray | None = None) -> list[Interval]:
    """Means over rows with 95 % percentile bootstrap intervals (Efron and Tibshirani, 1993, chapter 13).

    Every metric sees the same resampled users, so the intervals of one call are comparable.

    Args:
        values: (metrics, rows) float.
        resamples: bootstrap resamples.
        seed: of the resampling; equal arguments give equal intervals.
        units: (rows,) the number of each row's user, from 0; users are resampled with all their rows. None: one row each.

    Returns:
        One interval per metric.
    """
    values = np.asarray(values, dtype=float)
    means = values.mean(axis=1)
    columns, counts = _kinds(_by_unit(values, units))
    if len(counts) == 1:  # every resample is the same
        return [Interval(mean, mean, mean) for mean in means.tolist()]
    rng, users, resampled_means = np.random.default_rng(seed), int(counts.sum()), []
    batch = max(1, int(_BATCH_BYTES / 8 / len(counts)))
    for start in range(0, resamples, batch):
        users_of_kind = rng.multinomial(users, counts / users, size=min(batch, resamples - start))  # (resamples, kinds)
        sums = users_of_kind.astype(float) @ columns.T  # (resamples, metrics + 1)
        resampled_means.append(sums[:, :-1] / sums[:, -1:])
    low, high = np.percentile(np.concatenate(resampled_means), [2.5, 97.5], axis=0)
    return [Interval(*row) for row in zip(means.tolist(), low.tolist(), high.tolist(), strict=True)]


def paired(first: np.ndarray, second: np.ndarray, resamples: int, seed: int, units: np.ndarray | None = None) -> list[Interval]:
    """How much `second` exceeds `first` on the same rows: mean differences with 95 % intervals.

    Args:
        first, second: (metrics, rows) float, rows in the same order.
        resamples: bootstrap resamples.
        seed: of the resampling.
        units: (rows,) the number of each row's user, from 0; None if every user has one row.
    """
    return intervals(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), resamples, seed, units)


def permutation(
    first: np.ndarray, second: np.ndarray, resamples: int, seed: int, units: np.ndarray | None = None
) -> list[float]:
    """Two-sided p-values of paired permutation tests, one per metric.

    Each user's difference gets a random sign. The p-value is (1 + permutations at least as extreme) / (1 + permutations).

    Args:
        first, second: (metrics, rows) float, rows in the same order.
        resamples: permutations.
        seed: of the signs.
        units: (rows,) the number of each row's user, from 0; None if every user has one row.
    """
    differences = _by_unit(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), units)[:-1]
    p_values = []
    for row in differences:
        rng = np.random.default_rng(seed)  # equal differences, equal p-values
        # Users whose differences have one size are alike: how many of them get a plus is binomial.
        sizes, counts = np.unique(np.abs(row).round(12), return_counts=True)
        sizes, counts = sizes[sizes > 0], counts[sizes > 0]
        extreme, batch = 0, max(1, int(_BATCH_BYTES / 8 / max(len(counts), 1)))
        for start in range(0, resamples, batch):
            positive = rng.binomial(counts, 0.5, size=(min(batch, resamples - start), len(counts)))
            extreme += int((np.abs((2 * positive - counts) @ sizes) >= abs(row.sum()) - 1e-9).sum())  # 1e-9: rounding of sums
        p_values.append((1 + extreme) / (1 + resamples))
    return p_values


def standard_error(values: np.ndarray, units: np.ndarray | None = None) -> float:
    """Standard error of the mean over rows, with users as units.

    If users have several rows, the mean is a ratio of two sums over users, and the error is that of its linearisation.
    """
    sums, rows = _by_unit(np.asarray(values, dtype=float)[None], units)
    users = len(rows)
    if users < 2:
        return 0.0
    residuals = sums - sums.sum() / rows.sum() * rows
    return float(math.sqrt(users / (users - 1) * (residuals**2).sum()) / rows.sum())


def detectable(values: np.ndarray, units: np.ndarray | None = None) -> float | None:
    """The smallest true difference from a fixed number that a two-sided test at 5 % finds with 80 % power: 2.8 standard errors.

    Given the paired differences of two runs, it is the smallest true difference between these. None if all users are alike:
    such a sample does not tell how much users differ.
    """
    error = standard_error(values, units)
    return POWER * error if error else None


def binomial_interval(share: float, rows: int) -> Interval:
    """The 95 % interval of a share of `rows` independent examples (Wilson, 1927). It has a width at 0 and at 1 too.

    >>> [round(value, 4) for value in binomial_interval(0.0, 40)]
    [0.0, 0.0, 0.0876]
    """
    shrinkage = _Z**2 / rows  # towards one half
    middle = (share + shrinkage / 2) / (1 + shrinkage)
    half = _Z * math.sqrt(share * (1 - share) / rows + shrinkage / (4 * rows)) / (1 + shrinkage)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def across_seeds(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """Mean of one metric over runs that differ in their seed.

    Args:
        within: the least and the greatest value that the metric can have; the interval ends there.

    Returns:
        `runs`, `mean`, and the standard deviation `sd` with the 95 % t-interval `low` to `high` of the mean over seeds; these
        three are None for a single run.
    """
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"runs": 1, "mean": mean, "sd": None, "low": None, "high": None}
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    low, high = max(mean - half, within[0]), min(mean + half, within[1])
    return {"runs": len(values), "mean": mean, "sd": sd, "low": low, "high": high}


def mean_over_seeds(by_seed: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each metric's mean over several seeds for each row, (rows,), by name.

    Args:
        by_seed: per seed (rows,) values by metric, the rows in one order.
    """
    return {name: np.mean([values[name] for values in by_seed], axis=0) for name in by_seed[0]}


def beyond_noise(interval: Interval, p: float) -> bool:
    """Whether a paired difference is more than noise: its interval leaves out zero, and the test of the pairs agrees.

    The two can disagree if few users differ. The percentile interval is then too narrow, and `p` of `permutation`, which is
    exact for any number of users, decides.

    >>> beyond_noise(Interval(0.02, 0.001, 0.04), p=0.03), beyond_noise(Interval(0.02, 0.001, 0.04), p=0.078)
    (True, False)
    """
    return p < SIGNIFICANCE and (interval.low > 0 or interval.high < 0)
