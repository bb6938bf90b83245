"""Hit rate, NDCG and MRR of 0-based ranks: one target per row, infinity for a miss."""

from collections.abc import Sequence

import numpy as np

from minionerec.config import CUTOFFS


def _tied(ranks: np.ndarray, k: int, ties: np.ndarray | float, gain: np.ndarray) -> np.ndarray:
    """Mean gain over tied ranks.

    Args:
        ranks: (rows,) the best of each row's tied ranks.
        k: the cut-off; a rank from k on gains nothing.
        ties: (rows,) or a number: how many ranks are tied.
        gain: (k,) what each of the first k ranks is worth.
    """
    sums = np.concatenate(
        [[0.0], gain.cumsum()]
    )  # the gain of ranks from a to b is sums[b] - sums[a], without a loop over ties
    ranks = np.asarray(ranks, dtype=float)
    first = np.where((ranks >= 0) & (ranks < k), ranks, k).astype(int)
    last = np.minimum(first + np.asarray(ties), k).astype(int)
    return (sums[last] - sums[first]) / ties


def hits(ranks: np.ndarray, k: int, ties: np.ndarray | float = 1) -> np.ndarray:
    """1.0 if the target is among the first k, else 0.0, (rows,); with ties, the share of the tied ranks below k.

    A k beyond the list's length asks whether the target is anywhere in the list. A negative rank is a miss, as infinity is.
    """
    return _tied(ranks, k, ties, np.ones(k))


def gains(ranks: np.ndarray, k: int, ties: np.ndarray | float = 1) -> np.ndarray:
    """NDCG@k per example, (rows,): 1 / log2(rank + 2) if the target is among the first k, else 0; the mean over ties.

    With one target per example the ideal gain is 1, so there is nothing to normalise.
    """
    return _tied(ranks, k, ties, 1 / np.log2(np.arange(k) + 2.0))


def reciprocals(ranks: np.ndarray, k: int, ties: np.ndarray | float = 1) -> np.ndarray:
    """Reciprocal rank per example, (rows,): 1 / (rank + 1) among the first k, else 0; the mean over ties."""
    return _tied(ranks, k, ties, 1 / np.arange(1.0, k + 1))


def hit_rate(ranks: np.ndarray, k: int) -> float:
    """HR@k: share of examples whose target is among the first k."""
    return float(hits(ranks, k).mean())


def ndcg(ranks: np.ndarray, k: int) -> float:
    """NDCG@k: mean over examples of `gains`."""
    return float(gains(ranks, k).mean())


def mrr(ranks: np.ndarray, k: int) -> float:
    """MRR@k: mean over examples of `reciprocals`."""
    return float(reciprocals(ranks, k).mean())


_FAMILIES = {"HR": hits, "NDCG": gains, "MRR": reciprocals}


def per_user(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS, ties: np.ndarray | float = 1) -> dict[str, np.ndarray]:
    """Each metric's value per example, (rows,), by name: all `HR@k`, then all `NDCG@k`, then all `MRR@k`."""
    return {f"{family}@{k}": metric(ranks, k, ties) for family, metric in _FAMILIES.items() for k in cutoffs}
