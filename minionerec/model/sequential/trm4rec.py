"""TRM4Rec: a tiny recursive model. One or two blocks update two states over and over; next-item softmax.

In a cycle each block updates the state z_r from (z_r, z_a, x), then z_a from (z_a, z_r); all cycles share the blocks. Without
`full_backpropagation` (the published `vanilla`) the gradient runs through the last cycle only, so the initial states never
learn. There is no dropout, no bias and no learnt norm.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.layers import check_heads, mask, merge_heads, split_heads
from minionerec.model.sequential.sequential_model import Options, SequentialModel, at, initialise

_THETA = 10_000.0


def rms(x: Tensor) -> Tensor:
    """X over its root mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) to (-x2, x1), halves of the last dimension."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Block(nn.Module):
    """rms(x + attention), then rms(x + SwiGLU)."""

    def __init__(self, hidden_size: int, heads: int, expansion: float = 4.0) -> None:
        super().__init__()
        check_heads(hidden_size, heads)
        self.heads = heads
        # SwiGLU has three matrices instead of two: 2/3 of the width costs the same; then up to the next multiple of 256.
        inner = math.ceil(round(expansion * hidden_size * 2 / 3) / 256) * 256
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate_up = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor] | None, readout: Tensor | None = None) -> Tensor:
        """(rows, width, hidden), or with `readout` (flat indices) only those cells, (batch, hidden).

        Args:
            rotary: cosines and sines, (rows, 1, width, size), or None for no rotation.
        """
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        if rotary is not None:
            cos, sin = rotary
            q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        gathered = merge_heads((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask).softmax(-1) @ v)
        if readout is not None:
            gathered, x = at(gathered, readout), at(x, readout)
        x = rms(x + self.out_proj(gathered))
        gate, up = self.gate_up(x).chunk(2, -1)
        return rms(x + self.down(functional.silu(gate) * up))


@dataclass(frozen=True)
class TRM4RecOptions(Options):
    """Options of TRM4Rec."""

    positions: bool = False
    rope: bool = True
    full_backpropagation: bool = False
    layers: int = 1
    heads: int = 2
    steps: int = 4


class TRM4Rec(SequentialModel):
    """Two states per cell, refined over and over by the same blocks.

    With `positions`, a learnt position table is added to the input; with `rope`, attention is rotary. At least one of them
    must tell the model the order.
    """

    options = TRM4RecOptions
    causal = padding_free = True
    renames = (
        (r"^trm_blocks\.", "blocks."),
        (r"\.(self_attn|mlp)\.", "."),
        (r"\.(qkv|gate_up|down)_proj\.", r".\1."),
        (r"\.o_proj\.", ".out_proj."),
        (r"^z_a(nswer)?_init$", "z_a"),
        (r"^z_r(eason)?_init$", "z_r"),
        (r"^position_embedding\.", "position_embeddings."),
        (r"^rotary_emb\.(cos|sin)_cached$", ""),  # the table of angles
    )
    cosines: Tensor
    sines: Tensor

    def __init__(self, items: int, max_history: int, options: TRM4RecOptions) -> None:
        hidden_size = options.hidden_size
        super().__init__(items, options)
        if not options.positions and not options.rope:
            raise ConfigError("baseline.positions and baseline.rope are both false: trm4rec would not know the order of items.")
        self.steps, self.full_backpropagation = options.steps, options.full_backpropagation
        self.blocks = nn.ModuleList(Block(hidden_size, options.heads) for _ in range(options.layers))
        self.position_embeddings = nn.Embedding(max_history, hidden_size) if options.positions else None
        self.z_a, self.z_r = (nn.Parameter(torch.randn(hidden_size) * 0.02) for _ in range(2))
        if options.rope:
            size = hidden_size // options.heads
            frequencies = _THETA ** (-torch.arange(0, size, 2) / size)
            angles = torch.outer(torch.arange(max_history).float(), frequencies).repeat(1, 2)  # (max_history, size)
            self.register_buffer("cosines", angles.cos(), persistent=False)
            self.register_buffer("sines", angles.sin(), persistent=False)
        self.rope = options.rope
        initialise(self)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        x = self.item_embeddings(batch.items) * math.sqrt(self.item_embeddings.embedding_dim)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(batch.positions)
        visible = mask(batch.segments, causal=True)
        rotary = None
        if self.rope:
            rotary = (self.cosines[batch.positions][:, None], self.sines[batch.positions][:, None])
        z_a, z_r = self.z_a.expand_as(x), self.z_r.expand_as(x)
        for step in range(self.steps):
            last = step == self.steps - 1
            # Vanilla: all cycles but the last run without gradient, so their activations are not stored.
            with torch.set_grad_enabled(torch.is_grad_enabled() and (last or self.full_backpropagation)):
                for block in self.blocks:
                    z_r = block(z_r + z_a + x, visible, rotary)
                    read = batch.readout if last and block is self.blocks[-1] else None
                    z_a = block(z_a + z_r, visible, rotary, read)
        return z_a
