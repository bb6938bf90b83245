"""Splits that come as interactions, one a row: the files of Amazon 2023, and RecBole's split files without lists of items.

A row of the valid or test file is an example; its history is what its user did before, in any of the files. So a user's rows
of train must not be later than those of valid, nor these later than those of test: histories would show what came later.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from minionerec.config import DataConfig
from minionerec.data import times
from minionerec.data.amazon import FIELDS, described
from minionerec.data.bad_rows import Problems
from minionerec.data.checks import UNLISTED, checked_rows, refuse_unlisted
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.data.splits import examples_at
from minionerec.data.tables import opened, read_table, select
from minionerec.data.text_lines import json_lines
from minionerec.errors import DataError


def amazon_files(folder: Path, category: str | None) -> tuple[Path, ...]:
    """`NAME.train.csv`, `NAME.valid.csv`, `NAME.test.csv` and `meta_NAME.jsonl` of a folder; empty if it has no such splits.

    Raises:
        DataError: one of them is missing, or there are several data sets to choose from.
    """
    pattern = re.compile(r"(.+)\.train\.csv(\.gz)?")
    matches = [match for path in sorted(folder.glob("*.train.csv*")) if (match := pattern.fullmatch(path.name))]
    matches = [match for match in matches if category in (None, match[1])]
    if not matches:
        return ()
    if len(matches) > 1:
        names = ", ".join(match[1] for match in matches)
        raise DataError(f"{folder}: splits of {names}. Choose one with data.category.")
    stem, ending = matches[0][1], matches[0][2] or ""
    paths = [folder / f"{stem}.{split}.csv{ending}" for split in SPLITS]
    metadata = [folder / f"meta_{stem}.{form}" for form in ("jsonl", "jsonl.gz", "json", "json.gz")]
    paths.append(next((path for path in metadata if path.is_file()), metadata[0]))
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: not found. The splits of {stem} need all three files and the metadata.")
    return tuple(paths)


def read_amazon(paths: tuple[Path, ...], config: DataConfig, problems: Problems) -> Dataset:
    """The splits of Amazon 2023, whose catalog has the items of the splits in the order of the metadata.

    Raises:
        DataError: a file is malformed, or an item has no title or is not in the metadata (`data.missing_text`).
    """
    *splits, metadata = paths
    fields = FIELDS[config.source]
    columns = {"user": (fields.user,), "item_id": (fields.item,), "timestamp": (fields.time,), "rating": (fields.rating,)}
    tables = [select(read_table(opened(path), str(path), ",", problems=problems), path, columns) for path in splits]
    wanted = pl.concat([table["item_id"] for table in tables]).unique().implode()
    names = (fields.item, "title", *fields.description, fields.brand, fields.categories)
    frames = [frame.filter(pl.col(fields.item).is_in(wanted)) for frame in json_lines(metadata, names, problems)]
    items = pl.concat(frames).rename({fields.item: "item_id"}).unique("item_id", keep="last", maintain_order=True)
    catalog = described(items.with_columns(pl.col("title").fill_null("")), fields, config, problems)
    catalog = catalog.filter(pl.col("title").str.strip_chars() != "")
    catalog = catalog.select("item_id", "title", "text", "description", "brand", "categories")
    return by_rows(tables, splits, catalog, metadata, config, problems)


def by_rows(
    tables: Sequence[pl.DataFrame],
    paths: Sequence[Path],
    catalog: pl.DataFrame,
    listed_in: Path,
    config: DataConfig,
    problems: Problems,
) -> Dataset:
    """A dataset from the rows of the train, valid and test file.

    Args:
        tables: of each file row, user, item_id, and any of timestamp, rating and label, all text.
        paths: the three files, and with `listed_in` the file of the items, for messages.

    Raises:
        DataError: a row is wrong, unless skipped; an item is not listed, unless `data.missing_text` drops such rows; a user's
            row of one file is later than a row of the next.
    """
    frames = []
    for number, (table, path) in enumerate(zip(tables, paths, strict=True)):
        rows = checked_rows(table, str(path), config, problems)
        refuse_unlisted(rows, catalog, (str(path), f"{listed_in}, or has no title there"), config)
        frames.append(rows.with_columns(split=pl.lit(number, pl.Int8)))
    units = [times.unit_of(rows["timestamp"], str(path)) for rows, path in zip(frames, paths, strict=True)]
    finest = max(units)
    rows = pl.concat(
        frame.with_columns(pl.col("timestamp").to_physical() * (finest // unit))
        for frame, unit in zip(frames, units, strict=True)
    )
    codes = catalog.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    listed = rows.join(codes, on="item_id", how="inner", maintain_order="left")
    problems.count(UNLISTED, len(rows) - len(listed))
    # A user's rows in order of time; the files settle it where times are equal or unknown.
    listed = listed.sort("user", "split", "timestamp", maintain_order=True)
    _refuse_later(listed, paths)
    sequences = listed.select(
        *("user", "split", "item", "rating"),
        position=pl.int_range(pl.len(), dtype=pl.Int32).over("user"),
        time="timestamp",
    )
    position, split = sequences["position"].to_numpy(), sequences["split"].to_numpy()
    problems.count("dropped_examples_without_history", int(((position == 0) & (split > 0)).sum()))
    train, valid, test = (
        examples_at(sequences, np.flatnonzero((position > 0) & (split == number)), config.max_history, finest)
        for number in range(len(SPLITS))
    )
    interactions = sequences.select("user", "position", "item", timestamp=pl.col("time") // finest, rating="rating")
    return Dataset(catalog, train, valid, test, interactions=interactions)


def _refuse_later(rows: pl.DataFrame, paths: Sequence[Path]) -> None:
    """Refuse splits that do not follow time within a user, as splits that are drawn at random do not.

    Args:
        rows: of all files, by user, then file, then time.

    Raises:
        DataError: naming both rows.
    """
    same_user = pl.col("user") == pl.col("user").shift()
    later = rows.select(same_user & (pl.col("timestamp") < pl.col("timestamp").shift())).to_series().arg_true()
    if len(later):
        before, row = rows[later[0] - 1 : later[0] + 1].iter_rows(named=True)
        raise DataError(
            f"{paths[row['split']]}, row {row['row']}: is earlier than row {before['row']} of {paths[before['split']].name}, "
            f"of the same user {row['user']!r}, so histories would show what came later. Cut each user's rows by time, or give "
            "all rows in one file and let data.split cut them."
        )
