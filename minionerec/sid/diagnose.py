"""Figures about an index: collisions, use and balance of the codebooks, how well SIDs reflect vectors and clicks."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import xlogy

from minionerec.sid.codebooks import Quantizer

ERROR = "reconstruction_error"  # in the manifest, see `diagnose`
_NEIGHBOURS = 10
_QUERIES = 5000  # items whose neighbours are searched, evenly spaced in a larger catalog
_BLOCK = 512  # queries at once
_DEPTHS = (1, 2)  # leading codes that are compared


def diagnose(
    codes_before: np.ndarray,
    codes: np.ndarray,
    vectors: np.ndarray,
    quantizer: Quantizer,
    pairs: np.ndarray,
    own_last: bool = False,
) -> dict[str, Any]:
    """Measure an index before and after collisions were resolved.

    Args:
        codes_before: (items, levels), as quantised.
        codes: (items, levels), as they are used; one level more with a suffix.
        vectors: (items, dimensions).
        pairs: (pairs, 2) items that users took one after the other.
        own_last: the last codes are the items' numbers, which describe nothing: they are left out of `reconstruction_error` and
            `moved`.

    Returns:
        Plain numbers: `items`; `collision_rate_before`, `collision_rate` (share of items whose SID another item has too);
        `reconstruction_error_before`, `reconstruction_error` (squared distance of the vectors to what their codes stand for,
        relative to that to their mean: 0 is exact, 1 no better than the mean); `moved` (share of items whose SID was
        changed); `largest_group_before`, `largest_group` (items with one SID); `distinct_vectors`; and the figures of
        `structure`.
    """
    levels = codes_before.shape[1] - own_last
    groups_before, shared = _group_sizes(codes_before), shared_codes(codes)
    return {
        "items": len(codes),
        "collision_rate_before": float(np.mean(groups_before > 1)),
        "collision_rate": shared["collision_rate"],
        "reconstruction_error_before": relative_error(vectors, codes_before, quantizer),
        ERROR: relative_error(vectors, codes[:, :levels], quantizer),
        "moved": float(np.mean((codes_before[:, :levels] != codes[:, :levels]).any(axis=1))),
        "largest_group_before": int(groups_before.max()),
        "largest_group": shared["largest_group"],
        "distinct_vectors": _distinct_rows(vectors),
    } | structure(codes, vectors, pairs, quantizer.codebook_sizes[:levels])


def shared_codes(codes: np.ndarray) -> dict[str, Any]:
    """`items`, `collision_rate` and `largest_group` of codes, as `diagnose` describes them."""
    groups = _group_sizes(codes)
    return {"items": len(codes), "collision_rate": float(np.mean(groups > 1)), "largest_group": int(groups.max())}


def structure(
    codes: np.ndarray, vectors: np.ndarray | None, pairs: np.ndarray, sizes: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Figures that need codes but no quantizer, so that SIDs from elsewhere can be measured on the same vectors and clicks.

    Args:
        codes: (items, levels), -1 for no code.
        vectors: (items, dimensions); None leaves the neighbours out.
        sizes: codes per level; None takes the codes that occur.

    Returns:
        per level `codes_used`, `perplexity` (exp of the entropy of code use, at most the codebook size), `balance` (perplexity
        over the codebook size: 1 is even) and `next_entropy` (entropy in bits of this level's code, given all codes before
        it); for the first and the first two codes `neighbours_1`, `neighbours_2` (share of an item's 10 nearest text
        neighbours that have them too), `copurchase_1`, `copurchase_2` (share of the pairs that share them; absent without
        pairs) and `chance_1`, `chance_2` (the same share for two items drawn at random).
    """
    figures: dict[str, Any] = {"codes_used": [], "perplexity": [], "balance": [], "next_entropy": []}
    for level in range(codes.shape[1]):
        present = codes[:, level] >= 0
        counts = np.unique(codes[present, level], return_counts=True)[1]
        size = sizes[level] if sizes and level < len(sizes) else int(codes[:, level].max()) + 1
        figures["codes_used"].append(len(counts))
        figures["perplexity"].append(perplexity(counts))
        figures["balance"].append(perplexity(counts) / size)
        figures["next_entropy"].append(_entropy(codes[present, : level + 1]) - _entropy(codes[present, :level]))
    queries, neighbours = nearest_neighbours(vectors) if vectors is not None else (None, None)
    for depth in _DEPTHS[: codes.shape[1]]:
        prefix = _prefix_numbers(codes[:, :depth])
        if queries is not None:
            figures[f"neighbours_{depth}"] = float(np.mean(prefix[queries][:, None] == prefix[neighbours]))
        if len(pairs):
            figures[f"copurchase_{depth}"] = float(np.mean(prefix[pairs[:, 0]] == prefix[pairs[:, 1]]))
        share = np.bincount(prefix) / len(prefix)
        figures[f"chance_{depth}"] = float((share**2).sum())
    return figures


def nearest_neighbours(vectors: np.ndarray, count: int = _NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other items by cosine similarity.

    Returns:
        queries (queries,): the items whose neighbours follow, all of a small catalog; neighbours (queries, up to count),
        nearest first.
    """
    items = len(vectors)
    queries = np.unique(np.linspace(0, items - 1, min(items, _QUERIES)).round().astype(np.int64))
    count = min(count, items - 1)
    best = np.full((len(queries), count), -np.inf)
    neighbours = np.zeros((len(queries), count), dtype=np.int64)
    query_vectors = _unit(vectors[queries])
    for start in range(0, items, 65536):  # the catalog may be memory-mapped
        block = _unit(vectors[start : start + 65536])
        for low in range(0, len(queries), _BLOCK):
            part = slice(low, low + _BLOCK)
            scores = query_vectors[part] @ block.T
            columns = queries[part] - start  # of the queries themselves, which are no neighbours
            inside = (columns >= 0) & (columns < len(block))
            scores[np.flatnonzero(inside), columns[inside]] = -np.inf
            numbers = np.broadcast_to(np.arange(start, start + len(block)), scores.shape)
            scores, numbers = np.hstack([best[part], scores]), np.hstack([neighbours[part], numbers])
            top = _highest(scores, count)
            best[part], neighbours[part] = np.take_along_axis(scores, top, 1), np.take_along_axis(numbers, top, 1)
    return queries, neighbours


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """The columns of the highest scores of each row, highest first, of equal ones the first: (rows, count).

    Only what reaches the count-th highest score is sorted.
    """
    least = np.partition(scores, -count, axis=1)[:, -count]
    rows, columns = np.nonzero(scores >= least[:, None])
    order = np.lexsort((columns, -scores[rows, columns], rows))
    begins = np.searchsorted(rows, np.arange(len(scores)))
    return columns[order][begins[:, None] + np.arange(count)]


def perplexity(counts: np.ndarray) -> float:
    """Exponential of the entropy of the codes' frequencies: this many evenly used codes would spread the items as well.

    Args:
        counts: items per code; codes with 0 do not matter.
    """
    share = counts / counts.sum()
    return float(np.exp(-xlogy(share, share).sum()))


def relative_error(
    vectors: np.ndarray, codes: np.ndarray, quantizer: Quantizer, rows: np.ndarray | None = None, block: int = 65536
) -> float:
    """Squared distance of vectors to what their codes stand for, relative to that to their mean.

    Args:
        vectors: (all items, dimensions), read block by block.
        codes: (items, levels).
        rows: (items,) the rows of `vectors` that the codes are of; None for all, in their order.
    """
    places = np.arange(len(vectors)) if rows is None else rows

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(places), block):
            yield start, np.asarray(vectors[places[start : start + block]], dtype=np.float64)

    mean = sum(part.sum(axis=0) for _, part in blocks()) / max(len(places), 1)
    variance = error = 0.0
    for start, part in blocks():
        variance += float(((part - mean) ** 2).sum())
        error += float(((part - quantizer.decode(codes[start : start + block])) ** 2).sum())
    return error / variance if variance else 0.0


def _group_sizes(codes: np.ndarray) -> np.ndarray:
    """Per item, how many items have its SID: (items,)."""
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return counts[group]


def _distinct_rows(vectors: np.ndarray) -> int:
    digests = np.empty((len(vectors), 2), np.uint64)  # in place of the rows, which may be larger than the memory
    for number, row in enumerate(vectors):
        digests[number] = np.frombuffer(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), np.uint64)
    return len(np.unique(digests, axis=0))


def _prefix_numbers(codes: np.ndarray) -> np.ndarray:
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def _entropy(codes: np.ndarray) -> float:
    """Entropy in bits of the rows."""
    if not codes.size:
        return 0.0
    return float(np.log2(perplexity(np.bincount(_prefix_numbers(codes)))))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
