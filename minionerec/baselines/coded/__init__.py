"""Baselines that know an item by codes: made from a run's semantic IDs, or from codes of its item vectors."""

from typing import Any

import numpy as np

from minionerec.artifacts import ITEM_STAGES, require
from minionerec.baselines.coded.coded_model import CodedModel
from minionerec.config import CODED_BASELINES, Config
from minionerec.data.dataset import Dataset
from minionerec.model.sequential.implementation import implementation, options_of
from minionerec.recommend.cache.vectors import check_texts, vectors_digest, vectors_of_run
from minionerec.sid.index import SidIndex
from minionerec.sid.quantize import check_vectors


def make_coded(config: Config, beams: int) -> CodedModel:
    """A model with fresh weights from torch's random state, and the codes of the run's items.

    Args:
        beams: of a generative model's search.

    Raises:
        ArtifactError: the run has no semantic IDs, or they belong to other data.
        ConfigError: an option that the model does not take, a bad value, or too few items.
        DataError: the items have no vectors, or one that is not finite or all zeros.
    """
    model = _model_class(config)
    dataset, options, max_history = (
        Dataset.load(config.folder / "data"),
        options_of(config.baseline, model),
        config.baseline.max_history,
    )
    if "vectors" not in model.reads:
        return model(_sid_codes(config, dataset), max_history, options, beams)
    trained = _trained(dataset)
    if "sids" not in model.reads:
        codes = model.codes_of(_vectors(config, dataset), trained, options, config.seed)
        return model(codes, max_history, options, beams)
    codes = _sid_codes(config, dataset)
    return model(codes, max_history, options, beams, _vectors(config, dataset), trained)


def check_coded(config: Config, dataset: Dataset) -> None:
    """Refuse a baseline that the run's items cannot have, before their texts are embedded.

    Raises:
        ConfigError: it needs more items.
        DataError: it reads item vectors, and there are no texts to embed, and no file of vectors.
    """
    model = _model_class(config)
    if "vectors" in model.reads:
        check_texts(config, dataset)
        if "sids" not in model.reads:  # its codes are fitted to these items
            model.check_items(len(_trained(dataset)))


def coded_inputs(config: Config) -> dict[str, str]:
    """Digests of what the codes come from, by name; empty for other baselines.

    Raises:
        ArtifactError: the run has no semantic IDs.
        ConfigError, DataError: the items have no vectors, or are too few.
    """
    if config.baseline.model not in CODED_BASELINES:
        return {}
    reads, inputs = _model_class(config).reads, {}
    if "sids" in reads:
        inputs["sid"] = require(config.folder / "sid", ITEM_STAGES["sid"]).digest
    if "vectors" in reads:
        dataset = Dataset.load(config.folder / "data")
        check_coded(config, dataset)
        inputs["vectors"] = vectors_digest(_vectors(config, dataset))
    return inputs


def _model_class(config: Config) -> type[Any]:
    """A class of `CodedModel`."""
    return implementation(CODED_BASELINES[config.baseline.model])


def _trained(dataset: Dataset) -> np.ndarray:
    """The items of the train split, ascending."""
    return dataset.train["target"].append(dataset.train["history"].explode().drop_nulls()).unique().sort().to_numpy()


def _sid_codes(config: Config, dataset: Dataset) -> np.ndarray:
    require(config.folder / "sid", ITEM_STAGES["sid"])
    return SidIndex.load(config.folder / "sid", dataset).codes


def _vectors(config: Config, dataset: Dataset) -> np.ndarray:
    """The run's item vectors, checked.

    Raises:
        DataError: there are no texts to embed, and no file of vectors; or a vector is not finite or all zeros.
    """
    check_texts(config, dataset)
    vectors = vectors_of_run(config, dataset)
    check_vectors(vectors)
    return vectors
