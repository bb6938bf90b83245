"""Validation by ranking: the metrics of `eval`, on part of the valid split, while a model is trained."""

import numpy as np
from accelerate.utils import gather_object

from minionerec.config import EvalConfig
from minionerec.distributed import distributed_state
from minionerec.errors import DataError
from minionerec.recommend.recommender import Recommender
from minionerec.statistics.ranking import per_user
from minionerec.statistics.sampling import evenly_spaced

MONITORED = ("HR@1", "HR@10", "HR@50", "NDCG@10")  # reported in addition to the primary metric, as far as lists reach


class RankingEvaluator:
    """Ranking metrics on SIDs of the model as it is when the evaluator is called.

    Every process calls it. They share the batches, whose content does not depend on the number of processes, and all get the
    same figures. Lists are as long as `eval.num_beams`: a metric with a larger cut-off would count the whole list and no more.
    The model must be in evaluation mode.

    Attributes:
        primary_metric: chooses the best model.
        greater_is_better: of the primary metric.
    """

    greater_is_better = True

    def __init__(self, recommender: Recommender, config: EvalConfig, examples: int | None, primary_metric: str) -> None:
        """Choose the examples.

        Args:
            recommender: asks the model that is trained.
            config: how lists are decoded; its `split` plays no part.
            examples: of the valid split, evenly spaced; None for all.
            primary_metric: one of `RANKING_METRICS`.

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
        self._recommender, self._config = recommender, config
        self._histories, self._targets = (valid[name].gather(rows).to_list() for name in ("history", "target"))

    def __call__(self) -> dict[str, float]:
        """Means of the primary metric and of those of `MONITORED` whose cut-offs the lists reach, by name."""
        size, state = self._config.batch_size, distributed_state()
        batches = [slice(start, start + size) for start in range(0, len(self._targets), size)]
        numbers = range(state.process_index, len(batches), state.num_processes)
        parts = gather_object([(number, self._ranks(batches[number])) for number in numbers])
        ranks = np.concatenate([part for _, part in sorted(parts, key=lambda pair: pair[0])])
        values = per_user(ranks)
        reached = [name for name in MONITORED if int(name.partition("@")[2]) <= self._config.num_beams]
        return {name: float(values[name].mean()) for name in dict.fromkeys((*reached, self.primary_metric))}

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
