"""Laying sorted token sequences into rows in which every shared prefix stands once."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


def common_tokens(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences share at their beginning."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size


class Rows:
    """Which sorted sequences share a row of at most `row_tokens` distinct tokens.

    The sorted list is cut into pieces, and the pieces are packed into rows like boxes into bins. The fewer rows a shared prefix
    is spread over, the less is computed twice; the smaller the pieces, the fuller the rows.

    Args:
        lengths: (sequences,) tokens of each.
        shared: (sequences,) tokens that each shares with the one before it; 0 for the first.
        row_tokens: what a row holds.
    """

    def __init__(self, lengths: np.ndarray, shared: np.ndarray, row_tokens: int) -> None:
        self.shared, self.row_tokens = shared, row_tokens
        self._new_tokens_before = np.concatenate([[0], np.cumsum(lengths - shared)])
        # Two sorted sequences share the minimum of `shared` over those between them. Level r holds the minima of 2**r
        # neighbours, and two overlapping ones of them cover any range: a comparison is O(1).
        self._minima = [shared]
        while 2 ** len(self._minima) <= len(shared):
            half = 2 ** (len(self._minima) - 1)
            self._minima.append(np.minimum(self._minima[-1][:-half], self._minima[-1][half:]))

    def _size(self, start: int, stop: int) -> int:
        """Distinct tokens of a run of sequences: all of the first, and of each other one what is new in it."""
        return int(self._new_tokens_before[stop] - self._new_tokens_before[start] + self.shared[start])

    def _common(self, first: int, second: int) -> int:
        """Tokens that two sequences share, first < second."""
        power = (second - first).bit_length() - 1
        return int(min(self._minima[power][first + 1], self._minima[power][second + 1 - 2**power]))

    def _pieces(self) -> list[tuple[int, int]]:
        """Runs of sequences, as (start, stop).

        The list is cut wherever neighbours share at most an eighth of a row. If the sides of a cut land in different rows, what
        they share is computed twice; an eighth of a row bounds that. A piece larger than a row is halved: cut where neighbours
        share least, and of several such places at the one nearest to the middle, which keeps the pieces large.
        """
        cuts = [0, *(np.flatnonzero(self.shared[1:] <= self.row_tokens // 8) + 1).tolist(), len(self.shared)]
        unchecked, pieces = list(pairwise(cuts)), []
        while unchecked:
            start, stop = unchecked.pop()
            if stop - start == 1 or self._size(start, stop) <= self.row_tokens:
                pieces.append((start, stop))
                continue
            inner = self.shared[start + 1 : stop]
            least_shared = np.flatnonzero(inner == inner.min()) + start + 1
            middle = int(least_shared[np.abs(least_shared - (start + stop) / 2).argmin()])
            unchecked += [(start, middle), (middle, stop)]
        return pieces

    def fill(self) -> list[list[int]]:
        """The sequences of each row, in sorted order.

        First-fit decreasing, the usual heuristic for bins: the largest piece first, each into the first row with room. A piece
        takes less room in a row that holds sequences with the same beginning.
        """
        rows: list[list[tuple[int, int]]] = []  # pieces, sorted
        free = np.empty(0, dtype=np.int64)  # tokens per row
        for start, stop in sorted(self._pieces(), key=lambda piece: (-self._size(*piece), piece)):
            size = self._size(start, stop)
            # In sorted order nothing shares more with the piece than its neighbours in the whole list. So rows with less room
            # than this bound leaves can be skipped at once, without a look at their sequences.
            most_shared = max(int(self.shared[start]), int(self.shared[stop]) if stop < len(self.shared) else 0)
            for row in np.flatnonzero(free >= size - most_shared).tolist():
                # Of the row's sequences, too, the neighbours share most: the last before the piece and the first behind it.
                pieces = rows[row]
                position = bisect(pieces, (start, stop))
                before = self._common(pieces[position - 1][1] - 1, start) if position else 0
                after = self._common(stop - 1, pieces[position][0]) if position < len(pieces) else 0
                needed = size - max(before, after)
                if free[row] >= needed:
                    pieces.insert(position, (start, stop))
                    free[row] -= needed
                    break
            else:
                rows.append([(start, stop)])
                free = np.append(free, self.row_tokens - size)  # negative if one sequence exceeds a row
        return [[sequence for piece in row for sequence in range(*piece)] for row in rows]


@dataclass
class Row:
    """The distinct tokens of some sorted sequences, parents before children.

    Attributes:
        tokens, depths: (nodes,).
        ancestors: (nodes, nodes) bool.
        paths: per sequence its nodes, in the order of its tokens.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ancestors: np.ndarray
    paths: list[np.ndarray]

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> "Row":
        """The row of some sequences, sorted."""
        # Sorted, a sequence shares most with the one right before it: the tokens behind that beginning are new in the row.
        new_tokens = [len(tokens) - common_tokens(before, tokens) for before, tokens in pairwise([np.empty(0), *sequences])]
        size = sum(new_tokens)
        row = cls(np.empty(size, np.int64), np.empty(size, np.int64), np.zeros((size, size), bool), [])
        path, end = np.empty(0, np.int64), 0
        for tokens, new in zip(sequences, new_tokens, strict=True):
            begin, end, common = end, end + new, len(tokens) - new
            path = np.concatenate([path[:common], np.arange(begin, end)])
            row.tokens[begin:end] = tokens[common:]
            row.depths[begin:end] = np.arange(common, len(tokens))
            row.ancestors[begin:end, path[:common]] = True
            row.ancestors[begin:end, begin:end] = np.tri(new, dtype=bool)  # the new tokens are one chain
            row.paths.append(path)
        return row
