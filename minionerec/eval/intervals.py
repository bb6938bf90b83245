"""95 % bootstrap intervals with users as units."""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

_BATCH_BYTES = 64e6


class Interval(NamedTuple):
    """A mean over users and its 95 % interval."""

    value: float
    low: float
    high: float


def intervals(values: np.ndarray, resamples: int, seed: int) -> list[Interval]:
    """Means over users with 95 % percentile bootstrap intervals (Efron and Tibshirani, 1993, chapter 13).

    Every row sees the same resampled users, so the intervals of one call are comparable.

    Args:
        values: (metrics, users) float.
        resamples: bootstrap resamples.
        seed: of the resampling; equal arguments give equal intervals.
    """
    values = np.asarray(values, dtype=float)
    means = values.mean(axis=1)
    if values.shape[1] == 1:  # One user cannot be resampled: every resample is that user.
        return [Interval(mean, mean, mean) for mean in means.tolist()]
    found = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        batch=max(1, int(_BATCH_BYTES / values.nbytes)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [Interval(*row) for row in zip(means.tolist(), found.low.tolist(), found.high.tolist(), strict=True)]


def paired(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> list[Interval]:
    """How much `second` exceeds `first` on the same users: mean differences with 95 % intervals.

    Args:
        first, second: (metrics, users) float, users in the same order.
    """
    return intervals(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), resamples, seed)
