"""Trivial recommenders: they count, and train nothing. A model that does not beat them has learnt nothing.

`popularity` and `repeat_last` rank a Dataset's examples for the eval stage, `floor_ranking` does so with any of the classes;
`eval.predictions.as_predictions` makes predictions of the rankings. The classes score any `RankingData`, so that a published
table has its trivial recommenders too. The history stays in the lists unless the protocol hides it.

What the classes count is counted in `minionerec.recommend.cache`, and nowhere else: the components there are what a model's
cache is made of. `mixture` weighs them by EM on the valid split, per bucket of how well the last item is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from minionerec.config import TRIVIAL_BASELINES, BaselineConfig
from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.history_rows import HistoryRows
from minionerec.data.interactions import interaction_counts
from minionerec.errors import ConfigError
from minionerec.model.sequential.implementation import implementation, options_of
from minionerec.recommend import cache
from minionerec.recommend.cache import Component, Interactions, Mixture
from minionerec.training.ranking import Ranking, rank_rows
from minionerec.training.ranking_data import RankingData


def popularity(dataset: Dataset, length: int, split: SplitName = "test") -> list[np.ndarray]:
    """For each example of the split the same list: items by `interaction_counts`, ties by item index.

    Returns:
        Item indices, (min(length, items),), per example.
    """
    ranked = np.argsort(-interaction_counts(dataset), kind="stable")[:length]
    return [ranked] * len(dataset.split(split))


def popularity_places(dataset: Dataset, split: SplitName, exclude_history: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each example of the split the best 0-based rank of its target by `interaction_counts`, and how many items tie at it.

    Args:
        exclude_history: whether the items of each history have no rank.

    Returns:
        (rows,) float, infinity if the target has no rank; (rows,) int.
    """
    counts = interaction_counts(dataset)
    ascending = np.sort(counts)
    best, ties = [], []
    for history, target in dataset.split(split).select("history", "target").iter_rows():
        hidden = np.unique(np.array(history if exclude_history else [], dtype=np.int64))
        below, upto = (int(np.searchsorted(ascending, counts[target], side)) for side in ("left", "right"))
        hides = target in hidden
        best.append(np.inf if hides else len(counts) - upto - int((counts[hidden] > counts[target]).sum()))
        ties.append(1 if hides else upto - below - int((counts[hidden] == counts[target]).sum()))
    return np.array(best, dtype=float), np.array(ties)


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
        self.counts = np.append(0.0, interactions_of(data).counts)  # by id

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


class CacheRecommender(TrivialRecommender):
    """Ranks by the scores of a component of the cache; items that score 0 come last, by popularity."""

    def __init__(self, data: RankingData, component: Component) -> None:
        super().__init__(data)
        self.component = component

    def __call__(self, rows: HistoryRows) -> Tensor:
        """The component's scores, with ties broken by popularity."""
        return self.backed_off(_with_padding(self.component.scores(_histories(rows))))


class ItemKNN(CacheRecommender):
    """Sum over the history of cosine similarities to each item, see `recommend.cache.ItemKNN`."""

    options = ItemKNNOptions

    def __init__(self, data: RankingData, options: ItemKNNOptions) -> None:
        super().__init__(data, cache.ItemKNN(interactions_of(data), options.neighbours, options.shrinkage))


class MarkovChain(CacheRecommender):
    """How often each item followed the last one in training sequences; popularity for items that never did."""

    def __init__(self, data: RankingData, options: NoOptions | None = None) -> None:
        super().__init__(data, cache.Markov(interactions_of(data)))


class SkipTransitions(CacheRecommender):
    """Which items followed the last five, at once or a few places later, see `recommend.cache.Skip`; then popularity."""

    def __init__(self, data: RankingData, options: NoOptions | None = None) -> None:
        super().__init__(data, cache.Skip(interactions_of(data)))


class DistributionRecommender(TrivialRecommender):
    """Ranks by probabilities over the catalog."""

    def __init__(self, data: RankingData, distribution: Component | Mixture) -> None:
        super().__init__(data)
        self.distribution = distribution

    def __call__(self, rows: HistoryRows) -> Tensor:
        """Each item's probability."""
        return torch.from_numpy(_with_padding(self.distribution.probabilities(_histories(rows))))


class TextNeighbours(DistributionRecommender):
    """Which items have a text like those of the last five, see `recommend.cache.TextNeighbours`.

    Raises:
        ConfigError: there are no item vectors.
    """

    def __init__(self, data: RankingData, options: NoOptions | None = None, vectors: np.ndarray | None = None) -> None:
        if vectors is None:
            raise ConfigError(
                "baseline.model text needs item vectors, and there are none. Choose mixture, which then counts alone."
            )
        super().__init__(data, cache.TextNeighbours(interactions_of(data), vectors))


@dataclass(frozen=True)
class MixtureOptions:
    """Options of `CacheMixture`.

    Attributes:
        components: names of `recommend.cache.COMPONENTS`; None for all that the data allow without a trained baseline.
        sequential: name of the baseline behind the component `sequential`.
    """

    components: Sequence[str] | None = None
    sequential: str | None = None


class CacheMixture(DistributionRecommender):
    """Counts, text neighbours and perhaps a trained baseline, weighed by EM on valid, see `recommend.cache.Mixture`.

    Raises:
        ConfigError: `text` or `sequential` is asked for, and there are no item vectors or no baseline.
    """

    options = MixtureOptions

    def __init__(
        self,
        data: RankingData,
        options: MixtureOptions,
        vectors: np.ndarray | None = None,
        scorer: cache.HistoryScorer | None = None,
    ) -> None:
        names = options.components or (cache.COUNTS if vectors is None else cache.UNTRAINED)
        interactions, valid = interactions_of(data), data.rows["valid"]
        components = cache.make_components(names, interactions, vectors, scorer)
        self.mixture = Mixture.fit(components, cache.Buckets(interactions), _histories(valid), valid.target - 1)
        super().__init__(data, self.mixture)


WITH_VECTORS = ("text", "mixture")  # read item vectors


def make_trivial(
    config: BaselineConfig,
    data: RankingData,
    vectors: np.ndarray | None = None,
    scorer: cache.HistoryScorer | None = None,
) -> TrivialRecommender:
    """The configured trivial recommender, ready to score.

    Args:
        vectors: (items, dimensions) of the catalog, for `WITH_VECTORS`; None if there are none.
        scorer: the baseline that `config.sequential` names.

    Raises:
        ConfigError: an option that it does not take, a protocol that it does not suit, missing vectors or no scorer.
    """
    further: dict[str, Any] = {"vectors": vectors} if config.model in WITH_VECTORS else {}
    if config.model == "mixture":
        further["scorer"] = scorer
    recommender = implementation(TRIVIAL_BASELINES[config.model])
    return recommender(data, options_of(config, recommender), **further)


def needs_vectors(config: BaselineConfig, available: bool) -> bool:
    """Whether a baseline reads item vectors.

    Args:
        available: whether the run has some; `mixture` takes them if it does, unless its components leave text out.
    """
    if config.model == "mixture":
        return available if config.components is None else "text" in config.components
    return config.model in WITH_VECTORS


def floor_ranking(recommender: TrivialRecommender, data: RankingData, split: SplitName, length: int) -> Ranking:
    """A split as a trivial recommender ranks it, computed by this process alone: lists of at most `length`, ids from 1."""
    return rank_rows(recommender, data.rows[split], data.protocol, length, left_out=True)


def interactions_of(data: RankingData) -> Interactions:
    """The training interactions of all users, with items from 0."""
    user, cell = data.training.cells(data.training.start)
    return Interactions(user, data.training.flat[cell].astype(np.int64) - 1, data.items)


def _histories(rows: HistoryRows) -> list[np.ndarray]:
    """What a model reads of each history, with items from 0."""
    return [rows.history(row).astype(np.int64) - 1 for row in range(len(rows))]


def _with_padding(scores: np.ndarray) -> np.ndarray:
    """(rows, items) scores as (rows, items + 1), with 0 for padding."""
    return np.pad(scores, ((0, 0), (1, 0)))
