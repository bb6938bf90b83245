"""What a neural baseline leaves for other stages: vectors that score any item after any history of the run's splits.

`logprobs_of_scores` turns a baseline's scores into a distribution over the catalog, wherever one is asked for.

The file is `baselines/<model>/vectors.safetensors`. The command `baseline` writes it; the stage `sid` reads the item vectors,
the reward `collaborative` the scores of the train split. Both put the baseline's digest into the key of what they make.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from minionerec.artifacts import Manifest, require
from minionerec.data.dataset import SPLITS, Dataset, SplitName
from minionerec.errors import ArtifactError, DataError

_FILE = "vectors.safetensors"


@dataclass(frozen=True)
class BaselineVectors:
    """The score of item `i` after row `r` of a split is `states[split][r] @ items[i] + bias[i]`.

    Attributes:
        items: (items, hidden) float32, in catalog order.
        bias: (items,) float32; zeros for a model without.
        states: the model's state after the history of each row, (rows, hidden) float32, by split.
    """

    items: np.ndarray
    bias: np.ndarray
    states: dict[SplitName, np.ndarray]

    def scores(self, split: SplitName, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The scores of all items after rows of a split, (rows, items) float64."""
        return self.states[split][rows].astype(np.float64) @ self.items.T.astype(np.float64) + self.bias

    def save(self, folder: Path) -> None:
        """Write the file into a baseline's folder."""
        states = {str(split): values for split, values in self.states.items()}
        save_file({"items": self.items, "bias": self.bias, **states}, folder / _FILE)


def logprobs_of_scores(scores: np.ndarray, name: str) -> np.ndarray:
    """The softmax of a baseline's scores over the catalog, in logarithms.

    >>> np.exp(logprobs_of_scores(np.log([[1.0, 3.0]]), "sasrec")).round(4).tolist()
    [[0.25, 0.75]]

    Args:
        scores: (rows, items).
        name: of the baseline, for the message.

    Returns:
        (rows, items) float64 in nats.

    Raises:
        DataError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise DataError(
            f"The baseline {name} gives scores that are not finite: its training diverged. Train it again with a lower "
            f"--baseline.learning_rate: {training_command(name)} --replace"
        )
    logprobs = scores.astype(np.float64)
    logprobs -= logprobs.max(axis=1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
    return logprobs


def baseline_digest(run: Path, name: str, data_digest: str) -> str:
    """The digest of a run's baseline.

    Raises:
        ArtifactError: the run has no such baseline, or it was made from other data.
    """
    return require(run / "baselines" / name, training_command(name), made_from={"data": data_digest}).digest


def stored_baseline(run: Path, name: str, data_digest: str) -> Manifest:
    """The manifest of a run's baseline whose model is asked about the run's items.

    Raises:
        ArtifactError: the run has no such baseline, it is damaged, or it was trained on other data or on a file of sequences.
    """
    folder = run / "baselines" / name
    manifest = require(folder, training_command(name), made_from={"data": data_digest})
    if "data" not in manifest.inputs:
        raise ArtifactError(
            f"{folder}: was trained on a file of sequences, whose items are not this run's. Train it on the run's own splits: "
            f"{training_command(name)} --replace"
        )
    return manifest


def load_vectors(run: Path, name: str, dataset: Dataset, needed_by: str) -> BaselineVectors:
    """The vectors of a run's baseline.

    Args:
        dataset: the run's; its catalog and splits give the expected numbers of rows.
        needed_by: what asks for the vectors, for the message.

    Raises:
        ArtifactError: the baseline left no vectors, or they belong to other data.
    """
    path = run / "baselines" / name / _FILE
    try:
        tensors = load_file(path)
        vectors = BaselineVectors(tensors["items"], tensors["bias"], {split: tensors[split] for split in SPLITS})
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: not found. {needed_by} needs the vectors of a baseline that was trained on this run's own splits; {name} "
            "leaves none. Choose a neural one, e.g. sasrec."
        ) from None
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not a baseline's vectors ({error}). Run again: {training_command(name)}") from None
    rows = {"items": (len(vectors.items), len(dataset.catalog))}
    rows |= {f"{split} rows": (len(vectors.states[split]), len(dataset.split(split))) for split in SPLITS}
    for what, (count, expected) in rows.items():
        if count != expected:
            raise ArtifactError(f"{path}: {count} {what}, but the run has {expected}. Run again: {training_command(name)}")
    return vectors


def training_command(name: str) -> str:
    """The command that trains a run's baseline."""
    return f"minionerec baseline --baseline.model {name}"
