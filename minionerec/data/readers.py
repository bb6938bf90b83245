"""Readers of layouts that hold interactions and items: csv, parquet, RecBole, MovieLens, LETTER, one line per user.

Each reader returns `(interactions, items)` in file order. Interactions: user String, item_id String, timestamp Int64 (in the
file's own unit, all null if it has none), rating Float32 (null if unknown). Items: item_id, title, text, then the
`CATALOG_DETAILS` that the file has, all String. Rows in messages count from 1, the header included.
"""

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from minionerec.data import times
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.dataset import CATALOG_DETAILS
from minionerec.data.tables import read_parquet, read_table, select, text_lines
from minionerec.errors import DataError

MissingText = Literal["error", "drop"]
Frames = tuple[pl.DataFrame, pl.DataFrame]

MOVIELENS_GENRES = (  # in the order of the 19 flags of u.item
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_TITLES = ("title", "movie_title", "name", "item_name", "book_title", "app_name")
_YEARS = ("release_year", "year")
_GENRES = ("class", "genre", "genres")
_CATEGORIES = ("categories", "category")
_RATINGS = ("user", "item_id", "rating", "timestamp")  # of MovieLens, which has no headers
SPLIT_FILES = (".train.inter", ".valid.inter", ".test.inter")  # of RecBole, with given splits
PLACED = ("timestamp", "position")  # further columns that a split file may have
CONTROL = r"[\x00-\x1f\x7f]"  # would break every line-based layout, ours and other people's


def read_movielens_zip(path: Path, missing_text: MissingText = "error", problems: Problems | None = None) -> Frames:
    """The official `ml-100k.zip`: `u.data` (tab-separated) and `u.item` (latin-1, pipe-separated, 19 genre flags).

    Raises:
        DataError: not this archive, or a malformed row, id or timestamp (`read_csv` lists them).
    """
    data, item = _members(path, "ml-100k/u.data", "ml-100k/u.item")
    names = (f"{path}, u.data", f"{path}, u.item")
    interactions = read_table(data, names[0], "\t", columns=_RATINGS, problems=problems)
    columns = ("item_id", "title", "release_date", "video_date", "url", *MOVIELENS_GENRES)
    items = read_table(item, names[1], "|", columns=columns, encoding="latin-1", problems=problems)
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in MOVIELENS_GENRES]
    genres = pl.concat_list(flags).list.drop_nulls().list.join(", ")
    items = items.select("row", "item_id", "title", detail=_labelled("Genres", genres))
    return _checked(interactions, items, names, missing_text, problems)


def read_movielens_1m(path: Path, missing_text: MissingText = "error", problems: Problems | None = None) -> Frames:
    """The official `ml-1m.zip`: `ratings.dat` and `movies.dat` (latin-1), fields separated by `::`.

    Raises:
        DataError: not this archive, or a malformed row, id or timestamp (`read_csv` lists them).
    """
    # Arrow splits at one character; the unit separator occurs in neither file.
    data, item = (content.replace(b"::", b"\x1f") for content in _members(path, "ml-1m/ratings.dat", "ml-1m/movies.dat"))
    names = (f"{path}, ratings.dat", f"{path}, movies.dat")
    interactions = read_table(data, names[0], "\x1f", columns=_RATINGS, problems=problems)
    columns = ("item_id", "title", "genres")
    items = read_table(item, names[1], "\x1f", columns=columns, encoding="latin-1", problems=problems)
    items = items.select(
        "row", "item_id", "title", detail=_labelled("Genres", pl.col("genres").str.replace_all("|", ", ", literal=True))
    )
    return _checked(interactions, items, names, missing_text, problems)


def _members(path: Path, *members: str) -> list[bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [archive.read(member) for member in members]
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not the archive with {' and '.join(members)} ({error}).") from None


def read_recbole(folder: Path, missing_text: MissingText = "error", problems: Problems | None = None) -> Frames:
    """RecBole's atomic files: one `*.inter` and one `*.item`, tab-separated, with a typed header (`name:type`).

    Interactions need user_id, item_id, timestamp, and may have rating; items need item_id and a title column (title,
    movie_title, name, ...). A release year becomes `Title (1995)` unless it is no number; genres or categories follow in the
    text, unless a column `text` gives it.

    Raises:
        DataError: not exactly one file of each kind, or a malformed row, id or timestamp (`read_csv` lists them).
    """
    files = raw_files("recbole", folder)
    interactions = read_table(files[0], str(files[0]), "\t", typed=True, problems=problems)
    columns = {"user": ("user_id",), "item_id": ("item_id",), "timestamp": ("timestamp",)}
    interactions = select(interactions, files[0], columns | _present(interactions, "rating"))
    return _checked(interactions, recbole_items(files[1], problems), (str(files[0]), str(files[1])), missing_text, problems)


def recbole_items(path: Path, problems: Problems | None = None) -> pl.DataFrame:
    """The rows of an `*.item` file: row, item_id, title, detail, and what else `_checked` knows.

    Raises:
        DataError: the file is malformed, or lacks the item id or the title.
    """
    items = read_table(path, str(path), "\t", typed=True, problems=problems)
    columns: dict[str, tuple[str, ...]] = {"item_id": ("item_id",), "title": _TITLES}
    optional = {"year": _YEARS, "Genres": _GENRES, "Categories": _CATEGORIES}
    columns |= {name: options for name, options in optional.items() if set(options) & set(items.columns)}
    items = select(items, path, columns | _present(items, "text", *CATALOG_DETAILS))
    title = pl.col("title")
    if "year" in items.columns:
        year = pl.col("year").str.strip_chars()
        dated = year.str.contains(r"^\d{4}(\.0)?$") & (title.str.strip_chars() != "")
        title = pl.when(dated).then(title.str.strip_chars() + " (" + year.str.slice(0, 4) + ")").otherwise(title)
    labels = [_labelled(name, _listed(pl.col(name))) for name in ("Genres", "Categories") if name in items.columns]
    detail = pl.concat_list(labels).list.drop_nulls().list.join(". ") if labels else pl.lit("")
    details = [name for name in ("text", *CATALOG_DETAILS) if name in items.columns]
    return items.select("row", "item_id", *details, title=title, detail=detail)


def read_csv(folder: Path, missing_text: MissingText = "error", problems: Problems | None = None) -> Frames:
    """Your own files: `interactions` (user, item, timestamp, optional rating), `items` (item, title, optional description).

    Each is `.csv` (UTF-8, comma-separated, quoted where needed) or `.parquet`; other columns are ignored.

    Args:
        missing_text: "error" refuses an item without title, and an interaction with an item that is not listed; "drop" lets
            them pass, for `build` to drop.
        problems: what to do with malformed rows; None stops at the first.

    Raises:
        DataError: a file or column is missing; a row has too few or too many fields, a byte that is not UTF-8, an id that is
            empty or has control characters, or a timestamp that is neither number nor date; an item is listed twice, has no
            title, or is interacted with but not listed.
    """
    files = raw_files("csv", folder)
    interactions, items = (
        read_parquet(path) if path.suffix == ".parquet" else read_table(path, str(path), ",", problems=problems)
        for path in files
    )
    columns = {"user": ("user",), "item_id": ("item",), "timestamp": ("timestamp",)}
    interactions = select(interactions, files[0], columns | _present(interactions, "rating"))
    columns = {"item_id": ("item",), "title": ("title",)}
    items = select(items, files[1], columns | _present(items, "text", *CATALOG_DETAILS))
    items = items.with_columns(detail=pl.col("description") if "description" in items.columns else pl.lit(""))
    return _checked(interactions, items, (str(files[0]), str(files[1])), missing_text, problems)


def read_letter(
    folder: Path, category: str | None, missing_text: MissingText = "error", problems: Problems | None = None
) -> Frames:
    """LETTER's files: `NAME.inter.json` (user to items in time order), optional `NAME.index.json` and `NAME.item.json`.

    Every item of the index or, without one, of the sequences is in the catalog, in numerical order. Without `NAME.item.json`
    an item's title is its id and its text is empty.

    Raises:
        DataError: a file is missing or not of this form; or a user's items are no list or not in the index, unless skipped.
    """
    problems = problems or Problems()
    path = one_file(folder, ".inter.json", category)
    name = path.name.removesuffix(".inter.json")
    others = [folder / f"{name}.index.json", folder / f"{name}.item.json"]
    index, details = (read_json_object(other) if other.is_file() else None for other in others)
    listed, where = (details, others[1]) if index is None else (index, others[0])
    sequences: dict[str, list[str]] = {}
    for user, given in read_json_object(path).items():
        if not isinstance(given, list) or not given or not all(isinstance(item, int | str) for item in given):
            problems.add(f"{path}, user {user!r}: found {str(given)[:60]}, expected a list of at least one item.")
            continue
        items = [str(item) for item in given]
        unknown = None if listed is None else next((item for item in items if item not in listed), None)
        if unknown is not None:
            problems.add(f"{path}, user {user!r}: item {unknown!r} is not in {where}.")
            continue
        sequences[user] = items
    frames = _sequences(sequences, listed)
    return frames if details is None else (frames[0], _described(frames[1], details, others[1], missing_text, problems))


def _described(
    items: pl.DataFrame, details: dict[str, Any], path: Path, missing_text: MissingText, problems: Problems
) -> pl.DataFrame:
    values = [details.get(item, {}) for item in items["item_id"].to_list()]
    columns = {
        name: [str(value.get(name) or "") if isinstance(value, dict) else "" for value in values]
        for name in ("title", *CATALOG_DETAILS)
    }
    described = items.select(pl.int_range(1, pl.len() + 1).alias("row"), "item_id").with_columns(
        **{name: pl.Series(column, dtype=pl.String) for name, column in columns.items()},
        detail=pl.Series(columns["description"]),
    )
    return make_catalog(described, str(path), missing_text, problems)


def read_sequences(path: Path, problems: Problems | None = None) -> Frames:
    """The text format with one line per user: user id, then item ids in time order, separated by blanks.

    There are no texts: an item's title is its id, its text is empty. Items are numbered in numerical order.

    Raises:
        DataError: not a text file; or a user without items or on two lines, unless skipped. The message names the line.
    """
    if path.is_dir():
        path = one_file(path, ".txt", None)
    return _sequences(user_sequences(path, problems))


def user_sequences(path: Path, problems: Problems | None = None) -> dict[str, list[str]]:
    """The users of such a file with their items, both in the file's order; blank lines are left out.

    Raises:
        DataError: not a text file; or a user without items or on two lines, unless skipped.
    """
    problems = problems or Problems()
    sequences: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(path), 1):
        user, *items = line.split() or [""]
        if user and not items:
            problems.add(f"{path}, line {number}: user {user!r} has no items; expected a user id and item ids.")
        elif user in sequences:
            problems.add(f"{path}, line {number}: user {user!r} has a line above already. Join the two.")
        elif user:
            sequences[user] = items
    return sequences


def _sequences(sequences: dict[str, list[str]], listed: Iterable[str] | None = None) -> Frames:
    """Interactions in the order of the sequences, and the listed items (None: all that occur) in numerical order."""
    users = [user for user, items in sequences.items() for _ in items]
    items = [item for sequence in sequences.values() for item in sequence]
    item_ids = list(dict.fromkeys(items) if listed is None else listed)
    item_ids.sort(key=lambda item: (0, int(item), "") if item.isdecimal() else (1, 0, item))
    interactions = pl.DataFrame(
        {"user": users, "item_id": items}, schema={"user": pl.String, "item_id": pl.String}
    ).with_columns(timestamp=pl.lit(None, pl.Int64), rating=pl.lit(None, pl.Float32))
    return interactions, pl.DataFrame(
        {"item_id": item_ids, "title": item_ids, "text": ""}, schema_overrides={"text": pl.String}
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        DataError: missing, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds a {type(values).__name__}, expected an object.")
    return values


def one_file(folder: Path, ending: str, category: str | None) -> Path:
    """The only file of a folder whose name has this ending and, if given, begins with the category.

    Raises:
        DataError: no such folder, no such file, or several.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. data.path is the folder that holds your files.")
    candidates = sorted(path for path in folder.iterdir() if path.name.endswith(ending) and path.is_file())
    matches = [path for path in candidates if path.name.startswith(category or "")]
    exact = [path for path in matches if path.name.removesuffix(ending) == category]
    if len(exact or matches) != 1:
        names = ", ".join(path.name for path in matches or candidates) or "none"
        begin = f" that begins with {category!r}" if category else ""
        hint = "Choose one with data.category." if len(matches) > 1 else "data/README.md shows the layout."
        raise DataError(f"{folder}: expected one *{ending}{begin}, found {names}. {hint}")
    return (exact or matches)[0]


def raw_files(source: Literal["csv", "recbole"], folder: Path) -> tuple[Path, Path]:
    """The interactions file and the items file of a folder.

    Raises:
        DataError: no such folder, or not exactly one file of each kind.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. data.path is the folder that holds your files.")
    names = {"csv": ("interactions", "items"), "recbole": ("*.inter", "*.item")}[source]
    files = []
    for name in names:
        patterns = [f"{name}.csv", f"{name}.parquet"] if source == "csv" else [name]
        matches = sorted(path for pattern in patterns for path in folder.glob(pattern))
        matches = [path for path in matches if not path.name.endswith(SPLIT_FILES)]
        if len(matches) != 1:
            listed = ", ".join(path.name for path in matches) or "none"
            raise DataError(
                f"{folder}: expected exactly one {' or '.join(patterns)}, found {listed}. data/README.md shows the layout."
            )
        files.append(matches[0])
    return files[0], files[1]


def _present(frame: pl.DataFrame, *names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names if name in frame.columns}


def _labelled(label: str, text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(pl.lit(f"{label}: ") + text)


def _listed(column: pl.Expr) -> pl.Expr:
    """`Animation Comedy`, or `['Toys', 'Games & Puzzles']`, as `Animation, Comedy`."""
    parts = pl.when(column.str.contains(",")).then(column.str.split(",")).otherwise(column.str.split(" "))
    part = pl.element().str.strip_chars(" '\"[]")
    return parts.list.eval(part.filter(part != "")).list.join(", ")


def one_line(column: pl.Expr) -> pl.Expr:
    """Text without line breaks and tabs, which become one blank with what is around them, or white space at the ends."""
    return column.fill_null("").str.replace_all(r"\s*[\t-\r\x{85}\x{2028}\x{2029}]\s*", " ").str.strip_chars()


def full_text(title: pl.Expr, detail: pl.Expr) -> pl.Expr:
    """The text of an item that is embedded: its title and, if it has one, its description."""
    return pl.when((detail != "") & (title != "")).then(title + ". " + detail).otherwise(title)


def placed(table: pl.DataFrame, path: Path, problems: Problems) -> pl.DataFrame:
    """The rows of a split file with `PLACED` as Int64, null where a field is empty or there is no such column.

    Raises:
        DataError: something else stands there, unless skipped.
    """
    for name, low, high in (("timestamp", -(2**63), 2**63 - 1), ("position", 0, 2**31 - 1)):
        if name not in table.columns:
            table = table.with_columns(pl.lit(None, pl.Int64).alias(name))
            continue
        number, empty = times.parsed(pl.col(name)), pl.col(name).str.strip_chars() == ""
        message = f"{braced(str(path))}, row {{row}}: {name} {{{name}!r}} is not a number{' from 0' if low == 0 else ''}."
        table = problems.without(table, ~(empty | number.is_between(low, high).fill_null(False)), message)
        table = table.with_columns(number)
    return table


def make_catalog(items: pl.DataFrame, name: str, missing_text: MissingText, problems: Problems) -> pl.DataFrame:
    """The items a reader returns, from (row, item_id, title, detail, and any of text and `CATALOG_DETAILS`)."""
    where = braced(name)
    details = [column for column in ("text", *CATALOG_DETAILS) if column in items.columns]
    items = items.with_columns(one_line(pl.col("title", "detail", *details)))
    items = problems.without(items, pl.col("item_id") == "", where + ", row {row}: the item id is empty.")
    message = ", row {row}: item id {item_id!r} has a tab, line break or other control character."
    items = problems.without(items, pl.col("item_id").str.contains(CONTROL), where + message)
    items = items.with_columns(first=pl.col("row").first().over("item_id"))
    message = ", rows {first} and {row}: item {item_id!r} is listed twice. Keep one of the rows."
    items = problems.without(items, pl.col("row") != pl.col("first"), where + message)
    if missing_text == "error":
        bad = items.filter(pl.col("title") == "").head(1)
        for row in bad.iter_rows(named=True):
            raise DataError(
                f"{name}, row {row['row']}: item {row['item_id']!r} has no title. Add one, or pass --data.missing_text drop."
            )
    text = full_text(pl.col("title"), pl.col("detail"))
    if "text" in details:
        text = pl.when(pl.col("text") != "").then("text").otherwise(text)
    return items.select("item_id", "title", text.alias("text"), *(column for column in CATALOG_DETAILS if column in details))


def _checked(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    names: Sequence[str],
    missing_text: MissingText,
    problems: Problems | None,
) -> Frames:
    """The frames that a reader returns, or an error that names the first wrong row."""
    problems = problems or Problems()
    listed, clicks = make_catalog(items, names[1], missing_text, problems), braced(names[0])
    for name in ("user", "item_id"):
        interactions = problems.without(interactions, pl.col(name) == "", clicks + f", row {{row}}: the field {name} is empty.")
        message = f", row {{row}}: {name} {{{name}!r}} has a tab, line break or other control character."
        interactions = problems.without(interactions, pl.col(name).str.contains(CONTROL), clicks + message)
    interactions = interactions.with_columns(time=times.parsed(pl.col("timestamp")))
    if interactions["time"].null_count():
        interactions = interactions.with_columns(time=times.parsed_or_dated(pl.col("timestamp")))
    message = ", row {row}: timestamp {timestamp!r} is not a number; expected seconds since 1970, or a date like 2016-10-31."
    interactions = problems.without(interactions, pl.col("time").is_null(), clicks + message)
    if missing_text == "error":
        unlisted = interactions.filter(~pl.col("item_id").is_in(listed["item_id"].implode()))
        for row in unlisted.head(1).iter_rows(named=True):
            raise DataError(
                f"{names[0]}, row {row['row']}: item {row['item_id']!r} is not in {names[1]}. Add the item there, remove "
                "the row, or pass --data.missing_text drop."
            )
    if "rating" not in interactions.columns:
        return interactions.select("user", "item_id", timestamp="time", rating=pl.lit(None, pl.Float32)), listed
    rating = pl.col("rating").str.strip_chars()  # an empty one is unknown
    interactions = interactions.with_columns(stars=rating.cast(pl.Float32, strict=False))
    message = clicks + ", row {row}: rating {rating!r} is not a number."
    interactions = problems.without(interactions, pl.col("stars").is_null() & (rating != ""), message)
    return interactions.select("user", "item_id", timestamp="time", rating="stars"), listed
