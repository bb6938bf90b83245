"""What a quantizer is, and the one that most methods make: a vector is the sum of one centroid per level."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

_BLOCK = 8192  # items encoded at once; fixed, so that an item's codes never depend on the memory or the processes
_CANDIDATES = 1 << 24  # partial SIDs scored at once by a beam (64 MB)


class Quantizer(Protocol):
    """What every quantizer offers."""

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """Centroids per level, (codebook size, dimensions) float32."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level, used or not."""

    def encode(self, vectors: np.ndarray, guide: np.ndarray | None = None) -> np.ndarray:
        """Codes (items, levels) int32 of (items, dimensions) vectors; `guide` decides the first where it is given."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """What the codes stand for: (items, dimensions) float64."""

    def distances(self, vectors: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
        """Squared distance of what (items, level) prefixes leave to each centroid of the next level: (items, size)."""


@dataclass(frozen=True)
class ResidualQuantizer:
    """Codebooks of an additive quantisation: a vector is approximated by the sum of one centroid per level.

    Attributes:
        codebooks: per level (codebook size, dimensions) float32.
        router: where the first code is not that of the nearest centroid of level 1 but of the nearest row of this matrix,
            (first codebook size, dimensions) float32: the clusters of fused vectors.
        beam: partial SIDs kept per item while encoding; 1 takes the nearest centroid level by level.
    """

    codebooks: tuple[np.ndarray, ...]
    router: np.ndarray | None = None
    beam: int = 1

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level, used or not."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode(self, vectors: np.ndarray, guide: np.ndarray | None = None) -> np.ndarray:
        """Codes whose centroids add up to nearly the vectors; of equally good ones the first.

        Args:
            vectors: (items, dimensions); read in blocks, so they may be memory-mapped.
            guide: vectors that decide the first code, same shape; the vectors themselves where None.

        Returns:
            codes (items, levels) int32.
        """
        codes = np.empty((len(vectors), len(self.codebooks)), dtype=np.int32)
        tables = _Tables(self.codebooks)
        for start in range(0, len(vectors), _BLOCK):
            block = slice(start, start + _BLOCK)
            rows = np.asarray(vectors[block], dtype=np.float32)
            first = None
            if self.router is not None:
                chosen = rows if guide is None else np.asarray(guide[block], dtype=np.float32)
                first = nearest(chosen, self.router)
            codes[block] = tables.search(rows, self.beam, first)
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
        return squared_distances(vectors - self.decode(prefixes), self.codebooks[prefixes.shape[1]])


class _Tables:
    """Inner products of all centroids with one another: with these, a block of vectors is multiplied by centroids just once.

    The squared error of a sum of centroids is ‖x‖² + Σ‖c‖² − 2 Σ x·c + 2 Σ c·c'; only half of what depends on c is kept.
    """

    def __init__(self, codebooks: tuple[np.ndarray, ...]) -> None:
        self.stacked = np.concatenate(codebooks).astype(np.float32)
        self.edges = np.cumsum([0, *map(len, codebooks)])
        self.half = (self.stacked**2).sum(axis=1) / 2
        self.cross = self.stacked @ self.stacked.T

    def search(self, rows: np.ndarray, beam: int, first: np.ndarray | None) -> np.ndarray:
        """Best codes (rows, levels) of a block; `first` fixes those of level 1."""
        scores = self.half - rows @ self.stacked.T  # (rows, all codes)
        if beam == 1:
            return self._greedy(scores, first)
        step = max(1, _CANDIDATES // (beam * int(np.diff(self.edges).max())))
        parts = [
            self._beam(scores[start : start + step], beam, None if first is None else first[start : start + step])
            for start in range(0, len(rows), step)
        ]
        return np.concatenate(parts)

    def _greedy(self, scores: np.ndarray, first: np.ndarray | None) -> np.ndarray:
        codes = np.empty((len(scores), len(self.edges) - 1), dtype=np.int64)
        for level, (low, high) in enumerate(pairwise(self.edges)):
            if level == 0 and first is not None:
                codes[:, 0] = first
                continue
            part = scores[:, low:high]
            for before in range(level):
                part += self.cross[self.edges[before] + codes[:, before], low:high]
            codes[:, level] = part.argmin(axis=1)
        return codes

    def _beam(self, scores: np.ndarray, beam: int, first: np.ndarray | None) -> np.ndarray:
        items, levels = len(scores), len(self.edges) - 1
        codes = np.empty((items, 1, 0), dtype=np.int64)  # (items, kept, levels so far)
        total = np.zeros((items, 1), dtype=np.float32)
        for level, (low, high) in enumerate(pairwise(self.edges)):
            if level == 0 and first is not None:
                codes = first.astype(np.int64)[:, None, None]
                continue
            grown = total[:, :, None] + scores[:, None, low:high]  # (items, kept, codes)
            for before in range(level):
                grown += self.cross[self.edges[before] + codes[:, :, before], low:high]
            flat = grown.reshape(items, -1)
            kept = 1 if level == levels - 1 else min(beam, flat.shape[1])
            if kept == 1:
                best = flat.argmin(axis=1)[:, None]
            elif kept < flat.shape[1]:
                best = np.sort(np.argpartition(flat, kept - 1, axis=1)[:, :kept], axis=1)
            else:
                best = np.broadcast_to(np.arange(kept), flat.shape)
            total = np.take_along_axis(flat, best, axis=1)
            parent, code = np.divmod(best, high - low)
            codes = np.concatenate([np.take_along_axis(codes, parent[:, :, None], axis=1), code[:, :, None]], axis=2)
        return codes[:, 0]


def sample_rows(items: int, most: int, seed: int) -> np.ndarray:
    """Which of the items codebooks are learnt from: all, or `most` drawn without repetition, ascending."""
    if items <= most:
        return np.arange(items)
    return np.sort(np.random.default_rng([seed, items]).choice(items, most, replace=False))


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each point, the first of equally near ones: (points,)."""
    half = (centroids**2).sum(axis=1) / 2
    return (half - points @ centroids.T).argmin(axis=1)


def squared_distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(points, centroids) float64, without holding (points, centroids, dimensions)."""
    points, centroids = points.astype(np.float64), centroids.astype(np.float64)
    squared = (points**2).sum(axis=1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(axis=1)
    return np.maximum(squared, 0)
