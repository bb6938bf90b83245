"""Everything that shares a prefix: the trie of valid SIDs, constrained beam search, prefix-tree batches.

Knows token ids and tensors, nothing about items, prompts or stages.
"""

from minionerec.tree.assistant import Assistant
from minionerec.tree.batch import Branch, TreeBatch, TreeLogprobs, pack, tree_logprobs, tree_states
from minionerec.tree.exact_scores import score_catalog, score_leaves, score_prefixes
from minionerec.tree.forward import left_pad
from minionerec.tree.graphs import SearchGraphs
from minionerec.tree.length_penalty import LengthPenalty
from minionerec.tree.prior import Prior
from minionerec.tree.prompt_cache import Normalise
from minionerec.tree.sampling import SampleResult, sample_with_replacement, sample_without_replacement
from minionerec.tree.search import BeamResult, SearchLevel, beam_search, search_levels
from minionerec.tree.trie import NO_TOKEN, CatalogTrie, without_padding
from minionerec.tree.view import Selection

__all__ = [
    "NO_TOKEN",
    "Assistant",
    "BeamResult",
    "Branch",
    "CatalogTrie",
    "LengthPenalty",
    "Normalise",
    "Prior",
    "SampleResult",
    "SearchGraphs",
    "SearchLevel",
    "Selection",
    "TreeBatch",
    "TreeLogprobs",
    "beam_search",
    "left_pad",
    "pack",
    "sample_with_replacement",
    "sample_without_replacement",
    "score_catalog",
    "score_leaves",
    "score_prefixes",
    "search_levels",
    "tree_logprobs",
    "tree_states",
    "without_padding",
]
