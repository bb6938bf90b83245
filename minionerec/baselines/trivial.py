"""Trivial recommenders: they count, and train nothing. A model that does not beat them has learnt nothing.

`popularity` and `repeat_last` rank a Dataset's examples for the eval stage; `eval.predictions.as_predictions` makes predictions
of the rankings. The classes score any `RankingData`, so that a published table has its trivial recommenders too. The history
stays in the lists unless the protocol hides it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from scipy import sparse
from torch import Tensor

from minionerec.baselines.batches import HistoryRows
from minionerec.baselines.implementation import implementation, options_of
from minionerec.baselines.ranking_data import RankingData
from minionerec.config import BaselineConfig
from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.interactions import interaction_counts
from minionerec.errors import ConfigError


def popularity(dataset: Dataset, length: int, split: SplitName = "test") -> list[np.ndarray]:
    """For each example of the split the same list: items by `interaction_counts`, ties by item index.

    Returns:
        Item indices, (min(length, items),), per example.
    """
    ranked = np.argsort(-interaction_counts(dataset), kind="stable")[:length]
    return [ranked] * len(dataset.split(split))


def repeat_last(examples: pl.DataFrame, length: int) -> list[np.ndarray]:
    """For each example its own history, most recent first, each item once.

    Returns:
        Item indices, at most `length`, per example.
    """
    return [np.array(list(dict.fromkeys(reversed(history)))[:length]) for history in examples["history"].to_list()]


@dataclass(frozen=True)
class NoOptions:
    """A trivial recommender that takes no option."""


class TrivialRecommender:
    """Base: called with rows, it scores all items and padding, (rows, items + 1); -inf is never recommended."""

    options: ClassVar[type[Any]] = NoOptions

    def __init__(self, data: RankingData, options: Any = None) -> None:
        self.items = data.items
        self.user, self.item = _training_pairs(data)
        self.counts = np.bincount(self.item, minlength=data.items + 1).astype(float)

    def __call__(self, rows: HistoryRows) -> Tensor:
        """Scores of the rows."""
        raise TypeError(f"{type(self).__name__} does not score.")

    def backed_off(self, scores: np.ndarray) -> Tensor:
        """Scores with ties broken by popularity, for non-negative scores that differ by more than 1e-9 or not at all.

        Items that score 0 come last, in order of popularity.
        """
        return torch.from_numpy(scores + 1e-9 * self.counts / max(self.counts.max(), 1))


class Popularity(TrivialRecommender):
    """The same order for everybody: training interactions."""

    def __call__(self, rows: HistoryRows) -> Tensor:
        """Each item's count."""
        return torch.from_numpy(self.counts).repeat(len(rows), 1)


class RepeatLast(TrivialRecommender):
    """The history, most recent first, and nothing else.

    Raises:
        ConfigError: the protocol hides the history.
    """

    def __init__(self, data: RankingData, options: NoOptions | None = None) -> None:
        if data.protocol.hides_history:
            raise ConfigError("baseline.model repeat recommends the history, which baseline.protocol wearec hides.")
        super().__init__(data)

    def __call__(self, rows: HistoryRows) -> Tensor:
        """The last position at which an item stands."""
        scores = np.full((len(rows), self.items + 1), -np.inf)
        for row in range(len(rows)):
            history = rows.history(row)
            np.maximum.at(scores[row], history, np.arange(len(history), dtype=float))
        return torch.from_numpy(scores)


@dataclass(frozen=True)
class ItemKNNOptions:
    """Options of `ItemKNN`.

    Attributes:
        neighbours: most similar items kept per item.
        shrinkage: added to the denominator (users).
    """

    neighbours: int = 100
    shrinkage: float = 10.0


class ItemKNN(TrivialRecommender):
    """Sum over the history of cosine similarities to each item (Sarwar et al., 2001), over users' training items."""

    options = ItemKNNOptions

    def __init__(self, data: RankingData, options: ItemKNNOptions) -> None:
        super().__init__(data)
        # 1. Cosine of two items: users who have both, over the root of the product of their users, shrunk.
        seen = sparse.csr_matrix((np.ones(len(self.user)), (self.user, self.item)), shape=(len(data.training), data.items + 1))
        seen.data[:] = 1.0  # a user counts once, however often the item was bought
        together = (seen.T @ seen).tocsr()
        norms = np.sqrt(together.diagonal())
        together.setdiag(0)
        together.eliminate_zeros()
        row = np.repeat(np.arange(data.items + 1), np.diff(together.indptr))
        together.data /= norms[row] * norms[together.indices] + options.shrinkage
        # 2. Keep each item's most similar neighbours.
        order = np.lexsort((together.indices, -together.data, row))  # row by row, the most similar first
        rank = np.arange(len(row)) - together.indptr[row]
        nearest = order[rank < options.neighbours]
        self.similar = sparse.csr_matrix(
            (together.data[nearest], (row[nearest], together.indices[nearest])), shape=(data.items + 1, data.items + 1)
        )

    def __call__(self, rows: HistoryRows) -> Tensor:
        """An item that stands twice in the history counts twice."""
        row, cell = rows.cells(rows.start)
        histories = sparse.csr_matrix((np.ones(len(row)), (row, rows.flat[cell])), shape=(len(rows), self.items + 1))
        return self.backed_off((histories @ self.similar).toarray())


class MarkovChain(TrivialRecommender):
    """How often each item followed the last one in training sequences; popularity for items that never did."""

    def __init__(self, data: RankingData, options: NoOptions | None = None) -> None:
        super().__init__(data)
        same_user = self.user[1:] == self.user[:-1]
        pairs = (self.item[:-1][same_user], self.item[1:][same_user])
        self.steps = sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(data.items + 1, data.items + 1))

    def __call__(self, rows: HistoryRows) -> Tensor:
        """An empty history has the followers of padding: none."""
        last = np.where(rows.stop > rows.start, rows.flat[np.maximum(rows.stop - 1, 0)], 0)
        return self.backed_off(self.steps[last].toarray())


def make_trivial(config: BaselineConfig, data: RankingData) -> TrivialRecommender:
    """The configured trivial recommender, ready to score.

    Raises:
        ConfigError: an option that it does not take, or a protocol that it does not suit.
    """
    return implementation(config.model)(data, options_of(config))


def _training_pairs(data: RankingData) -> tuple[np.ndarray, np.ndarray]:
    """User number and item id of every training interaction, by user, then time."""
    user, cell = data.training.cells(data.training.start)
    return user, data.training.flat[cell]
