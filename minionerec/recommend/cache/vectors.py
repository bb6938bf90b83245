"""The item vectors of a run, for text neighbours: those that its semantic IDs are made from."""

import dataclasses
import hashlib

import numpy as np

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import Config, SidConfig
from minionerec.data.dataset import Dataset
from minionerec.sid.encoder import VECTOR_FIELDS, item_vectors


def has_vectors(config: Config, dataset: Dataset) -> bool:
    """Whether the run has item vectors: it names a file of them, or makes its semantic IDs from its items' texts.

    A run with shipped semantic IDs and no file has none, though its texts could be embedded: `vectors_of_run` does so.
    """
    section, _ = _origin(config)
    return section.vectors is not None or (not section.shipped and any(text.strip() for text in dataset.catalog["text"]))


def vectors_of_run(config: Config, dataset: Dataset) -> np.ndarray:
    """The vectors that the stage `sid` of the run has used or, for shipped semantic IDs, those that `sid` says.

    They are `sid.vectors`, or the texts embedded by `sid.encoder`, read from the cache folder if they are there.

    Returns:
        (items, dimensions) float32, perhaps memory-mapped.

    Raises:
        ConfigError: there is no such file, or the encoder cannot be loaded.
        DataError: the items have no texts, or the file does not fit the catalog.
    """
    section, seed = _origin(config)
    return item_vectors(dataset, section, seed)


def vectors_digest(vectors: np.ndarray) -> str:
    """SHA-256 (hex) of an array's shape and values."""
    digest = hashlib.sha256(str(vectors.shape).encode())
    digest.update(np.ascontiguousarray(vectors, "<f4").tobytes())
    return digest.hexdigest()


def _origin(config: Config) -> tuple[SidConfig, int]:
    """Section `sid` and the seed with which the run's semantic IDs were made; the configuration's before the stage has run."""
    folder = config.folder / "sid"
    if not (folder / MANIFEST).is_file():
        return config.sid, config.seed
    manifest = Manifest.load(folder)
    section = manifest.config["sid"]
    if section["shipped"]:
        return config.sid, config.seed
    return dataclasses.replace(config.sid, shipped=False, **{name: section[name] for name in VECTOR_FIELDS}), manifest.seed
