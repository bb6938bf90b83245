"""Trains a causal LM on pairs, each user one prefix tree: to say YES or NO, or to give likes vectors near the history's.

YES or NO learns by binary cross-entropy on z = log p(YES) - log p(NO); vectors by the squared error between the cosine and the
label. The second trainer replaces how a pair is scored and its loss, and nothing else.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from minionerec.scoring.vectors import Pooling, pack_texts, text_vectors
from minionerec.statistics.pair_metrics import ScoredPairs, auc, per_user
from minionerec.training.summed_loss import COUNTED_LABELS, Advice, SummedLossTrainer
from minionerec.tree import Branch, TreeBatch, pack, tree_logprobs

_USERS = "pair_users"  # in a batch: the number of each pair's user
_TEXTS = "pair_texts"  # (pairs, 2): the places of each pair's history and candidate among the texts of a batch
BEST_METRIC = "GAUC"


@dataclass(frozen=True)
class UserPairs:
    """The pairs of one user, to be answered by YES or NO.

    Attributes:
        number: of the user in its split, from 0.
        prompts: token ids of each candidate's prompt.
        labels: 1 or 0 of each.
        shared: how many tokens stand before the candidate, in all prompts.
    """

    number: int
    prompts: Sequence[Sequence[int]]
    labels: Sequence[int]
    shared: int = 0


@dataclass(frozen=True)
class UserTexts:
    """The pairs of one user, whose texts are compared.

    Attributes:
        number: of the user in its split, from 0.
        history: token ids of the history's text.
        candidates: token ids of each candidate's text.
        labels: 1 or 0 of each.
    """

    number: int
    history: Sequence[int]
    candidates: Sequence[Sequence[int]]
    labels: Sequence[int]


@dataclass(frozen=True)
class PairCollator:
    """Packs the pairs of some users into one batch of trees, as the dictionary of tensors that Trainer moves to a device.

    Attributes:
        answers: tokens of yes and no.
        row_tokens: see `tree.pack`.
        next_code: weight of the cross-entropy of the items' tokens before the candidate; a user's mean of it counts once for
            each of the user's pairs. 0 for none.
        code_tokens: the items' tokens.
    """

    answers: tuple[int, int]
    row_tokens: int
    next_code: float = 0.0
    code_tokens: Collection[int] = ()

    def __call__(self, users: Sequence[UserPairs]) -> dict[str, Any]:
        """The fields of the `TreeBatch`, the pairs' labels, and their users.

        Each pair has two branches, for yes and no; behind all of them comes a branch for each history with `next_code`.
        """
        prompts = [prompt for user in users for prompt in user.prompts]
        branches = [Branch(prompt, [answer]) for prompt in prompts for answer in self.answers]
        if self.next_code:
            branches += [branch for user in users if (branch := self._history(user)) is not None]
        labels = torch.tensor([label for user in users for label in user.labels])
        numbers = torch.tensor([user.number for user in users for _ in user.labels])
        return {**pack(branches, row_tokens=self.row_tokens).tensors(), COUNTED_LABELS: labels, _USERS: numbers}

    def _history(self, user: UserPairs) -> Branch | None:
        """What stands before the candidate, the items' tokens as labels; None if there are none behind the first token."""
        tokens = user.prompts[0][: user.shared]
        codes = [float(token in self.code_tokens) for token in tokens[1:]]
        if not any(codes):
            return None
        weight = self.next_code * len(user.labels) / sum(codes)
        return Branch(tokens[:1], tokens[1:], [weight * code for code in codes])


@dataclass(frozen=True)
class TextCollator:
    """Packs the texts of some users and their candidates into one batch; equal texts share all their tokens.

    Attributes:
        pooling: what a text's vector is.
        row_tokens: see `tree.pack`.
    """

    pooling: Pooling
    row_tokens: int

    def __call__(self, users: Sequence[UserTexts]) -> dict[str, Any]:
        """The fields of the `TreeBatch`, the places of each pair's two texts, the pairs' labels, and their users."""
        texts = [tuple(user.history) for user in users]
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        for user in users:
            for candidate in user.candidates:
                place.setdefault(tuple(candidate), len(place))
        pairs = [[place[text], place[tuple(one)]] for user, text in zip(users, texts, strict=True) for one in user.candidates]
        labels = torch.tensor([label for user in users for label in user.labels])
        numbers = torch.tensor([user.number for user in users for _ in user.labels])
        batch = pack_texts(list(place), self.pooling, self.row_tokens)
        return {**batch.tensors(), _TEXTS: torch.tensor(pairs), COUNTED_LABELS: labels, _USERS: numbers}


class YesNoTrainer(SummedLossTrainer):
    """A Trainer whose examples are `UserPairs` and whose loss is the mean cross-entropy over all pairs of a step (nats).

    With `PairCollator.next_code` the second loss is added in training. A validation gives the first alone, and AUC and GAUC
    over all its pairs.
    """

    advice = Advice(
        section="yes_no",
        unit="users",
        weights=(
            "Weights, gradients and AdamW's moments do not fit, whatever the micro-batch. Take more devices under ZeRO-2, "
            "yes_no.train lora or a smaller model."
        ),
        step="Lower yes_no.micro_batch or yes_no.row_tokens; the result stays the same.",
        validation="Lower yes_no.micro_batch, which validation uses too.",
        checkpoint="The main process gathers the optimiser's state in main memory. Free some memory.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scored: list[tuple[list[int], list[int], list[float]]] = []  # users, labels, scores of a validation

    def _scores(self, model: torch.nn.Module, fields: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The score of each pair of a batch, (pairs,), and what else is part of its summed training loss."""
        branches = 2 * len(fields.pop(COUNTED_LABELS))
        batch = TreeBatch(**fields)
        logprobs = tree_logprobs(model, batch).logprobs
        answers = logprobs[:branches].view(-1, 2)  # each has one label, and they stand first
        further = -(batch.weights[branches:] * logprobs[branches:]).sum()
        return answers[:, 0] - answers[:, 1], further

    def _pair_loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The summed loss of scored pairs."""
        return binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="sum")

    def _losses(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The pairs' summed loss, what else is part of the training's, and the scores."""
        fields = {name: value for name, value in inputs.items() if name != _USERS}
        with self.accelerator.autocast():
            scores, further = self._scores(model, fields)
        return self._pair_loss(scores, inputs[COUNTED_LABELS]), further, scores

    def _training_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        loss, further, _ = self._losses(model, inputs)
        return loss + further, len(inputs[COUNTED_LABELS])

    def _validation_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        loss, _, scores = self._losses(model, inputs)
        labels = inputs[COUNTED_LABELS]
        self._scored.append((inputs[_USERS].tolist(), labels.tolist(), scores.tolist()))
        return loss, len(labels)

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


class MatchingTrainer(YesNoTrainer):
    """The same on `UserTexts`: a pair's score is the cosine of its two vectors, its loss the squared distance to the label."""

    def _scores(self, model: torch.nn.Module, fields: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        del fields[COUNTED_LABELS]
        pairs = fields.pop(_TEXTS)
        vectors = text_vectors(model, TreeBatch(**fields))
        scores = cosine_similarity(vectors[pairs[:, 0]], vectors[pairs[:, 1]])
        return scores, scores.new_zeros(())

    def _pair_loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, ((scores - labels.to(scores.dtype)) ** 2).sum())
