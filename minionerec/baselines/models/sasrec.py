"""SASRec (Kang and McAuley, 2018) as RecBole has it: a causal post-norm Transformer over items, full softmax.

Deviation from the paper: cross-entropy over all items instead of one sampled negative; no final LayerNorm and no scaling of
the item table.
"""

from collections.abc import Iterator

from torch import nn

from minionerec.baselines.models.encoder import EncoderModel
from minionerec.baselines.models.layers import Attention, SoftmaxSizes


class SASRec(EncoderModel[SoftmaxSizes]):
    """Softmax attention to the history so far."""

    options = SoftmaxSizes
    causal = padding_free = True

    def attentions(self, sizes: SoftmaxSizes, max_history: int) -> Iterator[nn.Module]:
        """Plain softmax attention."""
        return (Attention(sizes, sizes.attention_dropout) for _ in range(sizes.layers))
