"""Reading parquet files, of which any byte may be wrong; writing them piece by piece."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from minionerec.errors import MiniOneRecError

# ValueError: a name that is not UTF-8. PanicException: one inside of a type.
_ERRORS = (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException)


_GROUP = 1 << 18  # rows that a reader of the file can have at a time


def write_parquet(path: Path, frames: Iterable[pl.DataFrame], schema: pl.Schema) -> int:
    """Write frames one after the other, and return their number of rows.

    The bytes depend on the rows alone, not on how they are cut into frames.
    """
    empty = pl.DataFrame(schema=schema).to_arrow(compat_level=pl.CompatLevel.oldest())
    held: list[pa.Table] = []
    rows = written = 0
    with parquet.ParquetWriter(path, empty.schema, compression="zstd") as writer:
        for frame in frames:
            held.append(frame.select(schema.names()).cast(schema).to_arrow(compat_level=pl.CompatLevel.oldest()))
            rows += len(frame)
            while rows - written >= _GROUP:
                table = pa.concat_tables(held)
                writer.write_table(table.slice(0, _GROUP).combine_chunks(), row_group_size=_GROUP)
                held, written = [table.slice(_GROUP)], written + _GROUP
        if rows > written or not rows:
            writer.write_table(pa.concat_tables([empty, *held]).combine_chunks(), row_group_size=_GROUP)
    return rows


def read_parquet(path: Path, error_class: type[MiniOneRecError], advice: str) -> pl.DataFrame:
    """The table of a parquet file.

    Arrow reads the file, as polars panics at some damaged files and ends the whole process at others, and takes brackets in a
    path for a pattern.

    Args:
        error_class: of the error for a file that cannot be read.
        advice: what to do then, a sentence.

    Raises:
        MiniOneRecError: the file is missing, must not be read, or is damaged; it is an `error_class`.
    """
    try:
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            table = file.read()
        table.validate(full=True)  # a text that is not UTF-8, a list that ends outside: polars trusts both
        frame = pl.from_arrow(table.replace_schema_metadata(None))
    except FileNotFoundError:
        raise error_class(f"{path}: not found. {advice}") from None
    except PermissionError:
        raise error_class(f"{path}: must not be read (permission denied). Allow it, e.g. chmod u+r {path}.") from None
    except _ERRORS as error:
        raise error_class(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:300]}). {advice}") from None
    assert isinstance(frame, pl.DataFrame)  # not a series, as a single array is
    return frame
