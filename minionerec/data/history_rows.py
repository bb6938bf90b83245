"""Histories as slices of one flat array: the examples that baselines and content recommenders learn from and are ranked on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["left", "right"]  # of padding
SPLITS_SIDE: Side = "right"  # where the histories are those of a run's own splits


@dataclass(frozen=True)
class HistoryRows:
    """Examples: `flat[start:stop]` is a history (ids from 1, oldest first; may be empty), `target` the item that follows it.

    Attributes:
        flat: item ids, (cells,).
        start, stop: the history that a model reads, (rows,).
        target: (rows,).
        user: the user's number, (rows,).
        seen: index in `flat` at which the user's whole history begins, (rows,); at most `start`.
    """

    flat: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    target: np.ndarray
    user: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> "HistoryRows":
        """The rows of these numbers, in that order."""
        return HistoryRows(self.flat, *(values[rows] for values in (self.start, self.stop, self.target, self.user, self.seen)))

    def history(self, row: int) -> np.ndarray:
        """One row's history, oldest first."""
        return self.flat[self.start[row] : self.stop[row]]

    def cells(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All cells of `flat` from `start` to `stop`, row by row: the row of each, and its index in `flat`.

        Args:
            start: `self.start` for what a model reads, `self.seen` for the user's whole history.
        """
        lengths = self.stop - start
        row = np.repeat(np.arange(len(self)), lengths)
        return row, start[row] + np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
