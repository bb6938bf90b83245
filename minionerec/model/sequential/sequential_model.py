"""What every neural baseline is: a module that turns histories into states, scored against one item table.

What is claimed of a model stands on its class. The tests read it there and check it, so a new model needs no line in the tests.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from minionerec.model.sequential.batches import HistoryBatch

Layout = Literal["packed", "padded"]
Renames = tuple[tuple[str, str], ...]  # pattern and replacement


@dataclass(frozen=True)
class Options:
    """What every model can be told; a model adds its own fields. Section `baseline` of the configuration explains each."""

    hidden_size: int = 64


class SequentialModel(nn.Module):
    """Base of the neural baselines: made from the number of items, `max_history` and an instance of `options`.

    Item ids run from 1 to `items`; id 0 is padding. The table has a row for padding, which the softmax learns as a class like
    any other and the look-up does not (the protocol decides whether it is ranked).

    Attributes:
        options: dataclass of the options that the model takes, fields of section `baseline`, with its own defaults.
        causal: the state at a cell depends on no later cell, so that one pass gives the state after every prefix.
        padding_free: neither the padding row nor the amount of padding changes a result.
        knows_order: the result depends on the order of the history.
        layout: `packed` if a history's result is the same whatever shares its row: short histories are then computed together
            and padding costs nothing. `padded` if every history needs a row of `max_history` to itself.
        contrasts: training takes a second batch: for each history another one with the same target (`batches.partners`).
        has_vectors: scores are products of `states` and `vectors`.
        extra_rows: rows of the item table after the items.
        renames: names of tensors that only this model's published checkpoints have, and ours; see `weights`.
    """

    options: ClassVar[type[Options]]
    causal: ClassVar[bool]
    padding_free: ClassVar[bool]
    knows_order: ClassVar[bool] = True
    layout: ClassVar[Layout] = "packed"
    contrasts: ClassVar[bool] = False
    has_vectors: ClassVar[bool] = True
    extra_rows: ClassVar[int] = 0
    renames: ClassVar[Renames] = ()

    def __init__(self, items: int, options: Options) -> None:
        super().__init__()
        self.items = items
        self.item_embeddings = nn.Embedding(items + 1 + self.extra_rows, options.hidden_size, padding_idx=0)

    def states(self, batch: HistoryBatch) -> Tensor:
        """One vector per history, (batch, hidden): what is multiplied with the item table."""
        raise TypeError(f"{type(self).__name__} does not define states().")

    def vectors(self) -> Tensor:
        """The item table that states are multiplied with, (items + 1, hidden); row 0 is padding."""
        return self.item_embeddings.weight[: self.items + 1]

    def logits(self, states: Tensor) -> Tensor:
        """Scores of all items, (batch, items + 1)."""
        return states @ self.vectors().T

    def scores(self, batch: HistoryBatch) -> Tensor:
        """Scores of all items after each history, (batch, items + 1)."""
        return self.logits(self.states(batch))

    def forward(self, batch: HistoryBatch) -> Tensor:
        """The training loss of a batch: mean cross-entropy of the target among all rows of the item table."""
        return functional.cross_entropy(self.scores(batch), batch.targets)


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Linear and Embedding weights from N(0, std²), padding rows too; biases 0; LayerNorm 1 and 0. Other parameters stay."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, nn.Linear | nn.LayerNorm) and part.bias is not None:
            nn.init.zeros_(part.bias)


def at(values: Tensor, readout: Tensor) -> Tensor:
    """The rows of (rows, width, hidden) at flat indices, (batch, hidden)."""
    return values.flatten(0, 1)[readout]
