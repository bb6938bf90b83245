"""CatalogTrie: the set of valid SIDs as flat sorted arrays, one compressed row layout (CSR) per level."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from minionerec.errors import ArtifactError, CatalogError, ConstraintError
from minionerec.tree.assistant import Assistant
from minionerec.tree.guide import PrefixGuide
from minionerec.tree.length_penalty import LengthPenalty
from minionerec.tree.prior import Prior
from minionerec.tree.trie_arrays import NO_TOKEN, trie_arrays
from minionerec.tree.view import Selection, View, mask_view, view_of

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
    leaf's number is its SID's row in `sids`. A short SID is filled up with `NO_TOKEN`, which has log-probability 0. A node
    takes 4 bytes for its token and, unless it is a leaf, 4 for its children; an item takes 4 for its leaf, a distinct token
    of a level 8.

    >>> trie = CatalogTrie.from_codes(np.array([[10, 14], [11, 13], [10, 13], [10, 14]]))
    >>> len(trie), trie.levels  # items 0 and 3 share a SID
    (3, 2)
    >>> trie.sids.tolist()
    [[10, 13], [10, 14], [11, 13]]
    >>> [level.tolist() for level in trie.tokens]
    [[10, 11], [13, 14, 13]]
    >>> [level.tolist() for level in trie.offsets]  # children of the root; of 10, and of 11
    [[0, 2], [0, 2, 3]]

    Attributes:
        tokens: per level, (nodes of that level,) int32: the token that leads to each node.
        offsets: per level, (nodes of the level above + 1,) int32: where each parent's children begin; the root is the one
            node above level 0.
        alphabets: per level, the distinct tokens, sorted, int64.
        leaf_of_item: (items,) int32.
        trailing: how many tokens at the end of each path are not part of the SID (newline, end of sequence).
        prefixed: some SID is the beginning of another, with nothing that trails it.
        view: which nodes each request of a batch may reach; None if every node is legal.
        guide: what searches follow besides the model: a prior that is mixed into its distribution, an assistant that is
            weighed with it, or a length penalty that divides its scores; None for the model alone.
    """

    tokens: tuple[torch.Tensor, ...]
    offsets: tuple[torch.Tensor, ...]
    alphabets: tuple[torch.Tensor, ...]
    leaf_of_item: torch.Tensor
    trailing: int = 0
    prefixed: bool = False
    view: View | None = None
    guide: Prior | Assistant | LengthPenalty | None = None

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
            device: of the arrays; the searches need the model's.
            trailing: tokens that follow every SID; they are scored but not returned. The released code generates a newline and
                the end token after each SID.
            vocabulary: entries of the model's vocabulary; None leaves the check to the search.

        Raises:
            CatalogError: the codes are no integer matrix or hold no item or level; a token id is negative or outside the
                vocabulary; or a token stands behind the end of a SID.
        """
        arrays = trie_arrays(np.asarray(codes.cpu() if isinstance(codes, torch.Tensor) else codes), trailing, vocabulary)
        return cls(
            tuple(torch.from_numpy(level).to(device) for level in arrays.tokens),
            tuple(torch.from_numpy(level).to(device) for level in arrays.offsets),
            tuple(torch.from_numpy(level).to(device) for level in arrays.alphabets),
            torch.from_numpy(arrays.leaf_of_item).to(device),
            len(trailing),
            arrays.prefixed,
        )

    def __len__(self) -> int:
        """Count the SIDs, those outside a view included."""
        return self.tokens[-1].shape[0]

    @property
    def depth(self) -> int:
        """Tokens of a whole path: the longest SID and the tokens that trail it."""
        return len(self.tokens)

    @property
    def levels(self) -> int:
        """Tokens of the longest SID."""
        return self.depth - self.trailing

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.leaf_of_item.device

    @property
    def nbytes(self) -> int:
        """Memory of the arrays (bytes)."""
        arrays = (*self.tokens, *self.offsets, *self.alphabets, self.leaf_of_item)
        return sum(array.nbytes for array in arrays) + (0 if self.view is None else self.view.nbytes)

    @property
    def sids(self) -> torch.Tensor:
        """All SIDs in the order of their leaves: (SIDs, levels) int64, `NO_TOKEN` behind the end of a short one.

        They are not stored but computed at each call.
        """
        return self.sid(torch.arange(len(self), device=self.device))

    def sid(self, leaves: torch.Tensor) -> torch.Tensor:
        """The SIDs of leaves.

        >>> trie = CatalogTrie.from_codes(np.array([[10, 14], [10, NO_TOKEN]]))
        >>> trie.sid(torch.tensor([1, 0, -1])).tolist()
        [[10, 14], [10, -1], [-1, -1]]

        Args:
            leaves: numbers of SIDs, any shape; -1 for an empty place.

        Returns:
            (*leaves.shape, levels) int64 token ids, `NO_TOKEN` behind the end of a short SID and in empty places.
        """
        path = []
        nodes = leaves.clamp(min=0)
        for level in reversed(range(self.depth)):
            path.append(self.tokens[level][nodes])
            nodes = self.parent(level, nodes)
        sids = torch.stack(path[::-1], dim=-1).long()
        if self.trailing:  # the trailing tokens stand right behind a SID's last token, wherever that is
            length = (sids >= 0).sum(-1, keepdim=True) - self.trailing
            sids = sids.masked_fill(torch.arange(self.depth, device=self.device) >= length, NO_TOKEN)[..., : self.levels]
        return sids.masked_fill((leaves < 0)[..., None], NO_TOKEN)

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
        """All items in the order of their leaves, and where each leaf's items begin; made when first needed, O(items)."""
        leaf_of_item = self.leaf_of_item.cpu().numpy()
        items = leaf_of_item.argsort(kind="stable").astype(np.int32)  # stable: ascending within a leaf
        return items, np.concatenate([[0], np.bincount(leaf_of_item, minlength=len(self)).cumsum()]).astype(np.int32)

    @cached_property
    def items_by_leaf(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All items in the order of their leaves, and where each leaf's items begin: (items,) and (SIDs + 1,), int32."""
        items, starts = self._items_by_leaf
        return torch.from_numpy(items).to(self.device), torch.from_numpy(starts).to(self.device)

    def parents(self, level: int) -> torch.Tensor:
        """The number of the node above each node of a level, whatever a view leaves of them: (nodes,) int64."""
        counts = self.offsets[level].diff()
        # Told the number of nodes, a GPU's host need not wait for it.
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(self.tokens[level]))

    @cached_property
    def fan_outs(self) -> tuple[int, ...]:
        """Per level, the most children of a node above it, whatever a view leaves of them."""
        return tuple(int(offsets.diff().max()) for offsets in self.offsets)

    @cached_property
    def highest_token(self) -> int:
        """The highest token id of the whole trie."""
        return max(int(alphabet[-1]) for alphabet in self.alphabets if len(alphabet))

    def children(
        self, level: int, nodes: torch.Tensor, width: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Children of several nodes, padded to the largest number among them.

        >>> trie = CatalogTrie.from_codes(np.array([[10, 13], [10, 14], [11, 13]]))
        >>> nodes, tokens, valid = trie.children(1, torch.tensor([0, 1]))
        >>> tokens.tolist(), valid.tolist()
        ([[13, 14], [13, 0]], [[True, True], [True, False]])

        Args:
            level: level of the children.
            nodes: node numbers of the level above (0 for the root), any shape; negative where a node is missing. In a view
                with several requests the first dimension is the request.
            width: pad to this number instead, no lower than `fan_outs` has it: the shapes then do not depend on the nodes.

        Returns:
            node numbers, tokens and validity, each of shape (*nodes.shape, children). The token of a SID that has ended is
            `NO_TOKEN`. A child outside the view is invalid; the token of an invalid one is 0.
        """
        parents = nodes.clamp(min=0)
        first = self.offsets[level][parents].long()
        count = (self.offsets[level][parents + 1] - first).masked_fill(nodes < 0, 0)
        place = torch.arange(int(count.max()) if width is None else width, device=self.device)
        valid = place < count[..., None]
        numbers = (first[..., None] + place).masked_fill(~valid, 0)
        if self.view is not None:
            valid = self.view.restrict(level, len(self.tokens[level]), numbers, first, valid)
        return numbers, self.tokens[level][numbers].long().masked_fill(~valid, 0), valid

    def parent(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Number of the parent of each node of a level, in the shape of `nodes`."""
        return torch.searchsorted(self.offsets[level], nodes.to(torch.int32).contiguous(), right=True) - 1

    def walk(self, sids: torch.Tensor) -> torch.Tensor:
        """The nodes that SIDs pass.

        >>> trie = CatalogTrie.from_codes(np.array([[10, 13], [10, 14], [11, 13]]))
        >>> trie.walk(torch.tensor([[10, 14], [11, 14]])).tolist()  # the second one leaves the trie
        [[0, 1], [1, -1]]

        Args:
            sids: token ids, (SIDs, depth), short SIDs filled with `NO_TOKEN`.

        Returns:
            (SIDs, depth) int64 node numbers, -1 from the first token that leads out of the trie.
        """
        node = torch.zeros(len(sids), dtype=torch.long, device=self.device)
        nodes = []
        for level in range(sids.shape[1]):
            children, _, valid = replace(self, view=None).children(level, node)
            fits = valid & (self.tokens[level][children] == sids[:, level, None])
            node = torch.where(fits.any(-1), (children * fits).sum(-1), -1)  # at most one child has the token
            nodes.append(node)
        return torch.stack(nodes, dim=-1)

    def narrow(self, allowed: torch.Tensor | np.ndarray) -> "CatalogTrie":
        """A view that holds some items only (in stock, of a category, not yet seen); the arrays are shared, not rebuilt.

        >>> trie = CatalogTrie.from_codes(np.array([[10, 13], [10, 14], [11, 13]]))
        >>> view = trie.narrow(np.array([True, False, True]))
        >>> view.children(1, torch.tensor([[0]]))[2].tolist()  # below 10, for the one request
        [[[True, False]]]

        Args:
            allowed: (items,) bool for all requests of a batch alike, or (requests, items) bool, a row for each. A SID stays
                as long as one of its items does.

        Raises:
            CatalogError: the filter has another shape or type, leaves a request nothing, or this is a view already.
        """
        self._refuse_view()
        mask = torch.as_tensor(allowed, device=self.device)
        items = len(self.leaf_of_item)
        if mask.dtype != torch.bool or mask.dim() not in (1, 2) or mask.shape[-1] != items:
            raise CatalogError(
                f"An item filter must be boolean, of shape ({items},) or (requests, {items}); "
                f"found {mask.dtype} of shape {tuple(mask.shape)}."
            )
        return self._like(mask_view(self, mask[None] if mask.dim() == 1 else mask), self.guide)

    def without(self, hidden: Sequence[Sequence[int]]) -> "CatalogTrie":
        """A view that leaves items out, for each request of a batch its own; it costs what the lists cost, not the catalog.

        >>> trie = CatalogTrie.from_codes(np.array([[10, 13], [10, 14], [11, 13]]))
        >>> trie.without([[0, 2], []]).children(0, torch.tensor([[0], [0]]))[2].tolist()  # per request: below the root
        [[[True, False]], [[True, True]]]

        Args:
            hidden: rows of the codes, a list for each request; it may be empty. A SID stays as long as one of its items does.

        Raises:
            CatalogError: an item is not in the catalog, a request is left without items, or this is a view already.
        """
        return self.select([Selection(items) for items in hidden])

    def select(self, selections: Sequence[Selection]) -> "CatalogTrie":
        """A view with a selection of items for each request of a batch: hidden or listed items, within a mask or not.

        >>> trie = CatalogTrie.from_codes(np.array([[10, 13], [10, 14], [11, 13]]))
        >>> in_stock = trie.narrow(np.array([True, True, False]))
        >>> view = trie.select([Selection([1], listed=True), Selection([0], within=in_stock)])
        >>> view.children(1, torch.tensor([[0], [0]]))[2].tolist()  # below 10
        [[[False, True]], [[False, True]]]

        Raises:
            CatalogError: an item is not in the catalog, a request is left without items, a selection lies within something
                else than a view with one mask, or this is a view already.
        """
        self._refuse_view()
        return self._like(view_of(self, selections), self.guide)

    def mixed(self, guide: Prior | Assistant | LengthPenalty) -> "CatalogTrie":
        """The trie, or view, for searches of the mixture of the model's distribution over the catalog and another one.

        Beam search, sampling and exact scores follow `(1 - share) * p_model + share * p_prior`; they need
        `normalise_over="catalog"`. With the share 0 they give what the model alone gives.
        With an `Assistant` beam search and exact scores follow D3's weighed logarithms instead, over the catalog or the
        vocabulary; with a `LengthPenalty` scores over a power of the length.

        >>> trie = CatalogTrie.from_codes(np.array([[10, 13], [10, 14], [11, 13]]))
        >>> mixed = trie.mixed(Prior(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([0.3])))  # for 1 request
        """
        return self._like(self.view, guide)

    def _like(self, view: View | None, guide: Prior | Assistant | LengthPenalty | None) -> "CatalogTrie":
        """The trie with another view and guide, and with what is known of its arrays: a GPU's host would wait to read them."""
        other = replace(self, view=view, guide=guide)
        vars(other).update(fan_outs=self.fan_outs, highest_token=self.highest_token)
        return other

    def prefixes(self, look: bool = True) -> PrefixGuide | None:
        """What is mixed in, by prefix; None if nothing is.

        Args:
            look: the host looks at what is mixed in: None, too, if it weighs nothing for every request.
        """
        return None if self.guide is None else self.guide.prefixes(self, look)

    def _refuse_view(self) -> None:
        if self.view is not None:  # two SID filters would keep a SID whose items pass one filter each
            raise CatalogError("A view cannot be narrowed again: combine the item filters with &, and narrow the trie.")

    def check_whole(self) -> None:
        """Refuse a view or a mixed trie where log-probabilities are the model's own, over the whole catalog.

        Raises:
            ConstraintError: this is one.
        """
        if self.view is not None:
            raise ConstraintError(
                "Log-probabilities are taken over the whole catalog: give the trie that the view was made from."
            )
        if self.guide is not None:
            raise ConstraintError("Log-probabilities are the model's alone: give the trie that is not mixed.")

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
        """The view and the guide of some requests of a batch; the trie itself if one filter, or none, serves all."""
        view = self.view
        if view is not None and view.requests > 1:
            view = view.select(rows, list(map(len, self.tokens)))
        guide = None if self.guide is None else self.guide.select(rows)
        return self if view is self.view and guide is None else self._like(view, guide)

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
            view=None if self.view is None else self.view.to(device),
            guide=None if self.guide is None else self.guide.to(device),
        )

    def save(self, path: Path) -> None:
        """Write the trie as safetensors, whole or not at all.

        Raises:
            CatalogError: this is a view or mixed: what these hold belongs to requests, not to the catalog.
        """
        if self.view is not None or self.guide is not None:
            raise CatalogError("A mixed trie or a narrowed view cannot be saved; save the trie that it was made from.")
        arrays = {"leaf_of_item": self.leaf_of_item}
        for level in range(self.depth):
            arrays[f"tokens_{level}"] = self.tokens[level]
            arrays[f"offsets_{level}"] = self.offsets[level]
            arrays[f"alphabet_{level}"] = self.alphabets[level]
        about = {"format": _FORMAT, "trailing": str(self.trailing), "prefixed": str(int(self.prefixed))}
        draft = path.with_name(path.name + ".partial")
        # `save_file` would write for the owner alone.
        draft.write_bytes(save({name: array.cpu().contiguous() for name, array in arrays.items()}, about))
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "CatalogTrie":
        """Read a saved trie.

        Raises:
            ArtifactError: the file is missing, damaged or not a trie.
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
