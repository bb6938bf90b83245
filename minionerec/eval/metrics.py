"""Hit rate, NDCG and MRR of ranked lists with one target per example, on SIDs and on items."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from minionerec.config import RESAMPLES
from minionerec.errors import DataError
from minionerec.eval.levels import calibration, level_tables, lost_targets
from minionerec.eval.lists import Lists, RankedLists, cutoffs_within
from minionerec.eval.metrics_json import Cell, ItemCell, Metrics
from minionerec.statistics.intervals import Interval, binomial_interval, detectable, intervals
from minionerec.statistics.ranking import per_user


def ranks(predictions: Lists, on: Literal["sid", "item"] = "sid") -> np.ndarray:
    """0-based place of each example's target in its list, (rows,) float; infinity if the list does not hold it.

    What ties stands in catalog order here; `sid_ranks` and `item_ranks` do not depend on that order.

    Args:
        on: `sid`: items that share the target's SID count as the target. `item`: the place among the listed items.

    Raises:
        DataError: no predictions.
    """
    lists = RankedLists.of(predictions)
    if on == "item":
        return np.full(len(lists), np.inf) if lists.items is None else lists.items.positions_of(lists.targets)
    target_ranks = np.full(len(lists), np.inf)
    for rows in lists.chunks():
        target_ranks[rows] = positions(lists.sids[rows], lists.target_sids[rows])
    return target_ranks


def positions(sids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """0-based position of each row's target among its SIDs, (rows,) float; infinity if it is missing.

    Args:
        sids: (rows, width, levels). targets: (rows, levels).
    """
    match = (sids == targets[:, None]).all(axis=2)
    if not match.shape[1]:
        return np.full(len(match), np.inf)
    return np.where(match.any(axis=1), match.argmax(axis=1), np.inf)


def sid_ranks(predictions: Lists) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the target's SID, where items with one score are tied.

    Returns:
        Two arrays (rows,): the best 0-based rank, infinity if the list does not reach the SID, and how many SIDs tie at it and
        the following ranks (1 if nothing ties).

    Raises:
        DataError: no predictions.
    """
    lists = RankedLists.of(predictions)
    return _with_ties(ranks(lists), lists.sid_ties)


def _with_ties(places: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best ranks and ties, from places in the lists (rows,) and the ties that the lists say (rows, 2)."""
    return np.where(known[:, 1] > 1, known[:, 0], places), known[:, 1].astype(float)


def item_ranks(predictions: Lists) -> tuple[np.ndarray, np.ndarray] | None:
    """Ranks of the target item, where items are tied that the recommender cannot order.

    These are the items of one SID for a model that writes SIDs, and items with one score for another.

    A target that a filter has hidden is a miss, although its SID may be listed for another item.

    Returns:
        Two arrays (rows,): the best 0-based rank, infinity if the target is not listed, and how many items tie at it and
        the following ranks (1 if nothing ties). The worst rank is best + ties - 1. None if the lists name no items.

    Raises:
        DataError: no predictions.
    """
    lists = RankedLists.of(predictions)
    if lists.items is None and lists.sizes is None:
        return None
    if lists.sizes is None:
        return _with_ties(ranks(lists, "item"), lists.item_ties)
    on_sids = ranks(lists)
    listed = np.isfinite(on_sids)
    if lists.items is not None:
        listed &= np.isfinite(lists.items.positions_of(lists.targets))
    hit = np.flatnonzero(listed)
    position = on_sids[hit].astype(int)
    best, ties = np.full(len(lists), np.inf), np.ones(len(lists))
    items_so_far = np.cumsum(lists.sizes[hit], axis=1)  # items of each SID and of all before it
    ties[hit] = lists.sizes[hit, position]
    best[hit] = items_so_far[np.arange(len(hit)), position] - ties[hit]
    return best, ties


def values_per_row(predictions: Lists, cutoffs: Sequence[int], on: Literal["sid", "item"]) -> dict[str, np.ndarray]:
    """Each metric's value per example, (rows,), by name: the mean over the orders of what is tied.

    Args:
        on: whether a SID or an item must be the target's.

    Raises:
        DataError: the lists name no items and `on` is `item`.
    """
    if on == "sid":
        best, ties = sid_ranks(predictions)
        return per_user(best, cutoffs, ties)
    ranks_and_ties = item_ranks(predictions)
    if ranks_and_ties is None:
        raise DataError("these predictions name no items; compare them on SIDs.")
    best, ties = ranks_and_ties
    return per_user(best, cutoffs, ties)


def interval_cells(values: dict[str, np.ndarray], resamples: int, seed: int, units: np.ndarray | None) -> dict[str, Cell]:
    """Each metric's mean with its 95 % interval.

    If every user has 0, or every user has 1, resampling shows no spread. The interval is then that of a share: no hit among 40
    users does not mean that there will never be one.

    Args:
        values: per metric a value between 0 and 1 per row, (rows,).
        resamples: of the bootstrap.
        seed: of the resampling.
        units: (rows,) the number of each row's user, from 0; None if every user has one row.
    """
    means = intervals(np.stack(list(values.values())), resamples, seed, units)
    users = len(next(iter(values.values()))) if units is None else int(units.max()) + 1
    cells = {}
    for name, mean in zip(values, means, strict=True):
        interval = binomial_interval(mean.value, users) if mean in _WITHOUT_SPREAD else mean
        cells[name] = Cell(value=interval.value, low=interval.low, high=interval.high)
    return cells


_WITHOUT_SPREAD = (Interval(0.0, 0.0, 0.0), Interval(1.0, 1.0, 1.0))


def _on_items(
    lists: RankedLists, cutoffs: Sequence[int], resamples: int, seed: int, units: np.ndarray | None
) -> dict[str, ItemCell] | None:
    """Expected metrics on items with intervals, as well as the metrics at the best and at the worst of tied ranks."""
    ranks_and_ties = item_ranks(lists)
    if ranks_and_ties is None:
        return None
    best, ties = ranks_and_ties
    at_best, at_worst = (per_user(rank, cutoffs) for rank in (best, best + ties - 1))
    expected = interval_cells(per_user(best, cutoffs, ties), resamples, seed, units)
    return {
        name: ItemCell(**cell, best=float(at_best[name].mean()), worst=float(at_worst[name].mean()))
        for name, cell in expected.items()
    }


def measure(predictions: Lists, cutoffs: Sequence[int] | None = None, resamples: int = RESAMPLES, seed: int = 42) -> Metrics:
    """What the lists alone say; the eval stage adds slices, exposure and search, which need the dataset.

    Args:
        cutoffs: of HR, NDCG and MRR; None for those of `CUTOFFS` that the lists reach.
        resamples: of the bootstrap intervals.
        seed: of the resampling.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    lists = RankedLists.of(predictions)
    cutoffs = cutoffs_within(lists.span["longest"]) if cutoffs is None else cutoffs
    units = lists.units()
    values = values_per_row(lists, cutoffs, "sid")
    return Metrics(
        users=len(lists) if units is None else int(units.max()) + 1,
        rows=len(lists),
        lengths=lists.span,
        exact=None if lists.exact is None else float(lists.exact.mean()),
        invalid=_invalid(lists),
        sid=interval_cells(values, resamples, seed, units),
        item=_on_items(lists, cutoffs, resamples, seed, units),
        per_user=None if units is None else interval_cells(_user_means(values, units), resamples, seed, None),
        detectable={name: detectable(row, units) for name, row in values.items()},
        levels=level_tables(lists, cutoffs),
        lost=lost_targets(lists),
        calibration=calibration(lists),
    )


def _user_means(values: dict[str, np.ndarray], units: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric's mean over the rows of each user, (users,)."""
    rows = np.bincount(units)
    return {name: np.bincount(units, weights=row) / rows for name, row in values.items()}


def _invalid(lists: RankedLists) -> float:
    """The share of listed places that hold no SID."""
    listed = int(lists.lengths.sum())
    valid = sum(int((lists.sids[rows, :, 0] >= 0).sum()) for rows in lists.chunks())
    return 1 - valid / listed if listed else 0.0
