"""`data.source parquet`: tables that Spark or another engine has prepared, of any size (docs/spark.md).

The contract. `interactions` is a file `interactions.parquet`, or a folder of `*.parquet` as engines write it; `items` likewise.

| table | column | type | rule |
| --- | --- | --- | --- |
| interactions | user | string | not empty, no control character |
|  | item_id | string | as user; in items, unless `data.missing_text` is drop |
|  | timestamp | int64 | seconds since 1970 (UTC), above 0, before the year 5138 |
|  | rating | float or double | may be missing; null if unknown, else finite |
| items | item_id | string | not empty, no control character, once |
|  | title | string | not empty, unless `data.missing_text` is drop |
|  | text, description, brand, categories | string | each may be missing |

Other columns are ignored. Rows count from 1 in each file; files are read in the order of their names, and equal times of a user
stay in this order. Rows are spread over files by a hash of the user, so that all rows of a user are in one part; with every
engine the result has the bytes of one process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from minionerec.artifacts import over_shards, read_json, write_json
from minionerec.config import DataConfig
from minionerec.data import amazon
from minionerec.data.assemble import Raw
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.checks import CONTROL, make_catalog
from minionerec.data.dataset import CATALOG_DETAILS
from minionerec.data.mapped import map_table, read_mapped, store_part, stored_part, write_mapped
from minionerec.data.readers import described
from minionerec.errors import DataError

_BLOCK = 1 << 20  # rows of one file that are spread at once
_PART_ROWS = 1 << 21  # rows of a part, about
_MOST_PARTS = 1024
_FROM, _TO = 1, 100_000_000_000  # seconds
_STRING, _INT64, _FLOAT = "string", "int64", "float or double"
_KINDS: dict[pa.DataType, str] = {
    pa.string(): _STRING,
    pa.large_string(): _STRING,
    pa.string_view(): _STRING,
    pa.int64(): _INT64,
    pa.float32(): _FLOAT,
    pa.float64(): _FLOAT,
}
_INTERACTIONS = {"user": _STRING, "item_id": _STRING, "timestamp": _INT64}
_ITEMS = {"item_id": _STRING, "title": _STRING}
_ADVICE = "docs/spark.md has the contract of data.source parquet."


class Tables(NamedTuple):
    """The files of both tables, each in the order in which their rows count."""

    interactions: tuple[Path, ...]
    items: tuple[Path, ...]


def tables(folder: Path) -> Tables:
    """The files of a folder.

    Raises:
        DataError: a table is not there, or its job has not finished.
    """
    return Tables(_files(folder, "interactions"), _files(folder, "items"))


def _files(folder: Path, name: str) -> tuple[Path, ...]:
    several = folder / name
    if (several / "_temporary").exists():
        raise DataError(f"{several}: the job that writes it has not finished: _temporary is there. Run it again.")
    alone = folder / f"{name}.parquet"
    files = tuple(sorted(several.glob("*.parquet"))) if several.is_dir() else (alone,) * alone.is_file()
    if several.is_dir() and alone.is_file():
        raise DataError(f"{folder}: has {name}.parquet and a folder {name}, expected one of them. Move the other away.")
    if not files:
        raise DataError(f"{folder}: expected {name}.parquet, or a folder {name} of *.parquet; found neither. {_ADVICE}")
    return files


def _schema(path: Path, columns: Mapping[str, str], optional: Mapping[str, str]) -> list[str]:
    """The columns that are there; refuses a missing one, and one of another type."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise DataError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]}).") from None
    present = []
    for name, kind in {**columns, **optional}.items():
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: has the column {name} {schema.names.count(name)} times, expected once. {_ADVICE}")
        if name not in schema.names:
            if name in columns:
                raise DataError(f"{path}: columns {', '.join(schema.names)}; expected a column {name} ({kind}). {_ADVICE}")
            continue
        if _KINDS.get(schema.field(name).type) != kind:
            raise DataError(f"{path}: column {name} is {schema.field(name).type}, expected {kind}. {_ADVICE}")
        present.append(name)
    return present


@dataclass
class _Spread:
    """Writes a block of interactions, its rows in the order of their parts, with where each part begins.

    Attributes:
        files: of the interactions.
        starts: the number of the first row of each file, and of all rows.
        items: the file that `read` has left with item_id and passes.
        parts: how many.
    """

    files: Sequence[Path]
    starts: Sequence[int]
    items: Path
    parts: int
    config: DataConfig

    @cached_property
    def _items(self) -> pl.DataFrame:
        return read_mapped(self.items)

    def __call__(self, rows: range, path: Path) -> None:
        problems = Problems(skip=self.config.on_error == "skip", log=False)
        number = int(np.searchsorted(self.starts, rows.start, side="right")) - 1
        frame = self._checked(self.files[number], rows.start - self.starts[number], len(rows), problems)
        frame = frame.with_columns((pl.col("row") + (self.starts[number] - 1)).cast(pl.UInt32))  # over all files, from 0
        codes = self._items.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32), passes="passes")
        known = frame.join(codes, on="item_id", how="left", maintain_order="left")
        unlisted = known.filter(pl.col("item").is_null())
        if len(unlisted) and self.config.missing_text == "error":
            row = unlisted.row(0, named=True)
            raise DataError(
                f"{self.files[number]}, row {row['row'] - self.starts[number] + 1}: item {row['item_id']!r} is not in items. "
                "Add the item there, remove the row, or pass --data.missing_text drop."
            )
        listed = known.filter(pl.col("passes").fill_null(False))
        group = (listed["user"].hash(0) % self.parts).cast(pl.Int32)
        listed = listed.select("row", "user", "item", "rating", time="timestamp", group=group).sort(
            "group", maintain_order=True
        )
        begins = np.searchsorted(listed["group"].to_numpy(), np.arange(self.parts + 1)).tolist()
        facts = {
            "begins": begins,
            "unlisted": len(unlisted),
            "without_text": len(known) - len(unlisted) - len(listed),
            "messages": problems.messages,
            "read": len(known),
        }
        write_json(path.with_suffix(".json"), facts)
        write_mapped(listed.drop("group"), path)  # last: a block is complete when it is there

    def _checked(self, path: Path, skip: int, count: int, problems: Problems) -> pl.DataFrame:
        """The rows of a block: row (from 1, in its file), user, item_id, timestamp, rating."""
        columns = _schema(path, _INTERACTIONS, {"rating": _FLOAT})
        rows = pl.int_range(skip + 1, skip + count + 1, dtype=pl.Int64, eager=True)
        frame = _block(path, columns, skip, count).insert_column(0, rows.alias("row"))
        where = braced(str(path)) + ", row {row}: "
        for column in ("user", "item_id"):
            frame = problems.without(frame, pl.col(column).fill_null("") == "", f"{where}{column} is null or empty.")
            message = f"{where}{column} {{{column}!r}} has a tab, line break or other control character."
            frame = problems.without(frame, pl.col(column).str.contains(CONTROL), message)
        wrong = ~pl.col("timestamp").is_between(_FROM, _TO - 1).fill_null(False)
        message = "timestamp is {timestamp!r}; expected whole seconds since 1970, not milliseconds, above 0 and below 10^11."
        frame = problems.without(frame, wrong, where + message)
        if "rating" not in columns:
            return frame.with_columns(rating=pl.lit(None, pl.Float32))
        message = "rating is {rating!r}; expected a finite number, or null."
        frame = problems.without(frame, ~pl.col("rating").is_finite().fill_null(True), where + message)
        return frame.with_columns(pl.col("rating").cast(pl.Float32))


def _block(path: Path, columns: Sequence[str], skip: int, count: int) -> pl.DataFrame:
    """Some rows of a file; row groups before them are not read."""
    tables, left = [], skip
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            begins = [0, *accumulate(groups)]
            wanted = [n for n in range(len(groups)) if begins[n] < skip + count and begins[n + 1] > skip]
            left = skip - begins[wanted[0]]
            for batch in file.iter_batches(row_groups=wanted, columns=list(columns)):
                batch.validate(full=True)  # a text that is not UTF-8, which polars would trust
                if left < batch.num_rows and count:
                    part = batch.slice(left, count)
                    tables.append(pa.Table.from_batches([part]))
                    count -= part.num_rows
                left = max(left - batch.num_rows, 0)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]}).") from None
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(tables).select(list(columns))))


@dataclass
class _GatherPart:
    """Writes a part from all blocks."""

    blocks: Sequence[Path]
    begins: Sequence[Sequence[int]]

    def __call__(self, of: range, path: Path) -> None:
        slices = []
        for block, begins in zip(self.blocks, self.begins, strict=True):
            begin, end = begins[of.start], begins[of.start + 1]
            slices.append(pl.DataFrame(pl.from_arrow(map_table(block).slice(begin, end - begin))))
        store_part(pl.concat(slices), path)


def read(source: Path, store: Path, config: DataConfig, problems: Problems) -> Raw:
    """Read both tables; every process of a launch calls it.

    Args:
        store: an existing folder for the parts, which all processes see.
        problems: takes note of the rows that are skipped, in the main process as in all others.

    Raises:
        DataError: the tables break the contract; the message names file, row and column.
    """
    found = tables(source)
    items = _items(found.items, config, problems)
    titled = items.filter(amazon.passes(config.applies_title_rules))
    if config.applies_title_rules:
        titled = titled.with_columns(amazon.tidy_title().alias("title"))
    # Items that pass come first: their places are then places in the catalog.
    failing = items.join(titled.select("item_id"), on="item_id", how="anti", maintain_order="left")
    ordered = pl.concat([titled.select("item_id", passes=True), failing.select("item_id", passes=False)])
    write_mapped(ordered, store / "items.arrow")
    counts = [_rows(path) for path in found.interactions]
    starts = [0, *accumulate(counts)]
    if not starts[-1]:
        raise DataError(f"{source}: interactions has no rows, so nothing can be recommended.")
    if starts[-1] >= 2**32:
        raise DataError(f"{source}: {starts[-1]:,} interactions, expected fewer than 2**32. Split the data by users into runs.")
    shards = [
        range(begin, min(begin + _BLOCK, starts[number + 1]))
        for number in range(len(counts))
        for begin in range(starts[number], starts[number + 1], _BLOCK)
    ]
    parts = max(1, min(_MOST_PARTS, starts[-1] // _PART_ROWS))
    blocks = {store / f"block-{rows.start:012d}.arrow": rows for rows in shards}
    over_shards(blocks, _Spread(found.interactions, starts, store / "items.arrow", parts, config), "spread users", "rows")
    facts = [read_json(path.with_suffix(".json")) for path in blocks]
    for fact in facts:
        for message in fact["messages"]:
            problems.add(message)
    gathered = {store / f"part-{number:05d}.rows": range(number, number + 1) for number in range(parts)}
    over_shards(gathered, _GatherPart(list(blocks), [fact["begins"] for fact in facts]), "gather users", "parts")
    return Raw(
        parts=[stored_part(path) for path in gathered],
        ids=titled["item_id"],
        catalog=lambda wanted: wanted.to_frame().join(titled, on="item_id", maintain_order="left"),
        unit=1,
        counts={
            "items_read": len(items),
            "interactions_read": sum(fact["read"] for fact in facts),
            "dropped_items_without_text": len(items) - len(titled),
            "dropped_interactions_unlisted": sum(fact["unlisted"] for fact in facts),
            "dropped_interactions_without_text": sum(fact["without_text"] for fact in facts),
        },
        where=str(source),
    )


def _rows(path: Path) -> int:
    _schema(path, _INTERACTIONS, {"rating": _FLOAT})
    return int(pq.read_metadata(path).num_rows)


def _items(files: Sequence[Path], config: DataConfig, problems: Problems) -> pl.DataFrame:
    """The catalog of all listed items, checked."""
    optional = dict.fromkeys(("text", *CATALOG_DETAILS), _STRING)
    present = [_schema(path, _ITEMS, optional) for path in files]
    for path, columns in zip(files, present, strict=True):
        if columns != present[0]:
            raise DataError(f"{path}: columns {', '.join(columns)}, but {files[0].name} has {', '.join(present[0])}. {_ADVICE}")
    frames = []
    for path in files:
        rows = int(pq.read_metadata(path).num_rows)
        frame = _block(path, present[0], 0, rows) if rows else pl.DataFrame(schema=dict.fromkeys(present[0], pl.String))
        frame = frame.fill_null("").insert_column(0, pl.int_range(1, rows + 1, dtype=pl.UInt32, eager=True).alias("row"))
        frames.append(make_catalog(described(frame, with_description=True), str(path), config, problems))
    items = pl.concat(frames)
    if len(files) > 1 and items["item_id"].is_duplicated().any():
        item = items.filter(pl.col("item_id").is_duplicated())["item_id"][0]
        raise DataError(f"{files[0].parent}: item {item!r} is listed in two files. Keep one of the rows.")
    return items
