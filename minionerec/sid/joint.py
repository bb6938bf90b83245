"""Residual k-means whose levels are refined together: `rq-kmeans-joint`, the default."""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from minionerec.config import SidConfig
from minionerec.sid.codebooks import ResidualQuantizer
from minionerec.sid.collisions import nearest_free
from minionerec.sid.residual import fit_levels, kmeans, sinkhorn_kmeans

_RIDGE = 1e-3  # pulls all centroids to zero, with the weight of a thousandth of an item; makes the solution unique


def fit_joint(vectors: np.ndarray, guide: np.ndarray, config: SidConfig, seed: int) -> tuple[ResidualQuantizer, np.ndarray]:
    """Fit residual k-means, then improve all levels at once.

    Three things are different from plain residual k-means. (1) Level 1 clusters the guide, so that items that users treat alike
    share their first code; a new item goes to the nearest cluster. (2) The levels below are balanced with Sinkhorn: plain
    k-means spends most of their centroids on single far-off residuals and puts nearly all items into a few codes. (3) Rounds
    of two steps that each lower the error: all centroids of all levels are solved for at once by least squares, and codes
    are searched with a beam over the levels instead of one by one (additive quantisation: Babenko & Lempitsky, CVPR 2014).
    If each item is to have its own SID, the codes are made distinct before the centroids are solved for, so that these fit the
    SIDs that are used in the end.

    Returns:
        the quantizer, and the codes (items, levels) that its encoding gives.
    """
    quantizer, codes = fit_levels(vectors, guide, config.sizes, [kmeans, sinkhorn_kmeans], config.iterations, seed)
    router = quantizer.router if quantizer.router is not None else quantizer.codebooks[0]
    distinct = config.collisions == "nearest-free" and len(vectors) <= np.prod(config.sizes, dtype=float)
    for _ in range(config.refinements):
        quantizer = ResidualQuantizer(least_squares(vectors, codes, config.sizes), router, config.beam)
        codes = quantizer.encode(vectors, guide)
        if distinct:
            codes = nearest_free(codes, vectors, quantizer)
    if config.refinements:
        quantizer = ResidualQuantizer(least_squares(vectors, codes, config.sizes), router, config.beam)
    return quantizer, quantizer.encode(vectors, guide)


def least_squares(vectors: np.ndarray, codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The codebooks whose sums are nearest to the vectors, given their codes.

    Args:
        vectors: (items, dimensions).
        codes: (items, levels).

    Returns:
        per level (size, dimensions) float32; a code that no item has gets the zero vector.
    """
    edges = np.cumsum([0, *sizes])
    items, levels = codes.shape
    columns = (codes + edges[:-1]).ravel()
    # A vector is the sum of its codes' centroids: vectors = uses @ centroids, solved by the normal equations.
    uses = sp.csr_matrix((np.ones(items * levels), (np.repeat(np.arange(items), levels), columns)), (items, edges[-1]))
    normal = (uses.T @ uses).toarray() + _RIDGE * np.eye(edges[-1])
    centroids = np.linalg.solve(normal, uses.T @ vectors.astype(np.float64)).astype(np.float32)
    return tuple(centroids[low:high] for low, high in pairwise(edges))
