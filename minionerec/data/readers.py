"""Readers: raw files of three layouts to two plain frames, with every malformed row named.

Each reader returns `(interactions, items)` in file order: interactions (user String, item_id String, timestamp Int64,
seconds since 1970), items (item_id, title, text: String). Ratings are ignored: every rating is an implicit interaction.
Rows in messages count from 1, the header included.
"""

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow_csv

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


def read_movielens_zip(path: Path, missing_text: MissingText = "error") -> Frames:
    """The official `ml-100k.zip`: `u.data` (tab-separated) and `u.item` (latin-1, pipe-separated, 19 genre flags).

    Raises:
        DataError: not this archive, or see `read_csv`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data, item = archive.read("ml-100k/u.data"), archive.read("ml-100k/u.item")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not the MovieLens-100K archive with ml-100k/u.data and ml-100k/u.item ({error}).") from None
    names = (f"{path}, u.data", f"{path}, u.item")
    interactions = _table(data, names[0], "\t", columns=("user", "item_id", "rating", "timestamp"))
    columns = ("item_id", "title", "release_date", "video_date", "url", *MOVIELENS_GENRES)
    items = _table(item, names[1], "|", columns=columns, encoding="latin-1")
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in MOVIELENS_GENRES]
    genres = pl.concat_list(flags).list.drop_nulls().list.join(", ")
    items = items.select("row", "item_id", "title", detail=_labelled("Genres", genres))
    return _checked(interactions, items, names, missing_text)


def read_recbole(folder: Path, missing_text: MissingText = "error") -> Frames:
    """RecBole's atomic files: one `*.inter` and one `*.item`, tab-separated, with a typed header (`name:type`).

    Interactions need user_id, item_id, timestamp; items need item_id and a title column (title, movie_title, name, ...).
    A release year becomes `Title (1995)` unless it is no number; genres or categories follow in the text.

    Raises:
        DataError: not exactly one file of each kind, or see `read_csv`.
    """
    files = raw_files("recbole", folder)
    interactions, items = (_table(path, str(path), "\t", typed=True) for path in files)
    interactions = _select(interactions, files[0], {"user": ("user_id",), "item_id": ("item_id",), "timestamp": ("timestamp",)})
    chosen: dict[str, tuple[str, ...]] = {"item_id": ("item_id",), "title": _TITLES}
    optional = {"year": _YEARS, "Genres": _GENRES, "Categories": _CATEGORIES}
    chosen |= {name: options for name, options in optional.items() if set(options) & set(items.columns)}
    items = _select(items, files[1], chosen)
    title = pl.col("title")
    if "year" in items.columns:
        year = pl.col("year").str.strip_chars()
        dated = year.str.contains(r"^\d{4}(\.0)?$") & (title.str.strip_chars() != "")
        title = pl.when(dated).then(title.str.strip_chars() + " (" + year.str.slice(0, 4) + ")").otherwise(title)
    labels = [_labelled(name, _listed(pl.col(name))) for name in ("Genres", "Categories") if name in items.columns]
    detail = pl.concat_list(labels).list.drop_nulls().list.join(". ") if labels else pl.lit("")
    items = items.select("row", "item_id", title=title, detail=detail)
    return _checked(interactions, items, (str(files[0]), str(files[1])), missing_text)


def read_csv(folder: Path, missing_text: MissingText = "error") -> Frames:
    """Your own files: `interactions.csv` (user, item, timestamp) and `items.csv` (item, title, optional description).

    UTF-8, comma-separated, quoted where needed; other columns are ignored.

    Args:
        missing_text: "error" refuses an item without title; "drop" returns it with an empty title, for `build` to drop.

    Raises:
        DataError: a file or column is missing; a row has too few or too many fields, a byte that is not UTF-8, an empty id or
            a timestamp that is no number; an item is listed twice, has no title, or is interacted with but not listed.
    """
    files = raw_files("csv", folder)
    interactions = _table(files[0], str(files[0]), ",")
    interactions = _select(interactions, files[0], {"user": ("user",), "item_id": ("item",), "timestamp": ("timestamp",)})
    items = _table(files[1], str(files[1]), ",")
    detail = pl.col("description") if "description" in items.columns else pl.lit("")
    chosen = {"item_id": ("item",), "title": ("title",)}
    items = _select(items.with_columns(detail=detail), files[1], chosen | {"detail": ("detail",)})
    return _checked(interactions, items, (str(files[0]), str(files[1])), missing_text)


def raw_files(source: Literal["csv", "recbole"], folder: Path) -> tuple[Path, Path]:
    """The interactions file and the items file of a folder.

    Raises:
        DataError: no such folder, or not exactly one file of each kind.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. data.path is the folder that holds your files.")
    patterns = {"csv": ("interactions.csv", "items.csv"), "recbole": ("*.inter", "*.item")}[source]
    found = []
    for pattern in patterns:
        matches = sorted(folder.glob(pattern))
        if len(matches) != 1:
            names = ", ".join(path.name for path in matches) or "none"
            raise DataError(f"{folder}: expected exactly one {pattern}, found {names}. data/README.md shows the layout.")
        found.append(matches[0])
    return found[0], found[1]


def _table(
    source: Path | bytes,
    name: str,
    delimiter: str,
    *,
    columns: Sequence[str] | None = None,
    encoding: str = "utf8",
    typed: bool = False,
) -> pl.DataFrame:
    """All fields as text, with the column `row`; blank lines are left out. Only comma-separated files have quotes."""
    dialect: dict[str, Any] = {"delimiter": delimiter, "strict": True}
    if delimiter != ",":
        dialect["quoting"] = csv.QUOTE_NONE
    wrong: list[Any] = []

    def refuse(row: Any) -> str:
        wrong.append(row)
        return "error"

    try:
        header = list(columns) if columns else _header(source, name, dialect)
        table = arrow_csv.read_csv(
            io.BytesIO(source) if isinstance(source, bytes) else pa.OSFile(str(source)),
            arrow_csv.ReadOptions(use_threads=False, column_names=columns, encoding=encoding),
            arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if delimiter == "," else False,
                newlines_in_values=delimiter == ",",
                ignore_empty_lines=False,
                invalid_row_handler=refuse,
            ),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if wrong:
            row = wrong[0]
            raise DataError(
                f"{name}, row {row.number}: {row.actual_columns} fields, expected {row.expected_columns} "
                f"({', '.join(header)}). Correct or quote the row: {row.text[:80]!r}."
            ) from None
        _refuse_bad_bytes(source, name, dialect)
        raise DataError(f"{name}: not a readable table ({error}).") from None
    if typed:
        table = table.rename_columns([field.split(":")[0] for field in header])
    frame = pl.DataFrame(pl.from_arrow(table)).with_row_index("row", offset=1 if columns else 2)
    return frame.filter(~pl.all_horizontal(pl.exclude("row") == ""))


def _header(source: Path | bytes, name: str, dialect: dict[str, Any]) -> list[str]:
    """The column names; a quoted file is read to its end, since Arrow lets an unclosed quote swallow the rest."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, **dialect)
        try:
            header = next(rows, [])
            if dialect["delimiter"] == ",":
                for _ in rows:
                    pass
        except csv.Error as error:
            raise DataError(
                f"{name}, near line {rows.line_num}: broken quoting ({error}). Close or double the quote."
            ) from None
    names = [field.split(":")[0] for field in header]
    if not header or len(set(names)) != len(names):
        raise DataError(f"{name}, row 1: the header is {header}, expected distinct column names.")
    return header


def _refuse_bad_bytes(source: Path | bytes, name: str, dialect: dict[str, Any]) -> None:
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = io.StringIO(data[: error.start].decode("utf-8") + "?", newline="")
        row = sum(1 for _ in csv.reader(before, **dialect | {"strict": False}))
        raise DataError(
            f"{name}, row {row}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None


def _select(frame: pl.DataFrame, path: Path, wanted: Mapping[str, tuple[str, ...]]) -> pl.DataFrame:
    """The row number and, per wanted name, the first column that is there."""
    chosen = {}
    for name, options in wanted.items():
        column = next((option for option in options if option in frame.columns), None)
        if column is None:
            found = [column for column in frame.columns if column not in ("row", "detail")]
            expected = " or ".join(options)
            raise DataError(f"{path}: columns {', '.join(found)}; expected a column {expected}. Rename or add it.")
        chosen[name] = pl.col(column)
    return frame.select("row", **chosen)


def _labelled(label: str, text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(pl.lit(f"{label}: ") + text)


def _listed(column: pl.Expr) -> pl.Expr:
    """`Animation Comedy`, or `['Toys', 'Games & Puzzles']`, as `Animation, Comedy`."""
    parts = pl.when(column.str.contains(",")).then(column.str.split(",")).otherwise(column.str.split(" "))
    part = pl.element().str.strip_chars(" '\"[]")
    return parts.list.eval(part.filter(part != "")).list.join(", ")


def _refuse(frame: pl.DataFrame, wrong: pl.Expr, message: str) -> None:
    """Raise for the first wrong row; `message` names the row's columns in braces."""
    found = frame.filter(wrong).head(1)
    if len(found):
        raise DataError(message.format(**found.row(0, named=True)))


def _checked(interactions: pl.DataFrame, items: pl.DataFrame, names: tuple[str, str], missing_text: MissingText) -> Frames:
    """The frames that a reader returns, or an error that names the first wrong row."""
    clicks, catalogue = (name.replace("{", "{{").replace("}", "}}") for name in names)
    items = items.with_columns(pl.col("title", "detail").fill_null("").str.replace_all(r"\s+", " ").str.strip_chars())
    _refuse(items, pl.col("item_id") == "", catalogue + ", row {row}: the item id is empty.")
    twice = items.with_columns(first=pl.col("row").first().over("item_id"))
    _refuse(
        twice,
        pl.col("row") != pl.col("first"),
        catalogue + ", rows {first} and {row}: item {item_id!r} is listed twice. Keep one of the rows.",
    )
    if missing_text == "error":
        message = ", row {row}: item {item_id!r} has no title. Add one, or pass --data.missing_text drop."
        _refuse(items, pl.col("title") == "", catalogue + message)
    for name in ("user", "item_id"):
        _refuse(interactions, pl.col(name) == "", clicks + f", row {{row}}: the field {name} is empty.")
    raw = pl.col("timestamp").str.strip_chars()
    # Integers first: a float64 would merge nanoseconds.
    seconds = pl.coalesce(
        raw.cast(pl.Int64, strict=False), raw.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)
    )
    interactions = interactions.with_columns(seconds=seconds)
    message = ", row {row}: timestamp {timestamp!r} is not a number; expected seconds since 1970."
    _refuse(interactions, pl.col("seconds").is_null(), clicks + message)
    message = f", row {{row}}: item {{item_id!r}} is not in {catalogue}. Add the item there, or remove the row."
    _refuse(interactions, ~pl.col("item_id").is_in(items["item_id"].implode()), clicks + message)
    text = pl.when(pl.col("detail") != "").then(pl.col("title") + ". " + pl.col("detail")).otherwise(pl.col("title"))
    return interactions.select("user", "item_id", timestamp="seconds"), items.select("item_id", "title", text=text)
