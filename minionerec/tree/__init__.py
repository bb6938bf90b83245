"""Everything that shares a prefix: the trie of valid SIDs, constrained beam search, prefix-tree batches.

Knows token ids and tensors, nothing about items, prompts or stages.
"""

from minionerec.tree.batch import Branch, TreeBatch, pack, tree_logits
from minionerec.tree.forward import left_pad
from minionerec.tree.search import NO_TOKEN, BeamResult, beam_search, score_catalog
from minionerec.tree.trie import CatalogTrie

__all__ = [
    "NO_TOKEN",
    "BeamResult",
    "Branch",
    "CatalogTrie",
    "TreeBatch",
    "beam_search",
    "left_pad",
    "pack",
    "score_catalog",
    "tree_logits",
]
