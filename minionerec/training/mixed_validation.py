"""Validation of a model that is trained together with its cache: the weights of the mixture are fitted anew each time.

Weights that are fitted to the examples that they are then measured on would flatter: so the examples are divided into two
halves, and the lists of each are made with weights fitted to the other.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from minionerec.config import Config
from minionerec.recommend.cache import Buckets, Component, Mixture
from minionerec.recommend.mixing import component_columns, components_of, fitted, model_column
from minionerec.recommend.recommender import Recommender


class CrossFitted:
    """The two mixtures of a validation.

    Attributes:
        halves: (examples,) 0 or 1.
    """

    def __init__(
        self, config: Config, recommender: Recommender, histories: Sequence[Sequence[int]], targets: Sequence[int]
    ) -> None:
        """Count, and look up what the counts say of the targets: that stays as it is while the model is trained.

        Args:
            recommender: asks the model that is trained; with `config.eval`.
            histories, targets: of the examples.

        Raises:
            ArtifactError: the baseline of `sequential` is missing, damaged or of other data.
            ConfigError: the encoder of `text` cannot be loaded.
            DataError: the dataset has no training interaction, or an item has no text.
        """
        self._settings, self._recommender = config.mixture, recommender
        self._histories, self._targets = histories, targets
        self._components: Mapping[str, Component] = components_of(config, recommender.prompts.dataset)
        self._buckets = Buckets(next(iter(self._components.values())).interactions)
        self._columns = component_columns(recommender, self._components, histories, targets)
        self.halves = np.arange(len(targets)) % 2

    def model_column(self, rows: slice) -> np.ndarray:
        """What the model as it now is gives the targets of some examples, (rows,)."""
        return model_column(self._recommender, self._histories[rows], self._targets[rows])

    def fit(self, column: np.ndarray) -> tuple[Mixture, Mixture]:
        """The mixture for the examples of each half, fitted to those of the other.

        Args:
            column: (examples,) what `model_column` gives for all of them.

        Raises:
            DataError: no target of a half has a probability above 0.
        """
        columns = np.column_stack([column, self._columns])
        settings, mixtures = self._settings, []
        for half in (0, 1):
            rows = np.flatnonzero(self.halves != half) if len(column) > 1 else np.arange(1)
            histories = [self._histories[row] for row in rows.tolist()]
            mixtures.append(
                fitted(columns[rows], self._buckets, self._components, histories, settings.per_bucket, settings.pseudo_counts)
            )
        return mixtures[0], mixtures[1]
