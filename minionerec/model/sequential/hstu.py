"""HSTU (Zhai et al., 2024) without its time bias: pointwise SiLU attention instead of softmax, gated by a fourth projection.

Deviations from the paper: full softmax over the catalog instead of sampled negatives, dot-product scores, and no time
buckets, because most data sets here carry no timestamps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.layers import check_heads, mask, merge_heads, split_heads
from minionerec.model.sequential.sequential_model import Options, SequentialModel, at, initialise


@dataclass(frozen=True)
class HSTUOptions(Options):
    """Options of HSTU."""

    dropout: float = 0.2
    layers: int = 2
    heads: int = 2


class HSTULayer(nn.Module):
    """x + W2 Drop(LN(A V) * U) with A = SiLU(Q K^T + bias of the distance) / max_history, causal."""

    def __init__(self, options: HSTUOptions, max_history: int) -> None:
        super().__init__()
        hidden_size = options.hidden_size
        check_heads(hidden_size, options.heads)
        self.heads, self.max_history = options.heads, max_history
        self.input_norm, self.output_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.uvqk = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.distance_bias = nn.Parameter(torch.randn(max_history) * 0.02)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, visible: Tensor, distance: Tensor, readout: Tensor | None = None) -> Tensor:
        """(rows, width, hidden), or with `readout` (flat indices) only those cells, (batch, hidden).

        Args:
            visible: 1 if the query may see the key, else 0, (rows, 1, width, width).
            distance: how many positions the key lies back, (rows, width, width); any value for a key that is not visible.
        """
        # Equations 1 to 3 of the paper: projections, pointwise attention, gated output.
        u, v, q, k = functional.silu(self.uvqk(self.input_norm(x))).chunk(4, -1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        scores = q @ k.transpose(-1, -2) + self.distance_bias[distance.clamp(0, self.max_history - 1)][:, None]
        gathered = merge_heads((functional.silu(scores) / self.max_history * visible) @ v)
        if readout is not None:
            gathered, u, x = at(gathered, readout), at(u, readout), at(x, readout)
        return x + self.output(self.dropout(self.output_norm(gathered) * u))


class HSTU(SequentialModel):
    """Attention without a softmax, to the history so far."""

    options = HSTUOptions
    causal = padding_free = True

    def __init__(self, items: int, max_history: int, options: HSTUOptions) -> None:
        super().__init__(items, options)
        self.position_embeddings = nn.Embedding(max_history, options.hidden_size)
        self.layers = nn.ModuleList(HSTULayer(options, max_history) for _ in range(options.layers))
        self.dropout = nn.Dropout(options.dropout)
        initialise(self)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        x = self.item_embeddings(batch.items) * math.sqrt(self.item_embeddings.embedding_dim)
        x = self.dropout(x + self.position_embeddings(batch.positions))
        visible = (mask(batch.segments, causal=True) == 0).to(x.dtype)
        distance = batch.positions[:, :, None] - batch.positions[:, None, :]
        for layer in self.layers[:-1]:
            x = layer(x, visible, distance)
        return self.layers[-1](x, visible, distance, batch.readout)
