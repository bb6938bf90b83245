"""Semantic IDs that come with the raw files, such as the `*.index.json` of the released code and of LETTER."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minionerec.data.dataset import Dataset
from minionerec.errors import CatalogError
from minionerec.sid.collisions import Collisions, Sid, occupy, own_last_codes
from minionerec.sid.diagnose import shared_codes
from minionerec.sid.index import MOST_CODES, SidIndex, parse_token, token_string

_MOST_CODES = 65_536  # of a level in any catalog
_CODES_PER_ITEM = 4  # a level of a large catalog may have more: a code of its own for each item, with gaps
_MOST_LEVELS = 26  # named a to z


def index_of_tokens(tokens: Sequence[Sequence[str]], dataset: Dataset) -> SidIndex:
    """An index of given SIDs, without codebooks. A level has as many codes as its largest code needs.

    Args:
        tokens: per item the tokens of its SID, in the order of the catalog.
        dataset: that the SIDs belong to.

    Raises:
        CatalogError: a token is not a code of its level (`<a_N>` at the first, `<b_N>` at the second), or its number is far
            above the number of items.
    """
    levels = max(map(len, tokens))
    codes = np.full((len(tokens), levels), -1, dtype=np.int32)
    for item, sid in enumerate(tokens):
        for level, token in enumerate(sid):
            parsed = parse_token(token)
            if parsed is None or parsed[0] != level:
                expected = token_string(level, 0)
                raise CatalogError(
                    f"Item {item}: token {level + 1} of its SID is {token!r}, expected one like {expected}, its number "
                    f"below {MOST_CODES:,}."
                )
            codes[item, level] = parsed[1]
    most = max(_MOST_CODES, _CODES_PER_ITEM * len(tokens))
    for level, largest in enumerate(codes.max(axis=0).tolist()):
        if largest >= most:
            item = int(codes[:, level].argmax())
            raise CatalogError(
                f"Item {item}: {token_string(level, largest)} asks for {largest + 1:,} tokens at level {level + 1}, as each "
                f"code below becomes a token too; for {len(tokens):,} items expected codes below {most:,}. Count from 0."
            )
    return SidIndex(codes, tuple(int(column.max()) + 1 for column in codes.T), dataset.digest, encoder="shipped")


def separate(index: SidIndex, method: Collisions) -> SidIndex:
    """Resolve the collisions of given SIDs.

    There are neither vectors nor centroids that could say which item fits a SID best, so the catalog's order decides: of the
    items that share a SID the first keeps it.

    Args:
        index: the SIDs as they were given.
        method: `keep` changes nothing. `nearest-free` moves each further item to the free last code under the same prefix whose
            number is nearest to that of the shared one, the lower of two. `suffix` gives every item that shares a SID a further
            code, in the order of the catalog. `item` puts the item's number in the place of everybody's last code.

    Returns:
        an index with a SID of its own for every item, unless `keep`; `index` itself if nothing changes.

    Raises:
        CatalogError: `nearest-free`, and no code is free under a prefix; `suffix`, and SIDs would have more than 26 levels;
            `item`, and SIDs differ in length or there are more items than codes a level may have.
    """
    if method == "keep":
        return index
    if method == "item":
        return _own_last_codes(index)
    sids: list[Sid] = [tuple(code for code in codes if code >= 0) for codes in index.codes.tolist()]
    used: Counter[Sid] = Counter()
    for sid in set(sids):
        occupy(sid, used)
    if len(set(sids)) == len(sids):
        return index
    separated = _add_suffixes(sids, used) if method == "suffix" else _move_surplus(sids, used, index.codebook_sizes)
    levels = max(index.levels, max(map(len, separated)))
    if levels > _MOST_LEVELS:
        raise CatalogError(
            f"With a suffix SIDs would have {levels} levels; they are named a to z. Use --sid.collisions nearest-free or keep."
        )
    codes = np.full((len(sids), levels), -1, dtype=np.int32)
    for item, sid in enumerate(separated):
        codes[item, : len(sid)] = sid
    given = (*index.codebook_sizes, 0)  # a suffix level has as many codes as the largest group of items needs
    sizes = tuple(max(size, largest + 1) for size, largest in zip(given, codes.max(axis=0).tolist(), strict=False))
    return replace(index, codes=codes, codebook_sizes=sizes)


def separation(given: SidIndex, separated: SidIndex) -> dict[str, Any]:
    """What `separate` changed.

    Returns:
        `items`; `moved_items`, those whose SID is not the given one; `collision_rate_before` (share of items whose given SID
        another item has too) and `largest_group_before` (items with one given SID).
    """
    before = shared_codes(given.codes)
    moved = sum(given.tokens(item) != separated.tokens(item) for item in range(len(given.codes)))
    return {
        "items": before["items"],
        "moved_items": moved,
        "collision_rate_before": before["collision_rate"],
        "largest_group_before": before["largest_group"],
    }


def _move_surplus(sids: Sequence[Sid], used: Counter[Sid], sizes: Sequence[int]) -> list[Sid]:
    """SIDs of which no two are equal; `used` counts those below each prefix."""
    keepers: dict[Sid, int] = {}
    separated = []
    for item, sid in enumerate(sids):
        if keepers.setdefault(sid, item) != item:
            *prefix, shared = sid
            size = sizes[len(prefix)]
            by_nearness = (code for step in range(1, size) for code in (shared - step, shared + step) if 0 <= code < size)
            code = next((code for code in by_nearness if not used[(*prefix, code)]), None)
            if code is None:
                tokens = [token_string(level, code) for level, code in enumerate(sid)]
                raise CatalogError(
                    f"Items {keepers[sid]} and {item} share the SID {''.join(tokens)}, but all {size:,} last codes under "
                    f"{''.join(tokens[:-1]) or 'the root'} are taken. Use --sid.collisions suffix, which adds a code to both, "
                    "or keep, which lets them share."
                )
            sid = (*prefix, code)
            occupy(sid, used)
        separated.append(sid)
    return separated


def _add_suffixes(sids: Sequence[Sid], used: Counter[Sid]) -> list[Sid]:
    """SIDs with a further code for all that share one. `used` counts SIDs below each prefix: a short one may have some."""
    sharing, taken = Counter(sids), Counter[Sid]()
    separated = []
    for sid in sids:
        if sharing[sid] > 1:
            code = next(code for code in itertools.count(taken[sid]) if not used[(*sid, code)])
            taken[sid] = code + 1
            sid = (*sid, code)
        separated.append(sid)
    return separated


def _own_last_codes(index: SidIndex) -> SidIndex:
    short = np.flatnonzero(index.codes[:, -1] < 0)
    if len(short):
        item = int(short[0])
        raise CatalogError(
            f"Item {item}: its SID {index.text(item)} has fewer levels than others', so its last code says more than an item's "
            "number can. Use --sid.collisions nearest-free or suffix."
        )
    codes = own_last_codes(index.codes)
    return replace(index, codes=codes, codebook_sizes=(*index.codebook_sizes[:-1], len(codes)))
