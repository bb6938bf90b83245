"""Which interactions stay: time window, repeated rows, iterated k-core, widening window.

Interactions come in parts, all rows of a user in the same part. In memory at a time are one part and the rows of users that
have enough of them. In a part users are numbers; the names of the users that stay are read again at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from minionerec.config import DataConfig
from minionerec.data import times
from minionerec.errors import DataError

EARLIEST_YEAR = 1996  # the released code's widening window stops here


@dataclass(frozen=True)
class Part:
    """All interactions of some users.

    Attributes:
        rows: gives the columns row (UInt32, place in the file), user (UInt32, from 0), item (Int32, the catalog's row),
            time (Int64), rating (Float32 or null), first (Boolean: no earlier row has the same user, item and time).
        names: gives the ids of the users, in the order of their numbers.
    """

    rows: Callable[[], pl.DataFrame]
    names: Callable[[], pl.Series]


def encode(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Rows and names of a part, from (row, user String, item, time, rating)."""
    users = frame["user"].to_arrow().dictionary_encode()
    codes = pl.Series("user", pl.from_arrow(users.indices), dtype=pl.UInt32)
    rows = frame.select("row", codes, "item", "time", "rating")
    return rows.with_columns(first=pl.struct("user", "item", "time").is_first_distinct()), pl.Series(
        "user", pl.from_arrow(users.dictionary), dtype=pl.String
    )


@dataclass(frozen=True)
class Selection:
    """The interactions that the filters leave, in file order.

    Attributes:
        user: numbers from 0, in order of first appearance, (rows,); `names` has their ids.
        item, time, rating: (rows,); `rating` is NaN if unknown.
        counts: rows read, and rows dropped by reason.
    """

    user: np.ndarray
    names: pl.Series
    item: np.ndarray
    time: np.ndarray
    rating: np.ndarray
    counts: dict[str, Any]


def k_core(user: np.ndarray, item: np.ndarray, user_k: int, item_k: int) -> np.ndarray:
    """Which interactions stay when users with fewer than `user_k` and items with fewer than `item_k` go until none is left.

    Args:
        user, item: numbers from 0, (rows,).

    Returns:
        a mask, (rows,).
    """
    left = np.arange(len(user))
    while True:
        few_users = np.bincount(user[left]) < user_k if len(left) else np.zeros(0, bool)
        few_items = np.bincount(item[left]) < item_k if len(left) else np.zeros(0, bool)
        stays = ~(few_users[user[left]] | few_items[item[left]])
        if stays.all():
            mask = np.zeros(len(user), bool)
            mask[left] = True
            return mask
        left = left[stays]


def select(parts: Sequence[Part], unit: int, config: DataConfig, where: str) -> Selection:
    """Apply the window, leave out repeated rows, take the k-core; with too few items left, begin the window a year earlier.

    Args:
        unit: time units per second.
        where: the file, for messages.

    Raises:
        DataError: nothing is left; the message says which filter took the last rows.
    """
    start, widened = config.start, 0
    while True:
        selection = _select(parts, unit, config, start)
        items = len(np.unique(selection.item))
        if start is None or items >= config.widen_below_items or int(start[:4]) <= EARLIEST_YEAR:
            break
        start, widened = times.year_earlier(start), widened + 1
    if not len(selection.user):
        raise DataError(_emptied(selection.counts, config, start, where))
    if config.widen_below_items:
        selection.counts["window_start"], selection.counts["widened_years"] = start, widened
    return selection


def _select(parts: Sequence[Part], unit: int, config: DataConfig, start: str | None) -> Selection:
    local = config.filters == "released"
    low = times.instant(start, "start", local=local) * unit if start else None
    high = times.instant(config.end, "end", local=local) * unit if config.end else None
    read = inside = unique = users = 0
    first = last = 0
    seen = np.zeros(0, bool)  # items with an interaction before the k-core
    frames: list[pl.DataFrame] = []
    for number, part in enumerate(parts):
        rows = part.rows()
        read += len(rows)
        earliest, latest = times.extremes(rows["time"])
        first, last = min(first or earliest, earliest or first), max(last, latest)
        if low is not None or high is not None:
            rows = rows.filter(pl.col("time").is_between(_or(low, -(2**63)), _or(high, 2**63 - 1)))
        inside += len(rows)
        if config.drops_duplicates:
            rows = rows.filter("first")
        unique += len(rows)
        user = rows["user"].to_numpy()
        counts = np.bincount(user) if len(user) else np.zeros(0, int)
        users += int((counts > 0).sum())
        seen = _marked(seen, rows["item"].to_numpy())
        long_enough = rows.filter(pl.Series(counts[user] >= config.user_k, dtype=pl.Boolean)).drop("first")
        frames.append(long_enough.with_columns(part=pl.lit(number, pl.UInt32)))
    rows = pl.concat(frames)
    counted = {
        "read": read,
        "dropped_outside_window": read - inside,
        "dropped_duplicates": inside - unique,
        "span": (first, last, unit),
    }
    selection = _core(rows, parts, config)
    counted["dropped_short_users"] = users - len(selection.names)
    counted["dropped_rare_items"] = int(seen.sum()) - len(np.unique(selection.item))
    counted["dropped_short_user_interactions"] = unique - len(selection.user)
    return Selection(selection.user, selection.names, selection.item, selection.time, selection.rating, counted)


def _or(bound: int | None, default: int) -> int:
    return default if bound is None else bound


def _marked(seen: np.ndarray, items: np.ndarray) -> np.ndarray:
    if len(items) and items.max() >= len(seen):
        seen = np.concatenate([seen, np.zeros(int(items.max()) + 1 - len(seen), bool)])
    seen[items] = True
    return seen


def _core(rows: pl.DataFrame, parts: Sequence[Part], config: DataConfig) -> Selection:
    """The k-core of the rows of all parts, in file order, with the users' names."""
    rows = (
        rows.with_columns(both=pl.struct("part", "user").rank("dense") - 1)
        if len(parts) > 1
        else rows.with_columns(both="user")
    )
    rows = rows.filter(
        pl.Series(k_core(rows["both"].to_numpy(), rows["item"].to_numpy(), config.user_k, config.item_threshold))
    )
    rows = rows.sort("row")
    _, where, code = np.unique(rows["both"].to_numpy(), return_index=True, return_inverse=True)
    order = np.argsort(where)  # users by first appearance
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    first_rows = rows[where[order]].select("part", "user").with_row_index("order")
    names = [pl.Series("user", [], dtype=pl.String)]
    places = [np.zeros(0, np.int64)]
    for (number,), users in first_rows.group_by("part", maintain_order=True):
        names.append(parts[int(number)].names().gather(users["user"]))
        places.append(users["order"].to_numpy())
    ids = pl.concat(names).gather(np.argsort(np.concatenate(places)))
    rating = rows["rating"].fill_null(float("nan")).to_numpy()
    return Selection(rank[code], ids, rows["item"].to_numpy(), rows["time"].to_numpy(), rating, {})


def _emptied(counts: dict[str, Any], config: DataConfig, start: str | None, where: str) -> str:
    if not counts["read"]:
        return f"{where}: no interaction with a listed item was read, so nothing can be recommended."
    first, last, unit = counts["span"]
    days = [np.datetime64(value // unit, "s").astype("datetime64[D]") for value in (first, last)]
    if counts["read"] == counts["dropped_outside_window"]:
        return (
            f"{where}: no interaction is left after the window from {start or 'the beginning'} to {config.end or 'the end'} "
            f"(data.start, data.end): all {counts['read']:,} lie outside; they go from {days[0]} to {days[1]}."
        )
    return (
        f"{where}: no interaction is left after the k-core (data.user_k {config.user_k}, data.item_k {config.item_threshold}): "
        f"it took the last {counts['dropped_short_user_interactions']:,} of {counts['read']:,} interactions; "
        f"{counts['dropped_outside_window']:,} were outside the window, {counts['dropped_duplicates']:,} were repeated. "
        "Lower the thresholds or widen the window."
    )
