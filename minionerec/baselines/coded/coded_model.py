"""What baselines have in common that know an item by its codes, and how the generative ones among them rank."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import Options, SequentialModel
from minionerec.tree import NO_TOKEN, BeamResult, CatalogTrie, Normalise
from minionerec.tree.prompt_cache import PrefixModel
from minionerec.tree.search import search_prompts

Reads = Literal["sids", "vectors"]
_ROWS = 64  # histories that are searched at once, at most
_PAIRS = 1 << 22  # pairs of beams in all of them, at most: every beam has a mask over the beams before it


class CodedModel(SequentialModel):
    """A baseline without a table of items: made from their codes, `max_history`, its options and the length of its lists.

    Attributes:
        reads: what the items are known by: the run's semantic IDs, its item vectors, or both. Without semantic IDs the codes
            are made of the vectors (`codes_of`); with both, the model also takes the vectors and the items of the train split.
    """

    reads: ClassVar[tuple[Reads, ...]]
    causal = False
    padding_free = True
    layout = "padded"

    def __init__(self, codes: np.ndarray, max_history: int, options: Options, lists: int) -> None:
        del options
        nn.Module.__init__(self)  # not SequentialModel's, which makes a table of items
        self.items, self.max_history, self.lists = len(codes), max_history, lists

    @classmethod
    def check_items(cls, trained: int) -> None:
        """Refuse too few items, for a model whose codes are made of item vectors (`codes_of`).

        Args:
            trained: how many the train split has.
        """

    @classmethod
    def codes_of(cls, vectors: np.ndarray, trained: np.ndarray, options: Any, seed: int) -> np.ndarray:
        """Codes of item vectors, (items, digits), for a model that reads these.

        Args:
            vectors: (items, dimensions).
            trained: the items of the train split, ascending; the quantiser is fitted to these.
        """
        raise TypeError(f"{cls.__name__} does not define codes_of().")


class GenerativeModel(CodedModel):
    """A baseline that writes the next item's SID code by code. It ranks by a beam search over the trie of all SIDs.

    Items that share a SID get its score; what no beam reached is never recommended.

    Args:
        codes: (items, levels), -1 behind the end of a short SID.
        first: the first token id of a code; a token is a pair of level and code that some item has.

    Attributes:
        tokens: (items + 1, levels) token ids, -1 behind the end of a short SID; row 0 is padding, all -1.
        vocabulary: token ids, those below `first` included.
    """

    reads: ClassVar[tuple[Reads, ...]] = ("sids",)
    has_vectors = False

    def __init__(self, codes: np.ndarray, max_history: int, options: Options, lists: int, first: int) -> None:
        super().__init__(codes, max_history, options, lists)
        tokens, vocabulary = token_ids(codes, first)
        padded = torch.from_numpy(np.concatenate([np.full((1, codes.shape[1]), NO_TOKEN), tokens]))
        self.register_buffer("tokens", padded, persistent=False)
        self.vocabulary = vocabulary
        self._trie = self.trie_of(torch.from_numpy(tokens))

    def trie_of(self, tokens: Tensor) -> CatalogTrie:
        """The trie of all SIDs.

        Args:
            tokens: (items, levels) token ids.

        Raises:
            ConfigError: some SID is the beginning of another.
        """
        trie = CatalogTrie.from_codes(tokens)
        if trie.prefixed:
            raise ConfigError(
                "Some SID is the beginning of another, which this baseline cannot write: it has no end token. Give every item "
                "a SID of the same length (sid.collisions nearest-free or item)."
            )
        return trie

    @property
    def reranks(self) -> bool:
        """Whether what a search finds is ranked anew, by `reranked`."""
        return False

    def read(self, batch: HistoryBatch, trie: CatalogTrie, normalise_over: Normalise = "vocabulary") -> PrefixModel:
        """Histories that the model has read, ready for a search or for exact scores.

        Args:
            trie: the model's own, or a view of it.
        """
        raise TypeError(f"{type(self).__name__} does not define read().")

    def search(
        self, batch: HistoryBatch, beams: int, trie: CatalogTrie | None = None, normalise_over: Normalise = "vocabulary"
    ) -> BeamResult:
        """The most likely SIDs after each history, with the certificate, by the search that all models here share.

        Args:
            trie: a view of the model's own, such as `model.trie.without(hidden)`; None hides nothing.
        """
        return search_prompts(self.read(batch, self.trie if trie is None else trie, normalise_over), beams)

    def prefix_scores(self, batch: HistoryBatch, normalise_over: Normalise = "vocabulary") -> list[Tensor]:
        """The exact score of every prefix of every SID; see `tree.score_prefixes`."""
        raise TypeError(f"{type(self).__name__} does not define prefix_scores().")

    def reranked(self, batch: HistoryBatch, scores: Tensor) -> Tensor:
        """What the items that a search found are ranked by in the end, (batch, items + 1), -inf of those that are not ranked.

        Args:
            scores: `item_scores` of what was found.
        """
        raise TypeError(f"{type(self).__name__} does not define reranked().")

    @property
    def trie(self) -> CatalogTrie:
        """All SIDs, on the model's device."""
        if self._trie.device != self.get_buffer("tokens").device:
            self._trie = self._trie.to(self.get_buffer("tokens").device)
        return self._trie

    def scores(self, batch: HistoryBatch) -> Tensor:
        """Log-probability of the items whose SIDs the search found, (batch, items + 1), -inf of all others and of padding."""
        beams = min(self.lists, len(self._trie))
        scores = batch.items.new_full((len(batch.items), self.items + 1), -torch.inf, dtype=torch.float32)
        rows = min(_ROWS, max(1, _PAIRS // beams**2))
        for start in range(0, len(scores), rows):
            part = HistoryBatch(*(values[start : start + rows] for values in batch))
            scores[start : start + rows] = self.item_scores(self.search(part, beams))
        return scores

    def item_scores(self, found: BeamResult) -> Tensor:
        """Log-probability of the items whose SIDs a search found, (batch, items + 1), -inf of all others and of padding."""
        leaves = found.scores.new_full((len(found.leaves), len(self.trie) + 1), -torch.inf)
        leaves.scatter_(1, torch.where(found.leaves < 0, len(self.trie), found.leaves), found.scores)
        return torch.nn.functional.pad(leaves[:, self.trie.leaf_of_item.long()], (1, 0), value=-torch.inf)


def token_ids(codes: np.ndarray, first: int) -> tuple[np.ndarray, int]:
    """Token ids of codes, one for each pair of a level and a code that occurs, and how many ids there are.

    >>> token_ids(np.array([[5, 0], [7, -1], [5, 7]]), first=2)
    (array([[ 2,  4],
           [ 3, -1],
           [ 2,  5]]), 6)

    Args:
        codes: (items, levels), -1 behind the end of a short SID.
        first: the first id of a code.
    """
    tokens = np.full(codes.shape, NO_TOKEN, dtype=np.int64)
    for level in range(codes.shape[1]):
        present = codes[:, level] >= 0
        used, numbers = np.unique(codes[present, level], return_inverse=True)
        tokens[present, level] = first + numbers
        first += len(used)
    return tokens, first
