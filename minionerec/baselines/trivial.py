"""Floors: recommenders without a model. A model that does not beat them has learnt nothing.

`popularity` and `repeat_last` rank a Dataset's examples for the eval stage, `eval.predictions.as_predictions` makes predictions
of them. The scorers below serve any `Task`, so that a published table has its floors too. The history is not removed from the
lists unless the task's protocol hides it.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
import torch
from scipy import sparse
from torch import Tensor

from minionerec.baselines.batches import Rows
from minionerec.baselines.ranking_data import Task
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


def _counts(task: Task) -> np.ndarray:
    """Training interactions per id, (items + 1,) float."""
    return np.bincount(_trained(task)[1], minlength=task.items + 1).astype(float)


def _trained(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """User number and item id of every training interaction, by user, then time."""
    lengths = task.training.stop - task.training.start
    user = np.repeat(np.arange(len(lengths)), lengths)
    cells = task.training.start[user] + np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return user, task.training.flat[cells]


def _backed_off(scores: np.ndarray, counts: np.ndarray) -> Tensor:
    """Items that score alike, above all those that score 0, in order of popularity; no other order changes."""
    return torch.from_numpy(scores + 1e-9 * counts / max(counts.max(), 1))


def popularity_scorer(task: Task) -> Callable[[Rows], Tensor]:
    """The same order for everybody: training interactions."""
    counts = torch.from_numpy(_counts(task))
    return lambda rows: counts.repeat(len(rows), 1)


def repeat_scorer(task: Task) -> Callable[[Rows], Tensor]:
    """The history, most recent first, and nothing else.

    Raises:
        ConfigError: the protocol hides the history.
    """
    if task.protocol.hides_history:
        raise ConfigError("baseline.model repeat recommends the history, which baseline.protocol wearec hides.")

    def score(rows: Rows) -> Tensor:
        scores = np.full((len(rows), task.items + 1), -np.inf)
        for row in range(len(rows)):
            history = rows.history(row)
            np.maximum.at(scores[row], history, np.arange(len(history), dtype=float))
        return torch.from_numpy(scores)

    return score


def item_knn_scorer(task: Task, *, neighbours: int = 100, shrinkage: float = 10.0) -> Callable[[Rows], Tensor]:
    """Sum over the history of cosine similarities to each item (Sarwar et al., 2001), over users' training items.

    Args:
        neighbours: most similar items kept per item.
        shrinkage: added to the denominator (users).
    """
    user, item = _trained(task)
    seen = sparse.csr_matrix((np.ones(len(user)), (user, item)), shape=(len(task.training), task.items + 1))
    seen.data[:] = 1.0  # however often
    together = (seen.T @ seen).tocsr()
    norms = np.sqrt(together.diagonal())
    together.setdiag(0)
    together.eliminate_zeros()
    row = np.repeat(np.arange(task.items + 1), np.diff(together.indptr))
    together.data /= norms[row] * norms[together.indices] + shrinkage
    order = np.lexsort((together.indices, -together.data, row))  # each item's neighbours, the most similar first
    place = np.arange(len(row)) - together.indptr[row]
    kept = order[place < neighbours]
    shape = (task.items + 1, task.items + 1)
    similar = sparse.csr_matrix((together.data[kept], (row[kept], together.indices[kept])), shape=shape)
    counts = _counts(task)

    def score(rows: Rows) -> Tensor:
        lengths = rows.stop - rows.start
        owner = np.repeat(np.arange(len(rows)), lengths)
        cells = rows.start[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        histories = sparse.csr_matrix((np.ones(len(owner)), (owner, rows.flat[cells])), shape=(len(rows), task.items + 1))
        return _backed_off((histories @ similar).toarray(), counts)

    return score


def markov_scorer(task: Task) -> Callable[[Rows], Tensor]:
    """How often each item followed the last one in training sequences; popularity where it never did."""
    user, item = _trained(task)
    follows = user[1:] == user[:-1]
    shape = (task.items + 1, task.items + 1)
    steps = sparse.csr_matrix((np.ones(int(follows.sum())), (item[:-1][follows], item[1:][follows])), shape=shape)
    counts = _counts(task)

    def score(rows: Rows) -> Tensor:
        last = np.where(rows.stop > rows.start, rows.flat[np.maximum(rows.stop - 1, 0)], 0)
        return _backed_off(steps[last].toarray(), counts)

    return score


TRIVIAL: dict[str, Callable[..., Callable[[Rows], Tensor]]] = {
    "popularity": popularity_scorer,
    "repeat": repeat_scorer,
    "item-knn": item_knn_scorer,
    "markov": markov_scorer,
}
