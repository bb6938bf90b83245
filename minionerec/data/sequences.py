"""Readers of layouts that hold sequences of item ids: LETTER's JSON files and one line per user. Neither has times."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from minionerec.config import DataConfig
from minionerec.config.documents import parse_json
from minionerec.data.bad_rows import Problems
from minionerec.data.checks import CONTROL, Frames, make_catalog, titled
from minionerec.data.dataset import CATALOG_DETAILS, CATALOG_SCHEMA, Dataset
from minionerec.data.folders import SPLIT_FILES, one_file
from minionerec.data.recbole import read_split_files
from minionerec.data.tables import text_lines
from minionerec.data.texts import readable
from minionerec.errors import DataError


def read_letter(folder: Path, config: DataConfig, problems: Problems) -> Frames:
    """LETTER's files: `NAME.inter.json` (user to items in time order), optional `NAME.index.json` and `NAME.item.json`.

    Every item of the index or, without one, of the sequences is in the catalog, in numerical order. Without `NAME.item.json`
    an item's title is its id and its text is empty.

    Raises:
        DataError: a file is missing or not of this form; or a user's items are no list or not in the index, or an id is empty
            or has a control character, unless skipped.
    """
    path = one_file(folder, ".inter.json", config.category)
    listing = _Listing.of(path)
    sequences: dict[str, list[str]] = {}
    for user, values in read_json_object(path).items():
        if not isinstance(values, list) or not values or not all(type(item) in (int, str) for item in values):
            problems.add(f"{path}, user {user!r}: found {str(values)[:60]}, expected a list of at least one item.")
            continue
        sequence = [str(item) for item in values]
        unknown = None if listing is None else next((item for item in sequence if item not in listing.items), None)
        if listing is not None and unknown is not None:
            problems.add(f"{path}, user {user!r}: item {unknown!r} is not in {listing.path}.")
            continue
        if wrong := _wrong_id(user, sequence):
            problems.add(f"{path}, user {user!r}: {wrong}.")
            continue
        sequences[user] = sequence
    items = _untitled(_all_items(sequences)) if listing is None else listing.catalog(config, problems)
    return _interactions(sequences), items


def read_letter_splits(folder: Path, config: DataConfig, problems: Problems) -> Dataset:
    """LETTER's items with the splits that lie next to them as `NAME.train.inter` and so on (MIMIGenRec's layout).

    Raises:
        DataError: a split is missing; there are neither `NAME.index.json` nor `NAME.item.json`; or a row is wrong, unless
        skipped.
    """
    path = one_file(folder, ".inter.json", config.category)
    paths = letter_splits(path)
    if absent := [split.name for split in paths if not split.is_file()]:
        raise DataError(
            f"{folder}: {', '.join(absent)} not found, next to the other splits. Add it, or move the others elsewhere."
        )
    if (listing := _Listing.of(path)) is None:
        stem = _stem(path)
        raise DataError(f"{folder}: neither {stem}.index.json nor {stem}.item.json; the splits need one that lists the items.")
    items = titled(listing.catalog(config, problems), problems)
    problems.notes.append(f"splits of {', '.join(split.name for split in paths)}; not read: {path.name}")
    return Dataset(items, *read_split_files(paths, items, config, problems))


def letter_splits(path: Path) -> tuple[Path, ...]:
    """Where the splits of an `*.inter.json` would be; empty if there is none."""
    paths = tuple(path.with_name(_stem(path) + ending) for ending in SPLIT_FILES)
    return paths if any(split.is_file() for split in paths) else ()


def _stem(path: Path) -> str:
    return path.name.removesuffix(".inter.json")


@dataclass(frozen=True)
class _Listing:
    """The files next to an `*.inter.json` that list its items: `*.index.json`, or else `*.item.json`.

    Attributes:
        items: the listed ids.
        path: the file that lists them.
        texts: the content of the `*.item.json`, None if there is none.
    """

    items: Collection[str]
    path: Path
    texts: dict[str, Any] | None

    @classmethod
    def of(cls, path: Path) -> "_Listing | None":
        index, details = (path.with_name(f"{_stem(path)}.{kind}.json") for kind in ("index", "item"))
        texts = read_json_object(details) if details.is_file() else None
        if index.is_file():
            return cls(read_json_object(index), index, texts)
        return None if texts is None else cls(texts, details, texts)

    def catalog(self, config: DataConfig, problems: Problems) -> pl.DataFrame:
        """The listed items with their texts, in numerical order."""
        items = _untitled(self.items)
        if self.texts is None:
            return items
        details = self.path.with_name(self.path.name.replace(".index.json", ".item.json"))
        return _described(items, self.texts, details, config, problems)


def _described(items: pl.DataFrame, texts: dict[str, Any], path: Path, config: DataConfig, problems: Problems) -> pl.DataFrame:
    values = [texts.get(item, {}) for item in items["item_id"].to_list()]
    columns = {
        name: [str(value.get(name) or "") if isinstance(value, dict) else "" for value in values]
        for name in ("title", *CATALOG_DETAILS)
    }
    described = items.select(pl.int_range(1, pl.len() + 1).alias("row"), "item_id").with_columns(
        **{name: pl.Series(column, dtype=pl.String) for name, column in columns.items()},
        detail=pl.Series([readable(text) for text in columns["description"]], dtype=pl.String),
    )
    return make_catalog(described, str(path), config, problems)


def read_sequences(path: Path, problems: Problems | None = None) -> Frames:
    """The text format with one line per user: user id, then item ids in time order, separated by blanks.

    There are no texts: an item's title is its id, its text is empty. Items are numbered in numerical order.

    Raises:
        DataError: not a text file; or a user without items or on two lines, or an id with a control character, unless skipped.
            The message names the line.
    """
    sequences = user_sequences(path, problems)
    return _interactions(sequences), _untitled(_all_items(sequences))


def user_sequences(path: Path, problems: Problems | None = None) -> dict[str, list[str]]:
    """The users of such a file with their items, both in the file's order; blank lines are left out.

    Raises:
        DataError: not a text file; or a user without items or on two lines, or an id with a control character, unless skipped.
    """
    problems = problems or Problems()
    sequences: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(path), 1):
        user, *items = line.split() or [""]
        if user and not items:
            problems.add(f"{path}, line {number}: user {user!r} has no items; expected a user id and item ids.")
        elif user in sequences:
            problems.add(f"{path}, line {number}: user {user!r} has a line above already. Join the two.")
        elif user and (wrong := _wrong_id(user, items)):
            problems.add(f"{path}, line {number}: {wrong}.")
        elif user:
            sequences[user] = items
    return sequences


def _wrong_id(user: str, items: list[str]) -> str:
    """What is wrong with the ids of a user's sequence; empty if nothing is."""
    if user and all(items) and not re.search(CONTROL, "".join([user, *items])):  # nearly always
        return ""
    for what, ident in (("user id", user), *(("item id", item) for item in items)):
        if not ident:
            return f"the {what} is empty"
        if re.search(CONTROL, ident):
            return f"{what} {ident!r} has a tab, line break or other control character"
    return ""


def _interactions(sequences: dict[str, list[str]]) -> pl.DataFrame:
    """Interactions in the order of the sequences, without times."""
    users = [user for user, items in sequences.items() for _ in items]
    items = [item for sequence in sequences.values() for item in sequence]
    frame = pl.DataFrame({"user": users, "item_id": items}, schema={"user": pl.String, "item_id": pl.String})
    return frame.with_columns(timestamp=pl.lit(None, pl.Int64), rating=pl.lit(None, pl.Float32))


def _all_items(sequences: dict[str, list[str]]) -> dict[str, None]:
    return dict.fromkeys(item for sequence in sequences.values() for item in sequence)


def _untitled(item_ids: Iterable[str]) -> pl.DataFrame:
    """Items in numerical order; their ids take the place of titles, and they have no texts."""
    ordered = in_numerical_order(item_ids)
    return pl.DataFrame({"item_id": ordered, "title": ordered, "text": ""}, schema=CATALOG_SCHEMA)


def in_numerical_order(item_ids: Iterable[str]) -> list[str]:
    """Ids that are numbers, ascending, then all others by their characters.

    >>> in_numerical_order(["b", "10", "9", "a"])
    ['9', '10', 'a', 'b']
    """
    # Python reads no number of thousands of digits.
    return sorted(item_ids, key=lambda item: (0, int(item), "") if item.isdecimal() and len(item) < 500 else (1, 0, item))


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        DataError: missing, not JSON, not an object, or with a name that stands twice.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8-sig"), distinct=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds a {type(values).__name__}, expected an object.")
    return values
