"""A catalog's SIDs as the flat arrays of a trie: checked, extended by trailing tokens, sorted, cut into levels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minionerec.errors import CatalogError

NO_TOKEN = -1  # fills up a short SID


@dataclass(frozen=True)
class TrieArrays:
    """The arrays of `CatalogTrie`, which says what they hold."""

    tokens: list[np.ndarray]
    offsets: list[np.ndarray]
    alphabets: list[np.ndarray]
    leaf_of_item: np.ndarray
    prefixed: bool


def trie_arrays(matrix: np.ndarray, trailing: Sequence[int], vocabulary: int | None) -> TrieArrays:
    """Build the arrays, O(items log items). `CatalogTrie.from_codes` describes the arguments.

    Raises:
        CatalogError: the codes are no integer matrix or hold no item or level; a token id is negative or outside the
            vocabulary; or a token stands behind the end of a SID.
    """
    _check(matrix, trailing, vocabulary)
    if trailing:
        matrix = _append(matrix, trailing)
    sids, leaf_of_item = _sort_distinct(matrix)
    tokens, offsets = [], []
    # The sorted SIDs below one node are consecutive. So a level's nodes are where the node above or the token changes, and
    # counting the changes numbers them.
    parent_of_sid = np.zeros(len(sids), dtype=np.int64)
    parents = 1
    for level in range(sids.shape[1]):
        begins_node = np.ones(len(sids), dtype=bool)
        begins_node[1:] = (parent_of_sid[1:] != parent_of_sid[:-1]) | (sids[1:, level] != sids[:-1, level])
        tokens.append(sids[begins_node, level].astype(np.int32))
        offsets.append(np.searchsorted(parent_of_sid[begins_node], np.arange(parents + 1)).astype(np.int32))
        parent_of_sid = np.cumsum(begins_node) - 1
        parents = len(tokens[-1])
    prefixed = any(_ends_inside(below, edges) for below, edges in zip(tokens, offsets, strict=True))
    return TrieArrays(tokens, offsets, [_alphabet(level) for level in tokens], leaf_of_item.astype(np.int32), prefixed)


def _check(matrix: np.ndarray, trailing: Sequence[int], vocabulary: int | None) -> None:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise CatalogError(f"A trie needs token ids of shape (items, levels) with at least one of each; found {matrix.shape}.")
    if not np.issubdtype(matrix.dtype, np.integer):
        raise CatalogError(f"A trie needs integer token ids; found {matrix.dtype}.")
    if min(trailing, default=0) < 0:
        raise CatalogError(f"Trailing tokens must not be negative; found {min(trailing)}.")
    limit = np.iinfo(np.int32).max if vocabulary is None else vocabulary
    ended = matrix == NO_TOKEN
    for wrong, reason in (
        (matrix < NO_TOKEN, "which is negative"),
        (
            matrix >= limit,
            "which does not fit into 32 bits" if vocabulary is None else f"but the vocabulary has {limit} entries",
        ),
        (ended[:, :1], "which means that it has no SID at all"),
        (ended[:, :-1] & ~ended[:, 1:], f"but another token behind it: {NO_TOKEN} ends a SID"),
    ):
        if wrong.any():
            item, level = np.argwhere(wrong)[0]
            raise CatalogError(f"Item {item} has token id {matrix[item, level]} at level {level}, {reason}.")
    if max(trailing, default=0) >= limit:
        raise CatalogError(f"The trailing token id {max(trailing)} is outside the vocabulary of {limit} entries.")


def _append(matrix: np.ndarray, trailing: Sequence[int]) -> np.ndarray:
    """The matrix with the trailing tokens behind each SID's last token."""
    longer = np.full((len(matrix), matrix.shape[1] + len(trailing)), NO_TOKEN, dtype=np.int64)
    longer[:, : matrix.shape[1]] = matrix
    end = (matrix != NO_TOKEN).sum(1)
    for step, token in enumerate(trailing):
        longer[np.arange(len(matrix)), end + step] = token
    return longer


def _sort_distinct(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in lexicographic order, and which of them each row is."""
    low = matrix.min(axis=0).astype(np.int64)
    bits = [int(high - least).bit_length() for high, least in zip(matrix.max(axis=0), low, strict=True)]
    if sum(bits) > 63:
        sids, inverse = np.unique(matrix, axis=0, return_inverse=True)
        return sids, inverse.reshape(-1)
    # A row as one integer: sorting ten million takes a second, sorting rows a minute.
    key = np.zeros(len(matrix), dtype=np.int64)
    for column, least, width in zip(matrix.T, low, bits, strict=True):
        key = (key << width) | (column.astype(np.int64) - least)
    keys, inverse = np.unique(key, return_inverse=True)
    sids = np.empty((len(keys), matrix.shape[1]), dtype=np.int32)
    for level in reversed(range(matrix.shape[1])):
        sids[:, level] = (keys & ((1 << bits[level]) - 1)) + low[level]
        keys >>= bits[level]
    return sids, inverse


def _alphabet(tokens: np.ndarray) -> np.ndarray:
    """The distinct tokens of a level, without the end mark."""
    few = tokens.max() < 1 << 22  # counting takes 8 bytes per possible id, 32 MB here; sorting is slower but has no such limit
    distinct = np.flatnonzero(np.bincount(tokens + 1)) - 1 if few else np.unique(tokens).astype(np.int64)
    return distinct[distinct != NO_TOKEN]


def _ends_inside(tokens: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether a parent has both the end of a SID and longer SIDs below it."""
    return bool(((tokens[offsets[:-1]] == NO_TOKEN) & (np.diff(offsets) > 1)).any())
