"""The item vectors of a run, for text neighbours: those that its semantic IDs are made from."""

import hashlib
from typing import Any

import numpy as np

from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.errors import DataError
from minionerec.sid.encoder import (
    item_vectors,
    present_vectors,
    vector_dimensions,
    vector_inputs,
    vector_origin,
    vector_settings,
)


def has_vectors(config: Config, dataset: Dataset) -> bool:
    """Whether the run has item vectors: it names a file of them, or makes its semantic IDs from its items' texts.

    A run with shipped semantic IDs and no file has none, though its texts could be embedded: `vectors_of_run` does so.
    """
    section, _ = vector_origin(config)
    return section.vectors is not None or (not section.shipped and any(text.strip() for text in dataset.catalog["text"]))


def check_texts(config: Config, dataset: Dataset) -> None:
    """Refuse a baseline that reads item vectors in a run that has neither a file of them nor texts to make them of.

    Raises:
        DataError: there are none.
    """
    if vector_origin(config)[0].vectors is None and not any(text.strip() for text in dataset.catalog["text"]):
        raise DataError(
            f"baseline.model {config.baseline.model} reads item vectors, but the catalog has no texts to make them of. Name a "
            "file of vectors (--sid.vectors FILE.npy), or choose another baseline, such as tiger or sasrec."
        )


def vectors_of_run(config: Config, dataset: Dataset) -> np.ndarray:
    """The vectors that the stage `sid` of the run has used or, for shipped semantic IDs, those that `sid` says.

    They are `sid.vectors`, or the texts embedded by `sid.encoder`, read from the cache folder if they are there.

    Returns:
        (items, dimensions) float32, perhaps memory-mapped.

    Raises:
        ConfigError: there is no such file, or the encoder cannot be loaded.
        DataError: the items have no texts, or the file does not fit the catalog.
    """
    return item_vectors(dataset, *vector_origin(config))


def present_digest(config: Config, dataset: Dataset) -> str | None:
    """`vectors_digest` of `vectors_of_run` if these are at hand; None if texts would have to be embedded for it."""
    vectors = present_vectors(dataset, *vector_origin(config))
    return None if vectors is None else vectors_digest(vectors)


def shape_of_vectors(config: Config, dataset: Dataset) -> np.ndarray:
    """Zeros of the shape of `vectors_of_run`, for a plan: they take no memory, and no catalog is embedded for them.

    Raises as `vectors_of_run` does.
    """
    dimensions = vector_dimensions(dataset, *vector_origin(config))
    return np.broadcast_to(np.zeros((), np.float32), (len(dataset.catalog), dimensions))


def component_texts(config: Config, stage: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides the vectors of the component `text` in a training, and digests of their files; empty if it reads none.

    Args:
        stage: `sft` or `rl`.
    """
    if not (config.mixes_in(stage) and "text" in config.mixture.components):
        return {}, {}
    return {"component_texts": vector_settings(config)}, vector_inputs(vector_origin(config)[0])


def vectors_digest(vectors: np.ndarray) -> str:
    """SHA-256 (hex) of an array's shape and values."""
    digest = hashlib.sha256(str(vectors.shape).encode())
    digest.update(np.ascontiguousarray(vectors, "<f4").tobytes())
    return digest.hexdigest()
