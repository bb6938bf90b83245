"""SASRec (Kang and McAuley, 2018) as RecBole has it: a causal post-norm Transformer over items, full softmax.

Deviation from the paper: cross-entropy over all items instead of one sampled negative; no final LayerNorm and no scaling of
the item table. With `loss: sampled` the cross-entropy is over a sample of the items, see `losses`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.encoder import EncoderModel
from minionerec.model.sequential.layers import Attention, SoftmaxSizes
from minionerec.model.sequential.losses import Loss, checked_negatives, trained_by


@dataclass(frozen=True)
class SASRecSizes(SoftmaxSizes):
    """Options of SASRec."""

    loss: Loss = "softmax"
    negatives: int | None = None


class SASRec(EncoderModel[SASRecSizes]):
    """Softmax attention to the history so far."""

    options = SASRecSizes
    causal = padding_free = True

    def __init__(self, items: int, max_history: int, sizes: SASRecSizes) -> None:
        self._negatives = checked_negatives("sasrec", sizes.loss, sizes.negatives)
        super().__init__(items, max_history, sizes)

    def attentions(self, sizes: SASRecSizes, max_history: int) -> Iterator[nn.Module]:
        """Plain softmax attention."""
        return (Attention(sizes, sizes.attention_dropout) for _ in range(sizes.layers))

    def forward(self, batch: HistoryBatch) -> Tensor:
        """Mean cross-entropy of the target among all rows of the item table, or among a sample."""
        return trained_by(self, batch, self._negatives)
