"""BERT4Rec (Sun et al., 2019) as RecBole has it: a bidirectional Transformer that fills in masked items.

Two properties of that implementation are kept, because the published row has them. The mask on a history's oldest item is
never scored. At evaluation the oldest item is dropped to make room for the mask, however short the history is. The target of a
training row is not used: a row is a history whose own items are masked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.encoder import EncoderModel
from minionerec.model.sequential.layers import Attention, SoftmaxSizes, layer_norm


@dataclass(frozen=True)
class BERT4RecSizes(SoftmaxSizes):
    """Options of BERT4Rec."""

    dropout: float = 0.2
    attention_dropout: float = 0.2
    mask_ratio: float = 0.2


class BERT4Rec(EncoderModel[BERT4RecSizes]):
    """Bidirectional: every item of a history sees all of it."""

    options = BERT4RecSizes
    causal = False
    padding_free = True
    extra_rows = 1  # the mask
    renames = ((r"^output_ffn\.", "head."), (r"^output_ln\.", "head_norm."), (r"^output_bias$", "item_bias"))
    last_item_share = 0.5  # share of batches in which each row masks its last item and no other
    most_labels = 10  # masks scored per history: the last so many

    def __init__(self, items: int, max_history: int, sizes: BERT4RecSizes) -> None:
        super().__init__(items, max_history, sizes)
        self.mask_id, self.mask_ratio = items + 1, sizes.mask_ratio

    def attentions(self, sizes: BERT4RecSizes, max_history: int) -> Iterator[nn.Module]:
        """Plain softmax attention."""
        return (Attention(sizes, sizes.attention_dropout) for _ in range(sizes.layers))

    def add_head(self, sizes: BERT4RecSizes) -> None:
        """A dense layer with norm, and a bias per item."""
        self.head = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.head_norm = layer_norm(sizes.hidden_size)
        self.item_bias = nn.Parameter(torch.zeros(self.items + 1))

    def logits(self, states: Tensor) -> Tensor:
        """Scores with each item's bias."""
        return super().logits(states) + self.item_bias

    def states(self, batch: HistoryBatch) -> Tensor:
        """The mask stands in the newest item's cell; all items move one cell back, and the oldest drops out."""
        return self.filled(self.with_mask_last(batch), batch, batch.readout)

    def with_mask_last(self, batch: HistoryBatch) -> Tensor:
        """Item ids as evaluation reads them, (rows, width)."""
        return batch.items.roll(-1, 1).flatten().index_fill(0, batch.readout, self.mask_id).view_as(batch.items)

    def filled(self, items: Tensor, batch: HistoryBatch, readout: Tensor) -> Tensor:
        """States of the head at flat indices, (read out, hidden)."""
        x = self.embedding(self.item_embeddings(items), batch)
        x = self.encoder(x, self.attention_input(batch, x), readout)
        return self.head_norm(functional.gelu(self.head(x)))

    def draw_masks(self, batch: HistoryBatch) -> Tensor:
        """Which items of a training batch are masked, (rows, width) bool."""
        masked = torch.zeros_like(batch.items, dtype=torch.bool)
        if torch.rand(()) < self.last_item_share:
            masked.view(-1)[batch.readout[batch.lengths > 0]] = True
        else:  # one number per item, so that packed and padded batches draw the same masks
            cells = batch.cells()
            masked.view(-1)[cells] = torch.rand(len(cells), device=cells.device) < self.mask_ratio
        return masked

    def labels(self, masked: Tensor, batch: HistoryBatch) -> Tensor:
        """Which masks are scored, (rows, width) bool: the last `most_labels` of a history, and none at position 0."""
        same_history = batch.segments[:, :, None] == batch.segments[:, None, :]
        from_here = (same_history & masked[:, None, :]).triu().sum(-1)  # masks from this cell to the history's end
        return masked & (from_here <= self.most_labels) & (batch.positions > 0)

    def forward(self, batch: HistoryBatch) -> Tensor:
        """Mean cross-entropy over the scored masks; 0 if the batch has none."""
        masked = self.draw_masks(batch)
        readout = self.labels(masked, batch).flatten().nonzero()[:, 0]
        states = self.filled(batch.items.masked_fill(masked, self.mask_id), batch, readout)
        loss = functional.cross_entropy(self.logits(states), batch.items.flatten()[readout], reduction="sum")
        return loss / max(len(readout), 1)
