"""Residual k-means: level by level, each clustering the residuals that the levels before leave."""

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from minionerec.config import SidConfig, SidMethod
from minionerec.errors import ConfigError
from minionerec.sid.codebooks import ResidualQuantizer, nearest, squared_distances

Clustering = Callable[[np.ndarray, int, int, int], tuple[np.ndarray, np.ndarray]]  # see `kmeans`
_SMALL = 20_000  # points; up to here scikit-learn's k-means++ takes seconds
_STARTS = 128  # divided by the codebook size: small codebooks depend more on their start, and several starts cost little
_TEMPERATURE = 0.05  # of Sinkhorn, in mean squared distances; from 0.01 to 0.1 sizes stay even and the error low
_SINKHORN_STEPS = 20
_BALANCED_ITERATIONS = 15


def kmeans(points: np.ndarray, size: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain k-means: scikit-learn's with k-means++ start for small sets, faiss's for large ones.

    If there are at most `size` distinct points, these are the centroids; the remaining codes stay unused, with zero vectors.

    Args:
        points: (points, dimensions) float32.
        size: of the codebook.
        iterations: Lloyd iterations, at most.
        seed: of the starts.

    Returns:
        centroids (size, dimensions) float32, and the nearest centroid of each point (points,).
    """
    if len(points) > _SMALL:
        return faiss_kmeans(points, size, iterations, seed)
    few = _distinct(points, size)
    if few is not None:
        return few
    starts = max(1, _STARTS // size)
    model = KMeans(size, init="k-means++", n_init=starts, max_iter=iterations, random_state=seed)
    # scikit-learn warns if nearly equal residuals lead to equal centroids: nothing that the user could change.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        centroids = model.fit(points).cluster_centers_.astype(np.float32)
    return centroids, nearest(points, centroids)


def faiss_kmeans(points: np.ndarray, size: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means by faiss, several times faster on large sets than scikit-learn's; arguments and result as for `kmeans`.

    Its start approximates k-means++ by Markov chains (AFK-MC2, Bachem et al. 2016) at the price of a random start.
    """
    import faiss

    points = np.ascontiguousarray(points, dtype=np.float32)
    model = faiss.Kmeans(
        points.shape[1],
        size,
        niter=iterations,
        seed=seed % 2**31,
        max_points_per_centroid=len(points),
        min_points_per_centroid=1,
        init_method=faiss.ClusteringInitMethod_AFK_MC2,
    )
    model.train(points)
    centroids = np.asarray(model.centroids, dtype=np.float32).reshape(size, -1)
    return centroids, model.index.search(points, 1)[1][:, 0]


def sinkhorn_kmeans(points: np.ndarray, size: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means whose clusters hold about equally many points; arguments and result as for `kmeans`.

    Each round assigns by an entropy-regularised transport plan with equal column sums (Cuturi 2013, as in SwAV and LC-Rec's
    uniform semantic mapping, arXiv 2311.09049), every point to the code with the largest share of it.
    """
    few = _distinct(points, size)
    if few is not None:
        return few
    centroids, labels = kmeans(points, size, min(iterations, 20), seed)
    for _ in range(_BALANCED_ITERATIONS):
        labels = balanced_labels(squared_distances(points, centroids))
        centroids = cluster_means(points, labels, centroids)
    return centroids, labels


def balanced_labels(distances: np.ndarray, temperature: float = _TEMPERATURE, steps: int = _SINKHORN_STEPS) -> np.ndarray:
    """Labels (points,) of evenly filled clusters, from squared distances (points, clusters).

    Args:
        temperature: of the plan, in mean distances.
    """
    distances = distances - distances.min(axis=1, keepdims=True)
    scale = temperature * float(distances.mean())
    if scale == 0:  # all points lie on all centroids
        return np.arange(len(distances)) % distances.shape[1]
    plan = np.exp(-distances / scale)
    columns = np.ones(distances.shape[1])
    for _ in range(steps):
        rows = 1 / np.maximum(plan @ columns, 1e-300)
        columns = len(distances) / distances.shape[1] / np.maximum(rows @ plan, 1e-300)
    return (plan * columns).argmax(axis=1)


def constrained_kmeans(points: np.ndarray, size: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means with cluster sizes within one of their mean, solved exactly: the released code's constrained RQ-KMeans.

    Raises:
        ConfigError: the package k-means-constrained is not installed.
    """
    few = _distinct(points, size)
    if few is not None:
        return few
    try:
        from k_means_constrained import KMeansConstrained
    except ModuleNotFoundError:
        raise ConfigError(
            "sid.method rq-kmeans-constrained needs the package k-means-constrained: pip install 'minionerec[balanced]', or "
            "choose --sid.method rq-kmeans-sinkhorn."
        ) from None
    even = len(points) // size
    model = KMeansConstrained(
        size, size_min=max(1, even - 1), size_max=even + 1, n_init=1, max_iter=min(iterations, 10), random_state=seed, n_jobs=1
    )
    labels = model.fit_predict(points.astype(np.float64))
    return model.cluster_centers_.astype(np.float32), labels.astype(np.int64)


CLUSTERINGS: dict[SidMethod, Clustering] = {
    "rq-kmeans": kmeans,
    "rq-kmeans-sinkhorn": sinkhorn_kmeans,
    "rq-kmeans-constrained": constrained_kmeans,
}


def fit_residual(
    vectors: np.ndarray, guide: np.ndarray, config: SidConfig, seed: int
) -> tuple[ResidualQuantizer, np.ndarray | None]:
    """Residual quantisation (Chen, Guan & Wang, Sensors 2010) with k-means codebooks: OneRec's RQ-KMeans (arXiv 2502.18965).

    Args:
        vectors: (items, dimensions) float32.
        guide: what level 1 clusters, same shape.

    Returns:
        the quantizer, and the balanced codes (items, levels) of a balancing method.
    """
    quantizer, codes = fit_levels(vectors, guide, config.sizes, [CLUSTERINGS[config.method]], config.iterations, seed)
    return quantizer, None if config.method == "rq-kmeans" else codes


def fit_levels(
    vectors: np.ndarray, guide: np.ndarray, sizes: tuple[int, ...], clusterings: list[Clustering], iterations: int, seed: int
) -> tuple[ResidualQuantizer, np.ndarray]:
    """Codebooks level by level.

    Args:
        clusterings: one per level; the last one also serves the levels after it.

    Returns:
        the quantizer, and the codes (items, levels) that the clusterings chose.
    """
    residual = vectors.astype(np.float32)
    codebooks, columns, router = [], [], None
    for level, size in enumerate(sizes):
        clustering = clusterings[min(level, len(clusterings) - 1)]
        guided = level == 0 and guide is not vectors
        centroids, labels = clustering(guide if guided else residual, size, iterations, _seed(seed, level))
        if guided:
            router, centroids = centroids, cluster_means(residual, labels, np.zeros_like(centroids))
        codebooks.append(centroids)
        columns.append(labels)
        residual = residual - centroids[labels]
    return ResidualQuantizer(tuple(codebooks), router), np.column_stack(columns)


def cluster_means(points: np.ndarray, labels: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Mean point of each label; the row of `empty`, (clusters, dimensions), for a label that no point has."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    means = empty.astype(np.float32)
    counts = np.diff(np.append(starts, len(labels)))
    means[present] = np.add.reduceat(points[order].astype(np.float64), starts, axis=0) / counts[:, None]
    return means


def _seed(seed: int, level: int) -> int:
    return int(np.random.SeedSequence([seed, level]).generate_state(1)[0])


def _distinct(points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Centroids and labels of a set with at most `size` distinct points; None if it has more."""
    if len(points) > _SMALL:
        return None
    distinct, labels = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) > size:
        return None
    centroids = np.zeros((size, points.shape[1]), dtype=np.float32)
    centroids[: len(distinct)] = distinct
    return centroids, labels.reshape(-1)
