"""Laying sorted token sequences into rows in which every shared prefix stands once."""

from bisect import bisect
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


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


@dataclass(frozen=True)
class Layout:
    """The trees of all rows in rectangles. A row lists its tree in depth-first order, so that a subtree is a run of columns.

    Padding has token 0 at depth 0; it sees itself alone, so that no softmax is empty, and no token sees it.

    Attributes:
        tokens, depths, ends: (rows, length); `ends` is the column behind a token's subtree.
        rows: (sequences,) the row of each sequence.
        columns: (sequences, longest) where in its row each token of a sequence stands; without meaning behind its last token.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray, lengths: np.ndarray, row_tokens: int) -> "Layout":
        """Lay sequences into rows.

        Args:
            table: (sequences, longest) token ids, -1 behind the last one.
            lengths: (sequences,).
            row_tokens: see `Rows`.
        """
        # 1. Sort, so that sequences with a common beginning are neighbours. Big-endian bytes compare as the numbers do, and 0,
        #    for no token, comes first: a sequence stands before those that continue it.
        words = (table + 1).astype(">u4")
        keys = [row.tobytes() for row in words]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
        sequences, sizes = table[order], lengths[order]
        shared = np.concatenate([[0], _shared(sequences, sizes)])

        # 2. Choose the rows, and list the sequences row by row. A sequence adds what it does not share with the one before it
        #    in its row.
        members = Rows(sizes, shared, row_tokens).fill()
        listed = np.concatenate(members)
        sequences, sizes, order = sequences[listed], sizes[listed], order[listed]
        row_of = np.repeat(np.arange(len(members)), [len(row) for row in members])
        is_first = np.concatenate([[True], row_of[1:] != row_of[:-1]])
        shared = np.where(is_first, 0, np.concatenate([[0], _shared(sequences, sizes)]))
        stops = np.cumsum(sizes - shared)  # counting the distinct tokens of all rows through
        begins = np.concatenate([[0], stops[:-1]])
        row_begins = begins[is_first]
        widths = np.diff([*row_begins, stops[-1]])

        # 3. At each depth a sequence's token is the one that it, or the last sequence before it to do so, added there. The
        #    token's subtree ends where the next sequence adds a token at this depth, which one in another row always does.
        number, depth = np.arange(len(sizes))[:, None], np.arange(table.shape[1])
        adds = shared[:, None] <= depth
        source = np.maximum.accumulate(np.where(adds, number, 0), axis=0)
        columns = (begins - shared - row_begins[row_of])[source] + depth
        following = np.concatenate([np.where(adds, number, len(sizes))[1:], np.full((1, len(depth)), len(sizes))])
        following = np.minimum.accumulate(following[::-1], axis=0)[::-1]
        ends = np.append(begins, stops[-1])[following] - row_begins[row_of][:, None]

        # 4. Write the rows into rectangles. The tokens that sequences add, in order, are the rows' tokens, in order.
        added = adds & (depth < sizes[:, None])
        inside = np.arange(widths.max()) < widths[:, None]
        rectangles = [np.zeros(inside.shape, dtype=np.int64) for _ in range(2)]
        rectangles.append(np.tile(np.arange(1, inside.shape[1] + 1), (len(inside), 1)))
        for rectangle, values in zip(rectangles, (sequences, np.broadcast_to(depth, adds.shape), ends), strict=True):
            rectangle[inside] = values[added]

        # 5. Rows and columns in the order of the table.
        back = np.argsort(order)
        tokens, depths, end_columns = rectangles
        return cls(tokens, depths, end_columns, row_of[back], columns[back])


def _shared(sequences: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many tokens each sequence but the first shares with the one before it, at their beginning: (sequences - 1,)."""
    differ = sequences[1:] != sequences[:-1]
    first = np.where(differ.any(1), differ.argmax(1), sequences.shape[1])
    return np.minimum(first, np.minimum(lengths[1:], lengths[:-1]))
