"""The softmax over all items and the one over a sample, which `sasrec` and `sasrec-sampled` can be trained with.

Sampled softmax (Jean et al., 2015; as the loss of SASRec: Klenitskiy and Vasilev, 2023; eSASRec, 2025): cross-entropy of the
target among itself and `negatives` items. Every example has its own, drawn uniformly and with replacement from the catalog, so
the target may be among them, as in eSASRec's recipe. No logQ correction: under a uniform draw it would lower all negatives by
one constant, and eSASRec corrects only negatives that it draws from the batch.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import SequentialModel

Loss = Literal["softmax", "sampled"]
NEGATIVES = 256  # eSASRec's


def checked_negatives(model: str, loss: str, negatives: int | None) -> int | None:
    """How many negatives an example gets; None for the softmax over all items.

    Raises:
        ConfigError: a loss that these models do not have, or a number of negatives for the loss that takes none.
    """
    if loss not in ("softmax", "sampled"):
        raise ConfigError(f"baseline.loss is {loss}; {model} takes softmax or sampled.")
    if loss == "softmax" and negatives is not None:
        raise ConfigError("baseline.negatives is set, but baseline.loss softmax takes all items. Set baseline.loss sampled.")
    return None if loss == "softmax" else NEGATIVES if negatives is None else negatives


def among(states: Tensor, table: Tensor, candidates: Tensor) -> Tensor:
    """Mean cross-entropy of the first of each row's candidates.

    Args:
        states: (batch, hidden).
        table: item vectors, (items + 1, hidden).
        candidates: ids, the target first, (batch, candidates).
    """
    logits = (functional.embedding(candidates, table) @ states[:, :, None])[:, :, 0]
    return functional.cross_entropy(logits, torch.zeros_like(candidates[:, 0]))


def trained_by(model: SequentialModel, batch: HistoryBatch, negatives: int | None) -> Tensor:
    """The training loss of a batch of a model whose scores are products with its item table.

    With as many negatives as there are items, no draw is needed: the loss is the one over all rows of the table.

    Args:
        negatives: per example; None for the softmax over all rows of the table, padding included.
    """
    if negatives is None or negatives >= model.items:
        return functional.cross_entropy(model.scores(batch), batch.targets)
    targets = batch.targets
    drawn = torch.randint(1, model.items + 1, (len(targets), negatives), device=targets.device)
    return among(model.states(batch), model.vectors(), torch.cat([targets[:, None], drawn], 1))
