"""A trained baseline of a run, as what the component `sequential` asks: scores of every item after any history.

The stored vectors of a baseline (`data/vectors.py`) know the histories of the run's splits only. People, filters and an
evaluation of other rows ask for others, so the model itself is loaded, with the settings that it was trained with.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minionerec.artifacts import ITEM_STAGES, Manifest, require
from minionerec.config import BaselineConfig, Config
from minionerec.data.history_rows import SPLITS_SIDE, HistoryRows
from minionerec.data.vectors import stored_baseline
from minionerec.errors import ArtifactError, ConfigError
from minionerec.model.sequential import make, weights
from minionerec.model.sequential.scorer import scorer
from minionerec.recommend.cache.interactions import Histories

_CHUNK = 512  # histories at once
_CPU = torch.device("cpu")


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
    """A baseline of a run, on the CPU, after a check of its files and of the data's.

    Args:
        items: of the run's catalog.

    Raises:
        ArtifactError: the run has no such baseline, it is damaged, was trained on other data, or does not fit the catalog.
    """
    stored = stored_baseline(run, name, require(run / "data", ITEM_STAGES["data"]).digest)
    return checked_scorer(run / "baselines" / name, stored, items)


def checked_scorer(folder: Path, manifest: Manifest, items: int) -> HistoryScorer:
    """A baseline whose files were checked, on the CPU.

    Args:
        folder: of the baseline.
        manifest: as `stored_baseline` gives it.
        items: of the run's catalog.

    Raises:
        ArtifactError: the baseline does not fit the catalog, or has settings that this version does not take.
    """
    return HistoryScorer(folder.name, manifest.digest, _scores(folder, manifest, items))


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


def _scores(folder: Path, manifest: Manifest, items: int) -> Callable[[Histories], np.ndarray]:
    """What `HistoryScorer.score` calls.

    The model reads the settings of its own manifest, whatever the run's configuration says by now, and the newest
    `max_history` items of each history.

    Args:
        folder: of the baseline, which was trained on a run's own splits.
        manifest: the folder's.
        items: of the run's catalog.

    Raises:
        ArtifactError: the weights do not fit these settings or this catalog.
    """
    config = settings_of(folder, manifest)
    with _other_version(folder), torch.random.fork_rng(devices=()):  # a training that asks it draws on as before
        model = make(config, items)
    weights.load(model, folder / "model.safetensors")
    score = scorer(model, config.max_history, SPLITS_SIDE, _CPU)

    def scores(histories: Histories) -> np.ndarray:
        parts = [np.empty((0, items), np.float32)]
        for start in range(0, len(histories), _CHUNK):
            rows = _rows_of(histories[start : start + _CHUNK], config.max_history)
            parts.append(score(rows)[:, 1:].numpy())
        return np.concatenate(parts)

    return scores


def settings_of(folder: Path, manifest: Manifest) -> BaselineConfig:
    """The settings that a baseline was trained with, whatever the run's configuration says by now.

    Raises:
        ArtifactError: this version does not take them.
    """
    recorded = manifest.config["baseline"]
    # A field that another version did not record keeps its default; where files lay does not matter any more.
    names = {field.name for field in dataclasses.fields(BaselineConfig)} - {"weights", "valid_examples"}
    with _other_version(folder):
        return BaselineConfig(**{name: value for name, value in recorded.items() if name in names})


@contextmanager
def _other_version(folder: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ArtifactError(f"{folder}: was trained with settings that this version does not take: {error}") from None


def _rows_of(histories: Histories, longest: int) -> HistoryRows:
    """Histories of item indices as rows of ids from 1; targets and users are nobody's."""
    recent = [np.asarray(history, np.int64)[-longest:] + 1 for history in histories]
    stop = np.cumsum([len(history) for history in recent])
    start = stop - [len(history) for history in recent]
    nobody = np.zeros(len(recent), np.int64)
    return HistoryRows(np.concatenate(recent), start, stop, nobody, nobody, start)
