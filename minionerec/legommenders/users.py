"""User encoders: from the item vectors of a history to one vector of the user, or several (`poly`)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from minionerec.config import LegoConfig
from minionerec.legommenders.layers import (
    AdditiveAttention,
    Fastformer,
    MeanPooling,
    SelfAttention,
    Transformer,
    masked_softmax,
)


class LastState(nn.Module):
    """The state of a GRU after the newest item, and a linear layer (LSTUR, An et al., 2019, without its user table)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)
        self.linear = nn.Linear(width, width)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, width)."""
        front = (~mask).long().argsort(dim=1, stable=True)  # real items first, in their order
        ordered = vectors.gather(1, front[..., None].expand_as(vectors))
        lengths = mask.sum(1)
        packed = pack_padded_sequence(ordered, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return self.linear(last[-1]) * (lengths > 0)[:, None]


class PolyAttention(nn.Module):
    """Several weighted sums of the history, one for each learnt code (MINER, Li et al., 2022): softmax(C tanh(W x)^T) x."""

    def __init__(self, width: int, codes: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden, bias=False)
        self.codes = nn.Linear(hidden, codes, bias=False)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, codes, width)."""
        shares = masked_softmax(self.codes(torch.tanh(self.dense(vectors))), mask[..., None], 1)
        return torch.einsum("nlc,nlw->ncw", shares, vectors)


class History(nn.Module):
    """`none`: the history itself, for interactions that weigh its items for each candidate."""

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width), zeros where masked."""
        return vectors * mask[..., None]


def user_encoder(config: LegoConfig, width: int) -> nn.Module:
    """The user encoder of a configuration, over item vectors of some width; it reads (vectors, mask)."""
    make = {
        "additive": lambda: AdditiveAttention(width, config.hidden),
        "attention": lambda: SelfAttention(config, width),
        "pooling": MeanPooling,
        "transformer": lambda: Transformer(config, width, config.history),
        "fastformer": lambda: Fastformer(config, width, config.history),
        "gru": lambda: LastState(width),
        "poly": lambda: PolyAttention(width, config.codes, config.hidden),
        "none": History,
    }
    return make[config.parts.user]()
