"""Whether our own predictions are those of a split and of a catalog.

For a run's `predictions.jsonl` whatever does not fit is an error: it was made from other data, or damaged. Other people's files
(`eval.foreign`) may hold texts that are no SID; there these are counted.
"""

import numpy as np
import polars as pl

from minionerec.data.dataset import Dataset, SplitName
from minionerec.errors import DataError
from minionerec.eval.lists import Ragged, RankedLists
from minionerec.sid.index import SidIndex

_ROUNDING = 1e-5  # scores have 6 decimals in the file and 32 bits in memory


def check_belongs(lists: RankedLists, dataset: Dataset, index: SidIndex, split: SplitName, where: str) -> None:
    """Whether predictions are those of this split of this catalog, one for each of its examples, in any order.

    Args:
        where: what messages call the file.

    Raises:
        DataError: an example is missing or strange; its target or history is another; a SID is not the item's or not of this
            index; items are outside the catalog or not those of the listed SIDs; scores rise. The message names the line.
    """
    rows = dataset.split(split)
    remedy = (
        f"The {split} split here has {len(rows)} examples, the file {len(lists)}. Evaluate this split of this dataset again."
    )
    if lists.items is None or lists.history is None or lists.scores is None:
        raise DataError(f"{where}: names no users and items, so it is no run's predictions. {remedy}")
    expected = _examples(lists, rows, where, remedy)
    _check_examples(lists, lists.history, expected, where, remedy)
    _check_targets(lists, index, where)
    _check_items(lists, lists.items, index, where)
    for chunk in lists.chunks():
        rises = (np.diff(lists.scores[chunk], axis=1) > _ROUNDING).any(axis=1)
        if rises.any():
            row = chunk.start + int(rises.argmax())
            raise DataError(f"{where}, line {row + 1}: scores rise along the list; expected best first. Evaluate again.")


def _examples(lists: RankedLists, rows: pl.DataFrame, where: str, remedy: str) -> pl.DataFrame:
    """`target` and `history` of the split's examples, in the order of the file."""
    keys = ["user", "position"] if rows["user"].n_unique() < len(rows) else ["user"]
    found = pl.DataFrame({"user": lists.users, "position": lists.positions, "row": np.arange(len(lists))})
    found = found.with_columns(pl.col("user").cast(pl.String), pl.col("position").cast(pl.Int32))
    for left, right, what in ((rows, found, "is missing"), (found, rows, "is not in this split")):
        rest = left.join(right, on=keys, how="anti")
        if len(rest):
            raise DataError(f"{where}: user {rest['user'][0]!r} (and {len(rest) - 1} more) {what}. {remedy}")
    return found.join(rows.select(*keys, "target", "history"), on=keys, how="inner").sort("row").select("target", "history")


def _check_examples(lists: RankedLists, history: Ragged, expected: pl.DataFrame, where: str, remedy: str) -> None:
    def fail(row: int, found: str) -> DataError:
        return DataError(f"{where}, line {row + 1}: user {str(lists.users[row])!r} has {found}: another split. {remedy}")

    targets = expected["target"].to_numpy()
    if (targets != lists.targets).any():
        row = int((targets != lists.targets).argmax())
        raise fail(row, f"target {lists.targets[row]}, expected {targets[row]}")
    lengths = expected["history"].list.len().to_numpy()
    if (lengths != history.lengths).any():
        row = int((lengths != history.lengths).argmax())
        raise fail(row, f"a history of {history.lengths[row]} items, expected {lengths[row]}")
    other = expected["history"].to_arrow().flatten().to_numpy() != history.values
    if other.any():
        row = history.row(int(other.argmax()))
        raise fail(row, f"history {history[row].tolist()}, expected {expected['history'][row].to_list()}")


def _check_targets(lists: RankedLists, index: SidIndex, where: str) -> None:
    """Whether each target has the SID that the index gives it."""
    if lists.levels != index.levels:
        raise DataError(f"{where}: SIDs of {lists.levels} levels, this run's index has {index.levels}. {_CATALOG}")
    other = (index.codes[lists.targets] != lists.target_sids).any(axis=1)
    if other.any():
        row = int(other.argmax())
        target = lists.targets[row]
        raise DataError(
            f"{where}, line {row + 1}: item {target} has the SID {lists.target_sids[row].tolist()}, in this run's index "
            f"{index.codes[target].tolist()}. {_CATALOG}"
        )


_CATALOG = "These are predictions of another catalog. Evaluate with this run's index again."


def _check_items(lists: RankedLists, items: Ragged, index: SidIndex, where: str) -> None:
    """Whether items are those of the catalog, and of the listed SIDs in their order.

    Where `sizes` tells how many items each SID stands for, so many of its items follow one another. Elsewhere items are an
    order of their own, and SIDs stand where the first of their items does.
    """
    outside = items.values >= len(index.codes)
    if outside.any():
        place = int(outside.argmax())
        raise DataError(
            f"{where}, line {items.row(place) + 1}: lists item {items.values[place]}, the catalog has {len(index.codes)}. "
            f"{_CATALOG}"
        )
    sid_of = np.unique(index.codes, axis=0, return_inverse=True)[1].reshape(-1)  # (items,) a number per SID
    for chunk in lists.chunks():
        sizes = None if lists.sizes is None else lists.sizes[chunk]
        lengths, counts = lists.lengths[chunk], items.lengths[chunk]
        shown = items.values[items.offsets[chunk.start] : items.offsets[chunk.stop]]
        listed = lists.sids[chunk][np.arange(lists.width) < lengths[:, None]]  # (SIDs of all rows, levels)
        if sizes is not None:
            listed, lengths = np.repeat(listed, sizes[sizes > 0], axis=0), sizes.sum(axis=1)
        elif (counts != lengths).any():  # some SIDs have several items
            owner = np.repeat(np.arange(len(counts)), counts)
            first = np.sort(np.unique(owner * len(index.codes) + sid_of[shown], return_index=True)[1])
            shown, counts = shown[first], np.bincount(owner[first], minlength=len(counts))
        wrong = counts != lengths
        if not wrong.any():
            wrong[np.repeat(np.arange(len(counts)), counts)[(index.codes[shown] != listed).any(axis=1)]] = True
        if wrong.any():
            row = chunk.start + int(wrong.argmax())
            raise DataError(f"{where}, line {row + 1}: {_mismatch(lists, index, row)}")


def _mismatch(lists: RankedLists, index: SidIndex, row: int) -> str:
    for sid in lists.sids[row, : lists.lengths[row]].tolist():
        if not index.items(sid):
            return f"lists the SID {sid}, which no item has in this run's index. {_CATALOG}"
    return "items are not those of the listed SIDs, in their order. Evaluate again."
