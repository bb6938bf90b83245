"""The encoder that most neural baselines are: item and position embedding, layers, the state of the last item.

A model of this kind states its options, its attention and what every attention reads:

    class SASRec(EncoderModel[SoftmaxSizes]):
        options = SoftmaxSizes
        causal = padding_free = True

        def attentions(self, sizes: SoftmaxSizes, max_history: int) -> Iterator[nn.Module]:
            return (Attention(sizes, sizes.attention_dropout) for _ in range(sizes.layers))
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.layers import Encoder, InputEmbedding, Sizes, mask
from minionerec.model.sequential.sequential_model import SequentialModel, initialise

AnySizes = TypeVar("AnySizes", bound=Sizes)


class EncoderModel(SequentialModel, Generic[AnySizes]):
    """Base of the encoders.

    The parts are made in this order, because each draws its initial weights from torch's random state: item table, input
    embedding, then layer by layer attention and feed-forward (`attentions` yields them one at a time), then `add_head`.
    """

    def __init__(self, items: int, max_history: int, sizes: AnySizes) -> None:
        super().__init__(items, sizes)
        self.embedding = InputEmbedding(sizes, max_history)
        self.encoder = Encoder(self.attentions(sizes, max_history), sizes)
        self.add_head(sizes)
        initialise(self)

    def attentions(self, sizes: AnySizes, max_history: int) -> Iterator[nn.Module]:
        """The attention of each layer: a module of (x, attention_input, readout), as `Attention` is."""
        raise TypeError(f"{type(self).__name__} does not define attentions().")

    def add_head(self, sizes: AnySizes) -> None:
        """Make what stands between the encoder and the item table; nothing by default."""

    def embedded(self, batch: HistoryBatch) -> Tensor:
        """What the first layer reads, (rows, width, hidden)."""
        return self.embedding(self.item_embeddings(batch.items), batch)

    def attention_input(self, batch: HistoryBatch, x: Tensor) -> Any:
        """What every attention reads next to its input; by default the additive mask.

        Args:
            x: what `embedded` gave.
        """
        return mask(batch.segments, causal=self.causal)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        x = self.embedded(batch)
        return self.encoder(x, self.attention_input(batch, x), batch.readout)
