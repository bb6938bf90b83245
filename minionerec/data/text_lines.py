"""JSON lines and headed CSV, gzipped or not, in bounded chunks of text columns; every broken line is named.

A file is never held whole: about `CHUNK` bytes of it at a time are parsed by polars. Only a chunk that polars refuses is parsed
line by line, to find the broken line, or because its lines are Python literals, as in Amazon's metadata of 2014.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa

from minionerec.config.documents import parse_json
from minionerec.data.bad_rows import Problems
from minionerec.data.tables import fields_of_any_length, numbered
from minionerec.errors import DataError

_BOM = b"\xef\xbb\xbf"  # some programs begin a file of UTF-8 with it
_HALF = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])")  # half of a character, which polars makes NUL
CHUNK = 8 << 20  # bytes of text; larger ones leave the processor cache and are slower


def json_lines(path: Path, fields: Sequence[str], problems: Problems) -> Iterator[pl.DataFrame]:
    """The named fields of every line, as text (lists and objects as JSON, null if missing), `numbered` by line.

    A number that is whole has no point: the id 3.0 is `3`.

    Raises:
        DataError: the file is missing or a truncated archive; or a line is neither JSON nor a Python literal, unless skipped.
    """
    schema = pl.Schema(dict.fromkeys(fields, pl.String()))
    for first, lines, block in _blocks(path):
        try:
            frame = None if _HALF.search(block) else pl.read_ndjson(io.BytesIO(block), schema=schema)
        except pl.exceptions.PolarsError:
            frame = None
        if frame is not None and len(frame) == lines:  # otherwise there are blank lines, and rows would be misnumbered
            numbers: Sequence[int] | pl.Series = pl.int_range(first, first + lines, dtype=pl.UInt32, eager=True)
        else:
            frame, numbers = _one_by_one(block, first, path, schema, problems)
        yield numbered(frame, numbers)


def csv_lines(
    path: Path, fields: Sequence[str], problems: Problems, unnamed: Callable[[list[str]], Sequence[str]] | None = None
) -> Iterator[pl.DataFrame]:
    """The named fields of a comma-separated file whose first line names its columns; fields have no line breaks.

    Args:
        unnamed: from the first line's values to the names of the columns, for a file without header; it gives no names if
            the line is a header after all.

    Raises:
        DataError: the file or a column is missing, or it is a truncated archive; or a line is malformed, unless skipped.
    """
    header: list[str] = []
    for first, _, block in _blocks(path):
        if not header:
            names, _, rest = block.partition(b"\n")
            header = [name.strip().strip('"') for name in names.decode("utf-8", "replace").split(",")]
            missing = [name for name in fields if name not in header]
            if missing and unnamed is not None and (named := unnamed(header)):
                header = list(named)
            elif missing:
                raise DataError(f"{path}, line 1: columns {', '.join(header)}; expected {', '.join(missing)} among them.")
            else:
                first, block = first + 1, rest
        numbers: list[int] = []
        lines: list[str] = []
        for number, line in enumerate(block.decode("utf-8", "replace").split("\n"), first):
            if line.count(",") == len(header) - 1 and '"' not in line and "\ufffd" not in line:  # nearly all
                numbers.append(number)
                lines.append(line)
            elif line.strip():
                try:
                    lines.append(_requoted(line, header))
                    numbers.append(number)
                except ValueError as error:
                    problems.add(f"{path}, line {number}: {error}.")
        if not lines:
            continue
        table = "\n".join(lines).encode()
        frame = pl.read_csv(table, has_header=False, new_columns=header, infer_schema=False, truncate_ragged_lines=False)
        yield numbered(frame.select(fields), numbers)


def _requoted(line: str, header: Sequence[str]) -> str:
    """A line with every field in quotes: polars takes a quote inside an unquoted field for the beginning of a quoted one.

    Raises:
        ValueError: not such a line.
    """
    if "\ufffd" in line:
        raise ValueError("has a byte that is not UTF-8")
    try:
        with fields_of_any_length():
            fields = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(f"broken quoting ({error}): {line[:60]!r}. Close or double the quote") from None
    if len(fields) != len(header):
        raise ValueError(f"{len(fields)} fields, expected {len(header)} ({', '.join(header)}): {line[:60]!r}")
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields)


def _blocks(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Whole lines of a file, about `CHUNK` bytes at a time: the number of the first line, from 1, how many, and the lines."""
    first, rest = 1, b""
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
            while block := stream.read(CHUNK):
                cut = block.rfind(b"\n") + 1
                if not cut:
                    rest += block
                    continue
                whole = (rest + block[:cut]).removeprefix(_BOM if first == 1 else b"")
                count = whole.count(b"\n")
                yield first, count, whole
                first += count
                rest = block[cut:]
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read beyond line {first} ({error}). If the archive is truncated or damaged, fetch it again."
        ) from None
    if rest:
        yield first, 1, rest.removeprefix(_BOM if first == 1 else b"")


def _one_by_one(block: bytes, first: int, path: Path, schema: pl.Schema, problems: Problems) -> tuple[pl.DataFrame, list[int]]:
    numbers: list[int] = []
    rows: list[list[str | None]] = []
    for number, line in enumerate(block.split(b"\n"), first):
        if not line.strip():
            continue
        try:
            values = _line(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            cause = " ".join(str(error).split())
            problems.add(f"{path}, line {number}: neither JSON nor a Python literal ({cause[:120]}): {line[:60]!r}.")
            continue
        numbers.append(number)
        rows.append([_text(values.get(name)) for name in schema])
    return pl.DataFrame(rows, schema=schema, orient="row"), numbers


def _line(line: bytes) -> dict[str, object]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte 0x{line[error.start]:02x} is not UTF-8") from None
    try:
        values = parse_json(text)
    except json.JSONDecodeError as error:
        if "'" not in text:
            raise
        try:
            values = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            raise error from None
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}, expected an object")
    return values


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False, default=str)


def _plain(value: object) -> object:
    """A value with whole numbers as polars writes them, so that an id does not depend on the lines around it."""
    if isinstance(value, float) and value.is_integer():
        return int(Decimal(repr(value)))
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return value
