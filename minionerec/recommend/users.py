"""Users and their histories in files of any size, read in parts: parquet or CSV, one file or a folder of them."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from minionerec.errors import DataError

_BLOCK = 4 << 20  # bytes of CSV parsed at once
_ROWS = 4096  # of parquet decoded at once
OWN_COLUMNS = ("user", "rank", "item_id", "score", "exact", "fallback")  # of the lists; no other column may have such a name


def ids_of(text: str) -> list[str]:
    """The items of a history that is written as text: ids with commas between them, or a JSON list of ids.

    >>> ids_of("50, 172,181"), ids_of('["Me, Myself", "7"]'), ids_of("")
    (['50', '172', '181'], ['Me, Myself', '7'], [])

    Raises:
        DataError: the JSON is no list of texts and whole numbers.
    """
    text = text.strip()
    if not text.startswith("["):
        return [part.strip() for part in text.split(",")] if text else []
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"the history {text[:60]!r} begins like a JSON list, but is none ({error}).") from None
    if not isinstance(items, list) or not all(type(item) in (str, int) for item in items):
        raise DataError(f"the history {text[:60]!r} is no JSON list of items' ids.")
    return list(map(str, items))


class UserFiles:
    """A table with the columns `user` and `history`, and any others.

    In files an item always stands for its id: a whole number in a history is an id that consists of digits, not an index.

    Attributes:
        path: a file or a folder.
        files: in the order in which their rows are numbered.
        columns: of the files, other than `user` and `history`.
    """

    def __init__(self, path: Path) -> None:
        """Look at the files' columns.

        Raises:
            DataError: there is no such file, it is neither parquet nor CSV, or a column is missing or has a name of ours.
        """
        self.path = path
        if path.is_dir():
            self.files = sorted(file for file in path.iterdir() if file.suffix in (".parquet", ".csv"))
        else:
            self.files = [path]
        if not self.files or not path.exists() or self.files[0].suffix not in (".parquet", ".csv"):
            raise DataError(f"{path}: expected a .parquet or .csv file, or a folder of them; found none.")
        if len({file.suffix for file in self.files}) > 1:
            raise DataError(f"{path}: holds .parquet and .csv files; expected files of one kind.")
        schemas = [_schema(file) for file in self.files]
        for file, schema in zip(self.files, schemas, strict=True):
            if not schema.equals(schemas[0]):
                raise DataError(f"{file}: columns {schema.names} of other names or types than those of {self.files[0].name}.")
        self._schema = schemas[0]
        names = self._schema.names
        for name in ("user", "history"):
            if names.count(name) != 1:
                raise DataError(f"{self.files[0]}: expected one column {name}, found the columns {', '.join(names)}.")
        self.columns = [name for name in names if name not in ("user", "history")]
        if taken := sorted({*self.columns} & {*OWN_COLUMNS}) or sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{self.files[0]}: rename the column {taken[0]}; the lists have a column of this name.")

    def __len__(self) -> int:
        """Count the rows; a CSV file is read for it."""
        if self.files[0].suffix == ".parquet":
            return sum(pq.ParquetFile(file).metadata.num_rows for file in self.files)
        return sum(batch.num_rows for batch in self.batches())

    def histories(self, table: pa.Table) -> list[list[str]]:
        """The histories of some rows, as ids.

        Raises:
            DataError: a history is not a list of ids; the message does not name the row.
        """
        return [_history(value) for value in table["history"].to_pylist()]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in their order.

        Raises:
            DataError: a file cannot be read.
        """
        for file in self.files:
            try:
                if file.suffix == ".parquet":
                    yield from pq.ParquetFile(file).iter_batches(_ROWS)
                else:
                    yield from _csv(file, self._schema)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())}).") from None


class RowReader:
    """Reads rows of user files; asked for ascending ranges, it passes over the files once and holds little more than one."""

    def __init__(self, files: UserFiles) -> None:
        self._files = files
        self._restart()

    def _restart(self) -> None:
        self._batches = self._files.batches()
        self._held: list[pa.RecordBatch] = []  # consecutive ones; the first begins at row `_begin`, the last ends at `_end`
        self._begin = self._end = 0

    def take(self, rows: range) -> pa.Table:
        """The rows of a range.

        Raises:
            DataError: a file cannot be read.
        """
        if rows.start < self._begin:
            self._restart()
        while self._held and self._begin + self._held[0].num_rows <= rows.start:
            self._begin += self._held.pop(0).num_rows
        while self._end < rows.stop:
            batch = next(self._batches)
            if not self._held:
                self._begin = self._end
            self._end += batch.num_rows
            if self._end > rows.start:
                self._held.append(batch)
        return pa.Table.from_batches(self._held).slice(rows.start - self._begin, len(rows))


def _schema(file: Path) -> pa.Schema:
    try:
        if file.suffix == ".parquet":
            return pq.read_schema(file).remove_metadata()
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return pa.schema([(name, pa.string()) for name in next(csv.reader(stream), [])])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())}).") from None


def _csv(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a CSV file, every value as text."""
    reader = pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in schema.names}, strings_can_be_null=False
        ),
    )
    yield from reader


def _history(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return ids_of(value)
    if isinstance(value, list) and all(type(item) in (str, int) for item in value):
        return list(map(str, value))
    raise DataError(f"the history is {str(value)[:60]!r}; expected a list of items' ids.")
