"""LightSANs (Fan et al., 2021) as RecBole has it: attention to a few pooled interests, positions attended to apart from items.

Nothing is masked, neither the future nor padding, and both softmaxes run over the queries, because the published row has it so.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.encoder import EncoderModel
from minionerec.model.sequential.layers import Attention, SoftmaxSizes, layer_norm, split_heads


@dataclass(frozen=True)
class LightSANsSizes(SoftmaxSizes):
    """Options of LightSANs."""

    interests: int = 5


class InterestAttention(Attention):
    """Items attend to `interests` pooled from the whole row; positions attend to positions."""

    def __init__(self, sizes: LightSANsSizes, theta_key: Tensor, theta_value: Tensor) -> None:
        super().__init__(sizes, sizes.attention_dropout)
        self.theta_key, self.theta_value = nn.Parameter(theta_key.clone()), nn.Parameter(theta_value.clone())
        self.position_norm = layer_norm(sizes.hidden_size)
        self.position_query = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.position_key = nn.Linear(sizes.hidden_size, sizes.hidden_size)

    def context(self, x: Tensor, attention_input: Tensor) -> Tensor:
        """`attention_input` is the position table, (width, hidden); nothing is masked."""
        # 1. Pool keys and values of the row into a few interests.
        k, v = self.key(x), self.value(x)
        pooled_k, pooled_v = (
            split_heads((values @ theta).softmax(1).transpose(1, 2) @ values, self.heads)  # (rows, heads, interests, size)
            for values, theta in ((k, self.theta_key), (v, self.theta_value))
        )
        # 2. Items attend to the interests. The softmax runs over the queries, see the header.
        q = split_heads(self.query(x), self.heads)
        scale = math.sqrt(q.shape[-1])
        to_interests = self.attention_dropout((q @ pooled_k.transpose(-1, -2) / scale).softmax(-2))
        # 3. Positions attend to positions. Their queries are scaled twice, by the width and by the head's width, as published.
        p = self.position_norm(attention_input)[None]
        pq = split_heads(self.position_query(p) / math.sqrt(p.shape[-1]), self.heads)
        pk = split_heads(self.position_key(p), self.heads)
        to_positions = (pq @ pk.transpose(-1, -2) / scale).softmax(-2)
        return to_interests @ pooled_v + to_positions @ split_heads(v, self.heads)


class LightSANs(EncoderModel[LightSANsSizes]):
    """Every cell of the row of `max_history` takes part, padding included."""

    options = LightSANsSizes
    causal = padding_free = False
    layout = "padded"
    renames = (
        (r"\.attpooling_(key|value)\.theta$", r".theta_\1"),
        (r"\.pos_q_linear\.", ".position_query."),
        (r"\.pos_k_linear\.", ".position_key."),
        (r"\.pos_ln\.", ".position_norm."),
    )

    def attentions(self, sizes: LightSANsSizes, max_history: int) -> Iterator[nn.Module]:
        """All layers start with the same pooling."""
        theta_key = torch.randn(sizes.hidden_size, sizes.interests)
        theta_value = torch.randn(sizes.hidden_size, sizes.interests)
        for _ in range(sizes.layers):
            yield InterestAttention(sizes, theta_key, theta_value)

    def embedded(self, batch: HistoryBatch) -> Tensor:
        """Positions do not enter the stream; the attention reads them apart."""
        return self.embedding.normalised(self.item_embeddings(batch.items))

    def attention_input(self, batch: HistoryBatch, x: Tensor) -> Tensor:
        """The position table."""
        return self.embedding.position_embeddings.weight
