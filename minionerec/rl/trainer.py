"""TRL's GRPOTrainer with ranked beams as rollouts and prefix-shared log-probabilities, through its seams.

`rollout_func` gives each prompt its `num_generations` best distinct SIDs from the decoder that evaluation uses. The override
of the log-probability method computes a prompt once for its whole group; the one of `_prepare_inputs` keeps groups together.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from minionerec.tree import NO_TOKEN, Branch, CatalogTrie, beam_search, left_pad, pack, tree_logprobs

RewardFunction = Callable[..., list[float | None]]


def beam_rollouts(trie: CatalogTrie, num_generations: int, pad_token: int) -> Callable[[list, GRPOTrainer], dict[str, Any]]:
    """A TRL `rollout_func`: ranked beams, best first.

    TRL hands over each prompt `num_generations` times in a row (its docstring says otherwise); one search serves them all.
    """

    def rollout(prompts: list[list[int]], trainer: GRPOTrainer) -> dict[str, Any]:
        distinct = prompts[::num_generations]
        ids, mask = left_pad(distinct, pad_token, trainer.accelerator.device)
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
            training = model.training
            model.eval()
            result = beam_search(model, ids, mask, trie=trie, num_beams=num_generations)
            model.train(training)
        completions = [[token for token in sid if token != NO_TOKEN] for sid in result.tokens.flatten(0, 1).tolist()]
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}

    return rollout


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
        split = input_ids.shape[1] - logits_to_keep
        ids, seen = input_ids.cpu(), attention_mask.bool().cpu()
        branches = [
            Branch(row[:split][kept[:split]].tolist(), row[split:][kept[split:]].tolist())
            for row, kept in zip(ids, seen, strict=True)
        ]
        longest = int(seen[:, :split].sum(1).max())
        group = longest + cast(int, self.args.num_generations) * (
            logits_to_keep - 1
        )  # the most that a prompt and its completions take
        batch = pack(branches, row_tokens=group).to(input_ids.device)
        with self.accelerator.autocast():
            found = tree_logprobs(model, batch, temperature=self.temperature, entropies=compute_entropy)
        logprobs = batch.by_branch(found.logprobs, len(branches), logits_to_keep)
        if found.entropies is None:
            return logprobs, None, None
        return logprobs, batch.by_branch(found.entropies, len(branches), logits_to_keep), None

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
