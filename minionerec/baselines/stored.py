"""A finished baseline, loaded to score any history, as the component `sequential` asks (`recommend/cache/sequential.py`)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from minionerec.artifacts import Manifest
from minionerec.baselines import weights
from minionerec.baselines.models import make
from minionerec.baselines.scorer import scorer
from minionerec.config import BaselineConfig
from minionerec.errors import ArtifactError, ConfigError
from minionerec.recommend.cache.interactions import Histories
from minionerec.training.history_rows import HistoryRows
from minionerec.training.ranking import CHUNK
from minionerec.training.ranking_data import PROTOCOLS

_CPU = torch.device("cpu")


def load_scores(folder: Path, manifest: Manifest, items: int) -> Callable[[Histories], np.ndarray]:
    """A function that scores every item after histories, as `HistoryScorer.score` says, on the CPU.

    The model reads the settings of its own manifest, whatever the run's configuration says by now, and the newest
    `max_history` items of each history.

    Args:
        folder: of the baseline, which was trained on a run's own splits.
        manifest: the folder's.
        items: of the run's catalog.

    Raises:
        ArtifactError: the weights do not fit these settings or this catalog.
    """
    recorded = manifest.config["baseline"]
    # A field that another version did not record keeps its default; where files lay does not matter any more.
    names = {field.name for field in dataclasses.fields(BaselineConfig)} - {"weights", "valid_examples"}
    try:
        config = BaselineConfig(**{name: value for name, value in recorded.items() if name in names})
        with torch.random.fork_rng(devices=()):  # it draws first weights; a training that asks it draws on as before
            model = make(config, items)
    except ConfigError as error:
        raise ArtifactError(f"{folder}: was trained with settings that this version does not take: {error}") from None
    weights.load(model, folder / "model.safetensors")
    score = scorer(model, config.max_history, PROTOCOLS["dataset"], _CPU)

    def scores(histories: Histories) -> np.ndarray:
        parts = [np.empty((0, items), np.float32)]
        for start in range(0, len(histories), CHUNK):
            rows = _rows_of(histories[start : start + CHUNK], config.max_history)
            parts.append(score(rows)[:, 1:].numpy())
        return np.concatenate(parts)

    return scores


def _rows_of(histories: Histories, longest: int) -> HistoryRows:
    """Histories of item indices as rows of ids from 1; targets and users are nobody's."""
    recent = [np.asarray(history, np.int64)[-longest:] + 1 for history in histories]
    stop = np.cumsum([len(history) for history in recent])
    start = stop - [len(history) for history in recent]
    nobody = np.zeros(len(recent), np.int64)
    return HistoryRows(np.concatenate(recent), start, stop, nobody, nobody, start)
