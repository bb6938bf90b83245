"""RankedLists: a whole predictions file as arrays, for files of any size."""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Union, get_args

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json

from minionerec.config import CUTOFFS
from minionerec.errors import DataError
from minionerec.eval.predictions import Prediction, ScoreKind, read_predictions

HEADLINE = 10  # the cut-off that the field reports
EMPTY = -1  # code of a position beyond the end of a list, and of a recommended text that is no SID
NO_TIE = (0, 1)  # of a target with which nothing ties
_BLOCK = 16 << 20  # bytes of text parsed at once: large enough to be fast, and memory stays bounded
_INDICES = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    {
        "user": pa.string(),
        "history": _INDICES,
        "target": pa.int32(),
        "target_sid": _INDICES,
        "sids": pa.list_(_INDICES),
        "items": _INDICES,
        "scores": pa.list_(pa.float64()),
        "exact": pa.bool_(),
        "score_kind": pa.string(),
        "position": pa.int32(),
        "sizes": _INDICES,
        "item_tie": _INDICES,
        "sid_tie": _INDICES,
        "target_id": pa.string(),
        "history_ids": pa.list_(pa.string()),
        "item_ids": pa.list_(pa.string()),
    }
)


def cutoffs_within(places: int, cutoffs: Sequence[int] = CUTOFFS) -> list[int]:
    """The cut-offs that lists reach, of which the longest has `places` places; never none.

    At a larger cut-off a metric would count the whole list and no more: HR@50 of lists of 10 is their HR@10. If all cut-offs
    are larger, the length of the longest list is the only one.

    >>> cutoffs_within(10), cutoffs_within(7, [10, 20])
    ([1, 3, 5, 10], [7])
    """
    return [k for k in cutoffs if k <= places] or [max(places, 1)]


def headline_cutoff(cutoffs: Iterable[int]) -> int:
    """The cut-off of headline figures: the largest up to 10.

    >>> headline_cutoff([1, 3, 5, 10, 20]), headline_cutoff([1, 3, 5])
    (10, 5)
    """
    return max((k for k in cutoffs if k <= HEADLINE), default=HEADLINE)


class _Irregular(Exception):  # noqa: N818 - no error: sends the reader to the slow path, which finds the line
    """A block that the fast path cannot check."""


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Lists of unequal length, end to end: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """From Python lists."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        values = np.fromiter((value for row in rows for value in row), np.int32, int(lengths.sum()))
        return cls(values, np.concatenate([[0], lengths.cumsum()]))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) values per row."""
        return np.diff(self.offsets)

    def row(self, position: int) -> int:
        """The row of `values[position]`."""
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def positions_of(self, wanted: np.ndarray) -> np.ndarray:
        """0-based position of each row's wanted value (rows,), infinity if the row lacks it."""
        hits = np.flatnonzero(self.values == np.repeat(wanted, self.lengths))
        rows = np.searchsorted(self.offsets, hits, side="right") - 1
        positions = np.full(len(self.offsets) - 1, np.inf)
        positions[rows[::-1]] = (hits - self.offsets[rows])[::-1]  # backwards, so that a row's first hit is written last
        return positions


@dataclasses.dataclass(frozen=True)
class RankedLists:
    """Predictions as arrays; row i is one example.

    Attributes:
        users: (rows,) ids; a user with several examples has several rows.
        positions: (rows,) int, the target's position in the user's sequence; -1 if the file does not say.
        targets: (rows,) int, item indices; -1 if the file names no items.
        target_sids: (rows, levels) int; a SID with fewer codes than the longest ends in -1.
        sids: (rows, width, levels) int, best first, short ones ending in -1; `EMPTY` at every level beyond a list's end and
            if a recommended text is no SID.
        lengths: (rows,) int, length of each list.
        scores: (rows, width) float32, NaN beyond a list's end; None if the file has none.
        score_kind: what the scores are; None if the file has none, or not every line says it, and the same.
        sizes: (rows, width) int, how many items share each SID and are tied, 0 beyond a list's end; None if nothing is tied.
        items: recommended items; None if the file names none.
        history: item indices, oldest first; None if the file names none.
        history_lengths: (rows,) int.
        repeats: (rows,) bool: the target is in the history (its SID, if the file names no items).
        exact: (rows,) bool, or None if the file does not say.
        item_ties, sid_ties: (rows, 2) int, the field of this name of each `Prediction`, [0, 1] in a row without one.
    """

    users: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    target_sids: np.ndarray
    sids: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray | None
    score_kind: ScoreKind | None
    sizes: np.ndarray | None
    items: Ragged | None
    history: Ragged | None
    history_lengths: np.ndarray
    repeats: np.ndarray
    exact: np.ndarray | None
    item_ties: np.ndarray
    sid_ties: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def levels(self) -> int:
        """Codes per SID."""
        return self.target_sids.shape[1]

    @property
    def width(self) -> int:
        """Length of the longest list."""
        return self.sids.shape[1]

    @property
    def places(self) -> np.ndarray:
        """(rows,) places of each list as its recommender made it: SIDs, or items if it ranks items.

        Items that share a SID stand at one of its positions in `sids`, so a ranking of ten items may have nine SIDs.
        """
        return self.lengths if self.items is None or self.sizes is not None else np.maximum(self.lengths, self.items.lengths)

    @property
    def span(self) -> dict[str, int]:
        """Places of the `shortest` and the `longest` list."""
        return {"shortest": int(self.places.min()), "longest": int(self.places.max())}

    def units(self) -> np.ndarray | None:
        """(rows,) a number per user for resampling; None if each user has one row."""
        distinct, units = np.unique(self.users, return_inverse=True)
        return units if len(distinct) < len(self.users) else None

    def chunks(self, rows: int = 16384) -> Iterator[slice]:
        """All rows in slices, so that what is computed from `sids` needs little memory."""
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    def example(self, row: int) -> Prediction:
        """One row as a `Prediction`.

        Raises:
            DataError: the file named no items.
        """
        if self.items is None or self.history is None or self.scores is None:
            raise DataError("These predictions name no items, so single examples cannot be shown.")
        length = int(self.lengths[row])
        return Prediction(
            user=str(self.users[row]),
            history=self.history[row].tolist(),
            target=int(self.targets[row]),
            target_sid=self.target_sids[row].tolist(),
            sids=self.sids[row, :length].tolist(),
            items=self.items[row].tolist(),
            scores=self.scores[row, :length].tolist(),
            exact=self.exact is not None and bool(self.exact[row]),
            score_kind=self.score_kind,
            position=int(self.positions[row]) if self.positions[row] >= 0 else None,
            sizes=None if self.sizes is None else self.sizes[row, :length].tolist(),
            item_tie=self.item_ties[row].tolist() if self.item_ties[row, 1] > 1 else None,
            sid_tie=self.sid_ties[row].tolist() if self.sid_ties[row, 1] > 1 else None,
        )

    @classmethod
    def of(cls, predictions: "Lists") -> "RankedLists":
        """From single predictions; `RankedLists` are returned unchanged.

        Raises:
            DataError: no predictions, or SIDs of unequal depth.
        """
        if isinstance(predictions, RankedLists):
            return predictions
        if not predictions:
            raise DataError("There are no predictions to measure; expected one per user.")
        depths = sorted({len(prediction.target_sid) for prediction in predictions})
        if len(depths) != 1:
            raise DataError(f"Predictions have SIDs of {depths} codes; expected one depth and at least one user.")
        lengths = np.array([len(prediction.sids) for prediction in predictions])
        width = int(lengths.max())
        filled = np.arange(width) < lengths[:, None]  # (rows, width)
        sids = np.full((len(predictions), width, depths[0]), EMPTY, dtype=np.int32)
        sids[filled] = np.array([sid for row in predictions for sid in row.sids], dtype=np.int32).reshape(-1, depths[0])
        scores = np.full(filled.shape, np.nan, dtype=np.float32)
        scores[filled] = [score for row in predictions for score in row.scores]
        sizes = None
        if any(row.sizes is not None for row in predictions):
            sizes = np.zeros(filled.shape, dtype=np.int32)
            sizes[filled] = [size for row in predictions for size in (row.sizes or [1] * len(row.sids))]
        history, targets = Ragged.of([row.history for row in predictions]), np.array([row.target for row in predictions])
        return cls(
            users=np.array([row.user for row in predictions]),
            positions=np.array([-1 if row.position is None else row.position for row in predictions]),
            targets=targets,
            target_sids=np.array([row.target_sid for row in predictions], dtype=np.int32),
            sids=sids,
            lengths=lengths,
            scores=scores,
            score_kind=_common({row.score_kind for row in predictions}),
            sizes=sizes,
            items=Ragged.of([row.items for row in predictions]),
            history=history,
            history_lengths=history.lengths,
            repeats=np.isfinite(history.positions_of(targets)),
            exact=np.array([row.exact for row in predictions]),
            item_ties=np.array([row.item_tie or NO_TIE for row in predictions], dtype=np.int32),
            sid_ties=np.array([row.sid_tie or NO_TIE for row in predictions], dtype=np.int32),
        )

    @classmethod
    def read(cls, path: Path) -> "RankedLists":
        """Read a `predictions.jsonl`.

        Blocks of the file are parsed and checked as columns. If anything in a block is unusual, the file is read again line by
        line, for an error that names the line.

        Raises:
            DataError: the file is missing, malformed or empty, or lists an example twice; the message names the line.
        """
        try:
            parts = [_arrays(block) for block in _blocks(Path(path))]
            return _joined(parts)
        except (_Irregular, OSError, pa.ArrowInvalid):
            return cls.of(read_predictions(path))


Lists = Union[RankedLists, Sequence[Prediction]]  # noqa: UP007 - a forward reference


def _blocks(path: Path) -> Iterator[bytes]:
    """The file's text in blocks of whole lines."""
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block + stream.readline()


def _numbers(column: pa.ListArray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as its values and the lengths of its rows."""
    values = column.flatten()
    if column.null_count or values.null_count:
        raise _Irregular
    return values.to_numpy(zero_copy_only=False).astype(dtype, copy=False), np.diff(column.offsets.to_numpy())


def _arrays(block: bytes) -> dict[str, Any]:
    """The checked columns of a block of lines.

    Raises:
        _Irregular: `read_predictions` might refuse a line.
    """
    options = pa.json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="error")
    whole = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    table = pa.json.read_json(io.BytesIO(block), read_options=whole, parse_options=options).combine_chunks()
    rows = table.num_rows
    if rows != block.count(b"\n") + (not block.endswith(b"\n")):  # blank lines
        raise _Irregular
    column = {name: table[name].chunk(0) if rows else table[name] for name in _SCHEMA.names}
    for ids, items_of in (("history_ids", "history"), ("item_ids", "items")):
        if column[ids].null_count < rows and not _are_ids(column[ids], column[items_of]):
            raise _Irregular
    if any(column[name].null_count for name in ("user", "target", "exact")):
        raise _Irregular
    history, history_lengths = _numbers(column["history"], np.int32)
    target_codes, depths = _numbers(column["target_sid"], np.int32)
    items, item_lengths = _numbers(column["items"], np.int32)
    scores, score_lengths = _numbers(column["scores"], np.float32)
    if column["sids"].null_count:
        raise _Irregular
    codes, code_depths = _numbers(column["sids"].flatten(), np.int32)
    lengths, levels = np.diff(column["sids"].offsets.to_numpy()), int(depths[0])
    targets = column["target"].to_numpy()
    if (
        levels == 0
        or (depths != levels).any()
        or (code_depths != levels).any()
        or (score_lengths != lengths).any()
        or not np.isfinite(scores).all()
        or any(values.size and values.min() < 0 for values in (history, items, targets))
        or not (_are_sids(target_codes.reshape(-1, levels)) and _are_sids(codes.reshape(-1, levels)))
    ):
        raise _Irregular
    filled = np.arange(int(lengths.max())) < lengths[:, None]
    narrow = np.int16 if codes.size == 0 or codes.max() < 2**15 else np.int32  # codes are most of a file's memory
    sids = np.full((*filled.shape, levels), EMPTY, dtype=narrow)
    sids[filled] = codes.reshape(-1, levels)
    if _holds_twice(sids, filled):
        raise _Irregular
    padded = np.full(filled.shape, np.nan, dtype=np.float32)
    padded[filled] = scores
    positions = column["position"]
    position = np.full(rows, -1, dtype=np.int32) if positions.null_count == rows else positions.fill_null(-1).to_numpy()
    if (position[positions.is_valid().to_numpy(zero_copy_only=False)] < 0).any():
        raise _Irregular
    return {
        "users": column["user"].to_numpy(zero_copy_only=False).astype(np.str_),
        "positions": position,
        "targets": targets,
        "target_sids": target_codes.reshape(-1, levels),
        "sids": sids,
        "lengths": lengths,
        "scores": padded,
        "score_kinds": _score_kinds(column["score_kind"]),
        "sizes": _sizes(column["sizes"], filled, item_lengths),
        "item_ties": _ties(column["item_tie"]),
        "sid_ties": _ties(column["sid_tie"]),
        "items": (items, item_lengths),
        "history": (history, history_lengths),
        "exact": column["exact"].to_numpy(zero_copy_only=False),
    }


def _score_kinds(column: pa.StringArray) -> set[ScoreKind | None]:
    """What the lines of a block say that their scores are; None among them for a line that does not say it."""
    kinds = {*column.unique().to_pylist()}
    if not kinds <= {None, *get_args(ScoreKind)}:
        raise _Irregular
    return kinds


def _common(kinds: set[ScoreKind | None]) -> ScoreKind | None:
    """What all lines of a file say that their scores are; None if they do not, as after a shard of an earlier version."""
    return kinds.pop() if len(kinds) == 1 else None


def _are_ids(ids: pa.ListArray, items: pa.ListArray) -> bool:
    """Whether each list of ids that is there has one text per item."""
    there = ids.is_valid()
    lengths = [column.filter(there).value_lengths() for column in (ids, items)]
    return lengths[0].equals(lengths[1]) and not ids.flatten().null_count


def _are_sids(codes: np.ndarray) -> bool:
    """Whether each row of (SIDs, levels) has a first code and no code after a -1."""
    stops = codes < 0
    return not ((codes < -1).any() or stops[:, 0].any() or (stops[:, :-1] & ~stops[:, 1:]).any())


def _sizes(column: pa.ListArray, filled: np.ndarray, item_lengths: np.ndarray) -> np.ndarray | None:
    """The sizes of all lists, (rows, width); None if no line has any.

    Args:
        column: the field `sizes`; null in lines without it.
        filled: (rows, width) whether a list has a SID at this position.
        item_lengths: (rows,) items of each line.
    """
    if column.null_count == len(column):
        return None
    has_sizes = column.is_valid().to_numpy(zero_copy_only=False)
    values, lengths = _numbers(column.filter(column.is_valid()), np.int32)
    sizes = filled.astype(np.int32)  # a line without sizes has one item per SID
    if (lengths != filled[has_sizes].sum(axis=1)).any() or (values.size and values.min() < 1):
        raise _Irregular
    sizes[filled & has_sizes[:, None]] = values
    if (sizes.sum(axis=1)[has_sizes] != item_lengths[has_sizes]).any():
        raise _Irregular
    return sizes


def _ties(column: pa.ListArray) -> np.ndarray:
    """The pairs of a field `item_tie` or `sid_tie`, (rows, 2), `NO_TIE` in lines without it."""
    ties = np.tile(np.array(NO_TIE, dtype=np.int32), (len(column), 1))
    values, lengths = _numbers(column.filter(column.is_valid()), np.int32)
    if (lengths != 2).any() or (values.size and (values[::2].min() < 0 or values[1::2].min() < 2)):
        raise _Irregular
    ties[column.is_valid().to_numpy(zero_copy_only=False)] = values.reshape(-1, 2)
    return ties


def _holds_twice(sids: np.ndarray, filled: np.ndarray) -> bool:
    """Whether any list names a SID twice. Each SID becomes one number; equal numbers are neighbours once sorted."""
    key = np.zeros(filled.shape, dtype=np.int64)
    for level in range(sids.shape[2]):
        radix = int(sids[..., level].max(initial=0)) + 2
        if int(key.max(initial=0)) >= 2**62 // radix:
            raise _Irregular
        key = key * radix + sids[..., level] + 1
    key[~filled] = -1 - np.arange(filled.size).reshape(filled.shape)[~filled]  # padding is never equal
    key.sort(axis=1)
    return bool((key[:, 1:] == key[:, :-1]).any())


def _pad(parts: list[np.ndarray], fill: float) -> np.ndarray:
    """The parts one below the other, all as wide as the widest."""
    width = max(part.shape[1] for part in parts)
    padded = np.full((sum(map(len, parts)), width, *parts[0].shape[2:]), fill, dtype=np.result_type(*parts))
    start = 0
    for part in parts:
        padded[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return padded


def _joined(parts: list[dict[str, Any]]) -> RankedLists:
    """The columns of all blocks, one below the other.

    Raises:
        _Irregular: blocks differ in SID depth, or an example appears twice.
    """
    if not parts or len({part["target_sids"].shape[1] for part in parts}) != 1:
        raise _Irregular

    def ragged(name: str) -> Ragged:
        lengths = np.concatenate([part[name][1] for part in parts])
        return Ragged(np.concatenate([part[name][0] for part in parts]), np.concatenate([[0], lengths.cumsum()]))

    simple = {name: np.concatenate([part.pop(name) for part in parts]) for name in
              ("users", "positions", "targets", "target_sids", "lengths", "exact", "item_ties", "sid_ties")}  # fmt: skip
    if pl.DataFrame({name: simple[name] for name in ("users", "positions")}).is_duplicated().any():
        raise _Irregular
    sizes = None
    if any(part["sizes"] is not None for part in parts):
        untied = [(part["sids"][..., 0] != EMPTY).astype(np.int32) for part in parts]  # one item per SID
        sizes = _pad([ones if part["sizes"] is None else part["sizes"] for part, ones in zip(parts, untied, strict=True)], 0)
    history, items = ragged("history"), ragged("items")
    scores = _pad([part.pop("scores") for part in parts], np.nan)
    return RankedLists(
        **simple,
        sids=_pad([part.pop("sids") for part in parts], EMPTY),
        scores=scores,
        score_kind=_common(set().union(*(part["score_kinds"] for part in parts))),
        sizes=sizes,
        items=items,
        history=history,
        history_lengths=history.lengths,
        repeats=np.isfinite(history.positions_of(simple["targets"])),
    )
