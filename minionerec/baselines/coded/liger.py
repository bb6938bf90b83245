"""LIGER (Yang et al., arXiv:2411.18814): TIGER and dense retrieval by text vectors in one model.

The encoder reads, for each code of the history, LayerNorm(code embedding + v(item) + position of the item + level of the code),
where v(item) = MLP(text vector of the item). The decoder writes the next item's codes, as TIGER's does. The encoder's state of
the last code is the query of a dense retrieval: an item's logit is cos(query, v(item)) / temperature. The loss is TIGER's plus
`dense_weight` times the cross-entropy of the target among the items of the train split.

The beams of a search propose items, and every cold item, one that the train split does not have, is a candidate, too; the dense
logits rank them.

Deviations: the text vectors are the run's, the MLP has one hidden layer of `inner_size`, sizes are TIGER's here, T5's weights
begin as T5's do, and the last epoch is the one with the best NDCG@10 on valid of the lists that the model gives, not of dense
retrieval alone. `dense_weight` 0 leaves TIGER with text vectors in its input, which ranks by its beams' scores.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.baselines.coded.tiger import TIGER, TigerSizes
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.tree import CatalogTrie, Normalise
from minionerec.tree.encoder_decoder import T5PromptCache
from minionerec.tree.prompt_cache import PromptCache


@dataclass(frozen=True)
class LigerSizes(TigerSizes):
    """Options of LIGER."""

    input_dropout: float = 0.5
    temperature: float = 0.07
    dense_weight: float = 1.0


class LIGER(TIGER):
    """An encoder-decoder over codes whose encoder also retrieves items by their text vectors.

    Args:
        vectors: (items, dimensions) float32, of the items' texts.
        trained: the items of the train split, ascending; all others are cold.
    """

    reads = ("sids", "vectors")
    options = LigerSizes

    def __init__(
        self,
        codes: np.ndarray,
        max_history: int,
        sizes: LigerSizes,
        lists: int,
        vectors: np.ndarray,
        trained: np.ndarray,
    ) -> None:
        super().__init__(codes, max_history, sizes, lists)
        width = sizes.hidden_size
        self.dense_weight, self.temperature = sizes.dense_weight, sizes.temperature
        # The unit of the vectors does not matter: their root mean square becomes 1.
        texts = torch.from_numpy(np.array(vectors, np.float32))
        self.register_buffer("texts", functional.pad(texts / texts.square().mean().sqrt(), (0, 0, 1, 0)), persistent=False)
        _, first, text_of = np.unique(texts.numpy(), axis=0, return_index=True, return_inverse=True)
        self.register_buffer("first", torch.from_numpy(first) + 1, persistent=False)  # the first item of each distinct text
        self.register_buffer("text_of", torch.from_numpy(text_of.reshape(-1)), persistent=False)  # of each item, among these
        seen = torch.from_numpy(np.asarray(trained, np.int64)) + 1
        place = torch.full((len(codes) + 1,), -1)
        place[seen] = torch.arange(len(seen))
        self.register_buffer("seen", seen, persistent=False)  # items of the train split, numbered from 1
        self.register_buffer("place", place, persistent=False)  # of each item among these, -1 of a cold one and of padding
        self.text_mlp = nn.Sequential(
            nn.Dropout(sizes.dropout),
            nn.Linear(texts.shape[1], sizes.inner_size),
            nn.ReLU(),
            nn.Linear(sizes.inner_size, width),
        )
        self.item_positions = nn.Embedding(max_history, width)
        self.levels = nn.Embedding(codes.shape[1], width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(sizes.input_dropout)
        hidden, output = cast(nn.Linear, self.text_mlp[1]), cast(nn.Linear, self.text_mlp[3])
        # A text vector and a code's embedding, which T5 draws from N(0, 1), weigh the same at first.
        for layer, variance in ((hidden, 2 / texts.shape[1]), (output, 1 / sizes.inner_size)):
            nn.init.normal_(layer.weight, std=math.sqrt(variance))
            nn.init.zeros_(layer.bias)
        for table in (self.item_positions, self.levels):
            nn.init.normal_(table.weight, std=0.02)

    def item_vectors(self) -> Tensor:
        """MLP(text vector) of all items, (items + 1, hidden); row 0 is padding's."""
        return self.text_mlp(self.get_buffer("texts"))

    def embedded(self, batch: HistoryBatch, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads: (batch, longest, hidden), and its mask (batch, longest)."""
        ids, mask = self.prompts(batch)
        columns, _ = self.written(batch)
        cell, level = columns // self.levels.num_embeddings, columns % self.levels.num_embeddings
        items = batch.items.gather(1, cell)
        place = (batch.items > 0).cumsum(1).sub(1).clamp(min=0).gather(1, cell)  # 0 is the oldest item that is read
        total = self.t5.shared(ids) + vectors[items] + self.item_positions(place) + self.levels(level)
        return self.dropout(self.norm(total)), mask

    def dense_logits(self, queries: Tensor, vectors: Tensor) -> Tensor:
        """Cosines of queries (batch, hidden) and items' vectors (items, hidden), divided by the temperature: (batch, items).

        In float32, whatever the model's format: the cosines of many items would round to one number of 8 bits.
        """
        directions = functional.normalize(vectors.float(), dim=-1)
        return functional.normalize(queries.float(), dim=-1) @ directions.T / self.temperature

    def loss(self, batch: HistoryBatch, vectors: Tensor | None, codes: float, rows: float) -> Tensor:
        """TIGER's loss, plus `dense_weight` times the mean cross-entropy of the targets among the seen items, times `rows`."""
        assert vectors is not None
        embedded, mask = self.embedded(batch, vectors)
        output = cast(Any, self.t5)(inputs_embeds=embedded, attention_mask=mask, labels=self.labels(batch.targets))
        if not self.dense_weight:
            return output.loss * codes
        logits = self.dense_logits(output.encoder_last_hidden_state[:, -1], vectors[self.get_buffer("seen")])
        dense = functional.cross_entropy(logits, self.get_buffer("place")[batch.targets])
        return output.loss * codes + self.dense_weight * rows * dense

    def encoded(self, batch: HistoryBatch, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's states, (batch, longest, hidden), and the mask."""
        embedded, mask = self.embedded(batch, vectors)
        return cast(Any, self.t5).encoder(inputs_embeds=embedded, attention_mask=mask).last_hidden_state, mask

    @torch.no_grad()
    def read(self, batch: HistoryBatch, trie: CatalogTrie, normalise_over: Normalise = "vocabulary") -> PromptCache:
        """Histories that the encoder has read; raises as `TIGER.read` does."""
        states, mask = self.encoded(batch, self.item_vectors())
        return T5PromptCache.of_encoded(self.checked_t5(), states, mask.bool(), trie, normalise_over)

    def dense_scores(self, batch: HistoryBatch) -> Tensor:
        """Dense logits of all items, cold ones too, (batch, items + 1); -inf of padding.

        Items of one text have one score: a product of its own may round.
        """
        vectors = self.item_vectors()
        states, _ = self.encoded(batch, vectors)
        scores = self.dense_logits(states[:, -1], vectors[self.get_buffer("first")])[:, self.get_buffer("text_of")]
        return functional.pad(scores, (1, 0), value=-torch.inf)

    def scores(self, batch: HistoryBatch) -> Tensor:
        """Dense logits of the items whose SIDs the search found and of all cold items, (batch, items + 1), -inf of all others.

        With `dense_weight` 0 those of the search, as TIGER has them.
        """
        found = super().scores(batch)
        return self.reranked(batch, found) if self.reranks else found

    @property
    def reranks(self) -> bool:
        """Whether the dense part ranks what a search finds."""
        return bool(self.dense_weight)

    def reranked(self, batch: HistoryBatch, scores: Tensor) -> Tensor:
        """Dense logits of the items that were found and of all cold items, (batch, items + 1), -inf of all others."""
        cold = self.get_buffer("place") < 0
        return self.dense_scores(batch).masked_fill(scores.isneginf() & ~cold, -torch.inf)
