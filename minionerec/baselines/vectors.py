"""What a neural baseline leaves for other stages: its vectors of the run's items and rows, see `data/vectors.py`."""

import numpy as np
import torch

from minionerec.config import BaselineConfig
from minionerec.data.dataset import SPLITS, SplitName
from minionerec.data.vectors import BaselineVectors
from minionerec.model.sequential.batches import make_batch
from minionerec.model.sequential.sequential_model import SequentialModel
from minionerec.training.ranking_data import PROTOCOLS, RankingData

_FLOAT = 4  # bytes


def vectors_bytes(model: SequentialModel, data: RankingData) -> int:
    """Bytes of what `vectors_of` gives; 0 if the baseline leaves no vectors, or no other stage reads those of its data."""
    if not model.has_vectors or data.protocol != PROTOCOLS["dataset"]:
        return 0
    with torch.no_grad():
        items, width = model.vectors()[1:].shape
    return _FLOAT * width * (items + sum(len(data.rows[split]) for split in SPLITS))


def vectors_of(model: SequentialModel, data: RankingData, config: BaselineConfig, device: torch.device) -> BaselineVectors:
    """What scores any item after any history of a split, on the CPU."""
    items = model.vectors()[1:].detach().float().cpu().contiguous()
    # A state of zeros scores each item's bias.
    bias = model.logits(torch.zeros(1, items.shape[1], device=device))[0, 1:].detach().float().cpu()
    states: dict[SplitName, np.ndarray] = {}
    for split in SPLITS:
        rows = data.rows[split]
        states[split] = np.empty((len(rows), items.shape[1]), np.float32)
        for start in range(0, len(rows), 512):
            part = rows.take(np.arange(start, min(start + 512, len(rows))))
            batch = make_batch(part, layout=model.layout, side=data.protocol.side, max_history=config.max_history)
            with torch.no_grad():
                states[split][start : start + len(part)] = model.eval().states(batch.to(device)).float().cpu().numpy()
    return BaselineVectors(items.numpy(), bias.numpy(), states)
