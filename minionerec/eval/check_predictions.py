"""Whether a run's predictions belong to a split and a catalog.

In a run's own `predictions.jsonl` everything must fit; otherwise the file is damaged, or was made from other data. Result files
of the released code (`eval.result_json`) are not checked here: they may hold texts that are no SID, and these are counted.
"""

import numpy as np
import polars as pl

from minionerec.data.dataset import Dataset, SplitName
from minionerec.errors import DataError
from minionerec.eval.lists import Ragged, RankedLists
from minionerec.sid.index import SidIndex

_ROUNDING = 1e-5  # scores have 6 decimals in the file and 32 bits in memory


def check_belongs(lists: RankedLists, dataset: Dataset, index: SidIndex, split: SplitName, where: str) -> None:
    """Check that the predictions are of this split and this catalog: one for each example, in any order.

    Args:
        where: the file's name in messages.

    Raises:
        DataError: an example is missing, unknown, or has another target or history; a SID or an item does not belong to this
            index; scores rise along a list. The message names the line.
    """
    rows = dataset.split(split)
    remedy = (
        f"The {split} split here has {len(rows)} examples, the file {len(lists)}. Evaluate this split of this dataset again."
    )
    if lists.items is None or lists.history is None or lists.scores is None:
        raise DataError(f"{where}: names no users and items, so no run made these predictions. {remedy}")
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
    """`target` and `history` of the split's examples, in the order of the file.

    Raises:
        DataError: an example of the split is missing in the file, or one of the file is not in the split.
    """
    keys = ["user", "position"] if rows["user"].n_unique() < len(rows) else ["user"]
    predicted = pl.DataFrame({"user": lists.users, "position": lists.positions, "row": np.arange(len(lists))})
    predicted = predicted.with_columns(pl.col("user").cast(pl.String), pl.col("position").cast(pl.Int32))
    for left, right, what in ((rows, predicted, "is missing"), (predicted, rows, "is not in this split")):
        unmatched = left.join(right, on=keys, how="anti")
        if len(unmatched):
            raise DataError(f"{where}: user {unmatched['user'][0]!r} (and {len(unmatched) - 1} more) {what}. {remedy}")
    return predicted.join(rows.select(*keys, "target", "history"), on=keys, how="inner").sort("row").select("target", "history")


def _check_examples(lists: RankedLists, history: Ragged, expected: pl.DataFrame, where: str, remedy: str) -> None:
    """Whether each example has the target and the history that the split gives it."""

    def error(row: int, difference: str) -> DataError:
        return DataError(f"{where}, line {row + 1}: user {str(lists.users[row])!r} has {difference}: another split. {remedy}")

    targets = expected["target"].to_numpy()
    if (targets != lists.targets).any():
        row = int((targets != lists.targets).argmax())
        raise error(row, f"target {lists.targets[row]}, expected {targets[row]}")
    lengths = expected["history"].list.len().to_numpy()
    if (lengths != history.lengths).any():
        row = int((lengths != history.lengths).argmax())
        raise error(row, f"a history of {history.lengths[row]} items, expected {lengths[row]}")
    differs = expected["history"].to_arrow().flatten().to_numpy() != history.values
    if differs.any():
        row = history.row(int(differs.argmax()))
        raise error(row, f"history {history[row].tolist()}, expected {expected['history'][row].to_list()}")


def _check_targets(lists: RankedLists, index: SidIndex, where: str) -> None:
    """Whether each target has the SID that the index gives it."""
    if lists.levels != index.levels:
        raise DataError(f"{where}: SIDs of {lists.levels} levels, this run's index has {index.levels}. {_CATALOG}")
    differs = (index.codes[lists.targets] != lists.target_sids).any(axis=1)
    if differs.any():
        row = int(differs.argmax())
        target = lists.targets[row]
        raise DataError(
            f"{where}, line {row + 1}: item {target} has the SID {lists.target_sids[row].tolist()}, in this run's index "
            f"{index.codes[target].tolist()}. {_CATALOG}"
        )


_CATALOG = "These are predictions of another catalog. Evaluate with this run's index again."


def _check_items(lists: RankedLists, items: Ragged, index: SidIndex, where: str) -> None:
    """Whether items are in the catalog, and have the listed SIDs in their order.

    A model's predictions list the items of each SID next to one another, and `sizes` says how many each has. A ranking of items
    has no `sizes`; it lists a SID at the first of its items.
    """
    outside = items.values >= len(index.codes)
    if outside.any():
        position = int(outside.argmax())
        raise DataError(
            f"{where}, line {items.row(position) + 1}: lists item {items.values[position]}, the catalog has "
            f"{len(index.codes)}. {_CATALOG}"
        )
    sid_of = np.unique(index.codes, axis=0, return_inverse=True)[1].reshape(-1)  # (items,) a number per SID
    for chunk in lists.chunks():
        sizes = None if lists.sizes is None else lists.sizes[chunk]
        lengths, counts = lists.lengths[chunk], items.lengths[chunk]
        listed_items = items.values[items.offsets[chunk.start] : items.offsets[chunk.stop]]
        listed = lists.sids[chunk][np.arange(lists.width) < lengths[:, None]]  # (SIDs of all rows, levels)
        if sizes is not None:
            listed, lengths = np.repeat(listed, sizes[sizes > 0], axis=0), sizes.sum(axis=1)
        elif (counts != lengths).any():  # some SIDs have several items: keep the first item of each
            owner = np.repeat(np.arange(len(counts)), counts)
            first = np.sort(np.unique(owner * len(index.codes) + sid_of[listed_items], return_index=True)[1])
            listed_items, counts = listed_items[first], np.bincount(owner[first], minlength=len(counts))
        wrong = counts != lengths
        if not wrong.any():
            wrong[np.repeat(np.arange(len(counts)), counts)[(index.codes[listed_items] != listed).any(axis=1)]] = True
        if wrong.any():
            row = chunk.start + int(wrong.argmax())
            raise DataError(f"{where}, line {row + 1}: {_mismatch(lists, index, row)}")


def _mismatch(lists: RankedLists, index: SidIndex, row: int) -> str:
    """What is wrong in a row whose items are not of its SIDs."""
    for sid in lists.sids[row, : lists.lengths[row]].tolist():
        if not index.items(sid):
            return f"lists the SID {sid}, which no item has in this run's index. {_CATALOG}"
    return "items are not those of the listed SIDs, in their order. Evaluate again."
