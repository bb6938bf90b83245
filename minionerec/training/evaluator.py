"""Validation by ranking: the metrics of `eval`, on part of the valid split, while a model is trained."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from minionerec.config import Config, EvalConfig
from minionerec.distributed import distributed_state
from minionerec.errors import DataError
from minionerec.prompts.builder import Prompts
from minionerec.recommend.recommender import Recommender
from minionerec.statistics.ranking import per_user
from minionerec.statistics.sampling import evenly_spaced
from minionerec.training.rounded_copy import RoundedCopy
from minionerec.tree import CatalogTrie, SearchGraphs

if TYPE_CHECKING:
    from minionerec.recommend.cache import Mixture

MONITORED = ("HR@1", "HR@10", "HR@50", "NDCG@10")  # reported in addition to the primary metric, as far as lists reach


class RankingEvaluator:
    """Ranking metrics on SIDs of the model as it is when the evaluator is called.

    Every process calls it. They share the batches, whose content does not depend on the number of processes, and all get the
    same figures. Lists are as long as `eval.num_beams`: a metric with a larger cut-off would count the whole list and no more.
    The model must be in evaluation mode. If the recommender asks a rounded copy of it (`eval.dtype`), the copy is brought up to
    date first.

    Attributes:
        primary_metric: chooses the best model.
        greater_is_better: of the primary metric.
        rounded: the copy that is asked; None if the model itself is. Who asks it, too, brings it up to date first.
    """

    greater_is_better = True

    def __init__(
        self,
        recommender: Recommender,
        config: EvalConfig,
        examples: int | None,
        primary_metric: str,
        mixed_as: Config | None = None,
        rounded: RoundedCopy | None = None,
    ) -> None:
        """Choose the examples.

        Args:
            recommender: asks the model that is trained.
            config: how lists are decoded; its `split` plays no part.
            examples: of the valid split, evenly spaced; None for all.
            primary_metric: one of `RANKING_METRICS`.
            mixed_as: says what is mixed into the model (`mixture`); None for nothing. The recommender's `config` must then be
                `config`.
            rounded: the copy of a trained model that the recommender asks; None if it asks the model itself.

        Raises:
            DataError: the valid split is empty.
        """
        valid = recommender.prompts.dataset.valid
        if not len(valid):
            raise DataError(
                "Validation by a ranking metric needs examples, but the valid split is empty. Set sft.best_metric loss and "
                "rl.evaluations 0."
            )
        rows = evenly_spaced(len(valid), examples or len(valid))
        self.primary_metric = primary_metric
        self._recommender, self._config, self.rounded = recommender, config, rounded
        self._histories, self._targets = (valid[name].gather(rows).to_list() for name in ("history", "target"))
        self._mixed = None
        if mixed_as is not None:
            from minionerec.training.mixed_validation import CrossFitted  # needs scipy

            self._mixed = CrossFitted(mixed_as, recommender, self._histories, self._targets)

    @classmethod
    def in_training(
        cls,
        config: Config,
        model: PreTrainedModel,
        prompts: Prompts,
        examples: int | None,
        primary_metric: str,
        trie: CatalogTrie | None = None,
    ) -> "RankingEvaluator":
        """Validates a model that is trained, as `eval` and `mixture.validation` of the configuration say.

        Args:
            model: is moved to this process's device. If `eval.dtype` is shorter than its weights, a rounded copy is asked.
            examples, primary_metric: as of the class.
            trie: of the prompts' SIDs, on that device; None to build it.

        Raises:
            DataError: the valid split is empty.
        """
        rounded = RoundedCopy.if_shorter(model.to(distributed_state().device), config.eval.dtype)
        recommender = Recommender(model if rounded is None else rounded.model, prompts, trie, config.eval)
        return cls(recommender, config.eval, examples, primary_metric, config if config.mixture.validation else None, rounded)

    @property
    def graphs(self) -> SearchGraphs | None:
        """The searches of the model, or of its copy, as CUDA graphs; None if they are not recorded."""
        return self._recommender.graphs

    def __call__(self) -> dict[str, float]:
        """Means of the primary metric and of those of `MONITORED` whose cut-offs the lists reach, by name."""
        if self.rounded is not None:
            self.rounded.refresh()
        if self._mixed is None:
            ranks = self._gathered(self._ranks)
        else:
            mixtures = self._mixed.fit(self._gathered(self._mixed.model_column))
            ranks = self._gathered(lambda batch: self._ranks_in_halves(batch, mixtures))
        values = per_user(ranks)
        reached = [name for name in MONITORED if int(name.partition("@")[2]) <= self._config.num_beams]
        return {name: float(values[name].mean()) for name in dict.fromkeys((*reached, self.primary_metric))}

    def _gathered(self, compute: Callable[[slice], np.ndarray]) -> np.ndarray:
        """The values of all examples, batch by batch, each process its share."""
        size, state = self._config.batch_size, distributed_state()
        batches = [slice(start, start + size) for start in range(0, len(self._targets), size)]
        numbers = range(state.process_index, len(batches), state.num_processes)
        parts: list[Any] = gather_object([(number, compute(batches[number])) for number in numbers])
        return np.concatenate([part for _, part in sorted(parts, key=lambda pair: pair[0])])

    def _ranks_in_halves(self, batch: slice, mixtures: "tuple[Mixture, Mixture]") -> np.ndarray:
        """`_ranks` with the mixture of each half of the examples."""
        ranks = np.empty(len(self._targets[batch]))
        for half, mixture in enumerate(mixtures):
            self._recommender.mix(mixture)
            first = (batch.start + half) % 2  # of this half in the batch: examples are in halves by their number
            rows = slice(batch.start + first, batch.stop, 2)
            if self._targets[rows]:
                ranks[first::2] = self._ranks(rows)
        self._recommender.mix(None)
        return ranks

    def _ranks(self, batch: slice) -> np.ndarray:
        """0-based ranks of the targets' SIDs, infinity for a miss."""
        histories = self._histories[batch]
        trie = self._recommender.trie
        result = self._recommender.search(
            histories,
            num_beams=self._config.num_beams,
            normalise_over=self._config.normalise_over,
            trie=trie.without(histories) if self._config.exclude_history else None,
        )
        targets = trie.leaf_of_item[self._targets[batch]]
        match = (result.leaves == targets[:, None]).cpu().numpy()
        return np.where(match.any(axis=1), match.argmax(axis=1), np.inf)
