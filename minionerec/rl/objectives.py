"""Objectives over rollouts: TRL's losses with sibling advantages, filtered groups and the target's SFT loss; listwise losses.

Whatever GRPO does not have is added after TRL's scoring (`_generate_and_score_completions`) or after its loss
(`_compute_loss`). Without these options a step is TRL's.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

from minionerec.config import RlConfig
from minionerec.rl.monitor import with_signal
from minionerec.rl.refill import refill
from minionerec.rl.step import Groups, Rows, Step
from minionerec.rl.trainer import TreeGRPOTrainer
from minionerec.tree import without_padding

# rl.loss in TRL's terms. With one update per rollout the ratio of new to old policy is 1, and clipping never acts. The losses
# differ in how they scale rewards and average tokens; gspo has one ratio for a sequence.
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "token"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "importance_sampling_level": "token"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "group", "importance_sampling_level": "token"},
    "bnpo": {"loss_type": "bnpo", "scale_rewards": "group", "importance_sampling_level": "token"},
    "gspo": {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "sequence"},
}


def objective_arguments(config: RlConfig, accumulation: int) -> dict[str, Any]:
    """The GRPOConfig fields that the objective decides.

    Args:
        accumulation: micro-batches per step. With dynamic sampling the rollouts of all of them are made at once, because groups
            without signal are counted over the whole step; with several updates, because all micro-batches of a step must have
            been computed before the first of them comes again.
    """
    fields = dict(LOSSES[config.loss])
    fields["beta"] = config.sdpo_beta if config.objective == "sdpo" else config.beta
    at_once = config.dynamic_sampling != "none" or config.updates_per_rollout > 1
    fields["steps_per_generation"] = accumulation if at_once else 1
    fields |= {"num_iterations": config.updates_per_rollout, "epsilon": config.clip}
    if config.sync_reference is not None:
        fields |= {"sync_ref_model": True, "ref_model_sync_steps": config.sync_reference}
        fields["ref_model_mixup_alpha"] = config.sync_mix
    return fields


def sibling_advantages(
    rewards: torch.Tensor, completions: torch.Tensor, mask: torch.Tensor, group: int, scale: bool = True
) -> torch.Tensor:
    """Advantages of tokens among the candidates that share the parent prefix.

    For token t of candidate i let S be the members of i's group whose first t tokens are i's first t tokens: all of them have
    the same parent node in the trie. At t = 0 S is the whole group, as in GRPO. The advantage is

        (r_i - mean of r over S) / (s + 1e-4),

    s being the unbiased standard deviation of r over S, as in TRL, or r_i - mean over S if `scale` is off. If S holds i alone,
    or the rewards in S are all equal, there is nothing to compare and the advantage is 0. So a miss that left the target's path
    at the first level is punished for that first token, not for the tokens after it.

    Args:
        rewards: (rows,), whole groups of consecutive rows.
        completions: (rows, tokens) token ids.
        mask: (rows, tokens), 1 where a completion has a token.
        group: rows of a group.

    Returns:
        (rows, tokens), 0 outside the mask.
    """
    tokens = completions.masked_fill(mask == 0, -1).view(-1, group, completions.shape[1])
    values = rewards.view(-1, 1, group)
    # (groups, i, j): member j is in the S of member i. S shrinks from token to token.
    siblings = torch.ones(len(tokens), group, group, dtype=torch.bool, device=rewards.device)
    columns = []
    for step in range(tokens.shape[2]):
        count = siblings.sum(-1)
        mean = (values * siblings).sum(-1) / count
        difference = rewards.view(-1, group) - mean
        if scale:
            # Unbiased, hence count - 1. A member alone has a difference of 0, whatever it is divided by.
            variance = ((values - mean[..., None]).square() * siblings).sum(-1) / (count - 1).clamp(min=1)
            difference = difference / (variance.sqrt() + 1e-4)
        columns.append(difference)
        siblings = siblings & (tokens[:, :, None, step] == tokens[:, None, :, step])
    return torch.stack(columns, dim=-1).view(completions.shape) * mask


def importance_advantages(rewards: torch.Tensor, logprobs: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
    """Advantages with which a group drawn without replacement gives the gradient of the expected reward without bias.

    For member i with probability p_i, importance weight w_i (`SampleResult.log_weights`) and reward r_i it is

        G * w_i * (r_i * (1 - p_i + w_i) - sum over j of w_j * r_j).

    The sum over j is a baseline, with the member's own share w_i * r_i replaced by p_i * r_i. For two different SIDs
    E[w_i w_j] = p_i p_j (Kool et al., 2019), so on average the baseline is p_i times a constant, which has no gradient. G makes
    up for the loss's mean over the group.

    Args:
        rewards, logprobs, log_weights: (groups, G); see `step.Groups`.

    Returns:
        (groups, G).
    """
    weights = log_weights.exp()
    baseline = (weights * rewards).sum(1, keepdim=True)
    return rewards.shape[1] * weights * (rewards * (1 - logprobs.exp() + weights) - baseline)


class ObjectiveTrainer(TreeGRPOTrainer):
    """TRL's trainer with `rl.advantages`, `rl.importance_weights`, `rl.dynamic_sampling`, `rl.sft_weight`, `rl.entropy_bonus`.

    Args:
        config: section `rl`.
        arguments: of TreeGRPOTrainer.
    """

    def __init__(self, *, config: RlConfig, **arguments: Any) -> None:
        super().__init__(entropy_gradient=config.entropy_bonus > 0, **arguments)
        self.config = config

    def begin_step(self, inputs: Rows) -> Step:
        """The step of these rows; with `refill`, other prompts take the place of those whose group teaches nothing."""
        if self.config.dynamic_sampling == "refill":
            return refill(self, inputs, self.config.refill_rounds)
        return super().begin_step(inputs)

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*arguments, **named)
        self.step.rewards = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return rewards

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        step, group = self.step, cast(int, self.args.num_generations)
        rewards = cast(torch.Tensor, step.rewards)
        begin = self.accelerator.process_index * len(step.rows)
        mine = slice(begin, begin + len(step.rows))  # this process's rows among the rows of all processes
        if self.config.advantages == "sibling":
            ids, mask = scored["completion_ids"], scored["completion_mask"]
            scored["advantages"] = sibling_advantages(rewards[mine], ids, mask, group, self.args.scale_rewards != "none")
        if self.config.importance_weights:
            _, logprobs, log_weights = cast(tuple[torch.Tensor, ...], step.groups)
            advantages = importance_advantages(rewards[mine].view(-1, group), logprobs, log_weights)
            scored["advantages"] = advantages.flatten()
        if self.config.dynamic_sampling != "none":
            # TRL's mask of tokens that the policy did not write: they are computed, but count in no sum and no average.
            signal = with_signal(rewards, group)
            scored["tool_mask"] = scored["completion_mask"] * signal[mine, None]
            scored["num_items_in_batch"] = self.accelerator.gather(scored["tool_mask"].sum()).sum()
            # TRL averages over all rows; this factor makes it the average over the rows that count.
            scored["rows_per_counted"] = torch.tensor(len(signal) / max(int(signal.sum()), 1), device=signal.device)
        scored["target_leaf"] = torch.tensor([row["target_leaf"] for row in step.rows], device=rewards.device)
        return scored

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        step = self.step
        if self.config.sft_weight:
            targets = inputs["target_leaf"][:: cast(int, self.args.num_generations)]
            step.sft_targets = [without_padding(sid) for sid in self.trie.sid(targets).tolist()]
        try:
            loss = self._policy_loss(model, inputs)
        finally:
            step.sft_targets = None
        if step.sft_loss is not None:
            mode = "train" if model.training else "eval"
            self._metrics[mode]["sft_loss"].append(self.accelerator.gather(step.sft_loss.detach()).mean().item())
            loss = loss + self.config.sft_weight * step.sft_loss / self._accumulation(model)
            step.sft_loss = None  # lets go of its graph
        if step.entropy is not None:
            loss = loss - self.config.entropy_bonus * step.entropy / self._accumulation(model)
            step.entropy = None
        return loss

    def _policy_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        if "rows_per_counted" in inputs and not self.accelerator.reduce(inputs["tool_mask"].sum()):
            # No group of this micro-batch has a signal, on any process: TRL has logged 0 for means over nothing.
            metrics = self._metrics["train" if model.training else "eval"]
            for name in {"kl", "entropy"} & metrics.keys():
                metrics[name].pop()
                if not metrics[name]:
                    del metrics[name]
        if "rows_per_counted" not in inputs or self.loss_type == "dapo":  # dapo averages over the step's unmasked tokens
            return loss
        if self.loss_type == "bnpo":
            # It has averaged over this micro-batch's unmasked tokens; the step's mean weighs micro-batches by their number.
            shares = self._accumulation(model) * self.accelerator.num_processes
            return loss * shares * inputs["tool_mask"].sum() / inputs["num_items_in_batch"].clamp(min=1)
        return loss * inputs["rows_per_counted"]

    def _accumulation(self, model: torch.nn.Module) -> int:
        """Micro-batches whose gradients are added up: each loss counts with its share of the step."""
        return self.current_gradient_accumulation_steps if model.training else 1


def listwise_loss(scores: torch.Tensor, is_target: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of the target over its group, (groups,).

    Args:
        scores: (groups, G) log-probabilities of the completions.
        is_target: (groups, G) bool, one True in each group.
    """
    return scores.logsumexp(1) - scores.masked_fill(~is_target, 0).sum(1)


def sdpo_loss(ratios: torch.Tensor, is_target: torch.Tensor, beta: float) -> torch.Tensor:
    """S-DPO, (groups,): -log sigmoid(-log sum over the misses of exp(beta * (ratio of the miss - ratio of the target))).

    Chen et al., "On Softmax Direct Preference Optimization for Recommendation", NeurIPS 2024, equation 10; with a single miss
    it is DPO.

    Args:
        ratios: (groups, G) log-ratios of policy to reference model.
        is_target: (groups, G) bool, one True in each group.
    """
    target = ratios.masked_fill(~is_target, 0).sum(1, keepdim=True)
    misses = (beta * (ratios - target)).masked_fill(is_target, -torch.inf).logsumexp(1)
    return -torch.nn.functional.logsigmoid(-misses)


class ListwiseTrainer(ObjectiveTrainer):
    """Objectives `listwise` and `sdpo`: the target against the rest of its group; rewards are logged only."""

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        scored["leaf"] = cast(Groups, self.step.groups).leaves.flatten()
        return scored

    def _policy_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        group = cast(int, self.args.num_generations)
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        logprobs, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], ids], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            ids.shape[1],
            compute_entropy=True,
        )
        is_target = (inputs["leaf"] == inputs["target_leaf"]).view(-1, group)
        figures = {"entropy": (cast(torch.Tensor, entropies) * mask).sum() / mask.sum()}
        if self.beta:
            # k3 = q/p - log(q/p) - 1 estimates the KL divergence from the reference model q, as TRL has it (Schulman, 2020).
            log_ratio = inputs["ref_per_token_logps"] - logprobs
            k3 = ((log_ratio.exp() - log_ratio - 1) * mask).sum(1) / mask.sum(1)
            figures["kl"] = k3.mean()
        if self.config.objective == "sdpo":
            ratios = (-log_ratio * mask).sum(1).view(-1, group)
            loss = sdpo_loss(ratios, is_target, self.beta).mean()
        else:
            loss = listwise_loss((logprobs * mask).sum(1).view(-1, group), is_target).mean()
            if self.beta:
                loss = loss + self.beta * figures["kl"]
        metrics = self._metrics["train" if model.training else "eval"]
        for name, value in figures.items():
            metrics[name].append(self.accelerator.gather(value.detach()).mean().item())
        return loss / self._accumulation(model)


class KeepReference(TrainerCallback):
    """Saves a reference model that moves (`rl.sync_reference`) with each checkpoint: TRL would resume with the SFT model.

    It must be added before the callback that marks a checkpoint as complete.
    """

    FILE = "reference.safetensors"

    def __init__(self, trainer: TreeGRPOTrainer) -> None:
        self.trainer = trainer

    def _model(self) -> torch.nn.Module:
        return cast(torch.nn.Module, self.trainer.accelerator.unwrap_model(self.trainer.ref_model))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the reference model into the checkpoint that was just saved."""
        if state.is_world_process_zero:
            save_model(self._model(), str(Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE))

    def restore(self, folder: str) -> None:
        """Load the reference model of a checkpoint.

        Raises:
            FileNotFoundError: the checkpoint has none.
        """
        load_model(self._model(), str(Path(folder) / self.FILE))
