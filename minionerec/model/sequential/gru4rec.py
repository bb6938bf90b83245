"""GRU4Rec (Tan et al., 2016) as RecBole has it: one bias-free GRU over the items, full softmax on the tied table."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import Options, SequentialModel


@dataclass(frozen=True)
class GRU4RecOptions(Options):
    """Options of GRU4Rec."""

    inner_size: int = 128
    layers: int = 1
    dropout: float = 0.3


class GRU4Rec(SequentialModel):
    """The GRU stops at each history's end, so padding plays no part. An empty history is read as one padding item."""

    layout = "padded"
    renames = ((r"^gru_layers\.", "gru."),)
    options = GRU4RecOptions
    causal = padding_free = True

    def __init__(self, items: int, max_history: int, options: GRU4RecOptions) -> None:
        super().__init__(items, options)
        self.dropout = nn.Dropout(options.dropout)
        self.gru = nn.GRU(options.hidden_size, options.inner_size, options.layers, bias=False, batch_first=True)
        self.dense = nn.Linear(options.inner_size, options.hidden_size)
        nn.init.xavier_normal_(self.item_embeddings.weight)
        for name, weight in self.gru.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_uniform_(weight)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        ids, lengths = in_front(batch)
        x = self.dropout(self.item_embeddings(ids))
        _, final = self.gru(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
        return self.dense(final[-1])


def in_front(batch: HistoryBatch) -> tuple[Tensor, Tensor]:
    """Ids of a padded batch with the padding moved behind, (batch, longest history), and the lengths.

    An empty history becomes one padding item: the packed sequences that the GRU reads cannot be empty.
    """
    lengths = batch.lengths.clamp(min=1)
    first = (batch.segments == 0).long().argsort(dim=1, stable=True)[:, : int(lengths.max())]
    return batch.items.gather(1, first), lengths
