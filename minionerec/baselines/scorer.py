"""How a neural baseline scores rows of histories."""

import torch
from torch import Tensor

from minionerec.baselines.batches import make_batch
from minionerec.baselines.models.sequential_model import SequentialModel
from minionerec.training.history_rows import HistoryRows
from minionerec.training.ranking import Scorer
from minionerec.training.ranking_data import Protocol


def scorer(model: SequentialModel, max_history: int, protocol: Protocol, device: torch.device) -> Scorer:
    """A function that scores rows with a neural baseline, in evaluation mode and without gradient."""

    def score(rows: HistoryRows) -> Tensor:
        batch = make_batch(rows, layout=model.layout, side=protocol.side, max_history=max_history)
        with torch.no_grad():
            return model.eval().scores(batch.to(device)).float()

    return score
