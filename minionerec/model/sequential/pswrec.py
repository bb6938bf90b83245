"""PSWRec: a causal Transformer whose attention knows the phase and magnitude of a filter bank over the item stream.

Versions: V5 adds a phase bias and gates the weights; V12 rotates queries and keys by the phase (B-RoPE) and closes scores
between cells out of phase; V13 rotates and scales by the magnitude (AM-B-RoPE); V14 is V13 with another initial `gamma`; V13
without rotation scales and adds a phase bias. Every version but V5 applies the embedding's LayerNorm and dropout twice, as
published.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.encoder import EncoderModel
from minionerec.model.sequential.layers import Attention, SoftmaxSizes, mask
from minionerec.model.sequential.trm4rec import rotate_half

BANDS = ((3, 1), (7, 2), (15, 4), (31, 8))  # kernel and dilation
_QUIET = 1e-3  # magnitudes below have no phase in V5 and V12


@dataclass(frozen=True)
class PSWRecSizes(SoftmaxSizes):
    """Options of every version; a head takes a band, so most have four."""

    heads: int = 4
    phase_weight: float = 0.05


@dataclass(frozen=True)
class PSWRecV5Sizes(PSWRecSizes):
    """Options of V5."""

    heads: int = 2


@dataclass(frozen=True)
class PSWRecV13Sizes(PSWRecSizes):
    """Options of V13."""

    gamma: float = 0.0


AnySizes = TypeVar("AnySizes", bound=PSWRecSizes)


class Waves(NamedTuple):
    """Magnitude and phase per band and cell, each (rows, bands, width), and the additive attention mask.

    A quiet cell's cosine and sine are both 0 in V5.
    """

    magnitude: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor


class PhaseFilter(nn.Module):
    """Four pairs of causal depth-wise convolutions, averaged over channels: real and imaginary part of a band."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.real_convs, self.imag_convs = (
            nn.ModuleList(
                nn.Conv1d(hidden_size, hidden_size, kernel, dilation=dilation, groups=hidden_size, bias=False)
                for kernel, dilation in BANDS
            )
            for _ in range(2)
        )

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of (rows, width, hidden), each (rows, bands, width)."""
        return self._bands(h, self.real_convs), self._bands(h, self.imag_convs)

    def _bands(self, h: Tensor, convolutions: Iterable[nn.Module]) -> Tensor:
        channels = h.transpose(1, 2)
        bands = []
        for convolution, (kernel, dilation) in zip(convolutions, BANDS, strict=True):
            # The mean over channels of a depth-wise convolution is one convolution over all channels, divided by their number.
            weight = cast(nn.Conv1d, convolution).weight
            joint = weight.transpose(0, 1) / channels.shape[1]  # (1, hidden, kernel)
            bands.append(functional.conv1d(functional.pad(channels, ((kernel - 1) * dilation, 0)), joint, dilation=dilation))
        return torch.cat(bands, 1)


def _band_logits(heads: int, centre: float) -> Tensor:
    """Initial preference of each head for bands, (heads, bands): highest for the band whose middle is (head + 0.5) * centre."""
    band, head = torch.arange(len(BANDS)) + 0.5, torch.arange(heads) + 0.5
    return -((band[None] - head[:, None] * centre) ** 2)


def _agreement(weights: Tensor, waves: Waves) -> Tensor:
    """Weighted sum over bands of cos(phi_i - phi_j), (rows, heads, width, width). `weights` is (heads, bands)."""
    # cos(a - b) = cos a cos b + sin a sin b, so the sum is two matrix products.
    cos, sin = (values[:, None] * weights[None, :, :, None].sqrt() for values in (waves.cos, waves.sin))
    return cos.transpose(-1, -2) @ cos + sin.transpose(-1, -2) @ sin  # (rows, heads, width, bands) x its transpose


class BiasAttention(Attention):
    """V5: a bias from harmonic-mean magnitude and phase agreement; the weights are gated by it and renormalised."""

    def __init__(self, sizes: PSWRecSizes) -> None:
        super().__init__(sizes, sizes.attention_dropout)
        self.band_logits = nn.Parameter(_band_logits(sizes.heads, len(BANDS) / sizes.heads))
        self.phase_bias_scale = nn.Parameter(torch.full((sizes.heads,), 0.1))
        self.phase_gate_scale = nn.Parameter(torch.ones(()))

    def context(self, x: Tensor, waves: Waves) -> Tensor:
        """(rows, heads, width, size), see `Attention`."""
        # 1. How well the phases of two cells agree, over each head's bands.
        weights = self.band_logits.softmax(-1)
        agreement = _agreement(weights + 1e-8, waves)
        # 2. The harmonic mean of both magnitudes is large only if both are, so a quiet cell gives and takes little bias.
        m = torch.einsum("hs,bst->bht", weights, waves.magnitude)
        i, j = m[..., :, None], m[..., None, :]
        bias = self.phase_bias_scale.exp()[:, None, None] * (2 * i * j / (i + j + 1e-8)) * agreement
        # 3. Softmax with the bias, then a gate by it; the weights add up to 1 again.
        q, k, v = self.projections(x)
        attended = self.weights(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias + waves.mask)
        attended = attended * torch.sigmoid(self.phase_gate_scale * bias)
        return attended / (attended.sum(-1, keepdim=True) + 1e-9) @ v


class SyncAttention(Attention):
    """V12: head h is rotated by the phase of band h; cells out of phase do not attend to each other."""

    def __init__(self, sizes: PSWRecSizes) -> None:
        super().__init__(sizes, sizes.attention_dropout)
        _check_bands(sizes.heads)

    def context(self, x: Tensor, waves: Waves) -> Tensor:
        """(rows, heads, width, size), see `Attention`."""
        q, k, v = self.projections(x)
        c, s = waves.cos[..., None], waves.sin[..., None]  # (rows, heads, width, 1)
        q, k = (values * c + rotate_half(values) * s for values in (q, k))
        in_phase = c @ c.transpose(-1, -2) + s @ s.transpose(-1, -2)
        # More than a quarter turn apart is out of phase. A cell always sees itself, so that no query is left without a key.
        closed = (in_phase < 0) & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(closed, -1e9)
        return self.weights(scores + waves.mask) @ v


class AmplitudeAttention(Attention):
    """V13 and V14: head h is scaled by 1 + gamma x magnitude of band h, then rotated by its phase."""

    def __init__(self, sizes: PSWRecV13Sizes) -> None:
        super().__init__(sizes, sizes.attention_dropout)
        _check_bands(sizes.heads)
        self.gamma = nn.Parameter(torch.full((1, sizes.heads, 1, 1), sizes.gamma))

    def context(self, x: Tensor, waves: Waves) -> Tensor:
        """(rows, heads, width, size), see `Attention`."""
        q, k, v = self.projections(x)
        m, c, s = (values[..., None] for values in waves[:3])  # (rows, heads, width, 1)
        scale = 1 + self.gamma * m
        q, k = (scale * (values * c + rotate_half(values) * s) for values in (q, k))
        return self.weights(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + waves.mask) @ v


class ScaleAttention(Attention):
    """V13 without rotation: queries and keys scaled by bounded magnitudes, a small phase bias on the scores."""

    def __init__(self, sizes: PSWRecSizes) -> None:
        super().__init__(sizes, sizes.attention_dropout)
        self.band_logits = nn.Parameter(_band_logits(sizes.heads, 1.0))
        self.magnitude_scale = nn.Parameter(torch.full((sizes.heads, len(BANDS)), -3.0))
        self.phase_bias_scale = nn.Parameter(torch.full((sizes.heads,), -5.0))

    def context(self, x: Tensor, waves: Waves) -> Tensor:
        """(rows, heads, width, size), see `Attention`."""
        # 1. Scale by each cell's magnitude relative to the mean over its bands; the scale stays between 1 and 1.5.
        relative = waves.magnitude / (waves.magnitude.mean(1, keepdim=True) + 1e-8)
        scale = (
            1 + 0.5 * torch.tanh(torch.einsum("hs,bst->bht", functional.softplus(self.magnitude_scale), relative))[..., None]
        )
        # 2. A small bias by phase agreement: softplus(-5) at the start.
        agreement = _agreement(self.band_logits.softmax(-1) + 1e-8, waves)
        bias = functional.softplus(self.phase_bias_scale)[:, None, None] * agreement / math.sqrt(len(BANDS))
        q, k, v = self.projections(x)
        scores = (scale * q) @ (scale * k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        return self.weights(scores + bias + waves.mask) @ v


def _check_bands(heads: int) -> None:
    if heads > len(BANDS):
        raise ConfigError(f"baseline.heads is {heads}; each head takes a band of its own and there are {len(BANDS)}.")


class PSWRec(EncoderModel[AnySizes]):
    """What the versions share. Causal; the filter bank reads padding before a history, so results depend on it."""

    causal = True
    padding_free = False
    layout = "padded"
    attention: ClassVar[Callable[..., Attention]]
    normalised_twice: ClassVar[bool] = True
    band_per_head: ClassVar[bool] = False  # with fewer heads than bands, the later bands play no part

    def attentions(self, sizes: AnySizes, max_history: int) -> Iterator[nn.Module]:
        """Also makes the filter bank, whose initial weights are drawn before those of the layers."""
        self.phase_weight = sizes.phase_weight
        self.bands = sizes.heads if self.band_per_head else len(BANDS)
        self.phase_filter = PhaseFilter(sizes.hidden_size)
        return (self.attention(sizes) for _ in range(sizes.layers))

    def phases(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Magnitude, phase, and what cosine and sine are multiplied with, each (rows, bands, width)."""
        real, imaginary = self.phase_filter(h)
        magnitude = (real.square() + imaginary.square() + 1e-8).sqrt()
        return magnitude, torch.atan2(imaginary, real + 1e-8), torch.ones_like(magnitude)

    def embedded(self, batch: HistoryBatch) -> Tensor:
        """What the first layer and the filter bank read, (rows, width, hidden)."""
        h = super().embedded(batch)
        return self.embedding.normalised(h) if self.normalised_twice else h

    def attention_input(self, batch: HistoryBatch, x: Tensor) -> Waves:
        """The bands' magnitudes and phases, and the mask."""
        magnitude, phase, factor = (values[:, : self.bands] for values in self.phases(x))
        return Waves(magnitude, phase.cos() * factor, phase.sin() * factor, mask(batch.segments, causal=True))

    def forward(self, batch: HistoryBatch) -> Tensor:
        """Cross-entropy, plus `phase_weight` x how much the phases turn from cell to cell, padding included."""
        x = self.embedded(batch)
        waves = self.attention_input(batch, x)
        logits = self.logits(self.encoder(x, waves, batch.readout))
        turn = waves.cos.diff(dim=-1).square() + waves.sin.diff(dim=-1).square()
        return functional.cross_entropy(logits, batch.targets) + self.phase_weight * turn.mean()


class PSWRecV5(PSWRec[PSWRecV5Sizes]):
    """Two heads; the embedding is normalised once."""

    options = PSWRecV5Sizes
    attention = BiasAttention
    normalised_twice = False

    def phases(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quiet cells have cosine and sine 0."""
        real, imaginary = self.phase_filter(h)
        magnitude = (real.square() + imaginary.square() + 1e-8).sqrt()
        return magnitude, torch.atan2(imaginary, real), magnitude > _QUIET


class PSWRecV12(PSWRec[PSWRecSizes]):
    """B-RoPE with the sync gate."""

    options = PSWRecSizes
    attention = SyncAttention
    band_per_head = True

    def phases(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quiet cells have phase 0."""
        magnitude, phase, factor = super().phases(h)
        return magnitude, phase * (magnitude > _QUIET), factor


class PSWRecV13(PSWRec[PSWRecV13Sizes]):
    """AM-B-RoPE. V14 is `gamma` 0.1."""

    options = PSWRecV13Sizes
    attention = AmplitudeAttention
    band_per_head = True


class PSWRecV13WithoutRotation(PSWRec[PSWRecSizes]):
    """Magnitude scaling and phase bias, no rotation."""

    options = PSWRecSizes
    attention = ScaleAttention
    renames = ((r"\.gamma$", ".magnitude_scale"), (r"\.phase_bias$", ".phase_bias_scale"))
