"""Splits: from each user's sequence to train, valid and test examples.

Three rules, `data.split`. `leave-last-two-out`: a user's last interaction is test, the one before valid, all earlier train;
examples are ordered by user, then position. `chronological`: all examples sorted by the target's time (equal times by user,
then position) and cut at the shares of `data.parts`, as the released code does. `date`: by two dates.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from minionerec.config import DataConfig
from minionerec.data import times
from minionerec.data.dataset import SPLIT_SCHEMA, SPLITS


def split(sequences: pl.DataFrame, config: DataConfig, unit: int) -> dict[str, pl.DataFrame]:
    """The three splits.

    Args:
        sequences: (user String, item Int32, time Int64, position Int32), sorted by user, then
            position, without gaps.
        unit: time units per second.

    Returns:
        frames of `SPLIT_SCHEMA`; each example's history holds the up to `data.max_history` items before the target.
    """
    position = sequences["position"].to_numpy()
    time = sequences["time"].to_numpy()
    examples = np.flatnonzero(position >= 1)
    if config.split == "leave-last-two-out":
        last = np.append(position[1:] == 0, True) if len(position) else np.zeros(0, bool)
        is_in = {"valid": np.append(last[1:], False)[examples], "test": last[examples]}
        is_in["train"] = ~(is_in["valid"] | is_in["test"])
        rows = {name: examples[is_in[name]] for name in SPLITS}
    else:
        ordered = examples[np.argsort(time[examples], kind="stable")]
        rows = dict(zip(SPLITS, np.split(ordered, cuts_of(time[ordered], config, unit)), strict=True))
    return {name: examples_at(sequences, rows[name], config.max_history, unit) for name in SPLITS}


def cuts_of(ordered: np.ndarray, config: DataConfig, unit: int) -> list[int]:
    """Where valid and test begin among all examples in order of time.

    Args:
        ordered: times of the targets, ascending.
        unit: time units per second.
    """
    if config.split == "chronological":
        total, count = sum(config.parts), len(ordered)
        # In integers: 0.8 + 0.1 is not 0.9.
        return [count * config.parts[0] // total, count * (config.parts[0] + config.parts[1]) // total]
    dates = [times.instant(str(date), name) * unit for name, date in config.split_dates.items()]
    return [int(cut) for cut in np.searchsorted(ordered, dates, side="left")]


def every_example(sequences: pl.DataFrame, config: DataConfig, unit: int) -> pl.DataFrame:
    """All examples in order of time, ties by user, then position: the columns of a split, and `time` in its own unit.

    Args:
        sequences, unit: see `split`.
    """
    position, time = sequences["position"].to_numpy(), sequences["time"].to_numpy()
    rows = np.flatnonzero(position >= 1)
    rows = rows[np.argsort(time[rows], kind="stable")]
    return examples_at(sequences, rows, config.max_history, unit).with_columns(time=sequences["time"].gather(rows))


def examples_at(sequences: pl.DataFrame, rows: np.ndarray, max_history: int, unit: int) -> pl.DataFrame:
    """The examples whose targets are some rows of the sequences, each with the up to `max_history` items before it."""
    position = sequences["position"].to_numpy()[rows]
    length = np.minimum(position, max_history).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(length)])
    # The positions of all history items in `sequences`: for each example from row - length up to row - 1.
    positions = np.arange(offsets[-1]) + np.repeat(rows - length - offsets[:-1], length)
    values = pa.Array.from_buffers(pa.int32(), len(positions), [None, pa.py_buffer(sequences["item"].to_numpy()[positions])])
    # From buffers: pa.array would import pandas.
    shape = pa.large_list(pa.int32())
    history = pl.from_arrow(pa.Array.from_buffers(shape, len(rows), [None, pa.py_buffer(offsets)], children=[values]))
    columns = sequences[rows].select(
        "user",
        history=pl.Series(values=history, dtype=pl.List(pl.Int32)),
        target="item",
        timestamp=pl.col("time") // unit,
        position="position",
    )
    return columns.cast(dict(SPLIT_SCHEMA))  # type: ignore[arg-type]
