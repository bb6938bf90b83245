"""TRL's GRPOTrainer with prefix-shared log-probabilities, through the methods that it lets a subclass override.

- `_get_per_token_logps_and_entropies` computes a prompt once for its whole group.
- `_prepare_inputs` keeps groups together when micro-batches are formed.
- `_generate_and_score_completions` begins a `Step`, which carries what TRL's arguments do not.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, split_tensor_dict

from minionerec.errors import ConstraintError
from minionerec.rl.brake import KlBrake
from minionerec.rl.monitor import Watch, group_figures, level_means, signal_share
from minionerec.rl.packing import PackedRows
from minionerec.rl.rewards import Context, Reward
from minionerec.rl.step import Rows, Step
from minionerec.training.memory import enough_memory
from minionerec.training.resume import PortableTrainer
from minionerec.tree import Branch, CatalogTrie, Normalise, TreeBatch, pack, tree_logprobs

_MEMORY_ADVICE = (
    "Lower rl.micro_batch_prompts; prompts_per_step and the result stay the same. If a single group is too much, set "
    "rl.gradient_checkpointing true, lower rl.num_generations, or take more devices. A validation searches eval.batch_size "
    "lists of eval.num_beams at once."
)
SETUP_MEMORY_ADVICE = ("while the training was set up", _MEMORY_ADVICE)

RewardFunction = Callable[..., list[float | None]]


def grouped(name: str, reward: Reward, num_generations: int) -> RewardFunction:
    """A TRL reward function from a function of one group.

    TRL passes rows in group order, best beam first. The dataset brings the columns `target`, `target_leaf` and `train_row`, the
    rollouts the column `leaf`; see `rows.token_rows` and `rewards.Context`.
    """

    def function(
        completion_ids: list[list[int]],
        target: list[list[int]],
        target_leaf: list[int],
        train_row: list[int | None],
        leaf: list[int],
        **_: Any,
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for start in range(0, len(completion_ids), num_generations):
            group = slice(start, start + num_generations)
            context = Context(train_row[start], leaf[group], target_leaf[start])
            rewards += reward(completion_ids[group], target[start], context)
        return rewards

    function.__name__ = name
    return function


class TreeGRPOTrainer(PortableTrainer, GRPOTrainer):
    """A GRPOTrainer that computes each prompt once for all its completions: same log-probabilities, far fewer tokens.

    Args:
        trie: the valid SIDs, on the model's device.
        normalise_over: what the probabilities of a token add up over, for the policy, the old policy and the reference model.
            With `catalog` completions must be SIDs of the trie.
        watch: checks every step's loss and KL, and validates; the Trainer calls it back.
        brake: lowers the learning rate of steps with a high KL; the Trainer calls it back.
        entropy_gradient: leave the policy's mean entropy, with its gradient, in `step.entropy`.
        arguments: of GRPOTrainer.

    Attributes:
        step: the batch of rollouts that is being made or learnt from.
    """

    args: GRPOConfig
    step: Step
    _buffered_inputs: Any
    _metrics: dict[str, defaultdict[Any, list[Any]]]

    def __init__(
        self,
        *,
        trie: CatalogTrie,
        normalise_over: Normalise = "vocabulary",
        watch: Watch | None = None,
        brake: KlBrake | None = None,
        entropy_gradient: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.step = Step([])
        self._brake, self._entropy_gradient = brake, entropy_gradient
        self.trie, self._watch = trie, watch
        # The trie that log-probabilities are normalised over, on the model's device and where batches are packed.
        self._normalising_trie = trie if normalise_over == "catalog" else None
        self._packing_trie = trie.to("cpu") if normalise_over == "catalog" else None
        self._packed = PackedRows(self._pack, is_sid=normalise_over == "catalog")
        if watch is not None:
            watch.trainer = self
            self.add_callback(watch)
        if brake is not None:
            brake.trainer = self
            self.add_callback(brake)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train, as GRPOTrainer does.

        Raises:
            TrainingError: a step went wrong (`Watch`), or the memory does not suffice; the message says what to change.
        """
        with enough_memory(lambda: (f"at step {self.state.global_step + 1}", _MEMORY_ADVICE)):
            return super().train(*arguments, **named)

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """Compute a micro-batch's gradient; stop if its loss or KL is not what it should be."""
        loss = super().training_step(*arguments, **named)
        if self._watch is not None:
            # The last entry is this micro-batch's; a KL of earlier ones was checked with them.
            kl = self._metrics["train"].get("kl", [])[-1:]
            self._watch.check_step(self.accelerator.reduce(loss.detach()).item(), kl)
        return loss

    def compute_loss(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """The loss of a micro-batch; its KL decides with which learning rate the step is taken (`rl.kl_brake`)."""
        measured = len(self._metrics["train"].get("kl", []))
        loss = super().compute_loss(*arguments, **named)
        if self._brake is not None:
            self._brake.watch(self._metrics["train"].get("kl", [])[measured:])
        return loss

    def begin_step(self, inputs: Rows) -> Step:
        """The step of these rows, each of which TRL hands over `num_generations` times in a row."""
        return Step(inputs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """The rewards, (rows of all processes, rewards); also logs what groups look like and how many carry a signal."""
        size = cast(int, self.args.num_generations)
        for start in range(0, len(completion_ids_list), size):
            for name, value in group_figures(completion_ids_list[start : start + size], inputs[start]["target"]).items():
                self._log_metric(name, value)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        share = signal_share(rewards, self.reward_weights.to(rewards.device), size)
        self._metrics["train"]["groups_with_signal"].append(share)
        return rewards

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        self._packed.clear()
        self.step = self.begin_step(inputs)
        return super()._generate_and_score_completions(self.step.rows)

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
        """Log-probabilities of the completion tokens, (rows, completion), their entropies if wanted, and None.

        TRL calls this for the policy, the old policy and the reference model alike.

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
        rows_at_once = max(batch_size or len(input_ids), group)
        # Only the policy's forward has gradients; the old policy and the reference model have no SFT loss.
        sft_targets = self.step.sft_targets if torch.is_grad_enabled() else None
        entropy_gradient = self._entropy_gradient and torch.is_grad_enabled()
        logprobs, entropies = [], []
        for start in range(0, len(input_ids), rows_at_once):
            # 1. TRL pads prompts on the left and completions on the right, so that all rows are equally long. A tree shares
            #    prefixes that begin at its root, and has no use for padding: it is taken off, row by row.
            ids = input_ids[start : start + rows_at_once].cpu().numpy()
            mask = attention_mask[start : start + rows_at_once].bool().cpu().numpy()
            rows, prompt_columns = len(ids), ids.shape[1] - logits_to_keep
            # 2. Pack. All passes over these rows share the batch, but for the targets of the SFT loss: these are further
            #    branches, which share the prompt of their group, so that they cost only their own tokens.
            if sft_targets is None:
                batch = self._packed.batch(ids, mask, prompt_columns)
            else:
                branches = self._packed.branches(ids, mask, prompt_columns)
                is_sid = self._normalising_trie is not None
                targets = [
                    Branch(branches[number * group].prompt, sid, is_sid=is_sid) for number, sid in enumerate(sft_targets)
                ]
                batch = self._pack([*branches, *targets])
            count = rows + len(sft_targets or [])
            # 3. One forward for all of them.
            with self.accelerator.autocast():
                by_label = tree_logprobs(
                    model,
                    batch,
                    trie=self._normalising_trie,
                    temperature=self.temperature,
                    entropies=compute_entropy,
                    entropy_gradient=entropy_gradient,
                )
            # 4. Back to what TRL expects: a row per completion, 0 where it has no token. A target of the SFT loss may be
            #    longer than all completions; its columns are for its own loss alone.
            width = max(logits_to_keep, *map(len, sft_targets or [[]]))
            matrix = batch.by_branch(by_label.logprobs, count, width)
            logprobs.append(matrix[:rows, :logits_to_keep])
            if sft_targets is not None:
                target_lengths = torch.tensor([len(target) for target in sft_targets], device=matrix.device)
                self.step.sft_loss = -(matrix[rows:].sum(1) / target_lengths).mean()
            if by_label.entropies is not None:
                entropies.append(batch.by_branch(by_label.entropies, count, width)[:rows, :logits_to_keep])
        if not compute_entropy:
            return torch.cat(logprobs), None, None
        all_entropies = torch.cat(entropies)
        if entropy_gradient:  # a mean over sequences, so that it is the same however a step is split into micro-batches
            kept = attention_mask[:, -logits_to_keep:]
            self.step.entropy = ((all_entropies * kept).sum(1) / kept.sum(1)).mean()
            all_entropies = all_entropies.detach()
        if torch.is_grad_enabled():  # the policy
            self._log_level_entropies(all_entropies, attention_mask[:, -logits_to_keep:])
        return torch.cat(logprobs), all_entropies, None

    def _pack(self, branches: list[Branch]) -> TreeBatch:
        """Pack into rows with room for the longest prompt and, below it, for a group and its SFT target.

        So no group is cut in two, and no prompt is computed twice. The last token of a completion predicts nothing and is left
        out.
        """
        longest = max(len(branch.completion) for branch in branches)
        longest_prompt = max(len(branch.prompt) for branch in branches)
        row_tokens = longest_prompt + (cast(int, self.args.num_generations) + 1) * (longest - 1)
        return pack(branches, row_tokens=row_tokens, trie=self._packing_trie).to(self.accelerator.device)

    def _log_level_entropies(self, entropies: torch.Tensor, mask: torch.Tensor) -> None:
        means = level_means(entropies, mask, cast(int, self.args.max_completion_length), self.accelerator)
        for level, mean in enumerate(means, 1):
            self._metrics["train"][f"entropy/level_{level}"].append(mean)

    def get_train_dataloader(self) -> Any:
        """TRL's batches, which are lists of rows and stay as they are.

        accelerate would look for tensors to move at every token of every prompt, as often as TRL repeats it: with 16 prompts of
        200 tokens, 16 completions and 4 micro-batches .1 s a step on a CPU core.
        """
        loader = super().get_train_dataloader()
        loader.device = None
        return loader

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        # TRL's sampler carries its random state from epoch to epoch. A resumed run would repeat the first epoch's order.
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return _EpochSampler(
            *(sampler.data_source, sampler.mini_repeat_count, sampler.batch_size, sampler.repeat_count),
            *(sampler.shuffle, sampler.seed),
        )

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The next micro-batch. Unlike TRL's, it holds whole groups.

        TRL shuffles the rows of a rollout before it splits them into micro-batches. That scatters a group, and a prompt would
        be computed in several micro-batches. Here whole groups are shuffled; what a step learns from is the same.
        """
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
        """Seed the order of an epoch, counted from 0; Trainer calls this before each."""
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
