"""Lines, delimited text and parquet as frames of text with row numbers; every malformed row is named."""

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow_csv

from minionerec.data import parquet
from minionerec.data.bad_rows import Problems
from minionerec.errors import DataError

_BLOCK = 1 << 20  # Arrow's own size of a block, which must hold a whole row
_LARGEST_BLOCK = 2**31 - 1
# Inside a quoted field of a tab-separated file, these stand for a tab and a line break while Arrow reads the lines.
_TAB, _BREAK = "\x1f", "\x1e"
_OPTIONS = 4  # names of a missing column that a message lists
_QUOTED = r'(?s)^".*"$'
_FIELD = r'(?:"[^"]*(?:""[^"]*)*"(?=[\t\n]|\Z)|[^\t\n]*)'
_LONGEST_ROW = 100_000  # characters; a quote that closes later was no opening one


def read_table(
    source: Path | bytes,
    name: str,
    delimiter: str,
    *,
    columns: Sequence[str] | None = None,
    encoding: str = "utf8",
    typed: bool = False,
    problems: Problems | None = None,
) -> pl.DataFrame:
    """All fields as text, `numbered`; blank lines are left out.

    In comma-separated files a quote opens a quoted field, which must be closed. In RecBole's files (`typed`) a field that
    begins and ends with a quote is unquoted, and any other quote stands for itself (`6" pipe`). Other files have no quotes.

    Args:
        source: a file, or its content.
        name: the file's name in messages.
        columns: the names, for a file without header; otherwise its first row has them.
        typed: RecBole's; names end in `:type`, which is cut off.
        problems: takes note of rows with too few or too many fields; None stops at the first.

    Raises:
        DataError: not such a table; the message names the row. Rows count from 1, the header included.
    """
    problems = problems or Problems()
    dialect: dict[str, Any] = {"delimiter": delimiter, "strict": True}
    if delimiter != ",":
        dialect["quoting"] = csv.QUOTE_NONE
    wrong: list[Any] = []

    def refuse(row: Any) -> str:
        wrong.append(row)
        return "skip" if problems.skip else "error"

    def parsed(block_size: int) -> pa.Table:
        wrong.clear()
        return arrow_csv.read_csv(
            io.BytesIO(source) if isinstance(source, bytes) else pa.OSFile(str(source)),
            arrow_csv.ReadOptions(use_threads=False, column_names=columns, encoding=encoding, block_size=block_size),
            arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if delimiter == "," else False,
                newlines_in_values=delimiter == ",",
                ignore_empty_lines=False,
                invalid_row_handler=refuse,
            ),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False),
        )

    if typed and isinstance(source, Path):
        source = _without_breaks(source)
    try:
        header = list(columns) if columns else _header(source, name, dialect)
        try:
            table = parsed(_BLOCK)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):  # a row that is longer than a block
                raise
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            table = parsed(min(size, _LARGEST_BLOCK))
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if wrong and not problems.skip:
            problems.add(_wrong_width(name, wrong[0], header))
        _refuse_bad_bytes(source, name, dialect)
        raise DataError(f"{name}: not a readable table ({error}).") from None
    if typed:
        table = table.rename_columns([field.strip('"').split(":")[0] for field in header])
    for row in wrong:
        problems.add(_wrong_width(name, row, header))
    skipped, first = {row.number for row in wrong}, 1 if columns else 2
    numbers = [number for number in range(first, first + table.num_rows + len(skipped)) if number not in skipped]
    frame = pl.DataFrame(pl.from_arrow(table))
    if typed:
        frame = frame.with_columns(_unquoted(pl.all()))
    blank = frame.select(pl.all_horizontal(pl.all() == "")).to_series()
    return numbered(frame, numbers).filter(~blank)


def numbered(frame: pl.DataFrame, numbers: Sequence[int] | pl.Series) -> pl.DataFrame:
    """A file's rows with their numbers as first column. It is called `row`, or longer if the file has a column of that name."""
    name = "row"
    while name in frame.columns:
        name += "_"
    return frame.select(pl.Series(name, numbers, dtype=pl.UInt32), pl.all())


def opened(path: Path) -> Path | bytes:
    """A file for `read_table`: if it is gzipped, its content.

    Raises:
        DataError: the archive is truncated or damaged.
    """
    if path.suffix != ".gz":
        return path
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a truncated or damaged archive ({error}). Fetch it again.") from None


def _without_breaks(path: Path) -> bytes | Path:
    """A tab-separated file whose quoted fields have `_TAB` and `_BREAK` in place of tabs and line breaks.

    A quote opens such a field only if the lines, each for itself, have too few or too many fields: otherwise it may be an inch
    mark, or the beginning of what someone says.
    """
    try:
        content = path.read_bytes()
        if not re.search(rb'(?:^|[\t\n])"', content.removeprefix(codecs.BOM_UTF8)):
            return path  # nearly all
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return path  # `read_table` names the byte
    width = text.partition("\n")[0].count("\t")
    row = re.compile(rf"{_FIELD}(?:\t{_FIELD}){{{width}}}(?=\n|\Z)")
    rows: list[str] = []
    position = 0
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        match = row.match(text, position, position + _LONGEST_ROW) if '"' in text[position:end] else None
        if match and text[match.end() : match.end() + 1] in ("", "\n"):  # not cut off by the longest row
            lines = match[0].split("\n")
            if any(line.count("\t") != width for line in lines):
                rows.append(re.sub(_FIELD, lambda field: field[0].replace("\t", _TAB).replace("\n", _BREAK), match[0]))
                position = match.end() + 1
                continue
        rows.append(text[position:end])
        position = end + 1
    return "\n".join(rows).encode()


def _unquoted(column: pl.Expr) -> pl.Expr:
    inner = column.str.slice(1).str.head(-1)
    # A quote inside is doubled, or the field is two quoted words and no quoted field.
    quoted = column.str.contains(_QUOTED) & ~inner.str.replace_all('""', "", literal=True).str.contains('"', literal=True)
    plain = inner.str.replace_all('""', '"', literal=True)
    plain = plain.str.replace_all(_TAB, "\t", literal=True).str.replace_all(_BREAK, "\n", literal=True)
    return pl.when(quoted & (column.str.len_chars() > 1)).then(plain).otherwise(column)


def _wrong_width(name: str, row: Any, header: Sequence[str]) -> str:
    return (
        f"{name}, row {row.number}: {row.actual_columns} fields, expected {row.expected_columns} "
        f"({', '.join(header)}). Correct or quote the row: {row.text[:80]!r}."
    )


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without what ends them.

    Raises:
        DataError: it cannot be read, or a byte is not UTF-8; the message names the line.
    """
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")  # not at U+2028 and the like, which titles have
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None
    return lines if lines[-1] else lines[:-1]


def read_parquet(path: Path) -> pl.DataFrame:
    """A parquet file with its own types, `numbered` from 1; `select` makes text of the columns that are wanted.

    Raises:
        DataError: not a parquet file.
    """
    frame = parquet.read_parquet(path, DataError, "Fetch or write it again.")
    return numbered(frame, range(1, len(frame) + 1))


def _as_text(column: pl.Series, where: str) -> pl.Series:
    """A column of any type as text, empty for null: dates in ISO 8601 to the last digit, lists as JSON, bytes as UTF-8.

    Raises:
        DataError: bytes that are not UTF-8, or a type that has no text.
    """
    kind = column.dtype
    try:
        if isinstance(kind, pl.Struct):
            raise TypeError("it has fields")
        if isinstance(kind, pl.Datetime):
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if kind.time_zone else column
            column = column.dt.strftime("%Y-%m-%d %H:%M:%S%.9f")
        elif isinstance(kind, pl.List | pl.Array):
            values = [None if value is None else json.dumps(value.to_list(), ensure_ascii=False) for value in column]
            column = pl.Series(column.name, values, dtype=pl.String)
        return column.cast(pl.String).fill_null("")
    except (pl.exceptions.PolarsError, TypeError) as error:  # TypeError: a list of dates or bytes
        raise DataError(f"{where}: column {column.name} of type {kind} cannot be read as text ({error}).") from None


@contextlib.contextmanager
def fields_of_any_length() -> Iterator[None]:
    """Let the module csv read fields of more than 131,072 characters."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header(source: Path | bytes, name: str, dialect: dict[str, Any]) -> list[str]:
    """The column names; a quoted file is read to its end, since Arrow lets an unclosed quote swallow the rest."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, **dialect)
        try:
            with fields_of_any_length():
                header = next(rows, [])
                if dialect["delimiter"] == ",":
                    for _ in rows:
                        pass
        except csv.Error as error:
            raise DataError(
                f"{name}, near line {rows.line_num}: broken quoting ({error}). Close or double the quote."
            ) from None
    names = [field.split(":")[0] for field in header]
    if not header:
        raise DataError(f"{name}, row 1: there is no header, the file is empty or begins with an empty line.")
    if len(set(names)) != len(names):
        raise DataError(f"{name}, row 1: the header is {header}, expected distinct column names.")
    return header


def _refuse_bad_bytes(source: Path | bytes, name: str, dialect: dict[str, Any]) -> None:
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = io.StringIO(data[: error.start].decode("utf-8") + "?", newline="")
        with fields_of_any_length():
            row = sum(1 for _ in csv.reader(before, **dialect | {"strict": False}))
        raise DataError(
            f"{name}, row {row}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None


def select(
    frame: pl.DataFrame, path: Path, wanted: Mapping[str, tuple[str, ...]], advice: str = "Rename or add it."
) -> pl.DataFrame:
    """The number `row` and, per wanted name, the first column that is there, as text.

    Args:
        frame: as `numbered` gives it.
        advice: what to do if a column is missing.

    Raises:
        DataError: none of a name's columns is there, or one has no text.
    """
    columns, present = [frame.to_series(0).rename("row")], frame.columns[1:]
    for name, options in wanted.items():
        column = next((option for option in options if option in present), None)
        if column is None:
            expected = " or ".join(options[:_OPTIONS]) + (" or another usual name" if len(options) > _OPTIONS else "")
            raise DataError(f"{path}: columns {', '.join(present)}; expected a column {expected}. {advice}")
        columns.append(_as_text(frame[column], str(path)).rename(name))
    return pl.DataFrame(columns)
