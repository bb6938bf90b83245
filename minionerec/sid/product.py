"""Product quantisation: each level describes its own part of the vector, so its code says the same under every prefix."""

import numpy as np

from minionerec.config import SidConfig
from minionerec.errors import ConfigError
from minionerec.sid.codebooks import ResidualQuantizer
from minionerec.sid.residual import kmeans

_ROTATIONS = 10  # alternations of codebooks and rotation


def fit_product(vectors: np.ndarray, config: SidConfig, seed: int) -> ResidualQuantizer:
    """Product quantisation (Jégou et al., TPAMI 2011); `opq` with a learnt rotation (Ge et al., CVPR 2013, non-parametric).

    The dimensions are cut into one group per level, by `opq` after a rotation that makes them fit the codebooks. A centroid
    is written back into the full space, zero outside its group, so that codes add up like those of residual quantisation.
    No level refines another one here, so no guide decides the first code.

    Raises:
        ConfigError: the vectors have fewer dimensions than SIDs have levels.
    """
    dimensions, levels = vectors.shape[1], len(config.sizes)
    if dimensions < levels:
        raise ConfigError(f"sid.method {config.method} needs a dimension per level; vectors have {dimensions}, SIDs {levels}.")
    groups = np.array_split(np.arange(dimensions), levels)
    rotation = np.eye(dimensions)
    for _ in range(_ROTATIONS if config.method == "opq" else 0):
        rotated = (vectors @ rotation).astype(np.float32)
        parts, labels = _codebooks(rotated, groups, config.sizes, 5, seed)
        approximation = np.concatenate([part[label] for part, label in zip(parts, labels, strict=True)], axis=1)
        # The rotation that brings the vectors nearest to their approximation: the orthogonal Procrustes problem.
        left, _, right = np.linalg.svd(vectors.T.astype(np.float64) @ approximation)
        rotation = left @ right
    parts, _ = _codebooks((vectors @ rotation).astype(np.float32), groups, config.sizes, config.iterations, seed)
    books = tuple((part @ rotation[:, group].T).astype(np.float32) for part, group in zip(parts, groups, strict=True))
    return ResidualQuantizer(books)


def _codebooks(
    points: np.ndarray, groups: list[np.ndarray], sizes: tuple[int, ...], iterations: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    fitted = [
        kmeans(points[:, group], size, iterations, seed + i) for i, (group, size) in enumerate(zip(groups, sizes, strict=True))
    ]
    return [part for part, _ in fitted], [labels for _, labels in fitted]
