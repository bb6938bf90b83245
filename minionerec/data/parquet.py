"""Reading parquet files, of which any byte may be wrong."""

from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from minionerec.errors import MiniOneRecError

# ValueError: a name that is not UTF-8. PanicException: one inside of a type.
_ERRORS = (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException)


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
