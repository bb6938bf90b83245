"""The rows of raw files, checked: ids, times, labels and texts; a wrong row is named, and what is left out is counted."""

import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from minionerec.config import DataConfig
from minionerec.data import times
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.dataset import CATALOG_DETAILS
from minionerec.data.texts import full_text, has_markup, one_line, readable_column
from minionerec.errors import DataError

log = logging.getLogger(__name__)
Frames = tuple[pl.DataFrame, pl.DataFrame]

PLACED = ("timestamp", "position")  # further columns that a split file may have
CONTROL = r"[\x00-\x1f\x7f]"  # would break every line-based layout, ours and other people's
_LISTED_VALUES = 5
UNTIMED = "dropped_interactions_without_time"
NEGATIVE = "dropped_interactions_not_positive"
MARKUP = "texts_with_markup"
UNLISTED = "dropped_interactions_unlisted"


def checked(
    interactions: pl.DataFrame, items: pl.DataFrame, names: Sequence[str], config: DataConfig, problems: Problems
) -> Frames:
    """The frames that a reader returns.

    Args:
        interactions: see `checked_rows`.
        items: see `make_catalog`.
        names: the two files, for messages.

    Raises:
        DataError: as both say; or an interaction with an item that is not listed.
    """
    listed = make_catalog(items, names[1], config, problems)
    rows = checked_rows(interactions, names[0], config, problems)
    refuse_unlisted(rows, listed, names, config)
    return rows.drop("row"), listed


def checked_rows(interactions: pl.DataFrame, name: str, config: DataConfig, problems: Problems) -> pl.DataFrame:
    """The interactions of a file: row, user, item_id, timestamp (as `times.read` has it) and rating.

    Args:
        interactions: row, user, item_id, and any of timestamp, rating and label, all text.
        name: the file, for messages.

    Raises:
        DataError: a wrong row (unless skipped); labels or ratings leave open which rows are interactions; no time is known.
    """
    where = braced(name)
    for column in ("user", "item_id"):
        message = f"{where}, row {{row}}: the field {column} is empty."
        interactions = problems.without(interactions, pl.col(column) == "", message)
        message = f"{where}, row {{row}}: {column} {{{column}!r}} has a tab, line break or other control character."
        interactions = problems.without(interactions, pl.col(column).str.contains(CONTROL), message)
    interactions = rated(interactions, name, problems)
    interactions = positive_rows(interactions, name, config.positive, problems)
    interactions = _timed(interactions, name, problems)
    return interactions.select("row", "user", "item_id", "timestamp", pl.col("rating").cast(pl.Float32))


def refuse_unlisted(rows: pl.DataFrame, catalog: pl.DataFrame, names: Sequence[str], config: DataConfig) -> None:
    """Refuse interactions with items that the catalog does not have, unless `data.missing_text` drops them.

    Args:
        names: the files of interactions and of items, for the message.

    Raises:
        DataError: the message names the first such row.
    """
    if config.missing_text == "drop":
        return
    unlisted = rows.filter(~pl.col("item_id").is_in(catalog["item_id"].implode()))
    for row in unlisted.head(1).iter_rows(named=True):
        raise DataError(
            f"{names[0]}, row {row['row']}: item {row['item_id']!r} is not in {names[1]}. Add the item there, remove "
            "the row, or pass --data.missing_text drop."
        )


def rated(interactions: pl.DataFrame, name: str, problems: Problems) -> pl.DataFrame:
    """The rows with `rating` and, if there is one, `label` as numbers; a rating that is empty or NaN is unknown, null,
    and an infinite one is refused.
    """
    if "rating" not in interactions.columns:
        interactions = interactions.with_columns(rating=pl.lit("", pl.String))
    for column in ("rating", "label"):
        if column not in interactions.columns:
            continue
        text = pl.col(column).str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0"})
        number = text.cast(pl.Float64, strict=False)
        interactions = interactions.with_columns(number=pl.when(number.is_finite()).then(number))
        unknown = text.is_in(["", "nan"]) if column == "rating" else pl.lit(False)
        message = f"{braced(name)}, row {{row}}: {column} {{{column}!r}} is not a number."
        interactions = problems.without(interactions, pl.col("number").is_null() & ~unknown, message)
        interactions = interactions.with_columns(pl.col("number").alias(column)).drop("number")
    return interactions


def _timed(interactions: pl.DataFrame, name: str, problems: Problems) -> pl.DataFrame:
    """The rows with `timestamp` as `times.read` has it; rows with an unknown one, at or below 0, are dropped and counted."""
    if "timestamp" not in interactions.columns:
        return interactions.with_columns(timestamp=pl.lit(None, pl.Int64))
    interactions = interactions.with_columns(time=times.read(interactions["timestamp"], name))
    message = ", row {row}: timestamp {timestamp!r} is not a number; expected seconds since 1970, or a date like 2016-10-31."
    interactions = problems.without(interactions, pl.col("time").is_null(), braced(name) + message)
    interactions = interactions.with_columns(timestamp="time").drop("time")
    timed = interactions.filter(pl.col("timestamp").to_physical() > 0)
    if len(interactions) and not len(timed):
        raise DataError(
            f"{name}: all {len(interactions):,} timestamps are at or below 0, which stands for an unknown time. If the rows "
            "are in order of time, say so with --data.columns '{timestamp: \"\"}' (csv, recbole)."
        )
    note_untimed(len(interactions) - len(timed), name, problems)
    return timed


def note_untimed(rows: int, name: str, problems: Problems) -> None:
    """Count rows that are left out since their time is at or below 0, and say so."""
    problems.count(UNTIMED, rows)
    if rows:
        log.warning("%s: %d rows have a time at or below 0, which stands for an unknown one; they are left out.", name, rows)


def positive_rows(interactions: pl.DataFrame, name: str, threshold: float | None, problems: Problems) -> pl.DataFrame:
    """The rows that are interactions, by their label or, without labels, their rating; both are numbers.

    With a threshold, rows whose rating is unknown are none.

    Raises:
        DataError: without a threshold, labels or ratings at or below 0; with one, neither labels nor ratings, or none so high.
    """
    column = "label" if "label" in interactions.columns else "rating"
    values = interactions[column]
    if threshold is None:
        if (values <= 0).any():
            raise DataError(
                f"{name}: {column} is {_frequent(values)}. Values at or below 0 may stand for items that were shown and not "
                f"chosen, or not rated. Say which rows are interactions: --data.positive 1 takes those with a {column} of at "
                "least 1."
            )
        return interactions
    if not len(values):
        return interactions
    if len(values) == values.null_count():
        raise DataError(f"{name}: data.positive is {threshold:g}, but there is neither a label nor a rating. Leave it out.")
    stays = interactions.filter(values >= threshold)
    problems.count(NEGATIVE, len(interactions) - len(stays))
    if not len(stays):
        raise DataError(f"{name}: no row has a {column} of at least data.positive {threshold:g}; it is {_frequent(values)}.")
    return stays


def _frequent(values: pl.Series) -> str:
    """The most frequent values of a column, with their numbers of rows."""
    counts = values.drop_nulls().value_counts(sort=True)
    listed = [f"{value:g} in {count:,} rows" for value, count in counts.head(_LISTED_VALUES).iter_rows()]
    return ", ".join(listed) + (f" and {len(counts) - _LISTED_VALUES} other values" if len(counts) > _LISTED_VALUES else "")


def make_catalog(items: pl.DataFrame, name: str, config: DataConfig, problems: Problems) -> pl.DataFrame:
    """The items a reader returns, from (row, item_id, title, detail, and any of text and `CATALOG_DETAILS`).

    `detail` follows the title in the embedded text. Titles and texts become readable; details stay as the source has them.

    Raises:
        DataError: an item without id or title, or listed twice, unless skipped.
    """
    where = braced(name)
    details = [column for column in CATALOG_DETAILS if column in items.columns]
    texts = [column for column in ("title", "detail", "text") if column in items.columns]
    problems.count(MARKUP, int(pl.select(pl.any_horizontal([has_markup(items[column]) for column in texts])).to_series().sum()))
    markup_title = pl.col("title").str.contains("<span id", literal=True)  # what the title rules drop must reach them
    words = {column: readable_column(items[column]) for column in texts}
    if config.applies_title_rules:
        words["title"] = items.select(pl.when(markup_title).then("title").otherwise(pl.lit(words["title"])))["title"]
    items = items.with_columns(**words)
    items = items.with_columns(one_line(pl.col(details))) if details else items
    items = problems.without(items, pl.col("item_id") == "", where + ", row {row}: the item id is empty.")
    message = ", row {row}: item id {item_id!r} has a tab, line break or other control character."
    items = problems.without(items, pl.col("item_id").str.contains(CONTROL), where + message)
    items = items.with_columns(first=pl.col("row").first().over("item_id"))
    message = ", rows {first} and {row}: item {item_id!r} is listed twice. Keep one of the rows."
    items = problems.without(items, pl.col("row") != pl.col("first"), where + message)
    if config.missing_text == "error":
        bad = items.filter(pl.col("title") == "").head(1)
        for row in bad.iter_rows(named=True):
            raise DataError(
                f"{name}, row {row['row']}: item {row['item_id']!r} has no title. Add one, or pass --data.missing_text drop."
            )
    text = full_text(pl.col("title"), pl.col("detail"))
    if "text" in texts:
        text = pl.when(pl.col("text") != "").then("text").otherwise(text)
    return items.select("item_id", "title", text.alias("text"), *details)


def titled(catalog: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    """The items of `make_catalog` that have a title; under `data.missing_text` drop the others are left out and counted."""
    stays = catalog.filter(pl.col("title") != "")
    problems.count("dropped_items_without_text", len(catalog) - len(stays))
    return stays


def placed(table: pl.DataFrame, path: Path, problems: Problems) -> pl.DataFrame:
    """The rows of a split file with `PLACED` as Int64: seconds, null if unknown, and positions, null if not given.

    Raises:
        DataError: something else stands there, unless skipped.
    """
    if "timestamp" not in table.columns:
        table = table.with_columns(timestamp=pl.lit(None, pl.Int64))
    else:
        stamps = times.read(table["timestamp"], str(path))
        empty = pl.col("timestamp").str.strip_chars() == ""
        table = table.with_columns(time=stamps)
        message = f"{braced(str(path))}, row {{row}}: timestamp {{timestamp!r}} is not a number."
        table = problems.without(table, ~empty & pl.col("time").is_null(), message)
        unit = times.unit_of(table["time"].drop_nulls(), str(path))
        seconds = pl.col("time").to_physical()
        table = table.with_columns(timestamp=pl.when(seconds > 0).then(seconds // unit)).drop("time")
    if "position" not in table.columns:
        return table.with_columns(position=pl.lit(None, pl.Int64))
    number, empty = times.whole_number(pl.col("position")), pl.col("position").str.strip_chars() == ""
    message = f"{braced(str(path))}, row {{row}}: position {{position!r}} is not a number from 0."
    table = problems.without(table, ~(empty | number.is_between(0, 2**31 - 1).fill_null(False)), message)
    return table.with_columns(position=number)
