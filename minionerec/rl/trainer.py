"""TRL's GRPOTrainer with prefix-shared log-probabilities, through its seams.

The override of the log-probability method computes a prompt once for its whole group; the one of `_prepare_inputs` keeps
groups together; the one of `_generate_and_score_completions` shows the rows of the dataset to the rollouts.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from minionerec.errors import ConstraintError
from minionerec.tree import Branch, pack, tree_logprobs

RewardFunction = Callable[..., list[float | None]]


def grouped(reward: Callable[[list, list], list[float]], num_generations: int) -> RewardFunction:
    """A TRL reward function from a function of one group; rows come in group order, best beam first.

    Also logs how often the target is among the beams: a group without it carries no signal.
    """

    def function(completion_ids: list, target: list, log_metric: Callable[[str, float], None], **_: Any) -> list[float | None]:
        rewards: list[float | None] = []
        hits = 0
        for start in range(0, len(completion_ids), num_generations):
            group = completion_ids[start : start + num_generations]
            hits += list(target[start]) in [list(completion) for completion in group]
            rewards += reward(group, target[start])
        log_metric(f"HR@{num_generations}", hits * num_generations / len(completion_ids))
        return rewards

    function.__name__ = reward.__name__
    return function


class TreeGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer that computes each prompt once for all its completions: same log-probabilities, far fewer tokens."""

    args: GRPOConfig
    _buffered_inputs: Any
    generating: list[dict[str, Any]]  # the rows that rollouts are being made for, each `num_generations` times in a row
    sft_targets: list[list[int]] | None = None  # one per group of the policy's next forward: its SFT loss is taken along
    sft_loss: torch.Tensor | None = None  # the result, with gradient

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.generating = inputs
        return super()._generate_and_score_completions(inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's method: (rows, completion) log-probabilities of the completion tokens, entropies where asked for, and None.

        Args:
            batch_size: rows computed at once, but never less than a group.

        Raises:
            ConstraintError: the model has a router whose loss TRL wants; that is not computed here.
        """
        if compute_aux_loss:
            raise ConstraintError(
                "The auxiliary loss of mixture-of-experts models is not computed; set router_aux_loss_coef to 0."
            )
        group = cast(int, self.args.num_generations)
        size = max(batch_size or len(input_ids), group)
        logprobs, entropies = [], []
        for start in range(0, len(input_ids), size):
            ids, seen = input_ids[start : start + size].cpu(), attention_mask[start : start + size].bool().cpu()
            split = ids.shape[1] - logits_to_keep
            branches = [
                Branch(row[:split][kept[:split]].tolist(), row[split:][kept[split:]].tolist())
                for row, kept in zip(ids, seen, strict=True)
            ]
            rows, targets = len(branches), self.sft_targets if torch.is_grad_enabled() else None
            if targets is not None:  # the targets of the SFT loss, beside their groups: they share the prompt
                branches += [Branch(branches[n * group].prompt, target) for n, target in enumerate(targets)]
            # What the longest prompt and its completions take, so that a group fits into a row.
            row_tokens = int(seen[:, :split].sum(1).max()) + (group + 1) * (max(len(b.completion) for b in branches) - 1)
            batch = pack(branches, row_tokens=row_tokens).to(input_ids.device)
            with self.accelerator.autocast():
                found = tree_logprobs(model, batch, temperature=self.temperature, entropies=compute_entropy)
            width = max(len(branch.completion) for branch in branches)
            matrix = batch.by_branch(found.logprobs, len(branches), max(width, logits_to_keep))
            logprobs.append(matrix[:rows, :logits_to_keep])
            if targets is not None:
                lengths = torch.tensor([len(target) for target in targets], device=matrix.device)
                self.sft_loss = -(matrix[rows:].sum(1) / lengths).mean()
            if found.entropies is not None:
                entropies.append(batch.by_branch(found.entropies, len(branches), matrix.shape[1])[:rows, :logits_to_keep])
        return torch.cat(logprobs), torch.cat(entropies) if compute_entropy else None, None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's own, but groups stay whole when the rollouts are shuffled and split into micro-batches."""
        if not cast(torch.nn.Module, self.model).training:
            return super()._prepare_inputs(generation_batch)
        size = cast(int, self.args.steps_per_generation)
        if self._step % (size * self.num_iterations) == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(shuffle_groups(scored, cast(int, self.args.num_generations)), size)
        return self._buffered_inputs[self._step % size]


def shuffle_groups(rows: dict[str, Any], group: int) -> dict[str, Any]:
    """Tensors and lists, all of one length, in a random order of whole groups of consecutive rows; scalars stay."""
    count = next(len(value) for value in rows.values() if _has_rows(value))
    order = torch.randperm(count // group).repeat_interleave(group) * group + torch.arange(count) % group

    def permute(value: Any) -> Any:
        if not _has_rows(value):
            return value
        return value[order.to(value.device)] if torch.is_tensor(value) else [value[row] for row in order.tolist()]

    return {name: permute(value) for name, value in rows.items()}


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) or (torch.is_tensor(value) and value.dim() > 0)
