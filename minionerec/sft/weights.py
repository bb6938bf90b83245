"""What each completion token of a training example counts in the loss: by its level in the SID, by how common its item is."""

from collections.abc import Sequence

import numpy as np

from minionerec.config import TASKS, SftConfig, TaskName
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError
from minionerec.prompts.encode import TokenExample


class LossWeights:
    """Weights of the tokens of an example: its item's weight times the weights of the levels.

    An item that is the target of n training examples weighs n ** -`sft.frequency_power` in tasks that read a history, scaled
    so that the mean over those examples is 1; the other tasks see every item once and weigh it 1. The weights of the levels are
    scaled to a mean of 1 and apply to SIDs, from the first level on where a SID is short; text weighs 1. So the learning rate
    keeps its meaning. Validation is never weighted.

    Raises:
        ConfigError: `sft.level_weights` has not one weight per level of the index.
    """

    def __init__(self, config: SftConfig, dataset: Dataset, levels: int) -> None:
        if config.level_weights is not None and len(config.level_weights) != levels:
            raise ConfigError(
                f"sft.level_weights has {len(config.level_weights)} weights, but the SIDs have {levels} levels: give one each."
            )
        self._levels = None if config.level_weights is None else np.array(config.level_weights) / np.mean(config.level_weights)
        self._items = None
        if config.frequency_power:
            counts = np.bincount(dataset.train["target"].to_numpy(), minlength=len(dataset.catalog))
            weights = np.maximum(counts, 1).astype(float) ** -config.frequency_power
            self._items = weights * counts.sum() / (weights * counts).sum()

    def of(self, task: TaskName, example: TokenExample) -> Sequence[float] | None:
        """One weight per completion token; None where all weigh 1."""
        by_frequency = self._items is not None and TASKS[task].reads_history
        item = self._items[example.target] if self._items is not None and by_frequency else 1.0
        levels = self._levels if self._levels is not None and example.is_sid else None
        if levels is None:
            return None if item == 1.0 else [float(item)] * len(example.completion)
        return [float(item * weight) for weight in levels[: len(example.completion)]]
