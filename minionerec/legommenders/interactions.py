"""Interactions: from a user's and a candidate's vector u, v to a score, a logit.

Each reads users (b, width), candidates (b, c, width) or (1, c, width) for all users, and the history's mask (b, h), and gives
(b, c). `max` reads several vectors of a user, (b, codes, width), and `din` the history, (b, h, width). x0 stands for [u; v].
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.config import LegoConfig

_DIN_HIDDEN = 64  # of the layer that weighs a history's item for a candidate


class Mlp(nn.Sequential):
    """Hidden layers with ReLU and dropout; `width` is that of the last."""

    def __init__(self, width: int, config: LegoConfig) -> None:
        layers: list[nn.Module] = []
        for size in config.mlp:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = size
        super().__init__(*layers)
        self.width = width


class Dot(nn.Module):
    """u . v."""

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        return dot(users, candidates)


class Max(nn.Module):
    """The largest of the products of v with the user's vectors (MINER)."""

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        if len(candidates) == 1:
            return (users @ candidates[0].T).amax(1)
        return torch.einsum("bkw,bcw->bkc", users, candidates).amax(1)


class Dnn(nn.Module):
    """MLP(x0)."""

    def __init__(self, width: int, config: LegoConfig) -> None:
        super().__init__()
        self.mlp = Mlp(2 * width, config)
        self.head = nn.Linear(self.mlp.width, 1)

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        return self.head(self.mlp(joined(users, candidates))).squeeze(-1)


class Pnn(nn.Module):
    """MLP([u; v; u . v]) (Qu et al., 2016)."""

    def __init__(self, width: int, config: LegoConfig) -> None:
        super().__init__()
        self.mlp = Mlp(2 * width + 1, config)
        self.head = nn.Linear(self.mlp.width, 1)

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        product = dot(users, candidates)[..., None]
        return self.head(self.mlp(torch.cat([joined(users, candidates), product], -1))).squeeze(-1)


class DeepFm(nn.Module):
    """(u . v + MLP(x0)) / 2 (Guo et al., 2017): a factorisation machine of two fields is their product."""

    def __init__(self, width: int, config: LegoConfig) -> None:
        super().__init__()
        self.deep = Dnn(width, config)

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        return (dot(users, candidates) + self.deep(users, candidates, mask)) / 2


class Dcn(nn.Module):
    """Cross layers beside an MLP of x0, and a linear layer over both (Wang et al., 2017)."""

    def __init__(self, cross: nn.ModuleList, width: int, config: LegoConfig) -> None:
        super().__init__()
        self.cross = cross
        self.mlp = Mlp(2 * width, config)
        self.head = nn.Linear(2 * width + self.mlp.width, 1)

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        first = states = joined(users, candidates)
        for layer in self.cross:
            states = layer(first, states)
        return self.head(torch.cat([states, self.mlp(first)], -1)).squeeze(-1)


class DcnV2(nn.Module):
    """Cross layers with an MLP on top, beside an MLP of x0, and a linear layer over both (Wang et al., 2021)."""

    def __init__(self, cross: nn.ModuleList, width: int, config: LegoConfig) -> None:
        super().__init__()
        self.cross = cross
        self.upper, self.mlp = Mlp(2 * width, config), Mlp(2 * width, config)
        self.head = nn.Linear(2 * self.mlp.width, 1)

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        first = states = joined(users, candidates)
        for layer in self.cross:
            states = layer(first, states)
        return self.head(torch.cat([self.upper(states), self.mlp(first)], -1)).squeeze(-1)


class CrossVector(nn.Module):
    """DCN: x0 (w . x) + b + x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Linear(size, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, first: Tensor, states: Tensor) -> Tensor:
        """Any shape that ends in the size, as all cross layers."""
        return first * self.weight(states) + self.bias + states


class CrossMatrix(nn.Module):
    """DCNv2 with full rank: x0 * (W x + b) + x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, first: Tensor, states: Tensor) -> Tensor:
        """See `CrossVector`."""
        return first * self.linear(states) + states


class CrossGate(nn.Module):
    """GDCN (Wang et al., 2023): x0 * (W x + b) * sigmoid(W_g x) + x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.gate = nn.Linear(size, size, bias=False)

    def forward(self, first: Tensor, states: Tensor) -> Tensor:
        """See `CrossVector`."""
        return first * self.linear(states) * torch.sigmoid(self.gate(states)) + states


class CrossExperts(nn.Module):
    """DCNv2's low-rank experts: sum_e softmax_e(g_e . x) x0 * (U_e tanh(C_e tanh(V_e^T x)) + b) + x."""

    def __init__(self, size: int, experts: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(experts, size, rank))
        self.core = nn.Parameter(torch.empty(experts, rank, rank))
        self.up = nn.Parameter(torch.empty(experts, rank, size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.gates = nn.Linear(size, experts, bias=False)
        for weight in (self.down, self.core, self.up):
            for expert in weight:
                nn.init.xavier_normal_(expert)

    def forward(self, first: Tensor, states: Tensor) -> Tensor:
        """See `CrossVector`."""
        low = torch.tanh(torch.einsum("...s,esr->...er", states, self.down))
        core = torch.tanh(torch.einsum("...er,erq->...eq", low, self.core))
        experts = first[..., None, :] * (torch.einsum("...er,ers->...es", core, self.up) + self.bias)
        return torch.einsum("...e,...es->...s", self.gates(states).softmax(-1), experts) + states


class Dice(nn.Module):
    """p x + (1 - p) alpha x with p = sigmoid of the standardised x: the activation of DIN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width). A single row has no variance, so it is standardised by the running figures, as in evaluation."""
        if len(x) > 1:
            standardised = self.norm(x)
        else:
            standardised = functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
        share = torch.sigmoid(standardised)
        return share * x + (1 - share) * self.alpha * x


class Din(nn.Module):
    """A sum s of the history's items c_i, each weighed for the candidate v, then an MLP (Zhou et al., 2018).

    a_i = MLP([v; c_i; v - c_i; v * c_i]), without softmax; the MLP reads [s; v], or s alone (`din-reference`, as
    in Legommenders).
    """

    def __init__(self, width: int, config: LegoConfig) -> None:
        super().__init__()
        self.reads_candidate = config.parts.interaction == "din"
        self.hidden = nn.Linear(4 * width, _DIN_HIDDEN)
        self.dice = Dice(_DIN_HIDDEN)
        self.weight = nn.Linear(_DIN_HIDDEN, 1)
        self.mlp = Mlp((1 + self.reads_candidate) * width, config)
        self.head = nn.Linear(self.mlp.width, 1)

    def forward(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """(b, c)."""
        shape = (len(users), candidates.shape[1], *users.shape[1:])
        items, candidate = users[:, None].expand(shape), candidates[:, :, None].expand(shape)
        real = mask[:, None].expand(shape[:3])  # only these are weighed, so padding is not among what Dice standardises by
        c, v = items[real], candidate[real]
        weights = torch.zeros(shape[:3], dtype=users.dtype, device=users.device)
        if len(c):
            weights[real] = self.weight(self.dice(self.hidden(torch.cat([v, c, v - c, v * c], -1)))).squeeze(-1)
        summed = torch.einsum("bch,bhw->bcw", weights, users)
        read = torch.cat([summed, candidates.expand_as(summed)], -1) if self.reads_candidate else summed
        return self.head(self.mlp(read)).squeeze(-1)


def dot(users: Tensor, candidates: Tensor) -> Tensor:
    """The products of (b, width) and (b, c, width) or (1, c, width): (b, c)."""
    if len(candidates) == 1:
        return users @ candidates[0].T
    return torch.einsum("bw,bcw->bc", users, candidates)


def joined(users: Tensor, candidates: Tensor) -> Tensor:
    """[u; v] of every pair, (b, c, 2 width)."""
    shape = (len(users), *candidates.shape[1:])
    return torch.cat([users[:, None].expand(shape), candidates.expand(shape)], -1)


def interaction(config: LegoConfig, width: int) -> nn.Module:
    """The interaction of a configuration, over vectors of some width."""
    size = 2 * width

    def cross(layer: type[nn.Module], *sizes: int) -> nn.ModuleList:
        return nn.ModuleList(layer(size, *sizes) for _ in range(config.cross_layers))

    def dcnv2() -> nn.Module:
        experts = (config.experts, config.rank)
        return DcnV2(cross(CrossMatrix) if config.full_rank else cross(CrossExperts, *experts), width, config)

    make: dict[str, Callable[[], nn.Module]] = {
        "dot": Dot,
        "max": Max,
        "dcn": lambda: Dcn(cross(CrossVector), width, config),
        "dcnv2": dcnv2,
        "gdcn": lambda: Dcn(cross(CrossGate), width, config),
        "deepfm": lambda: DeepFm(width, config),
        "pnn": lambda: Pnn(width, config),
        "din": lambda: Din(width, config),
        "din-reference": lambda: Din(width, config),
        "dnn": lambda: Dnn(width, config),
    }
    return make[config.parts.interaction]()
