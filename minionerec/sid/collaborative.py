"""Collaborative signal: item vectors moved towards the vectors of the items that the same users take next.

The training split counts which items these are, or a sequential baseline that was trained on it names them.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp

from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import load_vectors
from minionerec.errors import DataError

NEIGHBOURS = 10  # that a baseline names for an item


def consecutive_pairs(examples: pl.DataFrame) -> np.ndarray:
    """Pairs of different items that a user took one after the other, (pairs, 2): the end of each history and its target."""
    pairs = examples.select(pl.col("history").list.last(), "target").to_numpy().astype(np.int64)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def fusion_pairs(config: Config, dataset: Dataset) -> np.ndarray:
    """The pairs of items that `fuse` brings together, (pairs, 2), as `sid.collaborative_model` asks for.

    Raises:
        ArtifactError: the baseline left no vectors, or they belong to other data.
        DataError: a vector is not finite.
    """
    name = config.sid.collaborative_model
    if name is None:
        return consecutive_pairs(dataset.train)
    return neighbour_pairs(_learnt(config, name, dataset), _seen_items(dataset))


def _learnt(config: Config, name: str, dataset: Dataset) -> np.ndarray:
    """The item vectors of a baseline; of the items that it has seen all are finite."""
    vectors, items = load_vectors(config.folder, name, dataset, "sid.collaborative_model").items, _seen_items(dataset)
    if not np.isfinite(vectors[items]).all():
        item = int(items[~np.isfinite(vectors[items]).all(axis=1)][0])
        raise DataError(f"The vector of item {item} (row {item} of the catalog) by {name} is not finite; train it again.")
    return vectors


@dataclass(frozen=True)
class CollaborativeVectors:
    """What a sequential recommender says of items.

    Attributes:
        vectors: (items, dimensions) float32.
        seen: (items,) bool, the items whose vectors were learnt; the vectors of unseen items are random.
    """

    vectors: np.ndarray
    seen: np.ndarray

    def take(self, rows: np.ndarray) -> "CollaborativeVectors":
        """Those of some items."""
        return CollaborativeVectors(self.vectors[rows], self.seen[rows])


def collaborative_vectors(config: Config, dataset: Dataset) -> CollaborativeVectors | None:
    """The item vectors of `sid.collaborative_model` for a method that aligns its SIDs with them; None for any other method.

    Raises:
        ArtifactError: the baseline left no vectors, or they belong to other data.
        DataError: the train split has fewer than two items, or a vector is not finite.
    """
    name = config.sid.collaborative_model
    if config.sid.method != "letter" or name is None:
        return None
    vectors, items = _learnt(config, name, dataset), _seen_items(dataset)
    if len(items) < 2:
        raise DataError(f"The train split holds {len(items)} items, but sid.method letter compares an item with others.")
    seen = np.zeros(len(vectors), dtype=bool)
    seen[items] = True
    return CollaborativeVectors(vectors, seen)


def _seen_items(dataset: Dataset) -> np.ndarray:
    seen = np.union1d(dataset.train["target"].to_numpy(), dataset.train["history"].explode().drop_nulls().to_numpy())
    return seen.astype(np.int64)


def guide_of(config: Config, dataset: Dataset, vectors: np.ndarray) -> np.ndarray:
    """The vectors that decide the first code, as `sid.collaborative` asks for; `vectors` if the method fuses nothing.

    Raises:
        ArtifactError: the baseline left no vectors, or they belong to other data.
        DataError: one of the baseline's vectors is not finite.
    """
    if not config.sid.fusion:
        return vectors
    return fuse(vectors, fusion_pairs(config, dataset), config.sid.fusion)


def neighbour_pairs(vectors: np.ndarray, seen: np.ndarray, count: int = NEIGHBOURS, block: int = 4096) -> np.ndarray:
    """Each seen item with the seen items nearest to it by cosine, (pairs, 2).

    Args:
        vectors: (items, dimensions).
        seen: the items whose vectors were learnt, (seen,) int64; the vectors of unseen items are random.
        count: neighbours of an item, at most.
    """
    learnt = vectors[seen] / np.maximum(np.linalg.norm(vectors[seen], axis=1, keepdims=True), 1e-12)
    count, pairs = min(count, len(seen) - 1), []
    for start in range(0, len(seen), block):
        near = learnt[start : start + block] @ learnt.T
        rows = np.arange(len(near))
        near[rows, start + rows] = -np.inf  # the item itself
        nearest = np.argsort(-near, axis=1, kind="stable")[:, :count]
        pairs.append(np.stack([np.repeat(seen[start : start + block], count), seen[nearest].ravel()], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def fuse(vectors: np.ndarray, pairs: np.ndarray, weight: float, block: int = 65536) -> np.ndarray:
    """Vectors fused with co-occurrence: (1 - weight) x the item's vector + weight x the mean of its partners' vectors.

    The result is scaled to the length of the item's vector. A partner counts with the logarithm of 1 + the number of pairs that
    the two form. This is one step of a graph convolution without weights (SGC, Wu et al., ICML 2019). It stays in the space of
    the text vectors, so an item without interactions keeps its own vector and is still comparable.

    Args:
        vectors: (items, dimensions) float32.
        pairs: (pairs, 2) item indices, in either order.
        weight: from 0 (nothing changes) to below 1.

    Returns:
        (items, dimensions) float32; `vectors` itself if nothing changes.
    """
    if weight == 0 or not len(pairs):
        return vectors
    items = len(vectors)
    counts = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (items, items))
    counts = (counts + counts.T).tocsr()
    counts.data = np.log1p(counts.data)
    strength = np.asarray(counts.sum(axis=1))
    fused = np.array(vectors, dtype=np.float32)
    for start in range(0, items, block):
        rows = slice(start, start + block)
        block_vectors = np.asarray(vectors[rows], dtype=np.float64)
        near = counts[rows]
        partners = np.unique(near.indices)
        mean = near[:, partners] @ np.asarray(vectors[partners]) / np.maximum(strength[rows], 1e-12)
        mixed = np.where(strength[rows] > 0, (1 - weight) * block_vectors + weight * mean, block_vectors)
        length = np.linalg.norm(block_vectors, axis=1, keepdims=True) / np.maximum(
            np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12
        )
        fused[rows] = mixed * length
    return fused
