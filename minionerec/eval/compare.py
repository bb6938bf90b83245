"""Two files of predictions for the same examples: how much the second exceeds the first, per metric."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from minionerec.config import CUTOFFS, RESAMPLES
from minionerec.errors import DataError
from minionerec.eval.lists import Lists, RankedLists, cutoffs_within
from minionerec.eval.metrics import values_per_row
from minionerec.statistics.differences import differences


def align(first: RankedLists, second: RankedLists) -> np.ndarray:
    """The rows of `second` in the order of `first`: by user and position, or unchanged if a file names no users.

    Raises:
        DataError: the two were measured on different examples.
    """
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} examples, so some are missing from one; the two cannot be compared.")
    if first.items is None or second.items is None:
        rows = np.arange(len(second))
        same = first.target_sids.shape == second.target_sids.shape and (first.target_sids == second.target_sids).all()
        if not same:
            raise DataError("the rows do not have the same target SIDs in the same order; the two cannot be compared.")
        return rows
    first_keys, second_keys = _keys(first), _keys(second)
    first_order, second_order = np.argsort(first_keys), np.argsort(second_keys)
    if (second_keys[second_order] != first_keys[first_order]).any():
        raise DataError("they are not of the same users; the two cannot be compared.")
    rows = np.empty(len(first), dtype=int)
    rows[first_order] = second_order
    if (second.targets[rows] != first.targets).any():
        raise DataError("the same users have other targets, so the two are of different splits and cannot be compared.")
    return rows


def values_by_seed(
    lists: Sequence[RankedLists], first: RankedLists, cutoffs: Sequence[int], on: Literal["sid", "item"] = "item"
) -> list[dict[str, np.ndarray]]:
    """Each seed's metrics, (rows,) in the order of `first`, by name.

    Args:
        lists: of one recommender, one per seed.
        on: whether a SID or an item must be the target's.

    Raises:
        DataError: the lists are of other examples than `first`, or name no items and `on` is `item`.
    """
    by_seed = []
    for one in lists:
        rows = align(first, one)
        by_seed.append({name: values[rows] for name, values in values_per_row(one, cutoffs, on).items()})
    return by_seed


def _keys(lists: RankedLists) -> np.ndarray:
    """(rows,) one text per example: its user and the target's position. Texts sort quickly, pairs do not."""
    return np.char.add(np.char.add(lists.users, "\t"), lists.positions.astype(np.str_))


def shared_cutoffs(first: RankedLists, second: RankedLists) -> list[int]:
    """The cut-offs at which two files can be compared: those that the lists of both reach.

    A difference at a larger cut-off would only show that one list is longer.
    """
    return cutoffs_within(min(lists.span["longest"] for lists in (first, second)))


def left_out(first: RankedLists, second: RankedLists) -> str | None:
    """The note of a table of two files about the cut-offs that it lacks; None if it lacks none."""
    longest = [lists.span["longest"] for lists in (first, second)]
    if min(longest) >= CUTOFFS[-1]:
        return None
    return f"lists of {longest[0]} and {longest[1]} places: cut-offs beyond {min(longest)} are left out"


def compare(
    first: Lists,
    second: Lists,
    resamples: int = RESAMPLES,
    seed: int = 42,
    cutoffs: Sequence[int] | None = None,
    on: Literal["sid", "item"] = "sid",
) -> dict[str, dict[str, Any]]:
    """How much `second` exceeds `first` on the same examples, per metric.

    Args:
        resamples: bootstrap resamples, and sign permutations.
        seed: of both.
        cutoffs: None for `shared_cutoffs`. Other cut-offs take every list as whole, however short it is.
        on: whether a SID or an item must be the target's.

    Returns:
        Per metric a difference with its interval and test, see `statistics.differences.differences`.

    Raises:
        DataError: the two were measured on different examples, or name no items and `on` is `item`.
    """
    first, second = RankedLists.of(first), RankedLists.of(second)
    rows = align(first, second)
    cutoffs = shared_cutoffs(first, second) if cutoffs is None else cutoffs
    before = values_per_row(first, cutoffs, on)
    after = {name: values[rows] for name, values in values_per_row(second, cutoffs, on).items()}
    return differences(before, after, resamples, seed, first.units())
