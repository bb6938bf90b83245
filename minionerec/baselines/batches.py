"""Histories as slices of one flat array, and the batches that models compute.

A batch is a rectangle of item ids with a segment number for every cell. `padded` gives every history a row of its own, as long
as the longest history allowed. `packed` puts several histories into one row: a model that sees only its own segment gives each
history the result it would get alone, so padding costs next to nothing and the batch stays the batch that was drawn.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Rows:
    """Examples: `flat[start:stop]` is a history (ids from 1, oldest first; may be empty), `target` what follows it.

    Attributes:
        flat: item ids, (cells,).
        start, stop: the history that a model reads, (rows,).
        target: (rows,).
        user: the user's number, (rows,).
        seen: where the user's whole history begins in `flat`, (rows,); at most `start`.
    """

    flat: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    target: np.ndarray
    user: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def take(self, chosen: np.ndarray) -> "Rows":
        """The chosen rows, in that order."""
        return Rows(self.flat, *(values[chosen] for values in (self.start, self.stop, self.target, self.user, self.seen)))

    def history(self, row: int) -> np.ndarray:
        """One row's history, oldest first."""
        return self.flat[self.start[row] : self.stop[row]]


class Batch(NamedTuple):
    """What a model reads.

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

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(values.to(device) for values in self))

    def cells(self) -> Tensor:
        """Flat index of every item, history by history and oldest first, (items,): the same order in every layout."""
        before = self.lengths.cumsum(0) - self.lengths
        within = torch.arange(int(self.lengths.sum()), device=self.lengths.device) - before.repeat_interleave(self.lengths)
        return (self.readout - self.lengths + 1).repeat_interleave(self.lengths) + within


def _places(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each history goes, (row, column) per history: the longest first, each into the fullest row with room for it."""
    open_rows: list[list[int]] = [[] for _ in range(width + 1)]  # by free cells
    row, column = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rows = 0
    for history in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[history])
        room = next((free for free in range(length, width + 1) if open_rows[free]), None)
        if room is None:
            room, chosen, rows = width, rows, rows + 1
        else:
            chosen = open_rows[room].pop()
        row[history], column[history] = chosen, width - room
        open_rows[room - length].append(chosen)
    return row, column


def make_batch(rows: Rows, *, layout: Literal["packed", "padded"], side: Side, max_history: int) -> Batch:
    """Lay histories out.

    Args:
        side: where padding goes. It decides positions (`right`: 0 is the oldest item; `left`: max_history - 1 the newest) and,
            for `padded`, the cells.
        max_history: the longest history; no row's is longer.

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
        row, column = _places(np.where(empty, width, lengths), width)
        count = int(row.max()) + 1
    # One entry per item of the batch, history by history.
    history = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(history)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    cells = row[history] * width + column[history] + within
    items = np.zeros(count * width, np.int64)
    segments = np.zeros(count * width, np.int64)
    positions = np.tile(np.arange(width), count)  # what padding has
    items[cells] = rows.flat[rows.start[history] + within]
    segments[cells] = column[history] + 1 if layout == "packed" else 1  # distinct within a row
    positions[cells] = shift[history] + within
    last = np.where(empty, width - 1, column + lengths - 1)
    cell_values = (torch.from_numpy(values.reshape(count, width)) for values in (items, positions, segments))
    per_history = (row * width + last, lengths.astype(np.int64), rows.target.astype(np.int64))
    return Batch(*cell_values, *(torch.from_numpy(values) for values in per_history))


def partners(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row another one with the same target, (rows,): every such row equally likely, itself where there is none."""
    order = np.argsort(targets, kind="stable")
    first = np.searchsorted(targets[order], targets)  # where each row's group begins
    others = np.searchsorted(targets[order], targets, "right") - first - 1
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    drawn = first + rng.integers(0, np.maximum(others, 1))
    return order[drawn + ((drawn >= place) & (others > 0))]
