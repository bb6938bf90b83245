"""Two runs on the same examples: paired differences, tests, and what a test of this size can see."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from minionerec.config import CUTOFFS, RESAMPLES
from minionerec.errors import DataError
from minionerec.eval.lists import Lists, RankedLists
from minionerec.eval.metrics import item_ranks, ranks
from minionerec.statistics.differences import differences
from minionerec.statistics.ranking import per_user


def align(first: RankedLists, second: RankedLists) -> np.ndarray:
    """The rows of `second` in the order of `first`: by user and position, or as they stand where a file names no users.

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
    ours, theirs = _keys(first), _keys(second)
    wanted, order = np.argsort(ours), np.argsort(theirs)
    if (theirs[order] != ours[wanted]).any():
        raise DataError("they are not of the same users; the two cannot be compared.")
    rows = np.empty(len(ours), dtype=int)
    rows[wanted] = order
    if (second.targets[rows] != first.targets).any():
        raise DataError("the same users have other targets, so the two are of different splits and cannot be compared.")
    return rows


def _keys(lists: RankedLists) -> np.ndarray:
    return np.char.add(np.char.add(lists.users, "\t"), lists.positions.astype(np.str_))


def shared_cutoffs(first: RankedLists, second: RankedLists) -> list[int]:
    """The cut-offs at which two files say something of one another: those of `CUTOFFS` up to the shorter width.

    A file's width, its longest list, is what was asked for. Beyond it a metric counts the whole list and no more, so a
    difference there would be the lists' lengths'.
    """
    width = min(first.width, second.width)
    return [k for k in CUTOFFS if k <= max(width, 1)]


def left_out(first: RankedLists, second: RankedLists) -> str | None:
    """What a table of two files must say of the cut-offs that it lacks; None where it lacks none."""
    width = min(first.width, second.width)
    if width >= CUTOFFS[-1]:
        return None
    return f"lists of {first.width} and {second.width} places: cut-offs beyond {width} are left out"


def _values(lists: RankedLists, cutoffs: Sequence[int], on: Literal["sid", "item"]) -> dict[str, np.ndarray]:
    found = item_ranks(lists) if on == "item" else None
    if on == "item" and found is None:
        raise DataError("these predictions name no items; compare them on SIDs.")
    best, ties = found if found else (ranks(lists), 1)
    return per_user(best, cutoffs, ties)


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
        cutoffs: None for `shared_cutoffs`; others mean that both lists are whole, however short.

    Returns:
        Per metric `value`, `low`, `high` (95 %, paired, users resampled), `p` of the paired permutation test, `detectable`, the
        smallest true difference that a test of this size finds with 80 % power, and whether the interval holds zero: `noise`.

    Raises:
        DataError: see `align`.
    """
    first, second = RankedLists.of(first), RankedLists.of(second)
    rows = align(first, second)
    cutoffs = shared_cutoffs(first, second) if cutoffs is None else cutoffs
    before = _values(first, cutoffs, on)
    after = {name: values[rows] for name, values in _values(second, cutoffs, on).items()}
    return differences(before, after, resamples, seed, first.units())
