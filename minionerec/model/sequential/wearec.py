"""WEARec: filters instead of attention. Per layer a dynamic filter in the frequency domain and a Haar wavelet branch.

Nothing is masked: the filters mix all cells of the row, padding and, for an inner cell, the future.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.encoder import EncoderModel
from minionerec.model.sequential.layers import Sizes, check_heads, layer_norm, merge_heads, split_heads
from minionerec.model.sequential.sequential_model import at


@dataclass(frozen=True)
class WEARecSizes(Sizes):
    """Options of WEARec."""

    alpha: float = 0.3


class FilterLayer(nn.Module):
    """alpha x dynamic frequency filter + (1 - alpha) x Haar branch, with a post-norm residual."""

    def __init__(self, sizes: WEARecSizes, max_history: int, wavelet: Tensor) -> None:
        super().__init__()
        hidden_size, heads = sizes.hidden_size, sizes.heads
        self.heads, self.alpha, self.bins = heads, sizes.alpha, max_history // 2 + 1
        self.complex_weight = nn.Parameter(wavelet.clone())  # (1, heads, max_history / 2, size), real in spite of its name
        self.base_filter = nn.Parameter(torch.ones(heads, self.bins, 1))
        self.base_bias = nn.Parameter(torch.full((heads, self.bins, 1), -0.1))
        self.adaptive_mlp = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, heads * self.bins * 2)
        )
        self.gate_param = nn.Parameter(torch.zeros(()))  # published with the model, used by nothing
        self.layer_norm = layer_norm(hidden_size)
        self.dropout = nn.Dropout(sizes.dropout)

    def frequency(self, x: Tensor, heads: Tensor) -> Tensor:
        """`x` is (rows, width, hidden); `heads` is `x` split into heads, (rows, heads, width, size), and so is the result."""
        adapted = self.adaptive_mlp(x.mean(1)).view(len(x), self.heads, self.bins, 2)
        scale, bias = adapted[..., :1], adapted[..., 1:]  # (rows, heads, bins, 1)
        spectrum = torch.fft.rfft(heads.float(), dim=2, norm="ortho")
        spectrum = spectrum * (self.base_filter * (1 + scale)) + (self.base_bias + bias)
        return torch.fft.irfft(spectrum, n=x.shape[1], dim=2, norm="ortho")

    def haar(self, heads: Tensor) -> Tensor:
        """One level of the Haar transform, its details weighted, and back."""
        even, odd = heads[:, :, 0::2], heads[:, :, 1::2]
        approximation, detail = (even + odd) / 2, (even - odd) / 2 * self.complex_weight
        return torch.stack([approximation + detail, approximation - detail], 3).flatten(2, 3)

    def forward(self, x: Tensor, attention_input: None, readout: Tensor | None = None) -> Tensor:
        """(rows, width, hidden), or with `readout` (flat indices) only those cells, (batch, hidden). Nothing is masked."""
        heads = split_heads(x, self.heads)
        mixed = merge_heads((1 - self.alpha) * self.haar(heads) + self.alpha * self.frequency(x, heads))
        if readout is not None:
            mixed, x = at(mixed, readout), at(x, readout)
        return self.layer_norm(x + self.dropout(mixed))


class WEARec(EncoderModel[WEARecSizes]):
    """Every cell of the row of `max_history` takes part, padding included."""

    options = WEARecSizes
    causal = padding_free = False
    layout = "padded"

    def attentions(self, sizes: WEARecSizes, max_history: int) -> Iterator[nn.Module]:
        """Filters instead of attention; all layers start with the same wavelet weights."""
        check_heads(sizes.hidden_size, sizes.heads)
        if max_history % 2:
            raise ConfigError(f"baseline.max_history is {max_history}; the Haar branch of wearec needs an even length.")
        wavelet = torch.randn(1, sizes.heads, max_history // 2, sizes.hidden_size // sizes.heads) * 0.02
        for _ in range(sizes.layers):
            yield FilterLayer(sizes, max_history, wavelet)

    def attention_input(self, batch: HistoryBatch, x: Tensor) -> None:
        """Filters read nothing else."""
