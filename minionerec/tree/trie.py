"""CatalogTrie: the set of valid SIDs as flat sorted arrays, one compressed row layout per level."""

from dataclasses import dataclass

import numpy as np
import torch

from minionerec.errors import CatalogError


@dataclass(frozen=True)
class CatalogTrie:
    """The valid SIDs as a trie of token ids.

    Nodes of a level are numbered in lexicographic order of their paths, so the children of a node are consecutive and a
    leaf's number is its SID's row in `sids`.

    Attributes:
        tokens: per level, (nodes of that level,) int64: the token that leads to each node.
        offsets: per level, (nodes of the level above + 1,) int64: where each parent's children begin; the root is the one
            node above level 0.
        sids: (SIDs, levels) int64, distinct, sorted.
    """

    tokens: tuple[torch.Tensor, ...]
    offsets: tuple[torch.Tensor, ...]
    sids: torch.Tensor

    @classmethod
    def from_codes(cls, codes: torch.Tensor | np.ndarray, device: torch.device | str = "cpu") -> "CatalogTrie":
        """Build the trie of a catalogue.

        Args:
            codes: token ids, (items, levels); items may share a SID.
            device: where the arrays are kept: the model's.

        Raises:
            CatalogError: not a matrix, no item, no level, not integers, or a negative token id.
        """
        matrix = np.asarray(codes.cpu() if isinstance(codes, torch.Tensor) else codes)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise CatalogError(f"A trie needs token ids of shape (items, levels), none of them 0; found {matrix.shape}.")
        if not np.issubdtype(matrix.dtype, np.integer):
            raise CatalogError(f"A trie needs integer token ids; found {matrix.dtype}.")
        if matrix.min() < 0:
            row = int(np.flatnonzero((matrix < 0).any(axis=1))[0])
            raise CatalogError(f"Item {row} has the negative token id {matrix[row].min()}.")
        sids = np.unique(matrix.astype(np.int64), axis=0)
        tokens, offsets = [], []
        parent = np.zeros(len(sids), dtype=np.int64)  # the node above, of each SID
        parents = 1
        for level in range(sids.shape[1]):
            fresh = np.ones(len(sids), dtype=bool)
            fresh[1:] = (parent[1:] != parent[:-1]) | (sids[1:, level] != sids[:-1, level])
            tokens.append(torch.from_numpy(sids[fresh, level]).to(device))
            offsets.append(torch.from_numpy(np.searchsorted(parent[fresh], np.arange(parents + 1))).to(device))
            parent = np.cumsum(fresh) - 1
            parents = int(fresh.sum())
        return cls(tuple(tokens), tuple(offsets), torch.from_numpy(sids).to(device))

    def __len__(self) -> int:
        """Count the SIDs."""
        return len(self.sids)

    @property
    def levels(self) -> int:
        """Tokens per SID."""
        return len(self.tokens)

    @property
    def device(self) -> torch.device:
        """Where the arrays are kept."""
        return self.sids.device

    def children(self, level: int, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Children of several nodes, padded to the largest number among them.

        Args:
            level: level of the children.
            nodes: node numbers of the level above (0 for the root), any shape; negative where there is no node.

        Returns:
            node numbers, tokens and validity, each of shape (*nodes.shape, most children); invalid entries hold 0.
        """
        known = nodes.clamp(min=0)
        first = self.offsets[level][known]
        count = (self.offsets[level][known + 1] - first).masked_fill(nodes < 0, 0)
        width = torch.arange(int(count.max()), device=self.device)
        valid = width < count[..., None]
        numbers = (first[..., None] + width).masked_fill(~valid, 0)
        return numbers, self.tokens[level][numbers].masked_fill(~valid, 0), valid

    def parent(self, level: int) -> torch.Tensor:
        """Number of the node above each node of a level: (nodes of that level,)."""
        nodes = torch.arange(len(self.tokens[level]), device=self.device)
        return torch.searchsorted(self.offsets[level], nodes, right=True) - 1
