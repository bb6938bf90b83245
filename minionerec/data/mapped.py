"""Frames as Arrow files that are memory-mapped when they are read: what nobody looks at takes no memory."""

from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa

from minionerec.data.filters import Part, encode


def write_mapped(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame through a temporary name."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    temporary = path.with_name(path.name + ".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(path)


def map_table(path: Path) -> pa.Table:
    """The table that `write_mapped` has written, in the file's pages."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def read_mapped(path: Path) -> pl.DataFrame:
    """The frame that `write_mapped` has written; columns of numbers stay in the file's pages."""
    frame = pl.from_arrow(map_table(path))
    assert isinstance(frame, pl.DataFrame)
    return frame


def store_part(frame: pl.DataFrame, path: Path) -> Part:
    """A part of these rows (row, user String, item, time, rating) that lies in files with endings of their own."""
    rows, names = encode(frame)
    write_mapped(names.to_frame("user"), path.with_suffix(".users"))
    write_mapped(rows, path.with_suffix(".rows"))  # last: a part is complete when it is there
    return stored_part(path)


def stored_part(path: Path) -> Part:
    """The part that `store_part` has left."""
    return Part(partial(read_mapped, path.with_suffix(".rows")), partial(_names, path.with_suffix(".users")))


def _names(path: Path) -> pl.Series:
    return read_mapped(path)["user"]
