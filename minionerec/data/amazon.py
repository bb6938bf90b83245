"""Amazon's raw dumps of 2018 and 2023: reviews and metadata, read once, in chunks, with bounded memory.

Chunks of the reviews become rows (row, user, item number, time, rating), spread over files by a hash of the user, so that each
file has all rows of its users; the filters then look at one file at a time. In memory at once are: one chunk, or one of these
files; the ids of all items; and the rows of users with enough of them. Item texts are read again for the items that stay.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from minionerec.config import DataConfig
from minionerec.data import times
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.checks import CONTROL, MARKUP, NEGATIVE, note_untimed
from minionerec.data.filters import Part
from minionerec.data.mapped import store_part
from minionerec.data.text_lines import csv_lines, json_lines
from minionerec.data.texts import full_text, has_markup, one_line, readable_column
from minionerec.errors import DataError

MAX_TITLE_WORDS = 20
_PART_BYTES = 256 << 20  # of review text whose rows go to one file
_GZIP = 6  # reviews shrink about so many times
_ASIN = 10  # characters
_MAX_PARTS = 256  # files open at once


@dataclass(frozen=True)
class Fields:
    """What a release calls its fields; the description is put together from several."""

    user: str
    item: str
    time: str
    rating: str
    description: tuple[str, ...]
    brand: str
    categories: str


FIELDS = {
    "amazon-2018": Fields("reviewerID", "asin", "unixReviewTime", "overall", ("description",), "brand", "category"),
    "amazon-2023": Fields("user_id", "parent_asin", "timestamp", "rating", ("features", "description"), "store", "categories"),
}


@dataclass
class Dump:
    """A dump, spread over files.

    Attributes:
        parts: the interactions with items that pass; item numbers are places in `ids`.
        ids: the items that pass the title rules, in the order of the metadata.
        unit: time units per second.
        counts: rows read so far, and rows dropped by reason.
    """

    parts: list[Part]
    ids: pl.Series
    unit: int
    counts: dict[str, int]
    _scratch: Path = field(repr=False)
    _fields: Fields = field(repr=False)
    _config: DataConfig = field(repr=False)

    def catalog(self, wanted: pl.Series, problems: Problems) -> pl.DataFrame:
        """The catalog of some items, in the order given: item_id, title, text, description, brand, categories.

        Under `filters: released` titles stay as the released code cleans them; the embedded text has no markup anyway.
        """
        order = wanted.rename("item_id").to_frame()
        files = sorted(self._scratch.glob("meta-*.parquet"))
        items = pl.scan_parquet(files, glob=False).join(order.lazy(), on="item_id", how="semi").collect(engine="streaming")
        items = items.sort("row").unique("item_id", keep="last")
        items = described(items, self._fields, self._config, problems)
        items = order.join(items, on="item_id", how="left", maintain_order="left")
        return items.select("item_id", "title", "text", "description", "brand", "categories")


def described(items: pl.DataFrame, fields: Fields, config: DataConfig, problems: Problems) -> pl.DataFrame:
    """Items of the metadata, one row each, with text, description, brand and categories.

    Args:
        items: item_id, title, and the release's own fields as text.
    """
    names = (*fields.description, fields.brand, fields.categories)
    described = [_flat(items[name], ", " if name == fields.categories else " ") for name in names]
    texts = pl.DataFrame([series.alias(f"field {number}") for number, series in enumerate(described)])
    *parts, brand, categories = texts.columns
    description = one_line(pl.concat_str(parts, separator=" ", ignore_nulls=True))
    items = items.select("item_id", "title").hstack(
        texts.select(description=description, brand=one_line(pl.col(brand)), categories=one_line(pl.col(categories)))
    )
    problems.count(MARKUP, int((has_markup(items["title"]) | has_markup(items["description"])).sum()))
    title = readable_column(items["title"])
    items = items.with_columns(text=full_text(pl.lit(title), pl.lit(readable_column(items["description"]))))
    if config.filters != "released":
        items = items.with_columns(title=title)
    return items


def files(folder: Path, category: str | None) -> tuple[Path, Path]:
    """The file of reviews (or ratings) and the file of metadata.

    Raises:
        DataError: no such folder, or not exactly one file of each kind.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. data.path is the folder that holds the reviews and the metadata.")
    pattern = re.compile(r"(meta_|reviews_|ratings_)?(.+?)(_5)?\.(jsonl|json|csv)(\.gz)?")
    reviews: list[Path] = []
    metadata: list[Path] = []
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and path.is_file() and category in (None, match[2]):
            (metadata if match[1] == "meta_" else reviews).append(path)
    for kind, candidates, shape in (("reviews", reviews, "[reviews_]NAME[_5]"), ("metadata", metadata, "meta_NAME")):
        if len(candidates) != 1:
            names = ", ".join(path.name for path in candidates) or "none"
            wanted = f" of {category}" if category else ""
            hint = "Choose one with data.category." if len(candidates) > 1 else "data/README.md shows the layout."
            raise DataError(f"{folder}: expected one file of {kind}{wanted}, {shape}.json[l][.gz]; found {names}. {hint}")
    return reviews[0], metadata[0]


def read(paths: tuple[Path, Path], scratch: Path, config: DataConfig, problems: Problems) -> Dump:
    """Read a dump once.

    Args:
        paths: reviews (JSON lines, or CSV of ratings with a header) and metadata.
        scratch: an empty folder for the rows; they stay there until the caller removes it.

    Raises:
        DataError: a truncated archive, a broken line, a missing field or id (each unless skipped), timestamps of mixed units;
            an item without title or a review without item, if neither title rules nor `missing_text` drop them.
    """
    fields = FIELDS[config.source]
    passing, failing, counts = _read_items(paths[1], scratch, fields, config, problems)
    all_ids = pl.Enum(pl.concat([passing, failing]))
    count = max(1, min(_MAX_PARTS, paths[0].stat().st_size * (_GZIP if paths[0].suffix == ".gz" else 1) // _PART_BYTES))
    low = high = lines = unlisted = ruled_out = 0
    with _Spread(scratch, int(count)) as spread:
        for frame in _reviews(paths[0], fields, config, problems):
            lines += len(frame)
            frame = frame.with_columns(item=pl.col("item").cast(all_ids, strict=False).to_physical().cast(pl.Int32))
            if frame["item"].null_count() and not config.applies_title_rules and config.missing_text == "error":
                row = frame.filter(pl.col("item").is_null()).row(0, named=True)
                raise DataError(
                    f"{paths[0]}, line {row['row']}: item {row['asin']!r} is not in {paths[1]}. Pass --data.missing_text drop "
                    "to leave such reviews out, counted."
                )
            unlisted += frame["item"].null_count()
            ruled_out += int((frame["item"] >= len(passing)).sum())
            frame = frame.filter(pl.col("item") < len(passing)).drop("asin")
            earliest, latest = times.extremes(frame["time"])
            low, high = min(low or earliest, earliest or low), max(high, latest)
            spread.add(frame)
    unit = times.per_second(low, high, str(paths[0]))
    counts |= {
        "interactions_read": lines,
        "dropped_interactions_unlisted": unlisted,
        "dropped_interactions_without_text": ruled_out,
    }
    return Dump(spread.parts(), passing, unit, counts, scratch, fields, config)


def _read_items(
    path: Path, scratch: Path, fields: Fields, config: DataConfig, problems: Problems
) -> tuple[pl.Series, pl.Series, dict[str, int]]:
    """The ids of items that pass and of items that do not; the fields of items that pass go to `meta-*.parquet`."""
    names = (fields.item, "title", *fields.description, fields.brand, fields.categories)
    passed, failed = [pl.Series([], dtype=pl.String)], [pl.Series([], dtype=pl.String)]
    for number, frame in enumerate(json_lines(path, names, problems)):
        frame = frame.rename({fields.item: "item_id"})
        message = braced(str(path)) + f", line {{row}}: no {fields.item}, or one with a control character."
        wrong = (pl.col("item_id").fill_null("") == "") | pl.col("item_id").fill_null("").str.contains(CONTROL)
        frame = problems.without(frame, wrong, message)
        frame = frame.with_columns(passes(config.applies_title_rules).alias("passes"), title=tidy_title())
        if not config.applies_title_rules and config.missing_text == "error" and not frame["passes"].all():
            row = frame.filter(~pl.col("passes")).row(0, named=True)
            raise DataError(
                f"{path}, line {row['row']}: item {row['item_id']!r} has no title. Pass --data.missing_text drop to leave such "
                "items out, counted."
            )
        failed.append(frame.filter(~pl.col("passes"))["item_id"])
        frame = frame.filter("passes").drop("passes")
        passed.append(frame["item_id"])
        frame.write_parquet(scratch / f"meta-{number:05}.parquet")
    bad = pl.concat(failed).unique(maintain_order=True)
    good = pl.concat(passed)
    unique = good.unique(maintain_order=True)
    unique = unique.filter(~unique.is_in(bad.implode()))  # listed twice, once without a title that passes
    read = len(unique) + len(bad)
    repeated = sum(len(series) for series in (*passed, *failed)) - read
    return unique, bad, {"items_read": read, "repeated_items": repeated, "dropped_items_without_text": len(bad)}


def passes(rules: bool) -> pl.Expr:
    """Whether a row's title may stay: there is one; by the released code's rules also clean, and of 2 characters to 20
    words.
    """
    title, tidy = pl.col("title").fill_null(""), tidy_title(collapse=False)
    if not rules:
        return title.str.strip_chars() != ""
    words = tidy.str.count_matches(" ", literal=True) + 1
    return ~title.str.contains("<span id", literal=True) & (tidy.str.len_chars() > 1) & (words <= MAX_TITLE_WORDS)


def tidy_title(collapse: bool = True) -> pl.Expr:
    """The title as the released code cleans it; `collapse` also makes runs of white space one blank."""
    title = pl.col("title").fill_null("")
    title = title.str.replace_all("&quot;", '"', literal=True).str.replace_all("&amp;", "&", literal=True)
    title = title.str.strip_chars(" ").str.strip_chars('"')
    return one_line(title) if collapse else title


def _reviews(path: Path, fields: Fields, config: DataConfig, problems: Problems) -> Iterator[pl.DataFrame]:
    """Chunks of (row, user, asin, item, time, rating); `item` still holds the id.

    Rows with an unknown time, at or below 0, or a rating below `config.positive` are left out and counted.
    """
    names = (fields.user, fields.item, fields.time, fields.rating)
    if ".csv" in path.suffixes:
        frames = csv_lines(path, names, problems, lambda values: _unnamed(values, fields, path))
    else:
        frames = json_lines(path, names, problems)
    where = braced(str(path)) + ", line {row}: "
    number = pl.col(fields.rating).cast(pl.Float32, strict=False)  # NaN is no rating: polars has it above all others
    for frame in frames:
        frame = frame.select(
            "row",
            user=pl.col(fields.user).fill_null(""),
            asin=pl.col(fields.item).fill_null(""),
            time=times.whole_number(pl.col(fields.time)),
            rating=pl.when(number.is_finite()).then(number),
            raw=fields.time,
            raw_rating=fields.rating,
        )
        for column, name in (("user", fields.user), ("asin", fields.item)):
            frame = problems.without(frame, pl.col(column) == "", f"{where}no {name}.")
            message = f"{where}{name} {{{column}!r}} has a tab, line break or other control character."
            frame = problems.without(frame, pl.col(column).str.contains(CONTROL), message)
        message = f"{where}{fields.time} {{raw!r}} is not a number; expected a whole one, the time since 1970."
        frame = problems.without(frame, pl.col("time").is_null(), message)
        message = f"{where}{fields.rating} {{raw_rating!r}} is not a number."
        unread = pl.col("rating").is_null() & ~pl.col("raw_rating").fill_null("").is_in(["", "NaN", "nan"])
        frame = problems.without(frame, unread, message)
        timed = frame.filter(pl.col("time") > 0)
        note_untimed(len(frame) - len(timed), str(path), problems)
        positive = timed
        if config.positive is not None:
            positive = timed.filter(pl.col("rating") >= config.positive)
            problems.count(NEGATIVE, len(timed) - len(positive))
        yield positive.select("row", "user", "asin", "time", "rating", item="asin")


def _unnamed(values: list[str], fields: Fields, path: Path) -> tuple[str, ...]:
    """The columns of a file of ratings without header, by its first line; none if that is a header.

    The files of 2018 begin with the item, those of 2014 with the user. An item's id has ten characters, a user's has more.

    Raises:
        DataError: the ids do not tell which is which.
    """
    if len(values) != 4 or not values[3].isdecimal():
        return ()
    if (len(values[0]) == _ASIN) == (len(values[1]) == _ASIN):
        raise DataError(
            f"{path}, line 1: neither {values[0]!r} nor {values[1]!r} is clearly the item, whose id has {_ASIN} characters. "
            f"Put a line above it that names the columns: {fields.user}, {fields.item}, {fields.rating}, {fields.time}."
        )
    ids = (fields.item, fields.user) if len(values[0]) == _ASIN else (fields.user, fields.item)
    return (*ids, fields.rating, fields.time)


class _Spread:
    """Rows written to one file per group of users, open while in use."""

    def __init__(self, scratch: Path, count: int) -> None:
        self._scratch, self._count = scratch, count
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Spread":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, frame: pl.DataFrame) -> None:
        """Write a chunk."""
        group = (pl.col("user").hash(0) % self._count).cast(pl.Int32)
        for (number,), rows in frame.with_columns(group=group).partition_by("group", as_dict=True, include_key=False).items():
            table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
            if number not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                sink = self._open.enter_context(pa.OSFile(str(self._file(number)), "wb"))
                self._writers[number] = self._open.enter_context(pa.ipc.new_stream(sink, table.schema, options=options))
            self._writers[number].write_table(table)

    def _file(self, number: int) -> Path:
        return self._scratch / f"rows-{number:03}.arrow"

    def parts(self) -> list[Part]:
        """The files as parts, users as numbers."""
        return [self._part(number) for number in sorted(self._writers)]

    def _part(self, number: int) -> Part:
        path = self._file(number)
        with pa.OSFile(str(path)) as source:
            frame = pl.DataFrame(pl.from_arrow(pa.ipc.open_stream(source).read_all()))
        part = store_part(frame, path)
        path.unlink()
        return part


def _flat(column: pl.Series, separator: str) -> pl.Series:
    """JSON lists of text, as `json_lines` gives them, are joined; other text stays."""
    return pl.Series([_joined(text, separator) for text in column.to_list()], dtype=pl.String)


def _joined(text: str | None, separator: str) -> str:
    if text is None or not text.startswith("["):
        return text or ""
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        return text  # a description that merely begins with a bracket
    return separator.join(str(value) for value in values)
