"""SASRec with sampled softmax, the strongest plain rival: the row `SASRec+SS` of eSASRec's benchmark (github.com/blondered/
transformer_benchmark), whose recipe for Beauty is the default: 64 wide, one block, one head, dropout .2, 256 negatives.

The blocks are those of the SASRec paper: queries are normed, keys and values are not; the residual starts from the normed
queries; the feed-forward is as wide as the states; a LayerNorm ends the encoder. Positions count from the newest item.

Deviations from the recipe: an example is one history with one target, drawn anew each epoch, instead of a user with the targets
of all positions (128 users of Beauty are about 750 examples: see the batch size of the preset); Adam's second momentum is .999
instead of .98; training stops by NDCG@10 on valid instead of by the loss on valid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.layers import check_heads, mask, merge_heads, split_heads
from minionerec.model.sequential.losses import Loss, checked_negatives, trained_by
from minionerec.model.sequential.sequential_model import Options, SequentialModel, at


@dataclass(frozen=True)
class SampledSASRecOptions(Options):
    """Options of SASRec with sampled softmax."""

    layers: int = 1
    heads: int = 1
    dropout: float = 0.2
    loss: Loss = "sampled"
    negatives: int | None = None


class Block(nn.Module):
    """q = LN(x); y = q + Att(q, x, x); z = LN(y); z + Drop(W2 Drop(ReLU(W1 z)))."""

    def __init__(self, options: SampledSASRecOptions) -> None:
        super().__init__()
        size = options.hidden_size
        check_heads(size, options.heads)
        self.heads = options.heads
        self.query_norm, self.inner_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.key, self.value, self.out_proj = (nn.Linear(size, size) for _ in range(4))
        self.dense_1, self.dense_2 = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, visible: Tensor, readout: Tensor | None) -> Tensor:
        """(rows, width, hidden), or with `readout` (flat indices) only those cells, (batch, hidden).

        Args:
            visible: the additive mask, (rows, 1, queries, keys).
        """
        queries = self.query_norm(x)
        q, k, v = (split_heads(part, self.heads) for part in (self.query(queries), self.key(x), self.value(x)))
        weights = self.dropout((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + visible).softmax(-1))
        gathered = merge_heads(weights @ v)
        if readout is not None:
            gathered, queries = at(gathered, readout), at(queries, readout)
        z = self.inner_norm(queries + self.out_proj(gathered))
        return z + self.dropout(self.dense_2(self.dropout(functional.relu(self.dense_1(z)))))


class SampledSASRec(SequentialModel):
    """A Transformer with a causal mask; with `loss: softmax` the same model learns from all items.

    Not `causal` in the sense of the base class: positions count from the newest item, so a cell's state depends on how many
    items follow it, though not on which.
    """

    options = SampledSASRecOptions
    causal = False
    padding_free = True

    def __init__(self, items: int, max_history: int, options: SampledSASRecOptions) -> None:
        self._negatives = checked_negatives("sasrec-sampled", options.loss, options.negatives)
        super().__init__(items, options)
        self.position_embeddings = nn.Embedding(max_history, options.hidden_size)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.output_norm = nn.LayerNorm(options.hidden_size, eps=1e-8)
        self.dropout = nn.Dropout(options.dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        x = self.item_embeddings(batch.items) + self.position_embeddings(from_newest(batch))
        x = self.dropout(x) * (batch.segments > 0)[..., None]
        visible = mask(batch.segments, causal=True)
        *inner, last = self.blocks
        for block in inner:
            x = block(x, visible, None)
        return self.output_norm(last(x, visible, batch.readout))

    def forward(self, batch: HistoryBatch) -> Tensor:
        """Mean cross-entropy of the target among a sample of the items, or among all rows of the item table."""
        return trained_by(self, batch, self._negatives)


def from_newest(batch: HistoryBatch) -> Tensor:
    """Each cell's distance to the newest item of its history, (rows, width); 0 in padding."""
    cells = batch.cells()
    distance = torch.zeros_like(batch.items).flatten()
    distance[cells] = batch.readout.repeat_interleave(batch.lengths) - cells
    return distance.view_as(batch.items)
