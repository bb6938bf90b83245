"""Objectives over rollouts: TRL's losses with sibling advantages, filtered groups and the target's SFT loss; listwise losses.

Everything that is not GRPO's own enters after TRL's scoring (`_generate_and_score_completions`) or after its loss
(`_compute_loss`), so that without these options a step is TRL's.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

from minionerec.config import RlConfig
from minionerec.rl.monitor import with_signal
from minionerec.rl.refill import refill
from minionerec.rl.rollouts import Rollouts
from minionerec.rl.trainer import TreeGRPOTrainer

# rl.loss in TRL's terms. With one update per rollout the ratio of new to old policy is 1, so that clipping never acts; what
# differs is how rewards are scaled and how tokens are averaged, and for gspo that a sequence has one ratio.
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
        accumulation: micro-batches per step. Groups without signal are counted over a whole step, so its rollouts are made at
            once.
    """
    fields = dict(LOSSES[config.loss])
    fields["beta"] = config.sdpo_beta if config.objective == "sdpo" else config.beta
    fields["steps_per_generation"] = 1 if config.dynamic_sampling == "none" else accumulation
    if config.sync_reference is not None:
        fields |= {"sync_ref_model": True, "ref_model_sync_steps": config.sync_reference}
        fields["ref_model_mixup_alpha"] = config.sync_mix
    return fields


def sibling_advantages(
    rewards: torch.Tensor, completions: torch.Tensor, mask: torch.Tensor, group: int, scale: bool = True
) -> torch.Tensor:
    """Advantages of tokens among the candidates that share the parent prefix.

    For token t of candidate i let S be the members of i's group whose first t tokens are i's first t tokens (all of them have
    the parent in common; at t = 0 S is the whole group, as in GRPO). The advantage is (r_i - mean of r over S) / (s + 1e-4), s
    being the unbiased standard deviation of r over S as in TRL, or r_i - mean over S where `scale` is off. Where S holds i
    alone, or rewards in S are all equal, nothing is compared and the advantage is 0: so a miss that left the target's path at
    the first level is punished for that first token, not for what follows.

    Args:
        rewards: (rows,), whole groups of consecutive rows.
        completions: (rows, tokens) token ids.
        mask: (rows, tokens), 1 where a completion has a token.
        group: rows of a group.

    Returns:
        (rows, tokens), 0 outside the mask.
    """
    known = completions.masked_fill(mask == 0, -1).view(-1, group, completions.shape[1])
    values = rewards.view(-1, 1, group)
    shared = torch.ones(len(known), group, group, dtype=torch.bool, device=rewards.device)
    columns = []
    for token in range(known.shape[2]):
        count = shared.sum(-1)
        mean = (values * shared).sum(-1) / count
        difference = rewards.view(-1, group) - mean
        if scale:
            square = ((values - mean[..., None]).square() * shared).sum(-1) / (count - 1).clamp(min=1)
            difference = difference / (square.sqrt() + 1e-4)
        columns.append(difference)
        shared = shared & (known[:, :, None, token] == known[:, None, :, token])
    return torch.stack(columns, dim=-1).view(completions.shape) * mask


def importance_advantages(rewards: torch.Tensor, logprobs: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
    """Advantages with which a group drawn without replacement gives the gradient of the expected reward without bias.

    For member i with probability p_i, importance weight w_i (`SampleResult.log_weights`) and reward r_i it is
    G * w_i * (r_i * (1 - p_i + w_i) - sum over j of w_j * r_j). The sum is a baseline in which the member's own share,
    w_i * r_i, is replaced by p_i * r_i: since E[w_i w_j] = p_i p_j for two different SIDs, it then is p_i times a constant on
    average, and has no gradient. G makes up for the loss's mean over the group.

    Args:
        rewards, logprobs, log_weights: (groups, G); see `rollouts.Ranked`.

    Returns:
        (groups, G).
    """
    weights = log_weights.exp()
    baseline = (weights * rewards).sum(1, keepdim=True)
    return rewards.shape[1] * weights * (rewards * (1 - logprobs.exp() + weights) - baseline)


class ObjectiveTrainer(TreeGRPOTrainer):
    """TRL's trainer with `rl.advantages`, `rl.importance_weights`, `rl.dynamic_sampling` and `rl.sft_weight`.

    Args:
        config: section `rl`.
        arguments: see GRPOTrainer.
    """

    def __init__(self, *, config: RlConfig, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.config = config
        self._summed: torch.Tensor  # (rows of all devices,) the rollouts' weighted rewards

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*arguments, **named)
        self._summed = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.config.dynamic_sampling == "refill":
            inputs = refill(self, inputs, self.config.refill_rounds)
        scored = super()._generate_and_score_completions(inputs)
        group, rows = cast(int, self.args.num_generations), len(inputs)
        begin = self.accelerator.process_index * rows
        mine = slice(begin, begin + rows)
        kept = with_signal(self._summed, group)
        if self.config.advantages == "sibling":
            scored["advantages"] = sibling_advantages(
                self._summed[mine],
                scored["completion_ids"],
                scored["completion_mask"],
                group,
                self.args.scale_rewards != "none",
            )
        if self.config.importance_weights:
            drawn = cast(Rollouts, self.rollout_func).drawn
            weights = cast(torch.Tensor, drawn.log_weights)
            summed = self._summed[mine].view(-1, group)
            scored["advantages"] = importance_advantages(summed, drawn.logprobs, weights).flatten()
        if self.config.dynamic_sampling != "none":
            # TRL's mask of tokens that the policy did not write: they are computed, but count in no sum and no average.
            scored["tool_mask"] = scored["completion_mask"] * kept[mine, None]
            scored["num_items_in_batch"] = self.accelerator.gather(scored["tool_mask"].sum()).sum()
            scored["rows_per_kept"] = torch.tensor(len(kept) / max(int(kept.sum()), 1), device=kept.device)
        width = max(len(row["target"]) for row in inputs)
        scored["targets"] = torch.tensor([list(row["target"]) + [-1] * (width - len(row["target"])) for row in inputs])
        return scored

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        group = cast(int, self.args.num_generations)
        if self.config.sft_weight:
            rows = inputs["targets"][::group].tolist()
            self.sft_targets = [[token for token in row if token >= 0] for row in rows]
        try:
            loss = self._policy_loss(model, inputs)
        finally:
            self.sft_targets = None
        if self.config.sft_weight and self.sft_loss is not None:
            mode = "train" if model.training else "eval"
            self._metrics[mode]["sft_loss"].append(self.accelerator.gather(self.sft_loss.detach()).mean().item())
            loss = loss + self.config.sft_weight * self.sft_loss / self._accumulation(model)
            self.sft_loss = None
        return loss

    def _policy_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        if "rows_per_kept" in inputs and not self.accelerator.reduce(inputs["tool_mask"].sum()):
            # No device keeps a group of this micro-batch: TRL has logged 0 for means over nothing.
            metrics = self._metrics["train" if model.training else "eval"]
            for name in {"kl", "entropy"} & metrics.keys():
                metrics[name].pop()
                if not metrics[name]:
                    del metrics[name]
        if "rows_per_kept" not in inputs or self.loss_type == "dapo":  # dapo averages over the kept tokens of the step
            return loss
        if self.loss_type == "bnpo":  # it has averaged over the kept tokens here; the step's mean weighs by their number
            shares = self._accumulation(model) * self.accelerator.num_processes
            return loss * shares * inputs["tool_mask"].sum() / inputs["num_items_in_batch"].clamp(min=1)
        return loss * inputs["rows_per_kept"]

    def _accumulation(self, model: torch.nn.Module) -> int:
        return self.current_gradient_accumulation_steps if model.training else 1


def listwise_loss(scores: torch.Tensor, is_target: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of the target over its group, (groups,).

    Args:
        scores: (groups, G) log-probabilities of the completions.
        is_target: (groups, G) bool, one True in each group.
    """
    return scores.logsumexp(1) - scores.masked_fill(~is_target, 0).sum(1)


def sdpo_loss(ratios: torch.Tensor, is_target: torch.Tensor, beta: float) -> torch.Tensor:
    """S-DPO, (groups,): -log sigmoid(-log sum over the others of exp(beta * (their ratio - the target's))).

    Chen et al., "On Softmax Direct Preference Optimization for Recommendation", NeurIPS 2024, equation 10; with one other it is
    DPO.

    Args:
        ratios: (groups, G) log-ratios of policy to reference.
        is_target: (groups, G) bool, one True in each group.
    """
    target = ratios.masked_fill(~is_target, 0).sum(1, keepdim=True)
    others = (beta * (ratios - target)).masked_fill(is_target, -torch.inf).logsumexp(1)
    return -torch.nn.functional.logsigmoid(-others)


class ListwiseTrainer(ObjectiveTrainer):
    """Objectives `listwise` and `sdpo`: the target against the rest of its group; rewards are logged only."""

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
        known, targets = ids.masked_fill(mask == 0, -1), inputs["targets"].to(ids.device)
        width = max(known.shape[1], targets.shape[1])
        known, targets = (torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=-1) for rows in (known, targets))
        is_target = (known == targets).all(1).view(-1, group)
        metrics = self._metrics["train" if model.training else "eval"]
        figures = {"entropy": (cast(torch.Tensor, entropies) * mask).sum() / mask.sum()}
        if self.beta:
            gap = inputs["ref_per_token_logps"] - logprobs
            tokens = ((gap.exp() - gap - 1) * mask).sum(1) / mask.sum(1)
            figures["kl"] = tokens.mean()
        if self.config.objective == "sdpo":
            ratios = (-gap * mask).sum(1).view(-1, group)
            loss = sdpo_loss(ratios, is_target, self.beta).mean()
        else:
            loss = listwise_loss((logprobs * mask).sum(1).view(-1, group), is_target).mean()
            if self.beta:
                loss = loss + self.beta * figures["kl"]
        for name, value in figures.items():
            metrics[name].append(self.accelerator.gather(value.detach()).mean().item())
        return loss / self._accumulation(model)


class KeepReference(TrainerCallback):
    """Saves a reference model that moves (`rl.sync_reference`) with each checkpoint: TRL would go on with the SFT model.

    Must stand before what marks a checkpoint as complete.
    """

    FILE = "reference.safetensors"

    def __init__(self, trainer: TreeGRPOTrainer) -> None:
        self.trainer = trainer

    def _model(self) -> torch.nn.Module:
        return cast(torch.nn.Module, self.trainer.accelerator.unwrap_model(self.trainer.ref_model))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the reference into the checkpoint that was just saved."""
        if state.is_world_process_zero:
            save_model(self._model(), str(Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE))

    def restore(self, folder: str) -> None:
        """Take over the reference of a checkpoint.

        Raises:
            FileNotFoundError: the checkpoint has none.
        """
        load_model(self._model(), str(Path(folder) / self.FILE))
