"""Hit rate, NDCG and MRR of ranked lists with one target per example, on SIDs and on items."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from minionerec.config import CUTOFFS, RESAMPLES
from minionerec.eval.levels import calibration, level_tables, lost_targets
from minionerec.eval.lists import Lists, RankedLists
from minionerec.statistics.intervals import detectable, intervals
from minionerec.statistics.ranking import per_user


def ranks(predictions: Lists, on: Literal["sid", "item"] = "sid") -> np.ndarray:
    """0-based rank of each example's target, (rows,) float; infinity where the list does not hold it.

    On `sid`, items that share the target's SID count as the target; on `item`, it is the place among the listed items, where
    the items of one SID stand in catalog order (see `item_ranks`).

    Raises:
        DataError: no predictions.
    """
    lists = RankedLists.of(predictions)
    if on == "item":
        return np.full(len(lists), np.inf) if lists.items is None else lists.items.where(lists.targets)
    found = np.full(len(lists), np.inf)
    for rows in lists.chunks():
        found[rows] = places(lists.sids[rows], lists.target_sids[rows])
    return found


def places(sids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """0-based place of each row's target among its SIDs, (rows,) float; infinity where it is missing.

    Args:
        sids: (rows, width, levels). targets: (rows, levels).
    """
    match = (sids == targets[:, None]).all(axis=2)
    if not match.shape[1]:
        return np.full(len(match), np.inf)
    return np.where(match.any(axis=1), match.argmax(axis=1), np.inf)


def item_ranks(predictions: Lists) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the target item stands when the items of one SID are tied: a model that writes SIDs cannot order them.

    Returns:
        Two arrays (rows,): the best 0-based rank, infinity where the target is not listed, and how many items tie at it and
        the following ranks (1 where nothing ties). The worst rank is best + ties - 1. None where nothing is known of items.

    Raises:
        DataError: no predictions.
    """
    lists = RankedLists.of(predictions)
    if lists.items is None and lists.sizes is None:
        return None
    if lists.sizes is None:
        return ranks(lists, "item"), np.ones(len(lists))
    on_sids = ranks(lists)
    hit = np.flatnonzero(np.isfinite(on_sids))
    place = on_sids[hit].astype(int)
    best, ties = np.full(len(lists), np.inf), np.ones(len(lists))
    before = np.cumsum(lists.sizes[hit], axis=1)
    ties[hit] = lists.sizes[hit, place]
    best[hit] = before[np.arange(len(hit)), place] - ties[hit]
    return best, ties


def _cells(values: dict[str, np.ndarray], resamples: int, seed: int, units: np.ndarray | None) -> dict[str, dict[str, float]]:
    found = intervals(np.stack(list(values.values())), resamples, seed, units)
    return {name: interval._asdict() for name, interval in zip(values, found, strict=True)}


def _on_items(
    lists: RankedLists, cutoffs: Sequence[int], resamples: int, seed: int, units: np.ndarray | None
) -> dict[str, dict[str, float]] | None:
    """Expected metrics on items with intervals, and beside them the metrics at the best and at the worst of tied ranks."""
    found = item_ranks(lists)
    if found is None:
        return None
    best, ties = found
    cells = _cells(per_user(best, cutoffs, ties), resamples, seed, units)
    for end, at in (("best", best), ("worst", best + ties - 1)):
        for name, values in per_user(at, cutoffs).items():
            cells[name][end] = float(values.mean())
    return cells


def measure(predictions: Lists, cutoffs: Sequence[int] = CUTOFFS, resamples: int = RESAMPLES, seed: int = 42) -> dict[str, Any]:
    """What `metrics.json` says of the lists alone; the eval stage adds slices and what needs the catalog.

    Returns:
        `users` and `rows`; `exact`, the share of provably exact lists, None where unknown; `invalid`, the share of places
        that hold no SID; `sid` and `item`, each metric's `value`, `low` and `high` (95 %, users resampled), on items also
        `best` and `worst` of tied ranks (None where items are unknown); `per_user`, the same on SIDs with every user
        weighing the same, None where each has one row; `detectable`, the smallest true difference that this many users
        show, see `intervals.detectable`; `levels`, `lost` and `calibration`, see `levels`.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    lists = RankedLists.of(predictions)
    units = lists.units()
    values = per_user(ranks(lists), cutoffs)
    return {
        "users": len(lists) if units is None else int(units.max()) + 1,
        "rows": len(lists),
        "exact": None if lists.exact is None else float(lists.exact.mean()),
        "invalid": _invalid(lists),
        "sid": _cells(values, resamples, seed, units),
        "item": _on_items(lists, cutoffs, resamples, seed, units),
        "per_user": None if units is None else _cells(_user_means(values, units), resamples, seed, None),
        "detectable": {name: detectable(row, units) for name, row in values.items()},
        "levels": level_tables(lists, cutoffs),
        "lost": lost_targets(lists),
        "calibration": calibration(lists),
    }


def _user_means(values: dict[str, np.ndarray], units: np.ndarray) -> dict[str, np.ndarray]:
    rows = np.bincount(units)
    return {name: np.bincount(units, weights=row) / rows for name, row in values.items()}


def _invalid(lists: RankedLists) -> float:
    listed = int(lists.lengths.sum())
    named = sum(int((lists.sids[rows, :, 0] >= 0).sum()) for rows in lists.chunks())
    return 1 - named / listed if listed else 0.0
