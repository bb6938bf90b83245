"""SASRec (Kang and McAuley, 2018) as RecBole has it: a causal post-norm Transformer over items, full softmax.

Deviation from the paper: cross-entropy over all items instead of one sampled negative; no final LayerNorm and no scaling of
the item table.
"""

from torch import Tensor

from minionerec.baselines.batches import Batch
from minionerec.baselines.models.layers import Attention, Encoder, InputEmbedding, mask
from minionerec.baselines.models.recommender import Recommender, initialise


class SASRec(Recommender):
    """Causal; a history's result does not depend on padding."""

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
        attention_dropout: float = 0.5,
    ) -> None:
        super().__init__(items, hidden_size)
        self.embedding = InputEmbedding(hidden_size, max_history, dropout)
        self.encoder = Encoder(
            (Attention(hidden_size, heads, dropout, attention_dropout) for _ in range(layers)), hidden_size, inner_size, dropout
        )
        initialise(self)

    def states(self, batch: Batch) -> Tensor:
        """(batch, hidden), see `Recommender`."""
        x = self.embedding(self.item_embeddings(batch.items), batch)
        return self.encoder(x, mask(batch.segments, causal=True), batch.readout)
