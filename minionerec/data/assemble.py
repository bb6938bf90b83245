"""From the interactions that the filters leave to a Dataset: in memory, or on disk in pieces whose bytes are the same.

On disk each part of users becomes a file of the rows that stay, and each piece of the users in their final order a file of
examples; both come in shards. One process then joins the pieces.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from minionerec.artifacts import over_shards
from minionerec.config import DataConfig
from minionerec.data.dataset import INTERACTION_SCHEMA, SPLIT_SCHEMA, SPLITS, Dataset, catalog_schema
from minionerec.data.filters import Part, Selection, select
from minionerec.data.mapped import map_table, read_mapped, write_mapped
from minionerec.data.parquet import write_parquet
from minionerec.data.splits import cuts_of, every_example, split
from minionerec.distributed import decide_on_main, is_main_process
from minionerec.errors import DataError

_PIECE_ROWS = 1 << 20  # interactions of a piece, about; a user is in one piece


class Prepared(NamedTuple):
    """A dataset, and its figures for the manifest: what is in it, and what was dropped."""

    dataset: Dataset
    figures: dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """Interactions that were read and not yet filtered.

    Attributes:
        parts: the interactions with items that may stay; item numbers are places in `ids`.
        ids: the items that may stay, in the order of the catalog.
        catalog: gives the catalog of some of these items, in the order given.
        unit: time units per second; None if there are no times.
        counts: rows read so far, and rows dropped by reason.
        where: the files, for messages.
    """

    parts: Sequence[Part]
    ids: pl.Series
    catalog: Callable[[pl.Series], pl.DataFrame]
    unit: int | None
    counts: dict[str, int]
    where: str

    def select(self, config: DataConfig) -> Selection:
        """What the filters leave."""
        return select(self.parts, self.unit or 1, config, self.where)

    def listed(self, selection: Selection, config: DataConfig) -> np.ndarray:
        """The items of the catalog, as places in `ids`."""
        # The k-core counts items too: the catalog then holds only items that stay.
        return selection.items if config.item_threshold else np.arange(len(self.ids))


def assemble(raw: Raw, config: DataConfig) -> Prepared:
    """The dataset of what the filters leave, in memory.

    Raises:
        DataError: no interaction, or no training example, is left.
    """
    selection = raw.select(config)
    listed = raw.listed(selection, config)
    rows = pl.concat([selection.kept(number, part) for number, part in enumerate(raw.parts)]).sort("first", maintain_order=True)
    sequences = _sequences(_renumbered(rows, listed))
    splits = split(sequences, config, raw.unit or 1)
    if raw.unit is None:
        splits = {name: frame.with_columns(timestamp=pl.lit(None, pl.Int64)) for name, frame in splits.items()}
    dataset = Dataset(catalog=raw.catalog(raw.ids.gather(listed)), **splits, interactions=_interactions(sequences, raw.unit))
    dropped = {name: value for name, value in selection.counts.items() if name not in ("read", "span")}
    longest = int(sequences["position"].max()) + 1  # type: ignore[arg-type]
    _refuse_untrainable(len(splits["train"]), raw, selection, sequences["user"].n_unique(), longest)
    return Prepared(dataset, figures_of(dataset) | raw.counts | dropped)


def _refuse_untrainable(train: int, raw: Raw, selection: Selection, users: int, longest: int) -> None:
    if not train:
        raise DataError(
            f"No training example is left: {raw.counts['interactions_read']:,} interactions read, {selection.rows:,} kept of "
            f"{users:,} users; the longest user has {longest}. See data.user_k, data.split and data.missing_text."
        )


def _renumbered(rows: pl.DataFrame, listed: np.ndarray) -> pl.DataFrame:
    """The rows with items as rows of the catalog."""
    return rows.with_columns(item=pl.Series(np.searchsorted(listed, rows["item"].to_numpy()).astype(np.int32)))


def _sequences(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows in order of `first`, with each one's position in its user's sequence."""
    first = rows["first"].to_numpy()
    begins = np.flatnonzero(np.append(True, first[1:] != first[:-1])) if len(first) else np.zeros(0, np.int64)
    position = np.arange(len(first)) - np.repeat(begins, np.diff(np.append(begins, len(first))))
    return rows.select("user", pl.Series("position", position, dtype=pl.Int32), "item", "time", "rating")


def _interactions(sequences: pl.DataFrame, unit: int | None) -> pl.DataFrame:
    stamp = pl.col("time") // unit if unit else pl.lit(None, pl.Int64)
    return sequences.select("user", "position", "item", timestamp=stamp, rating="rating")


def figures_of(dataset: Dataset) -> dict[str, Any]:
    """The figures of a dataset for the manifest."""
    frames = [dataset.split(name) for name in SPLITS]
    users = pl.concat([frame["user"] for frame in frames])
    if dataset.interactions is not None:
        users = dataset.interactions["user"]
        items = dataset.interactions["item"]
        size = {"interactions": len(items)}
    else:
        items = pl.concat([*(frame["target"] for frame in frames), *(frame["history"].explode() for frame in frames)])
        size = {}
    return {
        "users": users.n_unique(),
        "items": len(dataset.catalog),
        **size,
        **{name: len(dataset.split(name)) for name in SPLITS},
        "mean_history": _mean([int(frame["history"].list.len().sum()) for frame in frames], sum(map(len, frames))),
        "items_without_interaction": len(dataset.catalog) - items.drop_nulls().n_unique(),
    }


def _mean(sums: Sequence[int], count: int) -> float:
    return round(sum(sums) / max(count, 1), 4)


# On disk


@dataclass(frozen=True)
class _KeepRows:
    """Writes the rows of a part that stay."""

    parts: Sequence[Part]
    selection: Selection
    listed: np.ndarray

    def __call__(self, of: range, path: Path) -> None:
        write_mapped(_renumbered(self.selection.kept(of.start, self.parts[of.start]), self.listed), path)


@dataclass(frozen=True)
class _MakePiece:
    """Writes the interactions and examples of some users, in their final order.

    Attributes:
        kept: the files of the parts.
        bounds: (pieces + 1,) where each piece begins, in `first`.
    """

    kept: Sequence[Path]
    bounds: np.ndarray
    config: DataConfig
    unit: int

    def __call__(self, of: range, path: Path) -> None:
        low, high = self.bounds[of.start], self.bounds[of.stop]
        frames = []
        for kept in self.kept:
            table = map_table(kept)
            begin, end = np.searchsorted(table["first"].to_numpy(), [low, high])
            frames.append(pl.DataFrame(pl.from_arrow(table.slice(begin, end - begin))))
        sequences = _sequences(pl.concat(frames).sort("first", maintain_order=True))
        by_user = self.config.split == "leave-last-two-out"
        examples = (
            split(sequences, self.config, self.unit)
            if by_user
            else {"examples": every_example(sequences, self.config, self.unit)}
        )
        for name, frame in examples.items():
            write_mapped(frame, _beside(path, name))
        write_mapped(_interactions(sequences, self.unit), path)  # last: a piece under its final name is complete


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}.arrow")


def write_assembled(raw: Raw, config: DataConfig, store: Path, folder: Path) -> dict[str, Any]:
    """Write the dataset's files without holding it; every process of a launch calls it. Returns the figures in the main one.

    Args:
        raw: with times; the same in every process.
        store: an existing folder for the pieces, which all processes see.
        folder: of the artefact.

    Raises:
        DataError: no interaction, or no training example, is left.
    """
    assert raw.unit is not None
    selection = decide_on_main(lambda: raw.select(config))
    listed = raw.listed(selection, config)
    kept = {store / f"kept-{number:05d}.arrow": range(number, number + 1) for number in range(len(raw.parts))}
    over_shards(kept, _KeepRows(raw.parts, selection, listed), "keep rows", "parts")
    bounds = _bounds(list(kept))
    pieces = {store / f"piece-{number:05d}.arrow": range(number, number + 1) for number in range(len(bounds) - 1)}
    over_shards(pieces, _MakePiece(list(kept), bounds, config, raw.unit), "make examples", "pieces")
    if not is_main_process():
        return {}
    catalog = raw.catalog(raw.ids.gather(listed))
    write_parquet(folder / "catalog.parquet", [catalog], catalog_schema(catalog))
    figures = _join(list(pieces), raw, selection, config, folder, len(catalog))
    return figures | raw.counts | {name: value for name, value in selection.counts.items() if name not in ("read", "span")}


def _bounds(kept: Sequence[Path]) -> np.ndarray:
    """Where pieces of about `_PIECE_ROWS` interactions begin, in `first`, and the end of the last one."""
    first, counts = [], []
    for path in kept:
        column = map_table(path)["first"].to_numpy()
        begins = np.flatnonzero(np.append(True, column[1:] != column[:-1])) if len(column) else np.zeros(0, np.int64)
        first.append(column[begins].astype(np.int64))
        counts.append(np.diff(np.append(begins, len(column))))
    users = np.concatenate(first)
    order = np.argsort(users)
    before = np.cumsum(np.concatenate(counts)[order]) - np.concatenate(counts)[order]
    starts = np.unique(before // _PIECE_ROWS, return_index=True)[1]
    return np.append(users[order][starts], users.max() + 1)


def _join(
    pieces: Sequence[Path], raw: Raw, selection: Selection, config: DataConfig, folder: Path, items: int
) -> dict[str, Any]:
    """Write the interactions and the splits from the pieces; returns their figures."""
    facts = {"users": 0, "longest": 0, "history": 0}

    def interactions() -> Iterator[pl.DataFrame]:
        for path in pieces:
            frame = read_mapped(path)
            facts["users"] += int((frame["position"] == 0).sum())
            facts["longest"] = max(facts["longest"], int(frame["position"].max()) + 1)  # type: ignore[arg-type]
            yield frame

    def counted(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        for frame in frames:
            facts["history"] += int(frame["history"].list.len().sum())
            yield frame

    rows = write_parquet(folder / "interactions.parquet", interactions(), INTERACTION_SCHEMA)
    frames: Mapping[str, Iterator[pl.DataFrame]]
    if config.split == "leave-last-two-out":
        frames = {name: map(read_mapped, [_beside(path, name) for path in pieces]) for name in SPLITS}
    else:
        frames = _by_time([_beside(path, "examples") for path in pieces], config, raw.unit or 1)
    sizes: dict[str, int] = {}
    for name in SPLITS:
        sizes[name] = write_parquet(folder / f"{name}.parquet", counted(frames[name]), SPLIT_SCHEMA)
    _refuse_untrainable(sizes["train"], raw, selection, facts["users"], facts["longest"])
    return {
        "users": facts["users"],
        "items": items,
        "interactions": rows,
        **sizes,
        "mean_history": _mean([facts["history"]], sum(sizes.values())),
        "items_without_interaction": items - len(selection.items),
    }


def _by_time(pieces: Sequence[Path], config: DataConfig, unit: int) -> Mapping[str, Iterator[pl.DataFrame]]:
    """The splits of examples that are each in order of time, in order of time over all pieces, ties by piece.

    Of all examples only the times are held at once.
    """
    times = [map_table(path)["time"].to_numpy() for path in pieces]
    ordered = np.sort(np.concatenate(times))
    edges = [0, *cuts_of(ordered, config, unit), len(ordered)]
    # At each begins a bucket, which holds all examples of a time; the last one ends them.
    steps = np.append(np.unique(ordered[::_PIECE_ROWS]), ordered[-1:] + 1)

    def between(begin: int, end: int) -> Iterator[pl.DataFrame]:
        place = 0
        for low, high in pairwise(steps):
            spans = [np.searchsorted(column, [low, high]) for column in times]
            size = int(sum(stop - start for start, stop in spans))
            if place < end and place + size > begin:
                slices = [
                    pl.DataFrame(pl.from_arrow(map_table(path).slice(start, stop - start)))
                    for path, (start, stop) in zip(pieces, spans, strict=True)
                ]
                bucket = pl.concat(slices).sort("time", maintain_order=True)
                yield bucket[max(begin - place, 0) : end - place]
            place += size

    return {name: between(begin, end) for name, begin, end in zip(SPLITS, edges, edges[1:], strict=False)}
