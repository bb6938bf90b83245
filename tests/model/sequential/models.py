"""Small models and rows for the tests of the baselines."""

import numpy as np
import torch

from minionerec.config import NEURAL_BASELINES, BaselineConfig
from minionerec.data.history_rows import HistoryRows
from minionerec.model.sequential import make, model_class
from minionerec.model.sequential.batches import make_batch

ITEMS, LENGTH = 30, 12


def those(**flags) -> list[str]:
    """The neural baselines whose classes have these attributes; all without."""
    classes = {name: model_class(name) for name in NEURAL_BASELINES}
    return [name for name, model in classes.items() if all(getattr(model, flag) == value for flag, value in flags.items())]


def small(name: str, seed: int = 0, **options):
    """A small model in evaluation mode, its weights spread widely enough that differences show."""
    torch.manual_seed(seed)
    config = BaselineConfig(model=name, protocol="recbole", sequences="-", max_history=LENGTH, hidden_size=16, **options)
    model = make(config, ITEMS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def rows_of(histories, targets=None) -> HistoryRows:
    """Rows with these histories."""
    lengths = np.array([len(history) for history in histories])
    stop = np.cumsum(lengths)
    flat = np.array([item for history in histories for item in history], np.int32)
    targets = np.arange(1, len(histories) + 1) if targets is None else np.array(targets)
    return HistoryRows(flat, stop - lengths, stop, targets, np.arange(len(histories)), stop - lengths)


def random_rows(count: int, seed: int = 0, shortest: int = 1) -> HistoryRows:
    rng = np.random.default_rng(seed)
    histories = [rng.integers(1, ITEMS + 1, rng.integers(shortest, LENGTH + 1)).tolist() for _ in range(count)]
    return rows_of(histories, rng.integers(1, ITEMS + 1, count))


def batch_of(rows: HistoryRows, layout: str = "padded", side: str = "right"):
    return make_batch(rows, layout=layout, side=side, max_history=LENGTH)
