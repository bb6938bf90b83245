"""Layers that item and user encoders share. Each reads vectors (n, length, width) and a mask (n, length), True where real.

What is masked never changes a result, wherever it stands, and a row without anything real gives zeros.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.config import LegoConfig
from minionerec.errors import ConfigError


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over what is real; zeros along a line that holds nothing real.

    Args:
        mask: bool, of the shape of `scores` or one that broadcasts to it.
    """
    some = mask.any(dim, keepdim=True)  # -inf along the whole line would give NaN, in the gradient too
    return scores.masked_fill(~mask & some, -torch.inf).softmax(dim) * mask


def masked_mean(vectors: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real vectors, (n, width)."""
    total = (vectors * mask[..., None]).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def places(mask: Tensor) -> Tensor:
    """The place of each real vector among the real ones of its row, from 0: (n, length). Padding in between does not count."""
    return (mask.cumsum(1) - 1).clamp(min=0)


class AdditiveAttention(nn.Module):
    """a_i = w . tanh(W x_i + b), weights = softmax(a), result = the weighted sum of x (Yang et al., 2016)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.weight = nn.Linear(hidden, 1, bias=False)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, width)."""
        scores = self.weight(torch.tanh(self.dense(vectors))).squeeze(-1)
        return torch.einsum("nl,nlw->nw", masked_softmax(scores, mask, 1), vectors)


class MeanPooling(nn.Module):
    """The mean of the real vectors."""

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, width)."""
        return masked_mean(vectors, mask)


class SelfAttention(nn.Module):
    """Multi-head self-attention, a linear layer, additive attention (NRMS, Wu et al., 2019)."""

    def __init__(self, config: LegoConfig, width: int) -> None:
        super().__init__()
        heads = _heads(config, "attention", width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=config.dropout, batch_first=True)
        self.linear = nn.Linear(width, width)
        self.sum = AdditiveAttention(width, config.hidden)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, width)."""
        hidden = ~mask & mask.any(1, keepdim=True)  # a row of nothing real reads its padding, and the sum below drops it
        states, _ = self.attention(vectors, vectors, vectors, key_padding_mask=hidden, need_weights=False)
        return self.sum(self.linear(states), mask)


class Transformer(nn.Module):
    """A BERT encoder with positions from 0, a linear layer, additive attention."""

    def __init__(self, config: LegoConfig, width: int, length: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel  # slow to import

        sizes = BertConfig(
            vocab_size=1,
            hidden_size=width,
            num_hidden_layers=config.layers_of("transformer"),
            num_attention_heads=_heads(config, "transformer", width),
            intermediate_size=4 * width,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=length,
            type_vocab_size=1,
        )
        self.bert = BertModel(sizes, add_pooling_layer=False)
        self.bert.set_input_embeddings(nn.Identity())  # reads vectors; its own table would never be trained
        self.linear = nn.Linear(width, width)
        self.sum = AdditiveAttention(width, config.hidden)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, width)."""
        seen = (mask | ~mask.any(1, keepdim=True)).long()  # see SelfAttention
        states = self.bert(inputs_embeds=vectors, attention_mask=seen, position_ids=places(mask)).last_hidden_state
        return self.sum(self.linear(states), mask)


class Fastformer(nn.Module):
    """Layers of additive attention between all words (Wu et al., 2021), with positions; additive attention, a linear layer."""

    def __init__(self, config: LegoConfig, width: int, length: int) -> None:
        super().__init__()
        heads = _heads(config, "fastformer", width)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            FastformerLayer(width, heads, config.dropout) for _ in range(config.layers_of("fastformer"))
        )
        self.sum = AdditiveAttention(width, config.hidden)
        self.linear = nn.Linear(width, width)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, width)."""
        states = self.dropout(self.norm(vectors + self.positions(places(mask))))
        for layer in self.layers:
            states = layer(states, mask)
        return self.linear(self.sum(states, mask))


class FastformerLayer(nn.Module):
    """Fastformer's attention, then residual, norm and feed-forward as in BERT.

    With q, k linear in x, and d the width of a head, for each head:
    alpha = softmax_i(w_a q_i / sqrt(d)), q* = sum alpha_i q_i, p_i = q* k_i, beta = softmax_i(w_b p_i / sqrt(d)),
    k* = sum beta_i p_i, r_i = W_r(k* q_i) + q_i. The w_a, w_b of a head read all heads, as in the published code.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.query_weight = nn.Linear(width, heads, bias=False)  # a bias would cancel in the softmax
        self.key_weight = nn.Linear(width, heads, bias=False)
        self.transform = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.last_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width)."""
        query, key = self.query(states), self.key(states)
        products = key * self._summed(query, self.query_weight, mask)[:, None]
        context = self._summed(products, self.key_weight, mask)[:, None]
        attended = self.transform(context * query) + query
        states = self.norm(states + self.dropout(self.dense(attended)))
        return self.last_norm(states + self.dropout(self.outer(functional.gelu(self.inner(states)))))

    def _summed(self, vectors: Tensor, weight: nn.Linear, mask: Tensor) -> Tensor:
        """Each head's slice of the vectors, summed over the row with the head's own weights: (n, width)."""
        heads = vectors.unflatten(-1, (self.heads, -1))
        shares = masked_softmax(weight(vectors) / math.sqrt(heads.shape[-1]), mask[..., None], 1)
        return torch.einsum("nlh,nlhd->nhd", shares, heads).flatten(1)


def _heads(config: LegoConfig, part: str, width: int) -> int:
    heads = config.heads_of(part)
    if width % heads:
        raise ConfigError(
            f"The vectors that {part} reads have the width {width} (lego.width for each field), which does not split into "
            f"{heads} heads. Change lego.width or lego.heads."
        )
    return heads
