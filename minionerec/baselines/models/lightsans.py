"""LightSANs (Fan et al., 2021) as RecBole has it: attention to a few pooled interests, positions attended to apart from items.

Nothing is masked, neither the future nor padding, and both softmaxes run over the queries: the published row has it so.
"""

import math

import torch
from torch import Tensor, nn

from minionerec.baselines.batches import Batch
from minionerec.baselines.models.layers import Attention, Encoder, InputEmbedding, layer_norm, split_heads
from minionerec.baselines.models.recommender import Recommender, initialise


class InterestAttention(Attention):
    """Items attend to `interests` pooled from the whole row; positions attend to positions."""

    def __init__(
        self, hidden_size: int, heads: int, dropout: float, attention_dropout: float, theta: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__(hidden_size, heads, dropout, attention_dropout)
        self.theta_key, self.theta_value = (nn.Parameter(values.clone()) for values in theta)
        self.position_norm = layer_norm(hidden_size)
        self.position_query = nn.Linear(hidden_size, hidden_size)
        self.position_key = nn.Linear(hidden_size, hidden_size)

    def context(self, x: Tensor, given: Tensor) -> Tensor:
        """`given` is the position table, (width, hidden); nothing is masked."""
        k, v = self.key(x), self.value(x)
        pooled_k, pooled_v = (
            split_heads((values @ theta).softmax(1).transpose(1, 2) @ values, self.heads)  # (rows, heads, interests, size)
            for values, theta in ((k, self.theta_key), (v, self.theta_value))
        )
        q = split_heads(self.query(x), self.heads)
        scale = math.sqrt(q.shape[-1])
        to_interests = self.attention_dropout((q @ pooled_k.transpose(-1, -2) / scale).softmax(-2))
        p = self.position_norm(given)[None]
        pq = split_heads(self.position_query(p) / math.sqrt(p.shape[-1]), self.heads)
        pk = split_heads(self.position_key(p), self.heads)
        to_positions = (pq @ pk.transpose(-1, -2) / scale).softmax(-2)
        return to_interests @ pooled_v + to_positions @ split_heads(v, self.heads)


class LightSANs(Recommender):
    """Neither causal nor independent of padding: every cell of the row of `max_history` takes part."""

    layout = "padded"
    renames = (
        (r"\.attpooling_(key|value)\.theta$", r".theta_\1"),
        (r"\.pos_q_linear\.", ".position_query."),
        (r"\.pos_k_linear\.", ".position_key."),
        (r"\.pos_ln\.", ".position_norm."),
    )

    def __init__(
        self,
        items: int,
        max_history: int,
        *,
        hidden_size: int = 64,
        inner_size: int = 256,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.5,
        attention_dropout: float = 0.5,
        interests: int = 5,
    ) -> None:
        super().__init__(items, hidden_size)
        self.embedding = InputEmbedding(hidden_size, max_history, dropout)
        theta = (torch.randn(hidden_size, interests), torch.randn(hidden_size, interests))  # all layers start with the same
        self.encoder = Encoder(
            (InterestAttention(hidden_size, heads, dropout, attention_dropout, theta) for _ in range(layers)),
            hidden_size,
            inner_size,
            dropout,
        )
        initialise(self)

    def states(self, batch: Batch) -> Tensor:
        """(batch, hidden), see `Recommender`."""
        x = self.embedding.normalised(self.item_embeddings(batch.items))  # positions do not enter the stream
        return self.encoder(x, self.embedding.position_embeddings.weight, batch.readout)
