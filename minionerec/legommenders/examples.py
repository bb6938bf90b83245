"""What a content recommender learns from: rows of histories and candidates, of labelled pairs or of a run's splits."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import torch
from torch import Tensor

from minionerec.data.dataset import SPLITS, Dataset, SplitName
from minionerec.data.history_rows import HistoryRows
from minionerec.data.pairs import PairSet
from minionerec.errors import DataError
from minionerec.training.ranking_data import RankingData


@dataclass(frozen=True)
class Lists:
    """Item indices of users, end to end: those of user `u` are `items[starts[u]:starts[u + 1]]`, ascending and distinct."""

    items: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray, count: int) -> "Lists":
        """From pairs of a user's number and an item, in any order, repeats included."""
        pairs = np.unique(np.stack([users, items]), axis=1)
        return cls(pairs[1], np.searchsorted(pairs[0], np.arange(count + 1)))

    def __getitem__(self, user: int) -> np.ndarray:
        return self.items[self.starts[user] : self.starts[user + 1]]


@dataclass(frozen=True)
class Examples:
    """Rows of every split, and what the train data say of the users.

    Attributes:
        rows: by split; ids from 1, `target` is the candidate.
        labels: by split, (rows,) 1 or 0; all 1 for the examples of a Dataset.
        had: items that each user had, as the train split says: the whole history and what the user liked.
        dislikes: of each user, as the train split says. MIND shows some items again that the user had.
        users: each user's name, by number.
        items: how many the catalog has.
    """

    rows: dict[SplitName, HistoryRows]
    labels: dict[SplitName, np.ndarray]
    had: Lists
    dislikes: Lists
    users: list[str]
    items: int

    @cached_property
    def trained(self) -> np.ndarray:
        """Which items the train rows have, as history or candidate, (items,) bool."""
        rows, trained = self.rows["train"], np.zeros(self.items, dtype=bool)
        trained[rows.target - 1] = True
        trained[rows.flat[rows.cells(rows.start)[1]] - 1] = True
        return trained


def of_pairs(pairs: PairSet, max_history: int) -> Examples:
    """Labelled pairs; a user's rows share the history of the first of them, cut to the newest items.

    Raises:
        DataError: a user has an empty history.
    """
    users: dict[str, int] = {}
    rows, labels = {}, {}
    for split in SPLITS:
        frame = pairs.split(split)
        rows[split], labels[split] = _rows_of_pairs(frame, users, max_history, split), frame["label"].to_numpy()
    train, liked = rows["train"], labels["train"] == 1
    owners, cells = train.cells(train.seen)
    items = np.concatenate([train.flat[cells] - 1, train.target[liked] - 1])
    had = Lists.of(np.concatenate([train.user[owners], train.user[liked]]), items, len(users))
    dislikes = Lists.of(train.user[~liked], train.target[~liked] - 1, len(users))
    return Examples(rows, labels, had, dislikes, list(users), len(pairs.catalog))


def _rows_of_pairs(frame: pl.DataFrame, users: dict[str, int], max_history: int, split: SplitName) -> HistoryRows:
    own = frame.unique("user", keep="first", maintain_order=True)
    lengths = own["history"].list.len().to_numpy().astype(np.int64)
    if (lengths == 0).any():
        user = own["user"][int(np.flatnonzero(lengths == 0)[0])]
        raise DataError(f"Pairs of the {split} split: user {user!r} has an empty history; a recommender needs one item of it.")
    stop = np.cumsum(lengths)
    place = {name: number for number, name in enumerate(own["user"].to_list())}
    of_row = np.array([place[name] for name in frame["user"].to_list()], dtype=np.int64)
    begin = (stop - lengths)[of_row]
    numbers = np.array([users.setdefault(name, len(users)) for name in frame["user"].to_list()], dtype=np.int64)
    flat = own["history"].explode().to_numpy().astype(np.int32) + 1
    start = np.maximum(begin, stop[of_row] - max_history)
    return HistoryRows(flat, start, stop[of_row], frame["candidate"].to_numpy() + 1, numbers, begin)


def of_dataset(dataset: Dataset, data: RankingData) -> Examples:
    """The examples of a run's splits: a history and the item that follows it.

    Args:
        data: the dataset's, see `ranking_data.from_dataset`.

    Raises:
        DataError: a row has an empty history.
    """
    for split, rows in data.rows.items():
        if (empty := rows.start == rows.stop).any():
            user = data.users[rows.user[int(np.flatnonzero(empty)[0])]]
            raise DataError(f"The {split} split: user {user!r} has an empty history; a recommender needs one item of it.")
    owners, cells = data.training.cells(data.training.start)
    had = Lists.of(data.training.user[owners], data.training.flat[cells] - 1, len(data.users))
    nothing = Lists(np.empty(0, np.int64), np.zeros(len(data.users) + 1, np.int64))
    labels = {split: np.ones(len(rows), np.int8) for split, rows in data.rows.items()}
    return Examples(data.rows, labels, had, nothing, data.users, len(dataset.catalog))


def histories(rows: HistoryRows) -> Tensor:
    """Item indices (rows, longest) int64, oldest first, -1 behind the end."""
    lengths = rows.stop - rows.start
    row, cell = rows.cells(rows.start)
    ids = np.full((len(rows), int(lengths.max())), -1, dtype=np.int64)
    ids[row, cell - rows.start[row]] = rows.flat[cell] - 1
    return torch.from_numpy(ids)


def check_negatives(examples: Examples, count: int) -> None:
    """Refuse to draw more items than there are.

    Raises:
        DataError: a user of the train split had so many items that fewer are left.
    """
    users = np.unique(examples.rows["train"].user)
    left = examples.items - np.diff(examples.had.starts)[users]
    if len(users) and left.min() < count:
        user = examples.users[users[int(left.argmin())]]
        raise DataError(
            f"lego.negatives is {count}, but user {user!r} had all but {left.min()} of the {examples.items} items, and a "
            f"negative is none of these. Lower it to {max(left.min(), 1)} at most."
        )


def draw_negatives(examples: Examples, users: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """For each row `count` distinct items: first dislikes of its user, then any that the user did not have, uniformly.

    Args:
        users: the number of each row's user, (rows,).

    Returns:
        (rows, count).
    """
    drawn = np.empty((len(users), count), dtype=np.int64)
    for row, user in enumerate(users.tolist()):
        own = examples.dislikes[user]
        first = own if len(own) <= count else rng.choice(own, count, replace=False)
        drawn[row, : len(first)] = first
        if len(first) < count:
            taken = np.union1d(examples.had[user], own)
            free = rng.choice(examples.items - len(taken), count - len(first), replace=False)
            # The r-th free item is r plus the taken items before it.
            drawn[row, len(first) :] = free + np.searchsorted(taken - np.arange(len(taken)), free, side="right")
    return drawn
