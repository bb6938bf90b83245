"""How a neural baseline scores rows of histories."""

from collections.abc import Callable

import torch
from torch import Tensor

from minionerec.data.history_rows import HistoryRows, Side
from minionerec.model.sequential.batches import make_batch
from minionerec.model.sequential.sequential_model import SequentialModel


def scorer(model: SequentialModel, max_history: int, side: Side, device: torch.device) -> Callable[[HistoryRows], Tensor]:
    """A function that scores rows with a neural baseline, in evaluation mode and without gradient.

    Args:
        side: of padding, as the model was trained.
    """

    def score(rows: HistoryRows) -> Tensor:
        batch = make_batch(rows, layout=model.layout, side=side, max_history=max_history)
        with torch.no_grad():
            return model.eval().scores(batch.to(device)).float()

    return score
