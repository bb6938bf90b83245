"""Which part of a catalog's trie each request of a batch may reach.

A filter that many requests share is a mask over all nodes. A short list of one request (what to hide, or what alone to show) is
stored as the few nodes that it changes: it costs time and memory for the list and not for the catalog.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from minionerec.errors import CatalogError

if TYPE_CHECKING:
    from minionerec.tree.trie import CatalogTrie


@dataclass(frozen=True)
class View:
    """The legal nodes of each request: those in its mask that are not hidden, or only those that are listed.

    A node's key at a level is request * nodes of the level + node.

    Attributes:
        masks: per level, (masks, nodes of that level) bool; None if no request has a mask.
        mask_of: (requests,) int64: the row of `masks` of each request, -1 if it has none.
        items: (masks, items) bool; None if no request has a mask.
        marked: per level, the keys of the hidden or listed nodes, ascending int64; None if no request has any.
        listed: (requests,) bool: whether a request's marked nodes are listed or hidden.
    """

    masks: tuple[torch.Tensor, ...] | None
    mask_of: torch.Tensor
    items: torch.Tensor | None
    marked: tuple[torch.Tensor, ...] | None
    listed: torch.Tensor

    @property
    def requests(self) -> int:
        """How many requests the view has; a view of one serves every batch."""
        return len(self.mask_of)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays (bytes)."""
        more = () if self.items is None else (self.items,)
        return sum(array.nbytes for array in (*(self.masks or ()), *more, *(self.marked or ()), self.mask_of, self.listed))

    def restrict(
        self, level: int, nodes: int, children: torch.Tensor, first: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Which of the children are legal.

        Args:
            level: of the children.
            nodes: that the level has.
            children: (requests, ..., width) node numbers; 0 where there is no child.
            first: (requests, ...) the number of each parent's first child.
            valid: (requests, ..., width) bool, whether there is a child.
        """
        request = torch.arange(len(valid), device=valid.device).clamp(max=self.requests - 1)
        request = request.view(-1, *[1] * (first.dim() - 1)).expand_as(first)
        if self.masks is not None:
            mask = self.mask_of[request][..., None]
            valid = valid & (self.masks[level][mask.clamp(min=0), children] | (mask < 0))
        if self.marked is None:
            return valid
        # The children of a parent have consecutive keys, so its marked children are a run of the sorted keys.
        begin = (request * nodes + first).flatten()
        ends = begin + valid.shape[-1]
        low = torch.searchsorted(self.marked[level], begin)
        parent, places = _ranges(low, torch.searchsorted(self.marked[level], ends) - low)
        hit = torch.zeros_like(valid).view(-1, valid.shape[-1])
        hit[parent, self.marked[level][places] - begin[parent]] = True  # a place behind the last child is invalid anyway
        return valid & (hit.view(valid.shape) == self.listed[request][..., None])

    def legal(self, level: int, nodes: int, requests: int) -> torch.Tensor:
        """Which nodes of a level each request may reach: (requests, nodes) bool.

        Args:
            level: of the nodes.
            nodes: that the level has.
            requests: of the batch; a view of one serves them all.
        """
        # The nodes as children of one parent: so `restrict` says which of them are legal.
        numbers = torch.arange(nodes, device=self.mask_of.device).expand(requests, 1, -1)
        return self.restrict(level, nodes, numbers, numbers.new_zeros(requests, 1), torch.ones_like(numbers).bool())[:, 0]

    @classmethod
    def of_legal(cls, legal: tuple[torch.Tensor, ...]) -> "View":
        """A view with a mask for each request.

        Args:
            legal: per level, (requests, nodes) bool.
        """
        requests = torch.arange(len(legal[0]), device=legal[0].device)
        return cls(legal, requests, None, None, torch.zeros_like(requests, dtype=torch.bool))

    def select(self, rows: torch.Tensor, nodes: Sequence[int]) -> "View":
        """The view of some requests.

        Args:
            rows: their numbers, (requests,).
            nodes: how many nodes each level has.
        """
        marked = None
        if self.marked is not None:
            marked = tuple(_select(keys, rows, count) for keys, count in zip(self.marked, nodes, strict=True))
        return View(self.masks, self.mask_of[rows], self.items, marked, self.listed[rows])

    def to(self, device: torch.device | str) -> "View":
        """The view on another device."""

        def move(arrays: tuple[torch.Tensor, ...] | None) -> tuple[torch.Tensor, ...] | None:
            return None if arrays is None else tuple(array.to(device) for array in arrays)

        items = None if self.items is None else self.items.to(device)
        return View(move(self.masks), self.mask_of.to(device), items, move(self.marked), self.listed.to(device))


@dataclass(frozen=True)
class Selection:
    """The items of one request.

    Attributes:
        items: rows of the codes that the trie was built from, in any order.
        listed: whether only these items may be reached, or all but these.
        within: a view of the trie with one mask (`CatalogTrie.narrow`), whose items alone may be reached; None for all.
    """

    items: Sequence[int] | np.ndarray = ()
    listed: bool = False
    within: "CatalogTrie | None" = None


def view_of(trie: "CatalogTrie", selections: Sequence[Selection]) -> View:
    """The view of a batch, O(items of the selections x depth).

    Raises:
        CatalogError: an item is not in the catalog, or a request is left without items.
    """
    masks, mask_of, items = _masks(trie, selections)
    listed = torch.tensor([selection.listed for selection in selections], device=trie.device)
    counts = torch.tensor([len(selection.items) for selection in selections], device=trie.device)
    if not counts.any() and not listed.any():
        return View(masks, mask_of, items, None, listed)

    # 1. Each pair of request and item once, without the items that the request's mask leaves out anyway.
    item = torch.cat([torch.as_tensor(selection.items, dtype=torch.long) for selection in selections]).to(trie.device)
    catalog = len(trie.leaf_of_item)
    if len(item) and not (int(item.min()) >= 0 and int(item.max()) < catalog):
        raise CatalogError(f"A filter has item {int(item.min())} to {int(item.max())}; the catalog has 0 to {catalog - 1}.")
    pairs = (torch.arange(len(selections), device=trie.device).repeat_interleave(counts) * catalog + item).unique()
    request, item = pairs // catalog, pairs % catalog
    if items is not None:
        passes = (mask_of[request] < 0) | items[mask_of[request].clamp(min=0), item]
        request, item = request[passes], item[passes]

    # 2. A leaf is hidden if all its items are, and a node above if all its children are; listed, if any is. So count the items
    #    or children of each node that the selection holds, and compare with all that the node has.
    #    Nodes are kept in order: sorted leaves have sorted parents, so equal ones are neighbours.
    order = (request * len(trie) + trie.leaf_of_item[item]).sort().values
    request, node, levels = order // len(trie), order % len(trie), []
    items_by_leaf, first_items = trie.items_by_leaf
    below: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] = (first_items, items_by_leaf, items)
    for level in reversed(range(trie.depth)):
        size = len(trie.tokens[level])
        keys, held = (request * size + node).unique_consecutive(return_counts=True)
        request, node = keys // size, keys % size
        starts, members, legal = below
        marks = listed[request] | (held == _below(starts, node, members, legal, mask_of[request]))
        request, node, keys = request[marks], node[marks], keys[marks]
        levels.append(keys)
        node, below = trie.parent(level, node), (trie.offsets[level], None, None if masks is None else masks[level])

    # 3. The root must stay: of a request that hides, some child; of one that lists, some item.
    root = torch.bincount(request, minlength=len(selections))
    everything = _below(below[0], torch.zeros_like(root), None, below[2], mask_of)
    empty = torch.where(listed, root == 0, root == everything).nonzero()
    if len(empty):
        raise CatalogError(f"The item filter of request {int(empty[0])} leaves no item of the catalog's {catalog}.")
    return View(masks, mask_of, items, tuple(levels[::-1]), listed)


def mask_view(trie: "CatalogTrie", mask: torch.Tensor) -> View:
    """The view of a mask over all items, O(items) per request.

    Args:
        mask: (requests, items) bool.

    Raises:
        CatalogError: a request is left without items.
    """
    legal_leaves = torch.zeros(len(mask), len(trie), dtype=torch.bool, device=trie.device)
    request, item = mask.nonzero(as_tuple=True)
    legal_leaves[request, trie.leaf_of_item[item].long()] = True
    empty = (~legal_leaves.any(1)).nonzero()
    if len(empty):
        raise CatalogError(f"The item filter of request {int(empty[0])} leaves no item of the catalog's {mask.shape[1]}.")
    legal = [legal_leaves]
    for level in reversed(range(1, trie.depth)):
        # A node is legal if a child is. Its children are consecutive, so the running count of legal nodes grows over them.
        counts = torch.nn.functional.pad(legal[0].cumsum(1, dtype=torch.int32), (1, 0))[:, trie.offsets[level]]
        legal.insert(0, counts[:, 1:] > counts[:, :-1])
    requests = torch.arange(len(mask), device=trie.device)
    return View(tuple(legal), requests, mask, None, torch.zeros(len(mask), dtype=torch.bool, device=trie.device))


def _masks(
    trie: "CatalogTrie", selections: Sequence[Selection]
) -> tuple[tuple[torch.Tensor, ...] | None, torch.Tensor, torch.Tensor | None]:
    """The distinct masks of the requests per level, which of them each request has, and the masks over items."""
    views: dict[int, View] = {}
    for selection in selections:
        if selection.within is not None:
            view = selection.within.view
            if view is None or view.masks is None or view.items is None or view.requests != 1:
                raise CatalogError("A selection within a view needs a trie that is narrowed by one mask.")
            views[id(selection.within)] = view
    row_of = {number: row for row, number in enumerate(views)}
    rows = [-1 if selection.within is None else row_of[id(selection.within)] for selection in selections]
    mask_of = torch.tensor(rows, device=trie.device)
    if not views:
        return None, mask_of, None
    stacked = [[view.masks[level] for view in views.values() if view.masks is not None] for level in range(trie.depth)]
    items = torch.cat([view.items for view in views.values() if view.items is not None])
    return tuple(map(torch.cat, stacked)), mask_of, items


def _below(
    starts: torch.Tensor, node: torch.Tensor, members: torch.Tensor | None, masks: torch.Tensor | None, mask: torch.Tensor
) -> torch.Tensor:
    """How many members each node has that a request may reach, (nodes,).

    Args:
        starts: where the members of each node begin: the trie's children, or the items of its leaves.
        node: (nodes,) the nodes.
        members: what stands there; None if the members are consecutive numbers.
        masks: (masks, all members) bool; None if no request has a mask.
        mask: (nodes,) the row of `masks` of each node's request, -1 if it has none.
    """
    first = starts[node].long()
    totals = starts[node + 1].long() - first
    if masks is None:
        return totals
    owner, places = _ranges(first, totals)
    legal = masks[mask[owner].clamp(min=0), places if members is None else members[places].long()] | (mask[owner] < 0)
    return torch.zeros_like(totals).index_add(0, owner, legal.long())


def _select(keys: torch.Tensor, rows: torch.Tensor, nodes: int) -> torch.Tensor:
    """The keys of some requests, which are numbered anew."""
    low = torch.searchsorted(keys, rows * nodes)
    request, places = _ranges(low, torch.searchsorted(keys, (rows + 1) * nodes) - low)
    return keys[places] + (request - rows[request]) * nodes


def _ranges(starts: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of several ranges, and which range each is of.

    >>> _ranges(torch.tensor([7, 3]), torch.tensor([2, 1]))
    (tensor([0, 0, 1]), tensor([7, 8, 3]))
    """
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    begins = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - begins[owner] + starts[owner]
