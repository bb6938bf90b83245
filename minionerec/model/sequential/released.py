"""GRU4Rec, Caser and SASRec as the released MiniOneRec code trains them: small, with an output layer of their own.

They differ from `gru4rec`, `caser` and `sasrec` in three things: their layers; scores by Linear(state -> items) with bias
instead of the item table; and the loss, by default binary cross-entropy against one other item, drawn uniformly. Initial
weights and epsilons are torch's defaults, because the specification leaves them open. Deviation: early stopping watches
NDCG@10, the released code NDCG@20.

The released settings: `--baseline.max_history 10 --baseline.batch_size 1024 --baseline.weight_decay 1e-5 --baseline.epochs 500
--baseline.patience 21`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.caser import HEIGHTS
from minionerec.model.sequential.gru4rec import in_front
from minionerec.model.sequential.layers import mask
from minionerec.model.sequential.sequential_model import Options, SequentialModel, at

Loss = Literal["bce", "softmax"]


@dataclass(frozen=True)
class ReleasedOptions(Options):
    """Options of all three."""

    hidden_size: int = 32
    loss: Loss = "bce"


@dataclass(frozen=True)
class ReleasedCaserOptions(ReleasedOptions):
    """Options of the released Caser."""

    horizontal_filters: int = 16
    dropout: float = 0.3
    vertical_filters: int = 1


@dataclass(frozen=True)
class ReleasedSASRecOptions(ReleasedOptions):
    """Options of the released SASRec."""

    dropout: float = 0.3
    attention_dropout: float = 0.3


class Untied(SequentialModel):
    """What all three share. Padding has a row in the item table, but no class in the output."""

    def __init__(self, items: int, options: ReleasedOptions, state_size: int) -> None:
        if options.loss not in ("bce", "softmax"):
            raise ConfigError(f"baseline.loss is {options.loss}; the *-released models take bce or softmax.")
        super().__init__(items, options)
        nn.init.normal_(self.item_embeddings.weight, std=0.01)
        self.output = nn.Linear(state_size, items)
        self.loss = options.loss

    def vectors(self) -> Tensor:
        """The output layer's weights, (items + 1, state); a row of zeros for padding."""
        return functional.pad(self.output.weight, (0, 0, 1, 0))

    def logits(self, states: Tensor) -> Tensor:
        """Scores of all items, (batch, items + 1); padding is never recommended."""
        return functional.pad(self.output(states), (1, 0), value=-torch.inf)

    def forward(self, batch: HistoryBatch) -> Tensor:
        """Binary cross-entropy of the target and of one other item, or cross-entropy among all items."""
        logits = self.scores(batch)
        if self.loss == "softmax":
            return functional.cross_entropy(logits, batch.targets)
        others = torch.randint(1, max(self.items, 2), batch.targets.shape, device=logits.device)
        others = others + (others >= batch.targets)  # any item but the target
        pairs = logits.gather(1, torch.stack([batch.targets, others], 1))
        return functional.binary_cross_entropy_with_logits(
            pairs, torch.tensor([1.0, 0.0], device=logits.device).expand_as(pairs)
        )


class ReleasedGRU4Rec(Untied):
    """One GRU with biases; its last state is the history's state."""

    options = ReleasedOptions
    causal = padding_free = True
    layout = "padded"

    def __init__(self, items: int, max_history: int, options: ReleasedOptions) -> None:
        super().__init__(items, options, options.hidden_size)
        self.gru = nn.GRU(options.hidden_size, options.hidden_size, batch_first=True)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        ids, lengths = in_front(batch)
        packed = pack_padded_sequence(self.item_embeddings(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.gru(packed)[1][-1]


class ReleasedCaser(Untied):
    """Convolutions over the whole row of `max_history`, padding included: 16 filters per height and one over places."""

    options = ReleasedCaserOptions
    causal = padding_free = False
    layout = "padded"

    def __init__(self, items: int, max_history: int, options: ReleasedCaserOptions) -> None:
        hidden_size = options.hidden_size
        horizontal_filters, vertical_filters = options.horizontal_filters, options.vertical_filters
        if max_history < max(HEIGHTS):
            raise ConfigError(
                f"baseline.max_history is {max_history}; the filters of caser-released cover {max(HEIGHTS)} items."
            )
        super().__init__(items, options, horizontal_filters * len(HEIGHTS) + vertical_filters * hidden_size)
        self.horizontal = nn.ModuleList(nn.Conv2d(1, horizontal_filters, (height, hidden_size)) for height in HEIGHTS)
        self.vertical = nn.Conv2d(1, vertical_filters, (max_history, 1))
        self.dropout = nn.Dropout(options.dropout)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, state), see `SequentialModel`."""
        image = self.item_embeddings(batch.items)[:, None]  # (batch, 1, max_history, hidden)
        runs = [functional.relu(convolution(image)).amax(2).flatten(1) for convolution in self.horizontal]
        return self.dropout(torch.cat([*runs, functional.relu(self.vertical(image)).flatten(1)], 1))


class ReleasedSASRec(Untied):
    """One block with one head."""

    options = ReleasedSASRecOptions
    causal = padding_free = True

    def __init__(self, items: int, max_history: int, options: ReleasedSASRecOptions) -> None:
        hidden_size = options.hidden_size
        super().__init__(items, options, hidden_size)
        self.position_embeddings = nn.Embedding(max_history, hidden_size)
        self.input_norm, self.middle_norm, self.inner_norm, self.output_norm = (nn.LayerNorm(hidden_size) for _ in range(4))
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size) for _ in range(3))
        self.dense_1, self.dense_2 = (nn.Linear(hidden_size, hidden_size) for _ in range(2))
        self.dropout, self.attention_dropout = nn.Dropout(options.dropout), nn.Dropout(options.attention_dropout)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        x = self.dropout(self.item_embeddings(batch.items) + self.position_embeddings(batch.positions))
        x = x * (batch.segments > 0)[..., None]
        normed = self.input_norm(x)
        scores = self.query(normed) @ self.key(x).transpose(-1, -2) / math.sqrt(x.shape[-1])
        weights = (scores + mask(batch.segments, causal=True)[:, 0]).softmax(-1)
        gathered = self.attention_dropout(weights) @ self.value(x)
        y = self.middle_norm(at(gathered + normed, batch.readout))
        inner = self.dropout(self.dense_2(self.dropout(functional.relu(self.dense_1(y)))))
        return self.output_norm(self.inner_norm(y + inner))
