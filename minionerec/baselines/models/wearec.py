"""WEARec: filters instead of attention. Per layer a dynamic filter in the frequency domain and a Haar wavelet branch.

Nothing is masked: the filters mix all cells of the row, padding and, for an inner cell, the future.
"""

import torch
from torch import Tensor, nn

from minionerec.baselines.batches import Batch
from minionerec.baselines.models.layers import Encoder, InputEmbedding, check_heads, layer_norm, merge_heads, split_heads
from minionerec.baselines.models.recommender import Recommender, at, initialise
from minionerec.errors import ConfigError


class FilterLayer(nn.Module):
    """alpha x dynamic frequency filter + (1 - alpha) x Haar branch, with a post-norm residual."""

    def __init__(self, hidden_size: int, max_history: int, heads: int, dropout: float, alpha: float, wavelet: Tensor) -> None:
        super().__init__()
        self.heads, self.alpha, self.bins = heads, alpha, max_history // 2 + 1
        self.complex_weight = nn.Parameter(wavelet.clone())  # (1, heads, max_history / 2, size), real in spite of its name
        self.base_filter = nn.Parameter(torch.ones(heads, self.bins, 1))
        self.base_bias = nn.Parameter(torch.full((heads, self.bins, 1), -0.1))
        self.adaptive_mlp = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, heads * self.bins * 2)
        )
        self.gate_param = nn.Parameter(torch.zeros(()))  # published with the model, used by nothing
        self.layer_norm = layer_norm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def frequency(self, x: Tensor, heads: Tensor) -> Tensor:
        """`x` is (rows, width, hidden) and `heads` the same as (rows, heads, width, size); returns the latter shape."""
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

    def forward(self, x: Tensor, given: None, readout: Tensor | None = None) -> Tensor:
        """(rows, width, hidden), or with `readout` (flat indices) only those cells, (batch, hidden). Needs nothing else."""
        heads = split_heads(x, self.heads)
        mixed = merge_heads((1 - self.alpha) * self.haar(heads) + self.alpha * self.frequency(x, heads))
        if readout is not None:
            mixed, x = at(mixed, readout), at(x, readout)
        return self.layer_norm(x + self.dropout(mixed))


class WEARec(Recommender):
    """Neither causal nor independent of padding."""

    layout = "padded"

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
        alpha: float = 0.3,
    ) -> None:
        super().__init__(items, hidden_size)
        check_heads(hidden_size, heads)
        if max_history % 2:
            raise ConfigError(f"baseline.max_history is {max_history}; the Haar branch of wearec needs an even length.")
        self.embedding = InputEmbedding(hidden_size, max_history, dropout)
        wavelet = torch.randn(1, heads, max_history // 2, hidden_size // heads) * 0.02  # all layers start with the same
        self.encoder = Encoder(
            (FilterLayer(hidden_size, max_history, heads, dropout, alpha, wavelet) for _ in range(layers)),
            hidden_size,
            inner_size,
            dropout,
        )
        initialise(self)

    def states(self, batch: Batch) -> Tensor:
        """(batch, hidden), see `Recommender`."""
        x = self.embedding(self.item_embeddings(batch.items), batch)
        return self.encoder(x, None, batch.readout)
