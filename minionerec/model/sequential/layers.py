"""Layers that several baselines share: masks and heads, attention, the feed-forward, the encoder and its input.

All norms stand after the residual (post-norm), as in the published models.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import Options, at

# What is added to the score of a key that may not be seen. Finite, as published: a query that sees no key attends to all alike.
MASKED = -10_000.0


@dataclass(frozen=True)
class Sizes(Options):
    """Options of every encoder, with the defaults of most: what each means is in section `baseline` of the configuration."""

    dropout: float = 0.5
    inner_size: int = 256
    layers: int = 2
    heads: int = 2


@dataclass(frozen=True)
class SoftmaxSizes(Sizes):
    """Options of an encoder with softmax attention.

    Attributes:
        attention_dropout: share of the attention weights that is dropped.
    """

    attention_dropout: float = 0.5


def layer_norm(size: int) -> nn.LayerNorm:
    """LayerNorm with the epsilon of the published models."""
    return nn.LayerNorm(size, eps=1e-12)


def mask(segments: Tensor, *, causal: bool) -> Tensor:
    """Additive attention mask, (rows, 1, queries, keys): 0 where the key is a real item of the query's own history.

    Args:
        segments: (rows, width), 0 where padding.
        causal: keys after the query are masked too.
    """
    seen = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    if causal:
        seen = seen.tril()
    return torch.where(seen, 0.0, MASKED)[:, None]


def split_heads(values: Tensor, heads: int) -> Tensor:
    """(rows, width, hidden) to (rows, heads, width, hidden / heads)."""
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(values: Tensor) -> Tensor:
    """(rows, heads, width, size) to (rows, width, heads * size)."""
    return values.transpose(1, 2).flatten(2)


def check_heads(hidden_size: int, heads: int) -> None:
    """Raises ConfigError if the width does not split into heads of even width (rotations turn pairs of dimensions)."""
    if hidden_size % (2 * heads):
        raise ConfigError(f"baseline.hidden_size {hidden_size} does not split into {heads} heads of even width.")


class Attention(nn.Module):
    """Softmax attention with biased projections, dropout on the weights, and a post-norm residual.

    Subclasses override `context` to change what is added to the scores, or the queries and keys.
    """

    def __init__(self, sizes: Sizes, attention_dropout: float) -> None:
        super().__init__()
        hidden_size = sizes.hidden_size
        check_heads(hidden_size, sizes.heads)
        self.heads = sizes.heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.layer_norm = layer_norm(hidden_size)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.dropout = nn.Dropout(sizes.dropout)

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (rows, heads, width, size)."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        return q, k, v

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over keys, with dropout."""
        return self.attention_dropout(scores.softmax(-1))

    def context(self, x: Tensor, attention_input: Any) -> Tensor:
        """What each cell gathers, (rows, heads, width, size).

        Args:
            attention_input: the additive mask; subclasses may ask for something else (see `EncoderModel.attention_input`).
        """
        q, k, v = self.projections(x)
        return self.weights(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + attention_input) @ v

    def forward(self, x: Tensor, attention_input: Any, readout: Tensor | None = None) -> Tensor:
        """(rows, width, hidden), or with `readout` (flat indices) only those cells, (batch, hidden)."""
        gathered = merge_heads(self.context(x, attention_input))
        if readout is not None:
            gathered, x = at(gathered, readout), at(x, readout)
        return self.layer_norm(x + self.dropout(self.out_proj(gathered)))


class FeedForward(nn.Module):
    """LN(x + Drop(W2 GELU(W1 x)))."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(sizes.hidden_size, sizes.inner_size)
        self.dense_2 = nn.Linear(sizes.inner_size, sizes.hidden_size)
        self.layer_norm = layer_norm(sizes.hidden_size)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the hidden size."""
        return self.layer_norm(x + self.dropout(self.dense_2(functional.gelu(self.dense_1(x)))))


class Layer(nn.Module):
    """An attention of any kind, then the feed-forward."""

    def __init__(self, attn: nn.Module, ffn: FeedForward) -> None:
        super().__init__()
        self.attn, self.ffn = attn, ffn

    def forward(self, x: Tensor, attention_input: Any, readout: Tensor | None = None) -> Tensor:
        """(rows, width, hidden), or with `readout` (flat indices) only those cells, (batch, hidden)."""
        return self.ffn(self.attn(x, attention_input, readout))


class Encoder(nn.Module):
    """Layers in a row, each an attention and a feed-forward; the last one computes only what is read out."""

    def __init__(self, attentions: Iterable[nn.Module], sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(attn, FeedForward(sizes)) for attn in attentions)

    def forward(self, x: Tensor, attention_input: Any, readout: Tensor) -> Tensor:
        """States at flat indices, (batch, hidden); every attention gets the same `attention_input`."""
        *inner, last = self.layers
        for layer in inner:
            x = layer(x, attention_input)
        return last(x, attention_input, readout)


class InputEmbedding(nn.Module):
    """Drop(LN(item + position)): what the published Transformers read. The item table belongs to the model."""

    def __init__(self, sizes: Sizes, max_history: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(max_history, sizes.hidden_size)
        self.layer_norm = layer_norm(sizes.hidden_size)
        self.dropout = nn.Dropout(sizes.dropout)

    def normalised(self, x: Tensor) -> Tensor:
        """Drop(LN(x))."""
        return self.dropout(self.layer_norm(x))

    def forward(self, items: Tensor, batch: HistoryBatch) -> Tensor:
        """`items` are the looked-up rows, (rows, width, hidden)."""
        return self.normalised(items + self.position_embeddings(batch.positions))
