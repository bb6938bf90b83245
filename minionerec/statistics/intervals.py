"""What is noise: bootstrap intervals with users as units, paired tests between runs, and several seeds together.

Resampling users with replacement draws, for users with equal values, a multinomial number of each kind. There are few kinds
(a rank is one of fifty, or a miss), so drawing those numbers gives the bootstrap's very distribution at a cost that does not
grow with the number of users; the tests compare with scipy's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_BATCH_BYTES = 64e6
_POWER = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))  # two-sided 5 % level, 80 % power


class Interval(NamedTuple):
    """A mean over users and its 95 % interval."""

    value: float
    low: float
    high: float


def _kinds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct columns of (metrics, users) and how many users have each."""
    # Columns are told apart by a random projection; should two distinct ones ever agree in it, the slow way decides.
    mixed = np.random.default_rng(0).standard_normal(len(values)) @ values
    _, first, kind, counts = np.unique(mixed, return_index=True, return_inverse=True, return_counts=True)
    columns = values[:, first]
    for row, column in zip(values, columns, strict=True):
        if not np.array_equal(column[kind], row):
            return np.unique(values, axis=1, return_counts=True)
    return columns, counts


def _by_unit(values: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """(metrics + 1, units): each unit's sums, and its number of rows last."""
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
    """
    values = np.asarray(values, dtype=float)
    means = values.mean(axis=1)
    columns, counts = _kinds(_by_unit(values, units))
    if len(counts) == 1:  # every resample is the same
        return [Interval(mean, mean, mean) for mean in means.tolist()]
    rng, users, drawn = np.random.default_rng(seed), int(counts.sum()), []
    batch = max(1, int(_BATCH_BYTES / 8 / len(counts)))
    for start in range(0, resamples, batch):
        picked = rng.multinomial(users, counts / users, size=min(batch, resamples - start))  # (resamples, kinds)
        sums = picked.astype(float) @ columns.T
        drawn.append(sums[:, :-1] / sums[:, -1:])
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5], axis=0)
    return [Interval(*row) for row in zip(means.tolist(), low.tolist(), high.tolist(), strict=True)]


def paired(first: np.ndarray, second: np.ndarray, resamples: int, seed: int, units: np.ndarray | None = None) -> list[Interval]:
    """How much `second` exceeds `first` on the same rows: mean differences with 95 % intervals.

    Args:
        first, second: (metrics, rows) float, rows in the same order.
        units: as in `intervals`.
    """
    return intervals(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), resamples, seed, units)


def permutation(
    first: np.ndarray, second: np.ndarray, resamples: int, seed: int, units: np.ndarray | None = None
) -> list[float]:
    """Two-sided p-values of paired permutation tests, one per metric.

    Each user's difference gets a random sign. The p-value is (1 + permutations at least as extreme) / (1 + permutations).

    Args:
        first, second, units: as in `paired`.
    """
    differences = _by_unit(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), units)[:-1]
    found = []
    for row in differences:
        rng = np.random.default_rng(seed)  # equal differences, equal p-values
        sizes, counts = np.unique(np.abs(row).round(12), return_counts=True)
        sizes, counts = sizes[sizes > 0], counts[sizes > 0]
        extreme, batch = 0, max(1, int(_BATCH_BYTES / 8 / max(len(counts), 1)))
        for start in range(0, resamples, batch):
            positive = rng.binomial(counts, 0.5, size=(min(batch, resamples - start), len(counts)))
            extreme += int((np.abs((2 * positive - counts) @ sizes) >= abs(row.sum()) - 1e-9).sum())
        found.append((1 + extreme) / (1 + resamples))
    return found


def standard_error(values: np.ndarray, units: np.ndarray | None = None) -> float:
    """Standard error of the mean over rows, users as units (linearised where users have several rows)."""
    sums, rows = _by_unit(np.asarray(values, dtype=float)[None], units)
    users = len(rows)
    if users < 2:
        return 0.0
    rest = sums - sums.sum() / rows.sum() * rows
    return float(math.sqrt(users / (users - 1) * (rest**2).sum()) / rows.sum())


def detectable(values: np.ndarray, units: np.ndarray | None = None) -> float:
    """The minimum detectable difference from a fixed number: the true difference that a two-sided test at 5 % finds with 80 %
    power, 2.8 standard errors. Pass paired differences to have that between two runs.
    """
    return _POWER * standard_error(values, units)


def across_seeds(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """Mean of one metric over runs that differ in their seed.

    Args:
        within: the least and the greatest value that the metric can have; the interval ends there.

    Returns:
        `runs`, `mean`, and the standard deviation `sd` with the 95 % t-interval `low` to `high` of the mean over seeds; these
        three are None for a single run.
    """
    found: dict[str, Any] = {"runs": len(values), "mean": float(np.mean(values)), "sd": None, "low": None, "high": None}
    if len(values) > 1:
        sd = float(np.std(values, ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
        found |= {"sd": sd, "low": max(found["mean"] - half, within[0]), "high": min(found["mean"] + half, within[1])}
    return found


def beyond_noise(interval: Interval | Mapping[str, float]) -> bool:
    """Whether a difference's interval leaves out zero."""
    low, high = (interval["low"], interval["high"]) if isinstance(interval, Mapping) else (interval.low, interval.high)
    return low > 0 or high < 0
