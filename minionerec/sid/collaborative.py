"""Collaborative signal: item vectors moved towards those of the items that the same users take next."""

import numpy as np
import polars as pl
import scipy.sparse as sp


def consecutive_pairs(examples: pl.DataFrame) -> np.ndarray:
    """Pairs of different items that a user took one after the other, (pairs, 2): the end of each history and its target."""
    pairs = examples.select(pl.col("history").list.last(), "target").to_numpy().astype(np.int64)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def fuse(vectors: np.ndarray, pairs: np.ndarray, weight: float, block: int = 65536) -> np.ndarray:
    """Vectors fused with co-occurrence: (1 - weight) x own + weight x mean of the partners', brought back to the own length.

    A partner counts with the logarithm of 1 + the times the two stand side by side. This is one step of a graph convolution
    without weights (SGC, Wu et al., ICML 2019). It stays in the space of the text vectors, so an item without interactions
    simply keeps its own and is still comparable.

    Args:
        vectors: (items, dimensions) float32.
        pairs: (pairs, 2) item indices, in either order.
        weight: from 0 (nothing changes) to below 1.

    Returns:
        (items, dimensions) float32; `vectors` itself where nothing changes.
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
        own = np.asarray(vectors[rows], dtype=np.float64)
        near = counts[rows]
        partners = np.unique(near.indices)
        mean = near[:, partners] @ np.asarray(vectors[partners]) / np.maximum(strength[rows], 1e-12)
        mixed = np.where(strength[rows] > 0, (1 - weight) * own + weight * mean, own)
        length = np.linalg.norm(own, axis=1, keepdims=True) / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
        fused[rows] = mixed * length
    return fused
