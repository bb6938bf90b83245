"""Collisions: give every item its own SID, at the least cost and under its own prefix where there is room."""

import math
from collections import Counter, defaultdict
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from minionerec.errors import CatalogError
from minionerec.sid.quantize import ResidualQuantizer

Sid = tuple[int, ...]


def resolve(
    codes: np.ndarray, vectors: np.ndarray, quantizer: ResidualQuantizer, method: Literal["nearest-free", "keep"]
) -> np.ndarray:
    """Resolve the collisions of a catalogue.

    `keep` changes nothing. `nearest-free` moves only items that share a SID. Of each such set the item nearest to the SID's
    centroids keeps it. The others stay under their prefix (all codes but the last): together they get those of its free
    last codes whose total squared distance is least. Where a prefix runs full, the rest leave it one by one: each is
    encoded again level by level, always with the nearest code that still has a free SID under it, so it keeps as many
    leading codes as possible. Ties go by the vectors' bytes, then by item index: as long as vectors differ, the order of
    items does not matter.

    Re-assigning colliding items at the last level follows LC-Rec's uniform semantic mapping (arXiv 2311.09049), with one
    exact linear assignment per prefix in place of Sinkhorn's approximation.

    Args:
        codes: (items, levels) int32, as `quantizer.encode(vectors)` gives them.
        vectors: (items, dimensions).

    Returns:
        codes (items, levels) int32; with `nearest-free` no two rows are equal.

    Raises:
        CatalogError: there are more items than SIDs.
    """
    if method == "keep":
        return codes
    sizes = quantizer.codebook_sizes
    if len(codes) > math.prod(sizes):
        raise CatalogError(
            f"{len(codes):,} items, but codebooks of {' x '.join(map(str, sizes))} make only {math.prod(sizes):,} semantic "
            "IDs. Raise sid.codebook_size or sid.levels, or let items share with --sid.collisions keep."
        )
    sids, sid_of, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    used = Counter(tuple(sid[:length]) for sid in sids.tolist() for length in range(1, len(sizes) + 1))
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
            _occupy((*prefix, code), used)
        homeless += left
    for item in homeless:
        sid = _nearest_free(vectors[item], quantizer, used)
        resolved[item] = sid
        _occupy(sid, used)
    return resolved


def _place(
    prefix: Sid,
    members: list[int],
    codes: np.ndarray,
    vectors: np.ndarray,
    quantizer: ResidualQuantizer,
    used: Counter[Sid],
) -> tuple[dict[int, int], list[int]]:
    """New last codes for the members of a prefix that must move, and the members for whom none is left."""
    distances = quantizer.distances(vectors[members], codes[members, :-1])  # (members, last codebook)
    own = codes[members, -1]
    by_nearness = np.argsort(distances[np.arange(len(members)), own], kind="stable")
    keepers = {own[row]: row for row in by_nearness[::-1]}  # the nearest is written last
    movers = [row for row in range(len(members)) if keepers[own[row]] != row]
    free = [code for code in range(distances.shape[1]) if not used[(*prefix, code)]]
    rows, columns = linear_sum_assignment(distances[np.ix_(movers, free)])
    placed = {members[movers[row]]: free[column] for row, column in zip(rows, columns, strict=True)}
    return placed, [members[row] for row in movers if members[row] not in placed]


def _nearest_free(vector: np.ndarray, quantizer: ResidualQuantizer, used: Counter[Sid]) -> Sid:
    sizes = quantizer.codebook_sizes
    sid: Sid = ()
    for level in range(len(sizes)):
        room = math.prod(sizes[level + 1 :])  # SIDs under one code of this level
        distances = quantizer.distances(vector[None], np.array([sid], dtype=np.int64).reshape(1, level))[0]
        sid = next((*sid, code) for code in np.argsort(distances, kind="stable").tolist() if used[(*sid, code)] < room)
    return sid


def _occupy(sid: Sid, used: Counter[Sid]) -> None:
    used.update(sid[:length] for length in range(1, len(sid) + 1))
