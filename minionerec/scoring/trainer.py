"""Trains a causal LM to say YES or NO: binary cross-entropy on z = log p(YES) - log p(NO), each user one prefix tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.functional import binary_cross_entropy_with_logits

from minionerec.statistics.pair_metrics import ScoredPairs, auc, per_user
from minionerec.training.summed_loss import COUNTED_LABELS, Advice, SummedLossTrainer
from minionerec.tree import Branch, TreeBatch, pack, tree_logprobs

_USERS = "pair_users"  # in a batch: the number of each pair's user
BEST_METRIC = "GAUC"


@dataclass(frozen=True)
class UserPairs:
    """The pairs of one user.

    Attributes:
        number: of the user in its split, from 0.
        prompts: token ids of each candidate's prompt.
        labels: 1 or 0 of each.
    """

    number: int
    prompts: Sequence[Sequence[int]]
    labels: Sequence[int]


class PairCollator:
    """Packs the pairs of some users into one batch of trees, as the dictionary of tensors that Trainer moves to a device.

    Args:
        answers: tokens of yes and no.
        row_tokens: see `tree.pack`.
    """

    def __init__(self, answers: tuple[int, int], row_tokens: int) -> None:
        self.answers, self.row_tokens = answers, row_tokens

    def __call__(self, users: Sequence[UserPairs]) -> dict[str, Any]:
        """The fields of the `TreeBatch` with two branches for each pair, the pairs' labels, and their users."""
        prompts = [prompt for user in users for prompt in user.prompts]
        branches = [Branch(prompt, [answer]) for prompt in prompts for answer in self.answers]
        labels = torch.tensor([label for user in users for label in user.labels])
        numbers = torch.tensor([user.number for user in users for _ in user.labels])
        return {**pack(branches, row_tokens=self.row_tokens).tensors(), COUNTED_LABELS: labels, _USERS: numbers}


class YesNoTrainer(SummedLossTrainer):
    """A Trainer whose examples are `UserPairs` and whose loss is the mean cross-entropy over all pairs of a step (nats).

    A validation gives the loss, and AUC and GAUC over all its pairs.
    """

    advice = Advice(
        section="yes_no",
        unit="users",
        weights=(
            "Weights, gradients and AdamW's moments do not fit, whatever the micro-batch. Take more devices under ZeRO-2 or a "
            "smaller model."
        ),
        step="Lower yes_no.micro_batch or yes_no.row_tokens; the result stays the same.",
        validation="Lower yes_no.micro_batch, which validation uses too.",
        checkpoint="The main process gathers the optimiser's state in main memory. Free some memory.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scored: list[tuple[list[int], list[int], list[float]]] = []  # users, labels, scores of a validation

    def _validation_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        fields = dict(inputs)
        labels, users = fields.pop(COUNTED_LABELS), fields.pop(_USERS)
        with self.accelerator.autocast():
            logprobs = tree_logprobs(model, TreeBatch(**fields)).logprobs.view(-1, 2)
        scores = logprobs[:, 0] - logprobs[:, 1]
        if not torch.is_grad_enabled():  # a validation
            self._scored.append((users.tolist(), labels.tolist(), scores.tolist()))
        return binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="sum"), len(labels)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """A validation, see `SummedLossTrainer`."""
        self._scored.clear()
        return super().evaluation_loop(*args, **kwargs)

    def _validated(self, loss_sum: float, labels: float) -> dict[str, float]:
        parts = gather_object(self._scored)
        users, truth, scores = (np.concatenate([np.array(part[place]) for part in parts]) for place in range(3))
        # Users in their order, whoever scored them: equal figures for any number of processes.
        order = np.argsort(users, kind="stable")
        numbers = np.unique(users[order], return_inverse=True)[1]
        pairs = ScoredPairs(numbers, truth[order], scores[order].astype(float))
        metrics = super()._validated(loss_sum, labels)
        return metrics | {"AUC": float(auc(pairs)[0]), BEST_METRIC: float(per_user(pairs)["GAUC"].mean())}
