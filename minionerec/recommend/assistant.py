"""A finished baseline of the run as the assistant of its language model: D3's decoding (`tree/assistant.py`).

The baseline's scores come from the vectors that it left for the rows of the run's splits, so it can be asked about their
histories and about no others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.vectors import BaselineVectors, load_vectors, logprobs_of_scores
from minionerec.errors import DataError
from minionerec.tree import Assistant, CatalogTrie

WEIGHT = "weight.json"  # in `d3/<stage>` of a run
COMMAND = "minionerec d3"


@dataclass(frozen=True)
class BaselineAssistant:
    """What a baseline says after the histories of a split, and how much the model weighs beside it.

    Attributes:
        name: of the baseline.
        vectors: what scores every item.
        split: whose rows are known.
        rows: a row of the split by its history; rows with equal histories have equal scores.
        weight: the model's, 0 to 1.
    """

    name: str
    vectors: BaselineVectors
    split: SplitName
    rows: Mapping[tuple[int, ...], int]
    weight: float

    @classmethod
    def load(cls, run: Path, name: str, dataset: Dataset, split: SplitName, weight: float) -> "BaselineAssistant":
        """The assistant of a run.

        Args:
            name: of the baseline, which the caller has required.
            split: whose histories will be asked about.
            weight: the model's.

        Raises:
            ArtifactError: the baseline left no vectors, or they belong to other data.
        """
        vectors = load_vectors(run, name, dataset, "eval.assistant")
        rows = {tuple(history): row for row, history in enumerate(dataset.split(split)["history"].to_list())}
        return cls(name, vectors, split, rows, weight)

    def weighing(self, weight: float) -> "BaselineAssistant":
        """The same assistant beside a model of another weight."""
        return replace(self, weight=weight)

    def logprobs(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """The softmax of the baseline's scores over the catalog, (histories, items) float64 in nats.

        Raises:
            DataError: a history is not one of the split's, or a score is not finite.
        """
        for history in histories:
            if tuple(history) not in self.rows:
                raise DataError(
                    f"eval.assistant {self.name} knows the histories of the run's {self.split} split only; found one of "
                    f"{len(history)} items that is not among them."
                )
        scores = self.vectors.scores(self.split, [self.rows[tuple(history)] for history in histories])
        return logprobs_of_scores(scores, self.name)

    def of(self, histories: Sequence[Sequence[int]], trie: CatalogTrie) -> Assistant:
        """What a search after these histories takes.

        Raises:
            DataError: as `logprobs`.
        """
        items = torch.from_numpy(self.logprobs(histories)).to(trie.device)
        return Assistant.of_items(trie, items, torch.full((len(histories),), self.weight, device=trie.device))
