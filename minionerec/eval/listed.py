"""Predictions of recommenders that list items without a language model: the trivial ones, and the run's baselines."""

from typing import cast

import numpy as np

from minionerec.artifacts import Manifest
from minionerec.baselines import trivial
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.data.parquet import read_parquet
from minionerec.errors import ArtifactError
from minionerec.eval.predictions import Prediction, as_predictions
from minionerec.sid.index import SidIndex

BUILT_IN = ("popularity", "repeat")  # need neither a model nor a stored baseline


def listed_predictions(name: str, config: Config, dataset: Dataset, index: SidIndex) -> list[Prediction]:
    """Predictions for the whole split, in its order. Lists have at most `eval.num_beams` items, like a model's.

    Args:
        name: one of `BUILT_IN`, or a baseline of the run.

    Raises:
        ArtifactError: histories are excluded, and the baseline's stored lists are too short to lose them.
    """
    examples, length = dataset.split(config.eval.split), config.eval.num_beams
    longest = int(cast(int, examples["history"].list.len().max())) if config.eval.exclude_history else 0
    if name == "popularity":
        rankings = trivial.popularity(dataset, length + longest, config.eval.split)
    elif name == "repeat":
        rankings = trivial.repeat_last(examples, length)
    else:
        rankings = _of_baseline(name, config, min(length + longest, len(dataset.catalog)))
    if config.eval.exclude_history:
        histories = examples["history"].to_list()
        rankings = [ranking[~np.isin(ranking, history)] for ranking, history in zip(rankings, histories, strict=True)]
    ids = dataset.catalog["item_id"].to_list()
    return as_predictions(examples, [ranking[:length] for ranking in rankings], index, ids)


def _of_baseline(name: str, config: Config, needed: int) -> list[np.ndarray]:
    """The lists that a baseline of the run has stored.

    Args:
        needed: items per list from which the longest history can be left out.
    """
    folder = config.folder / "baselines" / name
    stored = Manifest.load(folder).config["baseline"]["top"]
    if config.eval.exclude_history and stored < needed:
        raise ArtifactError(
            f"{folder}: the lists have {stored} items, but {needed} are needed to leave out histories and keep "
            f"{config.eval.num_beams}. Run minionerec baseline --baseline.model {name} --replace with eval.exclude_history "
            "set: it then stores enough."
        )
    advice = f"Run minionerec baseline --baseline.model {name} again."
    lists = read_parquet(folder / f"{config.eval.split}.parquet", ArtifactError, advice)["items"].to_list()
    return [np.array(items, dtype=np.int64) for items in lists]
