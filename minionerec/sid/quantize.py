"""Residual k-means: vectors to codes, one codebook per level."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

_CHUNK = 8192  # items whose distances to a codebook are held at once


@dataclass(frozen=True)
class ResidualQuantizer:
    """Codebooks of a residual quantisation: a vector is approximated by the sum of one centroid per level.

    Attributes:
        codebooks: per level (codebook size, dimensions) float32.
    """

    codebooks: tuple[np.ndarray, ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level, used or not."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """The nearest centroid of what the levels before left over, level by level; of equally near ones the first.

        Args:
            vectors: (items, dimensions).

        Returns:
            codes (items, levels) int32.
        """
        codes = np.empty((len(vectors), len(self.codebooks)), dtype=np.int32)
        for start in range(0, len(vectors), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            residual = vectors[chunk].astype(np.float64)
            for level, codebook in enumerate(self.codebooks):
                codes[chunk, level] = _squared_distances(residual, codebook).argmin(axis=1)
                residual -= codebook[codes[chunk, level]]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The sum of the centroids of (items, levels) codes, or of the first levels' codes: (items, dimensions) float64."""
        total = np.zeros((len(codes), self.codebooks[0].shape[1]))
        for codebook, column in zip(self.codebooks, np.asarray(codes).T, strict=False):
            total += codebook[column]
        return total

    def distances(self, vectors: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
        """Squared distance from what `prefixes` leave of the vectors to every centroid of the next level.

        Args:
            vectors: (items, dimensions).
            prefixes: codes of the levels before, (items, level); (items, 0) for the first level.

        Returns:
            (items, codebook size of that level) float64.
        """
        return _squared_distances(vectors - self.decode(prefixes), self.codebooks[prefixes.shape[1]])


def residual_kmeans(vectors: np.ndarray, codebook_sizes: Sequence[int], *, iterations: int, seed: int) -> ResidualQuantizer:
    """Fit codebooks by k-means on the residuals, one level after the other.

    Residual quantisation (Chen, Guan & Wang, Sensors 2010) with k-means codebooks, the RQ-KMeans of OneRec
    (arXiv 2502.18965), without its balancing of cluster sizes. scikit-learn's k-means with k-means++ start, one start per
    level. A level with no more distinct residuals than codes takes these as centroids; the codes left over have the zero
    vector as centroid and stay unused by `encode`.

    Args:
        vectors: (items, dimensions) float32.
        codebook_sizes: centroids per level.
        iterations: most Lloyd iterations per level.
        seed: equal seeds give equal codebooks, whatever the number of threads.
    """
    residual = vectors.astype(np.float32)
    codebooks = []
    for level, size in enumerate(codebook_sizes):
        codebook = _centroids(residual, size, iterations, np.random.SeedSequence([seed, level]))
        codebooks.append(codebook)
        residual -= codebook[ResidualQuantizer((codebook,)).encode(residual)[:, 0]]
    return ResidualQuantizer(tuple(codebooks))


def _centroids(residual: np.ndarray, size: int, iterations: int, seed: np.random.SeedSequence) -> np.ndarray:
    distinct = np.unique(residual, axis=0)
    if len(distinct) <= size:
        codebook = np.zeros((size, residual.shape[1]), dtype=np.float32)
        codebook[: len(distinct)] = distinct
        return codebook
    kmeans = KMeans(size, init="k-means++", n_init=1, max_iter=iterations, random_state=int(seed.generate_state(1)[0]))
    # Threads add up partial sums in any order; one thread keeps the result equal from run to run. The warning is about
    # centroids that coincide where residuals do nearly: nothing that the user could change.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit(residual).cluster_centers_.astype(np.float32)


def _squared_distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(points, centroids) float64, without holding (points, centroids, dimensions)."""
    centroids = centroids.astype(np.float64)
    squared = (points**2).sum(axis=1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(axis=1)
    return np.maximum(squared, 0)
