"""A trained baseline of a run, as what the component `sequential` asks: scores of every item after any history.

The stored vectors of a baseline (`data/vectors.py`) know the histories of the run's splits only. People, filters and an
evaluation of other rows ask for others, so the model itself is loaded, with the settings that it was trained with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from minionerec.artifacts import ITEM_STAGES, require
from minionerec.config import Config
from minionerec.data.vectors import stored_baseline
from minionerec.recommend.cache.interactions import Histories


@dataclass(frozen=True)
class HistoryScorer:
    """A trained model that scores the whole catalog.

    Attributes:
        name: of the baseline.
        digest: of its artefact.
        score: gives the scores after histories of item indices, each with an item at least: (batch, items) float32.
    """

    name: str
    digest: str
    score: Callable[[Histories], np.ndarray]


def scorer_of_run(run: Path, name: str, items: int) -> HistoryScorer:
    """A baseline of a run, on the CPU.

    Args:
        items: of the run's catalog.

    Raises:
        ArtifactError: the run has no such baseline, it is damaged, or it was trained on other data.
    """
    stored = stored_baseline(run, name, require(run / "data", ITEM_STAGES["data"]).digest)
    # The models of the baselines stand on a floor above, and import what is counted here. As `config.BASELINES` names their
    # classes, their room is named here, and imported only now.
    score = import_module("minionerec.baselines.stored").load_scores(run / "baselines" / name, stored, items)
    return HistoryScorer(name, stored.digest, score)


def component_baseline(config: Config, stage: str, data_digest: str) -> dict[str, str]:
    """The digest of the baseline that a training mixes into its validations, by the artefact's name; empty if it reads none.

    Args:
        stage: `sft` or `rl`.

    Raises:
        ArtifactError: as `scorer_of_run`.
    """
    name = config.mixture.sequential
    if name is None or not config.mixes_in(stage):
        return {}
    return {f"baselines/{name}": stored_baseline(config.folder, name, data_digest).digest}
