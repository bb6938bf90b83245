"""Two recommenders on the same rows: how much the second exceeds the first, and whether that is more than noise."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minionerec.statistics.intervals import beyond_noise, detectable, paired, permutation


def differences(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], resamples: int, seed: int, units: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """How much `after` exceeds `before`, per name.

    Args:
        before, after: per name, one value per row, (rows,). Rows are in one order.
        resamples: bootstrap resamples, and sign permutations.
        seed: of both.
        units: (rows,) the number of each row's user, from 0; None if every user has one row.

    Returns:
        Per name `value`, `low`, `high` (the mean difference and its 95 % interval); `p` of the paired permutation test;
        `detectable`, the smallest true difference that a test of this size finds with 80 % power, None if no user differs from
        another; `noise`, see `intervals.beyond_noise`.
    """
    first, second = np.stack(list(before.values())), np.stack([after[name] for name in before])
    intervals = paired(first, second, resamples, seed, units)
    chances = permutation(first, second, resamples, seed, units)
    return {
        name: {
            **interval._asdict(),
            "p": chance,
            "detectable": detectable(change, units),
            "noise": not beyond_noise(interval, chance),
        }
        for name, interval, chance, change in zip(before, intervals, chances, second - first, strict=True)
    }
