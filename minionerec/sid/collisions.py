"""Collisions: what happens to items that share a SID. All are deterministic; only `item` depends on the items' order."""

import math
from collections import Counter, defaultdict
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from minionerec.errors import CatalogError
from minionerec.sid.codebooks import Quantizer
from minionerec.sid.index import MOST_CODES
from minionerec.sid.residual import balanced_labels

Sid = tuple[int, ...]
Collisions = Literal["nearest-free", "sinkhorn", "suffix", "item", "keep"]
_ROUNDS = 20  # of `sinkhorn`, as in the released code


def resolve(codes: np.ndarray, vectors: np.ndarray, quantizer: Quantizer, method: Collisions) -> np.ndarray:
    """Resolve the collisions of a catalog.

    Args:
        codes: (items, levels) int32, as quantised.
        vectors: (items, dimensions).
        quantizer: which made the codes.
        method: `keep` changes nothing; the functions `nearest_free`, `sinkhorn`, `suffix` and `own_last_codes` (`item`)
            describe the other four.

    Returns:
        codes (items, levels) int32; with `suffix` and at least one collision (items, levels + 1), -1 if an item needs none.

    Raises:
        CatalogError: `nearest-free`, and there are more items than SIDs.
    """
    if method == "keep":
        return codes
    if method == "suffix":
        return suffix(codes, vectors, quantizer)
    if method == "item":
        return own_last_codes(codes)
    if method == "sinkhorn":
        return sinkhorn(codes, vectors, quantizer)
    return nearest_free(codes, vectors, quantizer)


def suffix(codes: np.ndarray, vectors: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """A further code for every member of a group that shares a SID, 0 for the nearest to its centroids; none for other items.

    TIGER (arXiv 2305.05065) and the released code's constrained RQ-KMeans do this. All members get a code, so that no SID is
    the beginning of another.

    Returns:
        (items, levels + 1) int32 with -1 for no code; `codes` itself if no SID is shared.
    """
    _, sid_of, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    colliding = np.flatnonzero(counts[sid_of] > 1)
    if not len(colliding):
        return codes
    errors = ((vectors[colliding] - quantizer.decode(codes[colliding])) ** 2).sum(axis=1)
    further = np.full((len(codes), 1), -1, dtype=np.int32)
    taken: Counter[int] = Counter()
    for _, _, item in sorted((error, vectors[item].tobytes(), item) for error, item in zip(errors, colliding, strict=True)):
        further[item] = taken[sid_of[item]]
        taken[sid_of[item]] += 1
    return np.concatenate([codes, further], axis=1)


def own_last_codes(codes: np.ndarray) -> np.ndarray:
    """Each item's number in the catalog in the place of its last code, so that its last token is its own.

    The codes before it still say what is alike. The last level has as many codes as there are items.

    Args:
        codes: (items, levels) int32, none of them -1.

    Raises:
        CatalogError: there are more items than codes that a level may have.
    """
    if len(codes) > MOST_CODES:
        raise CatalogError(
            f"{len(codes):,} items, but a level has {MOST_CODES:,} codes at most. Use --sid.collisions nearest-free."
        )
    return np.concatenate([codes[:, :-1], np.arange(len(codes), dtype=codes.dtype)[:, None]], axis=1)


def sinkhorn(codes: np.ndarray, vectors: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """The released code's re-assignment: each group that shares a SID spreads evenly over the last codes, up to 20 times.

    A group spreads without regard to the items that already have its new codes, so some items may still share a SID; the
    figures of `diagnose` say how many. From LC-Rec (arXiv 2311.09049).
    """
    codes = codes.copy()
    for _ in range(_ROUNDS):
        _, sid_of, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        groups = np.flatnonzero(counts > 1)
        if not len(groups):
            break
        for group in groups:
            members = sorted(np.flatnonzero(sid_of == group).tolist(), key=lambda item: (vectors[item].tobytes(), item))
            distances = quantizer.distances(vectors[members], codes[members, :-1])
            codes[members, -1] = balanced_labels(distances, temperature=0.003, steps=50)
    return codes


def nearest_free(codes: np.ndarray, vectors: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """Give every item a SID of its own, moving only items that share one.

    Of each such set the item nearest to the SID's centroids keeps it. The others stay under their prefix (all codes but the
    last): together they get the free last codes whose total squared distance is least. If a prefix runs full, the rest leave
    it one by one: each is encoded again level by level, always with the nearest code that still has a free SID under it, so it
    keeps as many leading codes as possible. Ties are broken by the vectors' bytes, then by item index: as long as vectors
    differ, the order of items does not matter.

    Re-assigning colliding items at the last level follows LC-Rec's uniform semantic mapping (arXiv 2311.09049), with one
    exact linear assignment per prefix in place of Sinkhorn's approximation.

    Returns:
        codes (items, levels) int32; no two rows are equal.

    Raises:
        CatalogError: there are more items than SIDs.
    """
    sizes = quantizer.codebook_sizes
    if len(codes) > math.prod(sizes):
        raise CatalogError(
            f"{len(codes):,} items, but codebooks of {' x '.join(map(str, sizes))} make only {math.prod(sizes):,} semantic "
            "IDs. Raise sid.codebook_size or sid.levels, or let items share with --sid.collisions keep."
        )
    sids, sid_of, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    used: Counter[Sid] = Counter()
    for sid in sids.tolist():
        occupy(tuple(sid), used)
    colliding = np.flatnonzero(counts[sid_of] > 1).tolist()
    groups: dict[Sid, list[int]] = defaultdict(list)
    for item in sorted(colliding, key=lambda item: (vectors[item].tobytes(), item)):
        groups[tuple(codes[item, :-1].tolist())].append(item)

    resolved = codes.copy()
    homeless: list[int] = []
    for prefix, members in sorted(groups.items()):
        placed, left = _place(prefix, members, codes, vectors, quantizer, used)
        for item, code in placed.items():
            resolved[item, -1] = code
            occupy((*prefix, code), used)
        homeless += left
    for item in homeless:
        free = nearest_unused(vectors[item], quantizer, used)
        resolved[item] = free
        occupy(free, used)
    return resolved


def _place(
    prefix: Sid,
    members: list[int],
    codes: np.ndarray,
    vectors: np.ndarray,
    quantizer: Quantizer,
    used: Counter[Sid],
) -> tuple[dict[int, int], list[int]]:
    """New last codes for the members of a prefix that must move, and the members for which no code is left."""
    distances = quantizer.distances(vectors[members], codes[members, :-1])  # (members, last codebook)
    last_codes = codes[members, -1]
    by_nearness = np.argsort(distances[np.arange(len(members)), last_codes], kind="stable")
    keepers = {last_codes[row]: row for row in by_nearness[::-1]}  # the nearest is written last
    movers = [row for row in range(len(members)) if keepers[last_codes[row]] != row]
    free = [code for code in range(distances.shape[1]) if not used[(*prefix, code)]]
    rows, columns = linear_sum_assignment(distances[np.ix_(movers, free)])
    placed = {members[movers[row]]: free[column] for row, column in zip(rows, columns, strict=True)}
    return placed, [members[row] for row in movers if members[row] not in placed]


def nearest_unused(vector: np.ndarray, quantizer: Quantizer, used: Counter[Sid]) -> Sid:
    """The free SID that keeps as many of a vector's nearest leading codes as possible.

    Args:
        vector: (dimensions,).
        used: SIDs in use below each prefix, the whole SIDs included.
    """
    sizes = quantizer.codebook_sizes
    sid: Sid = ()
    for level in range(len(sizes)):
        room = math.prod(sizes[level + 1 :])  # SIDs under one code of this level
        distances = quantizer.distances(vector[None], np.array([sid], dtype=np.int64).reshape(1, level))[0]
        sid = next((*sid, code) for code in np.argsort(distances, kind="stable").tolist() if used[(*sid, code)] < room)
    return sid


def occupy(sid: Sid, used: Counter[Sid]) -> None:
    """Count a SID as used, below all its prefixes."""
    used.update(sid[:length] for length in range(1, len(sid) + 1))
