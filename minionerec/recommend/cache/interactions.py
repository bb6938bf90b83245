"""The training interactions that a cache counts, as plain arrays, and the one that a training row must not count."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from scipy import sparse

from minionerec.data.dataset import Dataset
from minionerec.data.interactions import training_interactions
from minionerec.errors import DataError

Histories = Sequence[Sequence[int] | np.ndarray]  # of item indices, each oldest first
NOTHING = -1  # in `own`: this row leaves nothing out; as an item: there is none


@dataclass(frozen=True)
class Interactions:
    """Training interactions, sorted by user, then time.

    >>> interactions = Interactions(np.array([0, 0, 0, 1, 1]), np.array([2, 0, 2, 0, 2]), 3)
    >>> interactions.transitions(1).toarray().astype(int).tolist()  # 2 to 0, 0 to 2, and 0 to 2 of the second user
    [[0, 0, 2], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    >>> interactions.before(np.array([2, 3]), 1).tolist()  # the second user's first interaction follows nothing
    [0, -1]

    Attributes:
        users: the user's number, (interactions,) int; equal numbers stand together.
        items: 0-based item index, (interactions,) int.
        catalog: number of items.

    Raises:
        DataError: there is no item or no interaction, the arrays differ in length, or an item is outside the catalog.
    """

    users: np.ndarray
    items: np.ndarray
    catalog: int

    def __post_init__(self) -> None:
        if self.catalog < 1 or not len(self.items):
            raise DataError(f"{len(self.items)} training interactions of {self.catalog} items; expected at least one of each.")
        if self.users.shape != self.items.shape or self.items.ndim != 1:
            raise DataError(f"users {self.users.shape} and items {self.items.shape}: expected one user per item, (rows,).")
        outside = np.flatnonzero((self.items < 0) | (self.items >= self.catalog))
        if len(outside):
            row = int(outside[0])
            raise DataError(f"Interaction {row}: item {self.items[row]}, expected 0 to {self.catalog - 1}.")

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> "Interactions":
        """The interactions that a dataset trains on, as `data.interactions.training_interactions` has them."""
        frame = training_interactions(dataset)
        users = frame["user"].rle_id().to_numpy().astype(np.int64)
        return cls(users, frame["item"].to_numpy().astype(np.int64), len(dataset.catalog))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of sequences and catalog size; the users' numbers do not matter, only where one user ends."""
        digest = hashlib.sha256(str(self.catalog).encode())
        digest.update(np.flatnonzero(np.diff(self.users)).astype("<i8").tobytes())
        digest.update(self.items.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each item was bought, (items,) float64 (whole numbers)."""
        return np.bincount(self.items, minlength=self.catalog).astype(float)

    def transitions(self, gap: int) -> sparse.csr_matrix:
        """How often an item followed another one `gap` places later in the same user's sequence.

        Returns:
            (items + 1, items) float64 (whole numbers), row: the earlier item. The last row is empty: it stands for no item,
            `NOTHING`.
        """
        same_user = self.users[gap:] == self.users[:-gap]
        pairs = (self.items[:-gap][same_user], self.items[gap:][same_user])
        return sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(self.catalog + 1, self.catalog))

    def before(self, own: np.ndarray, gap: int) -> np.ndarray:
        """The item `gap` places before each of these interactions, (rows,); `NOTHING` if the user has none there.

        Args:
            own: numbers of interactions, (rows,); `NOTHING` has nothing before it.
        """
        place = own - gap
        inside = (own >= 0) & (place >= 0)
        place = np.where(inside, place, 0)
        inside &= self.users[place] == self.users[np.maximum(own, 0)]
        return np.where(inside, self.items[place], NOTHING)

    def checked(self, own: np.ndarray, rows: int) -> np.ndarray:
        """`own` as an array of int64.

        Raises:
            DataError: not one number per row, or a number of no interaction.
        """
        numbers = np.asarray(own, np.int64)
        if numbers.shape != (rows,):
            raise DataError(f"own has shape {numbers.shape}; expected one interaction per history, ({rows},).")
        if rows and not (numbers.min() >= NOTHING and numbers.max() < len(self.items)):
            raise DataError(
                f"own names interactions {numbers.min()} to {numbers.max()}; expected 0 to {len(self.items) - 1}, or {NOTHING} "
                "for a row that leaves nothing out."
            )
        return numbers


def own_interactions(dataset: Dataset) -> np.ndarray:
    """For each row of the train split, the number of the interaction that is its target: `own` for the components.

    Numbers count the interactions of `Interactions.of_dataset(dataset)`, (train rows,) int64.
    """
    numbered = training_interactions(dataset).with_row_index("interaction").select("user", "position", "interaction")
    rows = dataset.train.select("user", "position").join(numbered, on=["user", "position"], how="left", maintain_order="left")
    if len(rows) != len(dataset.train) or rows["interaction"].null_count():
        raise DataError("The train split has a user twice at one position; expected one row per user and position.")
    return rows["interaction"].cast(pl.Int64).to_numpy()


def lookup(matrix: sparse.csr_matrix, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Single cells of a sparse matrix, (cells,)."""
    return np.asarray(matrix[rows, columns]).reshape(-1) if len(rows) else np.empty(0)


def recent(histories: Histories, last: int) -> np.ndarray:
    """The last items of each history, the newest first, (batch, last) int64; `NOTHING` where a history is shorter.

    >>> recent([[4, 5, 6], [7], []], 2).tolist()
    [[6, 5], [7, -1], [-1, -1]]
    """
    items = np.full((len(histories), last), NOTHING, np.int64)
    for row, history in enumerate(histories):
        newest = np.asarray(history[-last:], np.int64)[::-1]
        items[row, : len(newest)] = newest
    return items
