"""Lines, delimited text and parquet as frames of text with row numbers; every malformed row is named."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow_csv

from minionerec.data.bad_rows import Problems
from minionerec.errors import DataError


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
    """All fields as text, with the column `row`; blank lines are left out. Only comma-separated files have quotes.

    Args:
        source: a file, or its content.
        name: the file's name in messages.
        columns: the names, for a file without header; otherwise its first row has them.
        typed: names end in `:type`, which is cut off.
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
        if wrong and not problems.skip:
            problems.add(_wrong_width(name, wrong[0], header))
        _refuse_bad_bytes(source, name, dialect)
        raise DataError(f"{name}: not a readable table ({error}).") from None
    if typed:
        table = table.rename_columns([field.split(":")[0] for field in header])
    for row in wrong:
        problems.add(_wrong_width(name, row, header))
    skipped, first = {row.number for row in wrong}, 1 if columns else 2
    numbers = [number for number in range(first, first + table.num_rows + len(skipped)) if number not in skipped]
    frame = pl.DataFrame(pl.from_arrow(table)).insert_column(0, pl.Series("row", numbers, dtype=pl.UInt32))
    return frame.filter(~pl.all_horizontal(pl.exclude("row") == ""))


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
        lines = data.decode("utf-8").replace("\r\n", "\n").split("\n")  # not at U+2028 and the like, which titles have
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None
    return lines if lines[-1] else lines[:-1]


def read_parquet(path: Path) -> pl.DataFrame:
    """A parquet file with every column as text, and the column `row`, from 1.

    Raises:
        DataError: not a parquet file, or a column that is no text, number or date.
    """
    try:
        frame = pl.read_parquet(path)
        dates = [name for name, kind in frame.schema.items() if kind.is_temporal()]
        frame = frame.with_columns(pl.col(dates).dt.strftime("%Y-%m-%d %H:%M:%S")) if dates else frame
        frame = frame.with_columns(pl.all().cast(pl.String).fill_null(""))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: not a table of text, numbers and dates in parquet ({error}).") from None
    return frame.with_row_index("row", offset=1)


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
        row = sum(1 for _ in csv.reader(before, **dialect | {"strict": False}))
        raise DataError(
            f"{name}, row {row}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None


def select(frame: pl.DataFrame, path: Path, wanted: Mapping[str, tuple[str, ...]]) -> pl.DataFrame:
    """The row number and, per wanted name, the first column that is there.

    Raises:
        DataError: none of a name's columns is there.
    """
    columns = {}
    for name, options in wanted.items():
        column = next((option for option in options if option in frame.columns), None)
        if column is None:
            present = [column for column in frame.columns if column != "row"]
            expected = " or ".join(options)
            raise DataError(f"{path}: columns {', '.join(present)}; expected a column {expected}. Rename or add it.")
        columns[name] = pl.col(column)
    return frame.select("row", **columns)
