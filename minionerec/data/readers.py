"""Readers of layouts that hold interactions and items: csv, parquet, JSON lines, RecBole, MovieLens.

Each reader returns `(interactions, items)` in file order. Interactions: user String, item_id String, timestamp (Int64 in the
file's own unit, or Datetime; all null if the file has none), rating Float32 (null if unknown). Items: item_id, title, text,
then the `CATALOG_DETAILS` that the file has, all String. Rows in messages count from 1, the header included.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from minionerec.config import DataConfig
from minionerec.config.data import ColumnRole
from minionerec.data.bad_rows import Problems
from minionerec.data.checks import Frames, checked
from minionerec.data.columns import INTERACTION_NAMES, ITEM_NAMES, OWN, RECBOLE, note
from minionerec.data.dataset import CATALOG_DETAILS
from minionerec.data.folders import raw_files
from minionerec.data.tables import opened, read_parquet, read_table, select
from minionerec.data.text_lines import json_lines
from minionerec.data.texts import listed, readable_column
from minionerec.errors import DataError

MOVIELENS_GENRES = (  # in the order of the 19 flags of u.item
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_RATINGS = ("user", "item_id", "rating", "timestamp")  # of MovieLens, which has no headers
_ADVICE = (
    "Rename or add it, or say which it is, e.g. --data.columns '{user: NAME, timestamp: NAME}'; an empty timestamp stands for "
    "rows in order of time without times."
)
_STEAM: dict[str, dict[ColumnRole, str]] = {"steam_reviews": {"user": "username"}}  # its `user_id` is missing in most rows


def read_movielens_zip(path: Path, config: DataConfig, problems: Problems) -> Frames:
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
    return checked(interactions, items, names, config, problems)


def read_movielens_1m(path: Path, config: DataConfig, problems: Problems) -> Frames:
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
    return checked(interactions, items, names, config, problems)


def _members(path: Path, *members: str) -> list[bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [archive.read(member) for member in members]
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not the archive with {' and '.join(members)} ({error}).") from None


def read_recbole(folder: Path, config: DataConfig, problems: Problems) -> Frames:
    """RecBole's atomic files: one `*.inter` and one `*.item`, tab-separated, with a typed header (`name:type`).

    Interactions need user_id, item_id, timestamp, and may have rating and label; items need item_id and a title column (title,
    movie_title, name, ...). Other usual names, such as artist_id, are recognised, and `data.columns` names any other. A release
    year becomes `Title (1995)` unless it is no number; genres or categories follow in the text, unless a column `text` gives
    it.

    Raises:
        DataError: not exactly one file of each kind, or a malformed row, id or timestamp (`read_csv` lists them).
    """
    files = raw_files("recbole", folder, config.category)
    table = read_table(files[0], str(files[0]), "\t", typed=True, problems=problems)
    wanted = RECBOLE.interactions(table.columns[1:], config.columns)
    problems.notes.append(note(files[0].name, table, wanted))
    interactions = select(table, files[0], wanted, _ADVICE)
    return checked(interactions, recbole_items(files[1], config, problems), (str(files[0]), str(files[1])), config, problems)


def recbole_items(path: Path, config: DataConfig, problems: Problems) -> pl.DataFrame:
    """The rows of an `*.item` file: row, item_id, title, detail, and what else `checked` knows.

    Raises:
        DataError: the file is malformed, or lacks the item id or the title.
    """
    table = read_table(path, str(path), "\t", typed=True, problems=problems)
    wanted = RECBOLE.items(table.columns[1:], config.columns)
    problems.notes.append(note(path.name, table, wanted))
    return described(select(table, path, wanted, _ADVICE), with_description=False)


def described(items: pl.DataFrame, with_description: bool) -> pl.DataFrame:
    """The rows of an items file, for `make_catalog`: the year in the title, `detail` from description, genres and categories.

    Args:
        items: row, item_id, title, and any of text, `CATALOG_DETAILS`, year, genres and Categories, all text.
        with_description: whether the description is a part of `detail`.
    """
    title = pl.col("title")
    if "year" in items.columns:
        year = pl.col("year").str.strip_chars()
        dated = year.str.contains(r"^\d{4}(\.0)?$") & (title.str.strip_chars() != "")
        title = pl.when(dated).then(title.str.strip_chars() + " (" + year.str.slice(0, 4) + ")").otherwise(title)
    labels = [
        _labelled(label, pl.Series([listed(text) for text in items[name].to_list()], dtype=pl.String))
        for label, name in (("Genres", "genres"), ("Categories", "Categories"))
        if name in items.columns
    ]
    if with_description and "description" in items.columns:
        words = readable_column(items["description"])
        labels.insert(0, pl.when(words != "").then(pl.lit(words)))
    detail = pl.concat_list(labels).list.drop_nulls().list.join(". ") if labels else pl.lit("")
    details = [name for name in ("text", *CATALOG_DETAILS) if name in items.columns]
    return items.select("row", "item_id", *details, title=title, detail=detail)


def read_csv(folder: Path, config: DataConfig, problems: Problems) -> Frames:
    """Your own files: `interactions` (user, item, timestamp, optional rating), `items` (item, title, optional description).

    Each is `.csv` (UTF-8, comma-separated, quoted where needed), `.parquet` or JSON lines, perhaps gzipped; other columns are
    ignored. Public dumps are read under their own names of files and columns, see `folders.PAIRS` and `columns`; `data.columns`
    names any other.

    With `missing_text: drop` an item without title, and an interaction with an item that is not listed, pass, for
    `build_dataset` to drop.

    Raises:
        DataError: a file or column is missing; a row has too few or too many fields, a byte that is not UTF-8, an id that is
            empty or has control characters, or a timestamp that is neither number nor date; an item is listed twice, has no
            title, or is interacted with but not listed.
    """
    (interactions, items), names = csv_tables(folder, config, problems)
    return checked(interactions, items, names, config, problems)


def csv_tables(folder: Path, config: DataConfig, problems: Problems) -> tuple[Frames, tuple[str, str]]:
    """The rows of the two files of `read_csv` before they are checked, as `checked` takes them, and the files' names."""
    files = raw_files("csv", folder, config.category)
    mapping = _STEAM.get(files[0].name.split(".")[0], {}) | config.columns
    interactions = _read_any(
        files[0], lambda present: OWN.interactions(present, mapping), (*INTERACTION_NAMES, *mapping.values()), problems
    )
    items = _read_any(files[1], lambda present: OWN.items(present, mapping), (*ITEM_NAMES, *mapping.values()), problems)
    return (interactions, described(items, with_description=True)), (str(files[0]), str(files[1]))


def _read_any(
    path: Path,
    roles: Callable[[Sequence[str]], Mapping[str, tuple[str, ...]]],
    names: Sequence[str],
    problems: Problems,
) -> pl.DataFrame:
    """The columns that fill the roles, as text, from any form of table.

    Args:
        roles: from the columns of the file to the names of each role.
        names: every name that a role may have, since lines of JSON need not have the same ones.
    """
    if ".parquet" in path.suffixes:
        table = read_parquet(path)
    elif ".csv" in path.suffixes:
        table = read_table(opened(path), str(path), ",", problems=problems)
    else:
        sample = next(
            json_lines(path, tuple(dict.fromkeys(names)), Problems(skip=True, log=False)), pl.DataFrame(schema=["row"])
        )
        present = [column.name for column in sample[:, 1:] if column.null_count() < len(column)]
        used = {next((name for name in options if name in present), "") for options in roles(present).values()} - {""}
        frames = list(json_lines(path, sorted(used), problems))
        table = pl.concat(frames) if frames else sample.clear()
    wanted = roles(table.columns[1:])
    problems.notes.append(note(path.name, table, wanted))
    return select(table, path, wanted, _ADVICE)


def _labelled(label: str, text: pl.Expr | pl.Series) -> pl.Expr:
    words = pl.lit(text) if isinstance(text, pl.Series) else text
    return pl.when(words != "").then(pl.lit(f"{label}: ") + words)
