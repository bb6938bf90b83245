"""GRU4Rec (Tan et al., 2016) as RecBole has it: one bias-free GRU over the items, full softmax on the tied table."""

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from minionerec.baselines.batches import Batch
from minionerec.baselines.models.recommender import Recommender


class GRU4Rec(Recommender):
    """Causal; the GRU stops at each history's end, so padding plays no part. An empty history is read as one padding item."""

    layout = "padded"
    renames = ((r"^gru_layers\.", "gru."),)

    def __init__(
        self,
        items: int,
        max_history: int,
        *,
        hidden_size: int = 64,
        inner_size: int = 128,
        layers: int = 1,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(items, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(hidden_size, inner_size, layers, bias=False, batch_first=True)
        self.dense = nn.Linear(inner_size, hidden_size)
        nn.init.xavier_normal_(self.item_embeddings.weight)
        for name, weight in self.gru.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_uniform_(weight)

    def states(self, batch: Batch) -> Tensor:
        """(batch, hidden), see `Recommender`."""
        ids, lengths = in_front(batch)
        x = self.dropout(self.item_embeddings(ids))
        _, final = self.gru(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
        return self.dense(final[-1])


def in_front(batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids of a padded batch, padding behind, (batch, longest history), and lengths; an empty history is one padding item."""
    lengths = batch.lengths.clamp(min=1)
    first = (batch.segments == 0).long().argsort(dim=1, stable=True)[:, : int(lengths.max())]
    return batch.items.gather(1, first), lengths
