"""CatalogTrie: the set of valid SIDs as flat sorted arrays, one compressed row layout (CSR) per level."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minionerec.errors import ArtifactError, CatalogError, ConstraintError

NO_TOKEN = -1
_FORMAT = "minionerec-trie-1"


def without_padding(sid: torch.Tensor | Sequence[int]) -> list[int]:
    """The token ids of one SID without the `NO_TOKEN` that fills up a short one.

    >>> without_padding(torch.tensor([17, 203, NO_TOKEN]))
    [17, 203]

    Args:
        sid: (levels,), such as a row of `CatalogTrie.sids` or of `BeamResult.tokens`.
    """
    tokens = sid.tolist() if isinstance(sid, torch.Tensor) else sid
    return [token for token in tokens if token != NO_TOKEN]


@dataclass(frozen=True)
class CatalogTrie:
    """The valid SIDs as a trie of token ids.

    Nodes of a level are numbered in lexicographic order of their paths, so the children of a node are consecutive and a
    leaf's number is its SID's row in `sids`. A SID shorter than the others goes on with `NO_TOKEN`, which costs nothing. A
    node takes 4 bytes for its token and, unless it is a leaf, 4 for its children; an item takes 4 for its leaf, a distinct
    token of a level 8.

    Attributes:
        tokens: per level, (nodes of that level,) int32: the token that leads to each node.
        offsets: per level, (nodes of the level above + 1,) int32: where each parent's children begin; the root is the one
            node above level 0.
        alphabets: per level, the distinct tokens, sorted, int64.
        leaf_of_item: (items,) int32.
        trailing: how many tokens at the end of each path are not part of the SID (newline, end of sequence).
        prefixed: some SID is the beginning of another, with nothing that trails it.
        legal: in a narrowed view, per level (requests, nodes of that level) bool, requests 1 where all share one filter;
            None where every node is legal.
    """

    tokens: tuple[torch.Tensor, ...]
    offsets: tuple[torch.Tensor, ...]
    alphabets: tuple[torch.Tensor, ...]
    leaf_of_item: torch.Tensor
    trailing: int = 0
    prefixed: bool = False
    legal: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor | np.ndarray,
        device: torch.device | str = "cpu",
        *,
        trailing: Sequence[int] = (),
        vocabulary: int | None = None,
    ) -> "CatalogTrie":
        """Build the trie of a catalog, O(items log items).

        Args:
            codes: token ids, (items, levels); items may share a SID. A SID that needs fewer levels (no suffix) ends in
                `NO_TOKEN`.
            device: where the arrays are kept: the model's.
            trailing: tokens that follow every SID; they are scored but not returned. The released code generates a newline and
                the end token after each SID.
            vocabulary: entries of the model's vocabulary; None leaves the check to the search.

        Raises:
            CatalogError: not a matrix, no item, no level, not integers, a token id that is negative or outside the
                vocabulary, or a token behind the end of a SID.
        """
        matrix = np.asarray(codes.cpu() if isinstance(codes, torch.Tensor) else codes)
        _check(matrix, trailing, vocabulary)
        if trailing:
            matrix = _append(matrix, trailing)
        sids, leaf_of_item = _sort_distinct(matrix)
        tokens, offsets = [], []
        parent = np.zeros(len(sids), dtype=np.int64)  # the node above, of each SID
        parents = 1
        for level in range(sids.shape[1]):
            fresh = np.ones(len(sids), dtype=bool)
            fresh[1:] = (parent[1:] != parent[:-1]) | (sids[1:, level] != sids[:-1, level])
            tokens.append(sids[fresh, level].astype(np.int32))
            offsets.append(np.searchsorted(parent[fresh], np.arange(parents + 1)).astype(np.int32))
            parent = np.cumsum(fresh) - 1
            parents = len(tokens[-1])
        return cls(
            tuple(torch.from_numpy(level).to(device) for level in tokens),
            tuple(torch.from_numpy(level).to(device) for level in offsets),
            tuple(torch.from_numpy(_alphabet(level)).to(device) for level in tokens),
            torch.from_numpy(leaf_of_item.astype(np.int32)).to(device),
            len(trailing),
            any(_ends_inside(below, edges) for below, edges in zip(tokens, offsets, strict=True)),
        )

    def __len__(self) -> int:
        """Count the SIDs, those outside a view included."""
        return len(self.tokens[-1])

    @property
    def depth(self) -> int:
        """Tokens of a whole path: the longest SID and what trails it."""
        return len(self.tokens)

    @property
    def levels(self) -> int:
        """Tokens of the longest SID."""
        return self.depth - self.trailing

    @property
    def device(self) -> torch.device:
        """Where the arrays are kept."""
        return self.leaf_of_item.device

    @property
    def nbytes(self) -> int:
        """Memory of the arrays (bytes)."""
        kept = (*self.tokens, *self.offsets, *self.alphabets, self.leaf_of_item, *(self.legal or ()))
        return sum(array.nbytes for array in kept)

    @property
    def sids(self) -> torch.Tensor:
        """All SIDs in order, made on demand: (SIDs, levels) int64, `NO_TOKEN` behind the end of a short one."""
        return self.sid(torch.arange(len(self), device=self.device))

    def sid(self, leaves: torch.Tensor) -> torch.Tensor:
        """The SIDs of leaves: (*leaves.shape, levels) int64; only `NO_TOKEN` where the leaf is negative."""
        path = []
        nodes = leaves.clamp(min=0)
        for level in reversed(range(self.depth)):
            path.append(self.tokens[level][nodes])
            nodes = self.parent(level, nodes)
        found = torch.stack(path[::-1], dim=-1).long()
        if self.trailing:
            length = (found >= 0).sum(-1, keepdim=True) - self.trailing
            found = found.masked_fill(torch.arange(self.depth, device=self.device) >= length, NO_TOKEN)[..., : self.levels]
        return found.masked_fill((leaves < 0)[..., None], NO_TOKEN)

    def items(self, leaf: int) -> list[int]:
        """The items that have a SID, in ascending order: the inverse of `leaf_of_item`.

        Several items may share a SID. A view gives all of them, whatever its filter leaves.

        >>> trie = CatalogTrie.from_codes(np.array([[4, 2], [1, 3], [4, 2]]))
        >>> trie.sids.tolist()
        [[1, 3], [4, 2]]
        >>> trie.items(1)
        [0, 2]

        Args:
            leaf: number of the SID, as in `BeamResult.leaves`; -1, where a list has no SID, has no items.

        Returns:
            rows of the codes that the trie was built from.

        Raises:
            CatalogError: the trie has no such leaf.
        """
        if not -1 <= leaf < len(self):
            raise CatalogError(f"The trie has no leaf {leaf}: its {len(self)} SIDs are numbered from 0.")
        items, starts = self._items_by_leaf
        return [] if leaf == -1 else items[starts[leaf] : starts[leaf + 1]].tolist()

    @cached_property
    def _items_by_leaf(self) -> tuple[np.ndarray, np.ndarray]:
        """All items in the order of their leaves, and where each leaf's items begin; made at the first call of `items`."""
        leaf_of_item = self.leaf_of_item.cpu().numpy()
        items = leaf_of_item.argsort(kind="stable").astype(np.int32)  # stable: ascending within a leaf
        starts = np.searchsorted(leaf_of_item[items], np.arange(len(self) + 1))
        return items, starts

    def children(self, level: int, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Children of several nodes, padded to the largest number among them.

        Args:
            level: level of the children.
            nodes: node numbers of the level above (0 for the root), any shape; negative where there is no node. In a view
                with several requests the first dimension is the request.

        Returns:
            node numbers, tokens and validity, each of shape (*nodes.shape, most children). The token of a SID that has ended is
            `NO_TOKEN`. A child outside the view is invalid; the token of an invalid one is 0.
        """
        known = nodes.clamp(min=0)
        first = self.offsets[level][known].long()
        count = (self.offsets[level][known + 1] - first).masked_fill(nodes < 0, 0)
        width = torch.arange(int(count.max()), device=self.device)
        valid = width < count[..., None]
        numbers = (first[..., None] + width).masked_fill(~valid, 0)
        if self.legal is not None:
            legal = self.legal[level]
            request = torch.arange(len(nodes), device=self.device).clamp(max=len(legal) - 1)  # one filter may serve all
            valid &= legal[request.view(-1, *[1] * nodes.dim()), numbers]
        return numbers, self.tokens[level][numbers].long().masked_fill(~valid, 0), valid

    def parent(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Number of the node above each of some nodes of a level, same shape."""
        return torch.searchsorted(self.offsets[level], nodes.to(torch.int32).contiguous(), right=True) - 1

    def walk(self, sids: torch.Tensor) -> torch.Tensor:
        """The nodes that SIDs pass: (*sids.shape) int64, -1 from the first token that leads out of the trie.

        Args:
            sids: token ids, (SIDs, depth), short SIDs filled with `NO_TOKEN`.
        """
        node = torch.zeros(len(sids), dtype=torch.long, device=self.device)
        nodes = []
        for level in range(sids.shape[1]):
            numbers, _, valid = replace(self, legal=None).children(level, node)
            fits = valid & (self.tokens[level][numbers] == sids[:, level, None])
            node = torch.where(fits.any(-1), (numbers * fits).sum(-1), -1)
            nodes.append(node)
        return torch.stack(nodes, dim=-1)

    def narrow(self, allowed: torch.Tensor | np.ndarray) -> "CatalogTrie":
        """A view that holds some items only (in stock, of a category, not yet seen); the arrays are shared, not rebuilt.

        Args:
            allowed: (items,) bool for all requests of a batch alike, or (requests, items) bool, a row for each. A SID stays
                as long as one of its items does.

        Raises:
            CatalogError: another shape or type, a request for which nothing is left, or this is a view already.
        """
        if self.legal is not None:  # two SID filters would keep a SID whose items pass one filter each
            raise CatalogError("A view cannot be narrowed again: combine the item filters with &, and narrow the trie.")
        mask = torch.as_tensor(allowed, device=self.device)
        items = len(self.leaf_of_item)
        if mask.dtype != torch.bool or mask.dim() not in (1, 2) or mask.shape[-1] != items:
            raise CatalogError(
                f"An item filter must be boolean, of shape ({items},) or (requests, {items}); "
                f"found {mask.dtype} of shape {tuple(mask.shape)}."
            )
        mask = mask[None] if mask.dim() == 1 else mask
        kept = torch.zeros(len(mask), len(self), dtype=torch.bool, device=self.device)
        request, item = mask.nonzero(as_tuple=True)
        kept[request, self.leaf_of_item[item].long()] = True
        empty = (~kept.any(1)).nonzero()
        if len(empty):
            raise CatalogError(f"The item filter of request {int(empty[0])} leaves no item of the catalog's {items}.")
        legal = [kept]
        for level in reversed(range(1, self.depth)):
            below = torch.nn.functional.pad(legal[0].cumsum(1, dtype=torch.int32), (1, 0))[:, self.offsets[level]]
            legal.insert(0, below[:, 1:] > below[:, :-1])
        return replace(self, legal=tuple(legal))

    def without(self, hidden: Sequence[Sequence[int]]) -> "CatalogTrie":
        """A view that leaves items out, others for each request of a batch.

        Args:
            hidden: item numbers, a list for each request; it may be empty.

        Raises:
            CatalogError: see `narrow`.
        """
        allowed = torch.ones(len(hidden), len(self.leaf_of_item), dtype=torch.bool)
        for request, items in enumerate(hidden):
            allowed[request, list(items)] = False
        return self.narrow(allowed)

    def check_normalisable(self) -> None:
        """Refuse a catalog whose probabilities would not add up to 1.

        Raises:
            ConstraintError: some SID is the beginning of another.
        """
        if self.prefixed:
            raise ConstraintError(
                "Some SID is the beginning of another, so probabilities over the catalog would not add up to 1. "
                "Give every item of a collision its own suffix, or build the trie with an end token (trailing=[...])."
            )

    def requests(self, rows: torch.Tensor) -> "CatalogTrie":
        """The view of some requests of a batch; the trie itself where one filter, or none, serves all."""
        if self.legal is None or len(self.legal[0]) == 1:
            return self
        return replace(self, legal=tuple(level[rows] for level in self.legal))

    def to(self, device: torch.device | str) -> "CatalogTrie":
        """The trie on another device."""

        def move(arrays: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple(array.to(device) for array in arrays)

        return replace(
            self,
            tokens=move(self.tokens),
            offsets=move(self.offsets),
            alphabets=move(self.alphabets),
            leaf_of_item=self.leaf_of_item.to(device),
            legal=None if self.legal is None else move(self.legal),
        )

    def save(self, path: Path) -> None:
        """Write the trie as safetensors, whole or not at all.

        Raises:
            CatalogError: this is a view: a filter belongs to a request, not to the catalog.
        """
        if self.legal is not None:
            raise CatalogError("A narrowed view cannot be saved; save the trie that it was made from.")
        arrays = {"leaf_of_item": self.leaf_of_item}
        for level in range(self.depth):
            arrays[f"tokens_{level}"] = self.tokens[level]
            arrays[f"offsets_{level}"] = self.offsets[level]
            arrays[f"alphabet_{level}"] = self.alphabets[level]
        about = {"format": _FORMAT, "trailing": str(self.trailing), "prefixed": str(int(self.prefixed))}
        draft = path.with_name(path.name + ".partial")
        save_file({name: array.cpu().contiguous() for name, array in arrays.items()}, draft, about)
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "CatalogTrie":
        """Read a saved trie.

        Raises:
            ArtifactError: the file is missing, damaged or something else.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise ArtifactError(f"{path}: not a trie written by CatalogTrie.save; build it again with from_codes.")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: cannot be read as a trie ({error}); build it again with from_codes.") from None
        depth = (len(arrays) - 1) // 3
        return cls(
            tuple(arrays[f"tokens_{level}"] for level in range(depth)),
            tuple(arrays[f"offsets_{level}"] for level in range(depth)),
            tuple(arrays[f"alphabet_{level}"] for level in range(depth)),
            arrays["leaf_of_item"],
            int(about["trailing"]),
            about["prefixed"] == "1",
        )


def _check(matrix: np.ndarray, trailing: Sequence[int], vocabulary: int | None) -> None:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise CatalogError(f"A trie needs token ids of shape (items, levels), none of them 0; found {matrix.shape}.")
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
    few = tokens.max() < 1 << 22  # counting is quick unless ids are huge
    found = np.flatnonzero(np.bincount(tokens + 1)) - 1 if few else np.unique(tokens).astype(np.int64)
    return found[found != NO_TOKEN]


def _ends_inside(tokens: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether a parent has both the end of a SID and longer SIDs below it."""
    return bool(((tokens[offsets[:-1]] == NO_TOKEN) & (np.diff(offsets) > 1)).any())
