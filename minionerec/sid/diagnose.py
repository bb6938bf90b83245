"""Figures about an index: collisions, use of the codebooks, and how much of the vectors the SIDs keep."""

from typing import Any

import numpy as np

from minionerec.sid.quantize import ResidualQuantizer


def diagnose(codes_before: np.ndarray, codes: np.ndarray, vectors: np.ndarray, quantizer: ResidualQuantizer) -> dict[str, Any]:
    """Measure an index before and after collisions were resolved.

    Args:
        codes_before: (items, levels), as quantised.
        codes: (items, levels), as they are used.
        vectors: (items, dimensions).

    Returns:
        Plain numbers: `items`; `collision_rate_before`, `collision_rate` (share of items whose SID another item has too);
        `largest_group_before`, `largest_group` (items with one SID); `moved` (share of items whose SID was changed);
        `codes_used`, `perplexity` (per level, of `codes`; the perplexity is exp of the code frequencies' entropy, at most
        the codebook size); `reconstruction_error_before`, `reconstruction_error` (squared distance of the vectors to the sum
        of their codes' centroids, relative to that to their mean: 0 is exact, 1 no better than the mean).
    """
    groups_before, groups = _group_sizes(codes_before), _group_sizes(codes)
    columns = [np.unique(column, return_counts=True)[1] for column in codes.T]
    return {
        "items": len(codes),
        "collision_rate_before": float(np.mean(groups_before > 1)),
        "collision_rate": float(np.mean(groups > 1)),
        "largest_group_before": int(groups_before.max()),
        "largest_group": int(groups.max()),
        "moved": float(np.mean((codes_before != codes).any(axis=1))),
        "codes_used": [len(counts) for counts in columns],
        "perplexity": [perplexity(counts) for counts in columns],
        "reconstruction_error_before": _relative_error(vectors, quantizer.decode(codes_before)),
        "reconstruction_error": _relative_error(vectors, quantizer.decode(codes)),
    }


def _group_sizes(codes: np.ndarray) -> np.ndarray:
    """Per item, how many items have its SID: (items,)."""
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return counts[group]


def perplexity(counts: np.ndarray) -> float:
    """Exponential of the entropy of the codes' frequencies: that many codes, evenly used, would spread the items as well.

    Args:
        counts: items per used code, none of them 0.
    """
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _relative_error(vectors: np.ndarray, approximation: np.ndarray) -> float:
    spread = float(((vectors - vectors.mean(axis=0, dtype=np.float64)) ** 2).sum())
    error = float(((vectors - approximation) ** 2).sum())
    return error / spread if spread else 0.0
