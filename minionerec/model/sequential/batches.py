"""The batches that models compute of histories.

A batch is a rectangle of item ids with a segment number for every cell. `padded` gives every history a row of `max_history`
cells. `packed` puts several histories into one row. A model whose cells see only their own segment gives each history the
result that it would get alone, so padding costs almost nothing and the batch has the same examples.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minionerec.data.history_rows import HistoryRows, Side


class HistoryBatch(NamedTuple):
    """What a model reads: a rectangle of cells, and where each history ends in it.

    Attributes:
        items: ids, (rows, width); 0 is padding.
        positions: index into the position table, (rows, width), from 0 to max_history - 1.
        segments: which history of its row a cell belongs to, from 1; 0 is padding. (rows, width)
        readout: flat index of each history's last cell, (batch,).
        lengths: items in each history, (batch,).
        targets: (batch,).
    """

    items: Tensor
    positions: Tensor
    segments: Tensor
    readout: Tensor
    lengths: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "HistoryBatch":
        """The same batch on a device."""
        return HistoryBatch(*(values.to(device) for values in self))

    def cells(self) -> Tensor:
        """Flat index of every item, history by history and oldest first, (items,): the same order in every layout."""
        before = self.lengths.cumsum(0) - self.lengths
        within = torch.arange(int(self.lengths.sum()), device=self.lengths.device) - before.repeat_interleave(self.lengths)
        return (self.readout - self.lengths + 1).repeat_interleave(self.lengths) + within


def _best_fit(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and first column of each history: the longest first, each into the fullest row with room for it (best fit)."""
    open_rows: list[list[int]] = [[] for _ in range(width + 1)]  # by free cells
    row, column = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rows = 0
    for history in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[history])
        room = next((free for free in range(length, width + 1) if open_rows[free]), None)
        if room is None:
            room, target_row, rows = width, rows, rows + 1
        else:
            target_row = open_rows[room].pop()
        row[history], column[history] = target_row, width - room
        open_rows[room - length].append(target_row)
    return row, column


def make_batch(rows: HistoryRows, *, layout: Literal["packed", "padded"], side: Side, max_history: int) -> HistoryBatch:
    """Lay histories out.

    Args:
        layout: `padded` gives each history a row; `packed` lets histories share rows.
        side: the side of padding. It decides the positions (`right`: the oldest item has 0; `left`: the newest has
            max_history - 1) and, for `padded`, the cells.
        max_history: no history is longer.

    An empty history is read at the last cell of a row that is all padding, in both layouts.
    """
    lengths = rows.stop - rows.start
    shift = max_history - lengths if side == "left" else np.zeros_like(lengths)
    empty = lengths == 0
    if layout == "padded":
        width, count = max_history, len(rows)
        row, column = np.arange(len(rows)), shift
    else:
        width = max_history if empty.any() else int(lengths.max())
        row, column = _best_fit(np.where(empty, width, lengths), width)
        count = int(row.max()) + 1
    # One entry per item of the batch, history by history.
    history = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(history)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    cells = row[history] * width + column[history] + within
    items = np.zeros(count * width, np.int64)
    segments = np.zeros(count * width, np.int64)
    positions = np.tile(np.arange(width), count)  # padding has its column as position
    items[cells] = rows.flat[rows.start[history] + within]
    segments[cells] = column[history] + 1 if layout == "packed" else 1  # distinct within a row
    positions[cells] = shift[history] + within
    last = np.where(empty, width - 1, column + lengths - 1)
    cell_values = (torch.from_numpy(values.reshape(count, width)) for values in (items, positions, segments))
    per_history = (row * width + last, lengths.astype(np.int64), rows.target.astype(np.int64))
    return HistoryBatch(*cell_values, *(torch.from_numpy(values) for values in per_history))


def partners(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row another one with the same target, each equally likely, or itself if there is no other one, (rows,)."""
    order = np.argsort(targets, kind="stable")
    first = np.searchsorted(targets[order], targets)  # where each row's group begins
    others = np.searchsorted(targets[order], targets, "right") - first - 1
    position = np.empty_like(order)  # of each row in the sorted order
    position[order] = np.arange(len(order))
    # Draw among one row fewer than the group has, and step over the row itself.
    drawn = first + rng.integers(0, np.maximum(others, 1))
    return order[drawn + ((drawn >= position) & (others > 0))]
