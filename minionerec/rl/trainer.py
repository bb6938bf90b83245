"""TRL's GRPOTrainer with prefix-shared log-probabilities, through its seams.

The override of the log-probability method computes a prompt once for its whole group; the one of `_prepare_inputs` keeps
groups together; the one of `_generate_and_score_completions` shows the rows of the dataset to the rollouts.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, split_tensor_dict

from minionerec.errors import ConstraintError
from minionerec.rl.monitor import Watch, group_figures, level_means, signal_share
from minionerec.rl.rewards import Context, Reward
from minionerec.training.memory import enough_memory
from minionerec.training.resume import PortableTrainer
from minionerec.tree import Branch, CatalogTrie, pack, tree_logprobs

_MEMORY = (
    "Lower rl.micro_batch_prompts; prompts_per_step and the result stay the same. Where a single group is too much: "
    "rl.gradient_checkpointing true, a lower rl.num_generations, more devices. Validations take eval.batch_size lists of "
    "eval.num_beams at once."
)


def setting_up() -> tuple[str, str]:
    """For `enough_memory`: before the first step."""
    return "while the training was set up", _MEMORY


RewardFunction = Callable[..., list[float | None]]


def grouped(name: str, reward: Reward, num_generations: int) -> RewardFunction:
    """A TRL reward function from a function of one group; rows come in group order, best beam first.

    The dataset's column `target` holds the token ids of each row's target, `row` its context, see `rewards.Context`.
    """

    def function(
        completion_ids: list[list[int]], target: list[list[int]], row: list[int | None], **_: Any
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for start in range(0, len(completion_ids), num_generations):
            group = completion_ids[start : start + num_generations]
            rewards += reward(group, target[start], Context(row[start]))
        return rewards

    function.__name__ = name
    return function


class TreeGRPOTrainer(PortableTrainer, GRPOTrainer):
    """A GRPOTrainer that computes each prompt once for all its completions: same log-probabilities, far fewer tokens.

    Args:
        catalog: take log-probabilities and entropies over this trie's children and not over the vocabulary, for policy, old
            policy and reference alike; on the model's device. Completions must then be SIDs of it.
        watch: told of every step's loss and KL, and called back by the Trainer.
        others: see GRPOTrainer.
    """

    args: GRPOConfig
    _buffered_inputs: Any
    generating: list[dict[str, Any]]  # the rows that rollouts are being made for, each `num_generations` times in a row
    sft_targets: list[list[int]] | None = None  # one per group of the policy's next forward: its SFT loss is taken along
    sft_loss: torch.Tensor | None = None  # the result, with gradient
    _metrics: dict[str, defaultdict[Any, list[Any]]]

    def __init__(self, *, catalog: CatalogTrie | None = None, watch: Watch | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._catalog, self._watch = catalog, watch
        self._catalog_on_cpu = None if catalog is None else catalog.to("cpu")  # where batches are packed
        if watch is not None:
            watch.trainer = self
            self.add_callback(watch)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """TRL's own.

        Raises:
            TrainingError: see `Watch`; or the memory does not suffice.
        """
        with enough_memory(lambda: (f"at step {self.state.global_step + 1}", _MEMORY)):
            return super().train(*arguments, **named)

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """TRL's own; stops where the loss or the KL is not what it should be."""
        loss = super().training_step(*arguments, **named)
        if self._watch is not None:
            self._watch.check_step(self.accelerator.reduce(loss.detach()).item(), self._metrics["train"].get("kl", [])[-1:])
        return loss

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """TRL's own: (rows of all devices, rewards); also logs what groups look like and how many carry a signal."""
        size = cast(int, self.args.num_generations)
        for start in range(0, len(completion_ids_list), size):
            for name, value in group_figures(completion_ids_list[start : start + size], inputs[start]["target"]).items():
                self._log_metric(name, value)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        share = signal_share(rewards, self.reward_weights.to(rewards.device), size)
        self._metrics["train"]["groups_with_signal"].append(share)
        return rewards

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
                Branch(row[:split][kept[:split]].tolist(), row[split:][kept[split:]].tolist(), is_sid=self._catalog is not None)
                for row, kept in zip(ids, seen, strict=True)
            ]
            rows, targets = len(branches), self.sft_targets if torch.is_grad_enabled() else None
            if targets is not None:  # the targets of the SFT loss, beside their groups: they share the prompt
                sid = self._catalog is not None
                branches += [Branch(branches[n * group].prompt, target, is_sid=sid) for n, target in enumerate(targets)]
            # What the longest prompt and its completions take, so that a group fits into a row.
            row_tokens = int(seen[:, :split].sum(1).max()) + (group + 1) * (max(len(b.completion) for b in branches) - 1)
            batch = pack(branches, row_tokens=row_tokens, trie=self._catalog_on_cpu).to(input_ids.device)
            with self.accelerator.autocast():
                found = tree_logprobs(model, batch, trie=self._catalog, temperature=self.temperature, entropies=compute_entropy)
            width = max(len(branch.completion) for branch in branches)
            matrix = batch.by_branch(found.logprobs, len(branches), max(width, logits_to_keep))
            logprobs.append(matrix[:rows, :logits_to_keep])
            if targets is not None:
                lengths = torch.tensor([len(target) for target in targets], device=matrix.device)
                self.sft_loss = -(matrix[rows:].sum(1) / lengths).mean()
            if found.entropies is not None:
                entropies.append(batch.by_branch(found.entropies, len(branches), matrix.shape[1])[:rows, :logits_to_keep])
        if not compute_entropy:
            return torch.cat(logprobs), None, None
        spread = torch.cat(entropies)
        if torch.is_grad_enabled():  # the policy, not its old or reference log-probabilities
            levels = cast(int, self.args.max_completion_length)
            means = level_means(spread, attention_mask[:, -logits_to_keep:], levels, self.accelerator)
            for level, mean in enumerate(means, 1):
                self._metrics["train"][f"entropy/level_{level}"].append(mean)
        return torch.cat(logprobs), spread, None

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        # TRL's goes on with its random state from epoch to epoch, so that a resumed run would repeat the first epoch's order.
        made = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return _EpochSampler(
            made.data_source, made.mini_repeat_count, made.batch_size, made.repeat_count, made.shuffle, made.seed
        )

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's own, but groups stay whole when the rollouts are shuffled and split into micro-batches."""
        if not cast(torch.nn.Module, self.model).training:
            return super()._prepare_inputs(generation_batch)
        size = cast(int, self.args.steps_per_generation)
        if self._step % (size * self.num_iterations) == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(shuffle_groups(scored, cast(int, self.args.num_generations)), size)
        return self._buffered_inputs[self._step % size]


class _EpochSampler(RepeatSampler):
    """TRL's sampler with an order that is a function of seed and epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Trainer tells it before each epoch, counted from 0."""
        self.generator.manual_seed(int(self.seed or 0) + epoch)


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
