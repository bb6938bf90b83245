"""Which interactions stay: time window, repeated rows, iterated k-core, widening window.

Interactions come in parts, all rows of a user in the same part. One part is in memory at a time, and besides it one bit for
each row of all parts and a few numbers for each item. In a part users are numbers.
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

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the rows, each (rows,)."""
        rows = self.rows()
        return rows["user"].to_numpy(), rows["item"].to_numpy()


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
    """The interactions that the filters leave.

    Attributes:
        masks: which rows of each part stay, eight in a byte.
        items: the items that stay, ascending.
        rows: how many interactions stay.
        counts: rows read, and rows dropped by reason.
    """

    masks: tuple[np.ndarray, ...]
    items: np.ndarray
    rows: int
    counts: dict[str, Any]

    def kept(self, number: int, part: Part) -> pl.DataFrame:
        """The rows of a part that stay: first, user String, item, time, rating.

        `first` is the place in the file of the first row of this user that stays, which orders users. A user's rows stand in
        the order of time, ties in file order; users in the order of `first`.
        """
        rows = part.rows().drop("first")
        rows = rows.filter(pl.Series(np.unpackbits(self.masks[number], count=len(rows)).astype(bool)))
        rows = rows.with_columns(first=pl.col("row").min().over("user")).sort("first", "time", "row")
        return rows.select("first", part.names().gather(rows["user"]).alias("user"), "item", "time", "rating")


def k_core(
    parts: Sequence[Callable[[], tuple[np.ndarray, np.ndarray]]], masks: list[np.ndarray], user_k: int, item_k: int
) -> None:
    """Let users with fewer than `user_k` interactions and items with fewer than `item_k` go until none is left.

    Each round counts by user within a part, and by item over all parts. The core is the same in whatever order they go.

    Args:
        parts: give (rows,) users, numbers from 0 that no other part shares, and (rows,) items, numbers from 0.
        masks: which rows of each part stay, eight in a byte; changed in place.
    """
    rare = np.zeros(0, bool)
    while True:
        counts = np.zeros(len(rare), np.int64)
        for number, columns in enumerate(parts):
            user, item = columns()
            left = np.flatnonzero(np.unpackbits(masks[number], count=len(user)))
            if rare.any():
                left = left[~rare[item[left]]]
            left = left[np.bincount(user[left])[user[left]] >= user_k] if len(left) else left
            mask = np.zeros(len(user), bool)
            mask[left] = True
            masks[number] = np.packbits(mask)
            found = np.bincount(item[left], minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
        rare = (counts > 0) & (counts < item_k)
        if not rare.any():
            return


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
        if start is None or len(selection.items) >= config.widen_below_items or int(start[:4]) <= EARLIEST_YEAR:
            break
        start, widened = times.year_earlier(start), widened + 1
    if not selection.rows:
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
    masks: list[np.ndarray] = []
    for part in parts:
        rows = part.rows()
        read += len(rows)
        earliest, latest = times.extremes(rows["time"])
        first, last = min(first or earliest, earliest or first), max(last, latest)
        mask = np.ones(len(rows), bool)
        if low is not None or high is not None:
            mask = rows["time"].is_between(_or(low, -(2**63)), _or(high, 2**63 - 1)).to_numpy()
        inside += int(mask.sum())
        if config.drops_duplicates:
            mask = mask & rows["first"].to_numpy()
        unique += int(mask.sum())
        users += len(np.unique(rows["user"].to_numpy()[mask]))
        seen = _marked(seen, rows["item"].to_numpy()[mask])
        masks.append(np.packbits(mask))

    k_core([part.columns for part in parts], masks, config.user_k, config.item_threshold)
    counted = {
        "read": read,
        "dropped_outside_window": read - inside,
        "dropped_duplicates": inside - unique,
        "span": (first, last, unit),
    }
    stay, kept_users, kept_rows = np.zeros(len(seen), bool), 0, 0
    for part, packed in zip(parts, masks, strict=True):
        user, item = part.columns()
        left = np.unpackbits(packed, count=len(user)).astype(bool)
        stay, kept_users, kept_rows = _marked(stay, item[left]), kept_users + len(np.unique(user[left])), kept_rows + left.sum()
    items = np.flatnonzero(stay)
    counted["dropped_short_users"] = users - kept_users
    counted["dropped_rare_items"] = int(seen.sum()) - len(items)
    counted["dropped_short_user_interactions"] = unique - int(kept_rows)
    return Selection(tuple(masks), items, int(kept_rows), counted)


def _or(bound: int | None, default: int) -> int:
    return default if bound is None else bound


def _marked(seen: np.ndarray, items: np.ndarray) -> np.ndarray:
    if len(items) and items.max() >= len(seen):
        seen = np.concatenate([seen, np.zeros(int(items.max()) + 1 - len(seen), bool)])
    seen[items] = True
    return seen


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
