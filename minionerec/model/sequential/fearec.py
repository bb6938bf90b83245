"""FEARec (Du et al., 2023): attention by auto-correlation in the frequency domain.

`FEARec` is what the published Beauty row ran: all frequencies, no time-domain branch and, because three settings were missing
from its configuration, plain cross-entropy. `FEARecPublished` is the model with these settings: a frequency ramp over the
layers, a time-domain branch, a contrastive loss (`us_x`) and a frequency regulariser. It is checked against no run.
"""

import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.encoder import EncoderModel
from minionerec.model.sequential.layers import Attention, Sizes, SoftmaxSizes, mask

AnySizes = TypeVar("AnySizes", bound=Sizes)


class AutoCorrelation(Attention):
    """The values, rolled by the delays of the strongest auto-correlation; optionally mixed with softmax attention.

    Args:
        bins: first and last + 1 of the frequencies that are used.
        time_share: weight of the softmax branch on the same frequencies; 0 leaves it out.
        attention_dropout: of the softmax branch.
    """

    def __init__(self, sizes: Sizes, bins: tuple[int, int], time_share: float = 0.0, attention_dropout: float = 0.0) -> None:
        super().__init__(sizes, attention_dropout)
        self.bins, self.time_share = bins, time_share

    def context(self, x: Tensor, attention_input: Tensor) -> Tensor:
        """(rows, heads, width, size), see `Attention`; `attention_input` is the additive mask of the softmax branch."""
        # 1. Keep the layer's frequencies of queries, keys and values.
        q, k, v = self.projections(x)
        width = x.shape[1]
        passed = torch.zeros(width // 2 + 1, 1, device=x.device)
        passed[slice(*self.bins)] = 1
        spectra = [torch.fft.rfft(values.float(), dim=2) * passed for values in (q, k, v)]
        # 2. Correlate queries with keys at every delay: a product in the frequency domain (Wiener-Khinchin).
        correlation = torch.fft.irfft(spectra[0] * spectra[1].conj(), n=width, dim=2).mean((1, 3))  # (rows, delays)
        all_frequencies = self.bins == (0, width // 2 + 1)
        q, k, v = (q, k, v) if all_frequencies else (torch.fft.irfft(spectrum, n=width, dim=2) for spectrum in spectra)
        # 3. Choose the log(width) strongest delays. In training the batch shares one choice, weighted row by row, as published.
        count = int(math.log(width))
        if self.training:
            delays = correlation.mean(0).topk(count).indices.expand(len(x), -1)
        else:
            delays = correlation.topk(count, 1).indices
        weights = correlation.gather(1, delays).softmax(-1)  # (rows, count)
        # 4. Add up the values rolled by the delays: cell t of a roll by -delay is cell t + delay, around the end. One matrix
        # per row holds all its rolls.
        source = (torch.arange(width, device=x.device) + delays[..., None]) % width  # (rows, count, width)
        mixing = torch.zeros(len(x), width, width, device=x.device, dtype=v.dtype)
        mixing.scatter_add_(2, source.transpose(1, 2), weights[:, None].expand(-1, width, -1).to(v.dtype))
        rolled = mixing[:, None] @ v
        if not self.time_share:
            return rolled
        # 5. Mix with softmax attention on the same frequencies.
        attended = self.weights(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + attention_input) @ v
        return (1 - self.time_share) * rolled + self.time_share * attended


class FrequencyEncoder(EncoderModel[AnySizes]):
    """What both variants share. Rolls go around the end of the row, so padding and later items take part."""

    causal = padding_free = False
    layout = "padded"
    renames = (
        (r"^item_encoder\.layer\.", "encoder.layers."),
        (r"\.hybrid_attention\.", ".attn."),
        (r"\.(query|key|value)_layer\.", r".\1."),
    )

    def attention_input(self, batch: HistoryBatch, x: Tensor) -> Tensor:
        """The softmax branch is masked causally, though the model as a whole is not causal."""
        return mask(batch.segments, causal=True)


class FEARec(FrequencyEncoder[Sizes]):
    """As the published row ran it: all frequencies in every layer, no softmax branch."""

    options = Sizes

    def attentions(self, sizes: Sizes, max_history: int) -> Iterator[nn.Module]:
        """Auto-correlation over all frequencies."""
        return (AutoCorrelation(sizes, (0, max_history // 2 + 1)) for _ in range(sizes.layers))


class FEARecPublished(FrequencyEncoder[SoftmaxSizes]):
    """With its contrastive loss. A training batch is computed twice, under two draws of dropout, and so are other histories
    that lead to the same targets: the second draw and the other history are each other's positive example.
    """

    options = SoftmaxSizes
    contrasts = True
    time_share = 0.1
    frequency_share = 0.6  # of the spectrum, in each layer
    contrastive_weight = 0.1
    frequency_weight = 0.1

    def attentions(self, sizes: SoftmaxSizes, max_history: int) -> Iterator[nn.Module]:
        """Auto-correlation over each layer's frequencies, mixed with softmax attention."""
        for bins in self.ramp(max_history // 2 + 1, sizes.layers):
            yield AutoCorrelation(sizes, bins, self.time_share, sizes.attention_dropout)

    def ramp(self, bins: int, layers: int) -> list[tuple[int, int]]:
        """The frequencies of each layer, first and last + 1: high ones in the first layer, low ones in the last."""
        size = round(self.frequency_share * bins)
        starts = [round((bins - size) * (1 - layer / max(layers - 1, 1))) for layer in range(layers)]
        return [(start, start + size) for start in starts]

    def forward(self, batch: HistoryBatch, partners: HistoryBatch | None = None) -> Tensor:
        """Cross-entropy of the first draw; InfoNCE and the distance of spectra between the second draw and the partners.

        Args:
            partners: for each row another history with the same target; None if every history is its own partner.
        """
        loss = functional.cross_entropy(self.scores(batch), batch.targets)
        second, other = self.states(batch), self.states(partners or batch)
        spectra = torch.fft.rfft(second.float(), norm="ortho") - torch.fft.rfft(other.float(), norm="ortho")
        return loss + self.contrastive_weight * info_nce(second, other) + self.frequency_weight * spectra.abs().mean()


def info_nce(first: Tensor, second: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al., 2018) between two views, each (batch, hidden), with dot products and temperature 1.

    Row i of one view must pick row i of the other view out of all rows but itself: one positive, 2 x batch - 2 negatives.
    """
    views = torch.cat([first, second])
    similarity = (views @ views.T).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(similarity, torch.arange(len(views), device=views.device).roll(len(first)))
