"""FEARec (Du et al., 2023): attention by auto-correlation in the frequency domain.

`FEARec` is what the published Beauty row ran: all frequencies, no time-domain branch and, because three settings were missing
from its configuration, plain cross-entropy. `FEARecPublished` is the model with these settings: a frequency ramp over the
layers, a time-domain branch, a contrastive loss (`us_x`) and a frequency regulariser. It is checked against no run.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minionerec.baselines.batches import Batch
from minionerec.baselines.models.layers import Attention, Encoder, InputEmbedding, mask
from minionerec.baselines.models.recommender import Recommender, initialise


class AutoCorrelation(Attention):
    """The values, rolled by the delays of the strongest auto-correlation; optionally mixed with softmax attention.

    Args:
        bins: first and last + 1 of the frequencies that are used.
        time_share: weight of the softmax branch on the same frequencies; 0 leaves it out.
        attention_dropout: of the softmax branch.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        dropout: float,
        bins: tuple[int, int],
        time_share: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(hidden_size, heads, dropout, attention_dropout)
        self.bins, self.time_share = bins, time_share

    def context(self, x: Tensor, given: Tensor) -> Tensor:
        """(rows, heads, width, size), see `Attention`."""
        q, k, v = self.projections(x)
        width = x.shape[1]
        passed = torch.zeros(width // 2 + 1, 1, device=x.device)
        passed[slice(*self.bins)] = 1
        spectra = [torch.fft.rfft(values.float(), dim=2) * passed for values in (q, k, v)]
        correlation = torch.fft.irfft(spectra[0] * spectra[1].conj(), n=width, dim=2).mean((1, 3))  # (rows, delays)
        whole = self.bins == (0, width // 2 + 1)
        q, k, v = (q, k, v) if whole else (torch.fft.irfft(spectrum, n=width, dim=2) for spectrum in spectra)
        count = int(math.log(width))
        if self.training:  # one choice of delays for the batch, weighted row by row
            delays = correlation.mean(0).topk(count).indices.expand(len(x), -1)
        else:
            delays = correlation.topk(count, 1).indices
        weights = correlation.gather(1, delays).softmax(-1)  # (rows, count)
        # Cell t of a roll by -delay is cell t + delay, around the end.
        source = (torch.arange(width, device=x.device) + delays[..., None]) % width  # (rows, count, width)
        mixing = torch.zeros(len(x), width, width, device=x.device, dtype=v.dtype)
        mixing.scatter_add_(2, source.transpose(1, 2), weights[:, None].expand(-1, width, -1).to(v.dtype))
        rolled = mixing[:, None] @ v
        if not self.time_share:
            return rolled
        attended = self.weights(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + given) @ v
        return (1 - self.time_share) * rolled + self.time_share * attended


class FEARec(Recommender):
    """As run. Neither causal nor independent of padding."""

    layout = "padded"
    renames = (
        (r"^item_encoder\.layer\.", "encoder.layers."),
        (r"\.hybrid_attention\.", ".attn."),
        (r"\.(query|key|value)_layer\.", r".\1."),
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
        **attention: float,
    ) -> None:
        super().__init__(items, hidden_size)
        self.embedding = InputEmbedding(hidden_size, max_history, dropout)
        self.encoder = Encoder(
            (
                AutoCorrelation(hidden_size, heads, dropout, bins, self.time_share, **attention)
                for bins in self.ramp(max_history // 2 + 1, layers)
            ),
            hidden_size,
            inner_size,
            dropout,
        )
        initialise(self)

    time_share = 0.0

    def ramp(self, bins: int, layers: int) -> list[tuple[int, int]]:
        """The frequencies of each layer: first and last + 1."""
        return [(0, bins)] * layers

    def states(self, batch: Batch) -> Tensor:
        """(batch, hidden), see `Recommender`."""
        x = self.embedding(self.item_embeddings(batch.items), batch)
        return self.encoder(x, mask(batch.segments, causal=True), batch.readout)


class FEARecPublished(FEARec):
    """With its contrastive loss. A training batch is computed twice, under two draws of dropout, and so are other histories
    that lead to the same targets: the second draw and the other history are each other's positive example.
    """

    contrasts = True
    time_share = 0.1
    frequency_share = 0.6  # of the spectrum, in each layer
    contrastive_weight = 0.1
    frequency_weight = 0.1

    def __init__(self, items: int, max_history: int, *, attention_dropout: float = 0.5, **options: Any) -> None:
        super().__init__(items, max_history, attention_dropout=attention_dropout, **options)

    def ramp(self, bins: int, layers: int) -> list[tuple[int, int]]:
        """From the high frequencies in the first layer down to the low ones in the last."""
        size = round(self.frequency_share * bins)
        starts = [round((bins - size) * (1 - layer / max(layers - 1, 1))) for layer in range(layers)]
        return [(start, start + size) for start in starts]

    def forward(self, batch: Batch, partners: Batch | None = None) -> Tensor:
        """Cross-entropy of the first draw; InfoNCE and the distance of spectra between the second draw and the partners.

        Args:
            partners: for each row another history with its target; None where every history is its own.
        """
        loss = functional.cross_entropy(self.scores(batch), batch.targets)
        second, other = self.states(batch), self.states(partners or batch)
        spectra = torch.fft.rfft(second.float(), norm="ortho") - torch.fft.rfft(other.float(), norm="ortho")
        return loss + self.contrastive_weight * info_nce(second, other) + self.frequency_weight * spectra.abs().mean()


def info_nce(first: Tensor, second: Tensor) -> Tensor:
    """Row i of either (batch, hidden) tells its partner, row i of the other, from all rows but itself: mean cross-entropy of
    dot products, temperature 1, one positive and 2 x batch - 2 negatives.
    """
    views = torch.cat([first, second])
    similarity = (views @ views.T).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(similarity, torch.arange(len(views), device=views.device).roll(len(first)))
