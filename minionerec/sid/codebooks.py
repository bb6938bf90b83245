"""The interface of quantizers, and the quantizer that most methods fit: a vector is the sum of one centroid per level."""

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
        """Codes (items, levels) int32 of (items, dimensions) vectors; a `guide`, if given, decides the first code."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The vectors that (items, levels) codes stand for: (items, dimensions) float64."""

    def distances(self, vectors: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
        """Squared distance from what (items, level) prefixes leave of the vectors to each next centroid: (items, size)."""


@dataclass(frozen=True)
class ResidualQuantizer:
    """Codebooks of an additive quantisation: a vector is approximated by the sum of one centroid per level.

    Attributes:
        codebooks: per level (codebook size, dimensions) float32.
        router: (first codebook size, dimensions) float32. If given, the first code is that of the nearest row of this matrix,
            the clusters of fused vectors, and not of the nearest centroid of level 1.
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
        """Codes whose centroids add up to nearly the vectors; of equally good codes the first.

        Args:
            vectors: (items, dimensions); read in blocks, so they may be memory-mapped.
            guide: vectors that decide the first code, same shape; None lets the vectors themselves decide.

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
                routed = rows if guide is None else np.asarray(guide[block], dtype=np.float32)
                first = nearest(routed, self.router)
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

    The squared error of a sum of centroids is ‖x‖² + Σ‖c‖² − 2 Σ x·c + 2 Σ c·c', the last sum over pairs. ‖x‖² is the same for
    all codes, so scores leave it out, and halve the rest: Σ‖c‖²/2 − Σ x·c + Σ c·c'.
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
        codes = np.empty((items, 1, 0), dtype=np.int64)  # (items, beams, levels so far)
        total = np.zeros((items, 1), dtype=np.float32)
        for level, (low, high) in enumerate(pairwise(self.edges)):
            if level == 0 and first is not None:
                codes = first.astype(np.int64)[:, None, None]
                continue
            candidates = total[:, :, None] + scores[:, None, low:high]  # (items, beams, codes)
            for before in range(level):
                candidates += self.cross[self.edges[before] + codes[:, :, before], low:high]
            flat = candidates.reshape(items, -1)
            # The last level needs only the best. Before it the order of the beams does not matter, so partitioning is enough.
            # Their places are sorted, so that argmin on the last level finds the first of equally good codes.
            beams = 1 if level == levels - 1 else min(beam, flat.shape[1])
            if beams == 1:
                best = flat.argmin(axis=1)[:, None]
            elif beams < flat.shape[1]:
                best = np.sort(np.argpartition(flat, beams - 1, axis=1)[:, :beams], axis=1)
            else:
                best = np.broadcast_to(np.arange(beams), flat.shape)
            total = np.take_along_axis(flat, best, axis=1)
            parent, code = np.divmod(best, high - low)
            codes = np.concatenate([np.take_along_axis(codes, parent[:, :, None], axis=1), code[:, :, None]], axis=2)
        return codes[:, 0]


def sample_rows(items: int, most: int, seed: int) -> np.ndarray:
    """The items that codebooks are learnt from, ascending: all, or `most` drawn without repetition."""
    if items <= most:
        return np.arange(items)
    return np.sort(np.random.default_rng([seed, items]).choice(items, most, replace=False))


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each point, of equally near ones the first: (points,)."""
    half = (centroids**2).sum(axis=1) / 2
    return (half - points @ centroids.T).argmin(axis=1)


def squared_distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(points, centroids) float64, without holding (points, centroids, dimensions)."""
    points, centroids = points.astype(np.float64), centroids.astype(np.float64)
    squared = (points**2).sum(axis=1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(axis=1)
    return np.maximum(squared, 0)
