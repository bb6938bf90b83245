"""What every neural baseline is: a module that turns histories into states, scored against one tied item table."""

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from minionerec.baselines.batches import Batch

Layout = Literal["packed", "padded"]
Renames = tuple[tuple[str, str], ...]  # pattern and replacement


class Recommender(nn.Module):
    """Base of the neural baselines.

    Item ids run from 1 to `items`; id 0 is padding. The table has a row for it, which the softmax learns as a class like any
    other and the look-up does not (the protocols rank it or not).

    Attributes:
        layout: `packed` where the result of a history is the same whatever shares its row, so that short histories are
            computed together and padding costs nothing; `padded` where padding enters the computation and every history
            takes a row of `max_history`.
        contrasts: training takes a second batch: for each history another one with the same target (`batches.partners`).
        renames: names of tensors in the published code's checkpoints that this model alone has, and ours; see `weights`.
    """

    layout: ClassVar[Layout] = "packed"
    contrasts: ClassVar[bool] = False
    renames: ClassVar[Renames] = ()

    def __init__(self, items: int, hidden_size: int, extra_rows: int = 0) -> None:
        super().__init__()
        self.items = items
        self.item_embeddings = nn.Embedding(items + 1 + extra_rows, hidden_size, padding_idx=0)

    def states(self, batch: Batch) -> Tensor:
        """One vector per history, (batch, hidden): what is multiplied with the item table."""
        raise TypeError(f"{type(self).__name__} does not define states().")

    def vectors(self) -> Tensor:
        """The item table that states are multiplied with, (items + 1, hidden); row 0 is padding."""
        return self.item_embeddings.weight[: self.items + 1]

    def logits(self, states: Tensor) -> Tensor:
        """Scores of all items, (batch, items + 1)."""
        return states @ self.vectors().T

    def scores(self, batch: Batch) -> Tensor:
        """Scores of all items after each history, (batch, items + 1)."""
        return self.logits(self.states(batch))

    def forward(self, batch: Batch) -> Tensor:
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
