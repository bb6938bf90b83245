"""BERT4Rec (Sun et al., 2019) as RecBole has it: a bidirectional Transformer that fills in masked items.

Two properties of that implementation are kept, because the published row has them: the mask on a history's oldest item is
never scored, and at evaluation the oldest item is dropped to make room for the mask, however short the history is. The target
of a training row is not used: a row is a history whose own items are masked.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.baselines.batches import Batch
from minionerec.baselines.models.layers import Attention, Encoder, InputEmbedding, layer_norm, mask
from minionerec.baselines.models.recommender import Recommender, initialise


class BERT4Rec(Recommender):
    """Bidirectional: every item of a history sees all of it. A history's result does not depend on padding."""

    renames = ((r"^output_ffn\.", "head."), (r"^output_ln\.", "head_norm."), (r"^output_bias$", "item_bias"))
    last_item_share = 0.5  # share of batches in which each row masks its last item and no other
    most_labels = 10  # masks scored per history: the last so many

    def __init__(
        self,
        items: int,
        max_history: int,
        *,
        hidden_size: int = 64,
        inner_size: int = 256,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        attention_dropout: float = 0.2,
        mask_ratio: float = 0.2,
    ) -> None:
        super().__init__(items, hidden_size, extra_rows=1)
        self.mask_id, self.mask_ratio = items + 1, mask_ratio
        self.embedding = InputEmbedding(hidden_size, max_history, dropout)
        self.encoder = Encoder(
            (Attention(hidden_size, heads, dropout, attention_dropout) for _ in range(layers)), hidden_size, inner_size, dropout
        )
        self.head = nn.Linear(hidden_size, hidden_size)
        self.head_norm = layer_norm(hidden_size)
        self.item_bias = nn.Parameter(torch.zeros(items + 1))
        initialise(self)

    def logits(self, states: Tensor) -> Tensor:
        """Scores with each item's bias."""
        return super().logits(states) + self.item_bias

    def states(self, batch: Batch) -> Tensor:
        """The mask stands where the newest item was and all else moves one place back, over the oldest item."""
        return self.filled(self.with_mask_last(batch), batch, batch.readout)

    def with_mask_last(self, batch: Batch) -> Tensor:
        """Item ids as evaluation has them, (rows, width)."""
        return batch.items.roll(-1, 1).flatten().index_fill(0, batch.readout, self.mask_id).view_as(batch.items)

    def filled(self, items: Tensor, batch: Batch, readout: Tensor) -> Tensor:
        """States of the head at flat indices, (read out, hidden)."""
        x = self.embedding(self.item_embeddings(items), batch)
        x = self.encoder(x, mask(batch.segments, causal=False), readout)
        return self.head_norm(functional.gelu(self.head(x)))

    def draw_masks(self, batch: Batch) -> Tensor:
        """Which items of a training batch are masked, (rows, width) bool."""
        masked = torch.zeros_like(batch.items, dtype=torch.bool)
        if torch.rand(()) < self.last_item_share:
            masked.view(-1)[batch.readout[batch.lengths > 0]] = True
        else:  # one number per item, so that packed and padded batches draw the same masks
            cells = batch.cells()
            masked.view(-1)[cells] = torch.rand(len(cells), device=cells.device) < self.mask_ratio
        return masked

    def labels(self, masked: Tensor, batch: Batch) -> Tensor:
        """Which masks are scored, (rows, width) bool: the last `most_labels` of a history, and none at position 0."""
        same = batch.segments[:, :, None] == batch.segments[:, None, :]
        from_here = (same & masked[:, None, :]).triu().sum(-1)  # masks of the history from this cell to its end
        return masked & (from_here <= self.most_labels) & (batch.positions > 0)

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the scored masks; 0 where the batch has none."""
        masked = self.draw_masks(batch)
        readout = self.labels(masked, batch).flatten().nonzero()[:, 0]
        states = self.filled(batch.items.masked_fill(masked, self.mask_id), batch, readout)
        loss = functional.cross_entropy(self.logits(states), batch.items.flatten()[readout], reduction="sum")
        return loss / max(len(readout), 1)
