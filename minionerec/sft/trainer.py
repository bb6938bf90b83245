"""Transformers' Trainer on prefix-tree batches: the same loss and gradients as padded batches, for fewer tokens."""

import math
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch.utils.data import DataLoader, RandomSampler
from transformers.trainer_utils import EvalLoopOutput

from minionerec.artifacts import read_json, write_json
from minionerec.errors import TrainingError
from minionerec.sft.mixture import ScoredTargets, TargetMixture, example_fields, take_example_fields
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.memory import enough_memory
from minionerec.training.resume import PortableTrainer
from minionerec.tree import Branch, CatalogTrie, Normalise, TreeBatch, TreeLogprobs, pack, tree_logprobs
from minionerec.tree.leaf_component import branch_logprobs, leaf_model, mixed

Tree = list[Branch]
_COUNTED_LABELS = "shift_labels"
_MIXTURE = "mixture.json"  # in a checkpoint: the cache's weights

_WEIGHTS = (
    "Weights, gradients and AdamW's moments do not fit, whatever the micro-batch. Take more devices under ZeRO-2 "
    "(sft/zero2.yaml), sft.train lora or sid_rows, sft.bf16 true under ZeRO-2, or a smaller model. --dry-run shows what each "
    "takes."
)
_STEP = (
    "Lower sft.micro_batch or sft.micro_tokens; the global batch and the result stay the same. If a single tree is too "
    "large: sft.gradient_checkpointing true, a lower sft.history_stride or sft.row_tokens, sft.train lora, more devices."
)
_VALIDATION = (
    "Lower sft.micro_batch, which validation uses too; with a ranking metric as sft.best_metric also eval.num_beams or "
    "eval.batch_size."
)
_CHECKPOINT = (
    "The main process gathers the optimiser's state in main memory, about 12 bytes for each trained parameter. Free some "
    "memory, or set sft.train lora or sid_rows."
)
SETUP_MEMORY_ADVICE = ("while the training was set up", _WEIGHTS)  # for `enough_memory`, before the first step


def tree_tokens(tree: Tree) -> int:
    """Distinct tokens of a tree, last labels included."""
    paths = sorted([*branch.prompt, *branch.completion] for branch in tree)
    shared = (takewhile(lambda tokens: tokens[0] == tokens[1], zip(*pair, strict=False)) for pair in pairwise(paths))
    return sum(map(len, paths)) - sum(len(list(same)) for same in shared)


class TreeCollator:
    """Packs a list of trees into a `TreeBatch`, as the dictionary of tensors that Trainer moves to a device.

    Args:
        trie: the catalog, on the CPU, if the loss needs the children of SIDs' prefixes.
    """

    def __init__(self, row_tokens: int, trie: CatalogTrie | None = None) -> None:
        self.row_tokens, self.trie = row_tokens, trie

    def __call__(self, trees: Sequence[Tree]) -> dict[str, Any]:
        """The fields of the trees' `TreeBatch`, a copy of the labels, and what a mixture needs of each example."""
        branches = [branch for tree in trees for branch in tree]
        fields = pack(branches, row_tokens=self.row_tokens, trie=self.trie).tensors()
        # Trainer counts the labels of a step in an entry of this name, so that a step's loss is the mean over all of them,
        # whatever the accumulation and the number of devices.
        return {**fields, _COUNTED_LABELS: fields["labels"], **example_fields(branches)}


class TreeTrainer(PortableTrainer):
    """A Trainer whose examples are trees and whose loss is the mean over all completion tokens of a step.

    A model with a second distribution over the catalog (`tree/leaf_component.py`) is trained as the mixture: a SID's loss is
    minus the logarithm of the mixture's probability, in place of the sum of its tokens' losses. With a cache besides, that
    mixture is the model's part in the mixture with the cache.

    Args:
        trie: the collator's trie; `normalise_over` the catalog and `smoothing` need it.
        normalise_over: what the probabilities of a SID's token add up over; text keeps the vocabulary.
        smoothing: share e of a SID token's label that is spread evenly over the n legal tokens in its place, itself among them
            (the children of its prefix in the trie): the loss is -(1 - e) log p(label) - e / n * sum of log p(child). Text is
            not smoothed, nor is validation.
        mixture: of the model with the cache that the trees' `CachedBranch`es know; None trains the model alone. An example's
            loss is minus the logarithm of the mixture's probability of its SID (sft/mixture.py), where with `smoothing` the
            model's log-probability is the smoothed one. Every validation refits the weights, if they are fitted, and its loss
            is that of the mixture with these weights.
        evaluator: its ranking metrics are added to a validation's loss.
        failed: folder for batches whose loss or gradient is not finite; None for the Trainer's output folder.
        args, kwargs: passed to Trainer.
    """

    def __init__(
        self,
        *args: Any,
        trie: CatalogTrie | None = None,
        normalise_over: Normalise = "vocabulary",
        smoothing: float = 0.0,
        mixture: TargetMixture | None = None,
        evaluator: RankingEvaluator | None = None,
        failed: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.failed = Path(str(self.args.output_dir)) if failed is None else failed
        self._micro_batches: list[dict[str, Any]] = []  # of the step that is being computed
        self._begun = False
        self.trie = None if trie is None else trie.to(self.args.device)
        self.normalise_over, self.smoothing, self.evaluator = normalise_over, smoothing, evaluator
        self.mixture = mixture
        self._scored: list[ScoredTargets] = []  # of a validation with a mixture, so far
        self.model_accepts_loss_kwargs = True  # count the labels of a step for every model: the loss is computed here

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as PortableTrainer does, with errors that say what to change.

        Raises:
            TrainingError: a loss or a gradient is not finite (the batch is kept), or the memory does not suffice.
        """
        with enough_memory(self._memory_advice):
            return super().train(*args, **kwargs)

    def _memory_advice(self) -> tuple[str, str]:
        if not self._begun:
            return SETUP_MEMORY_ADVICE
        return f"in the optimiser, at step {self.state.global_step + 1}", _WEIGHTS

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, as Trainer computes it, kept until its gradient is known to be finite."""
        self._begun = True
        self._micro_batches.append(inputs)
        trees = self.args.per_device_train_batch_size
        with enough_memory(lambda: (f"at step {self.state.global_step + 1} with micro-batches of {trees} trees", _STEP)):
            return super().training_step(model, inputs, *args, **kwargs)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the step's gradients; a norm that is not finite stops the training before Trainer takes the step.

        DeepSpeed has taken the step by now. The weights in memory may be lost, but no checkpoint was written with them.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(norm):
            self._refuse("gradient", f"step {self.state.global_step + 1}", self._micro_batches)
        self._micro_batches.clear()
        return norm

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with enough_memory(lambda: (f"while the checkpoint of step {self.state.global_step} was written", _CHECKPOINT)):
            super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.mixture is not None and self.args.should_save:
            write_json(Path(output_dir) / _MIXTURE, self.mixture.state())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.mixture is not None and checkpoint is not None:
            self.mixture.load(read_json(Path(checkpoint) / _MIXTURE))

    def _refuse(self, what: str, where: str, batches: Sequence[dict[str, Any]], cause: str = "") -> None:
        """Keep the micro-batches whose loss or gradient is not finite, each tensor under its batch's number, and stop."""
        path = self.failed / f"not-finite-{where.replace(' ', '-')}-process-{self.args.process_index}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        named = ((f"{number}.{name}", value) for number, batch in enumerate(batches) for name, value in batch.items())
        save_file({name: value.cpu().clone() for name, value in named if torch.is_tensor(value)}, path)
        raise TrainingError(
            f"The {what} of {where} is not finite (learning rate {self._get_learning_rate():.3g}). The batch is kept in "
            f"{path}. {cause}Lower sft.learning_rate, lengthen sft.warmup, set sft.max_grad_norm to 1, or compute in float32 "
            "(sft.bf16 false)."
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Weighted cross-entropy of the labels, summed and divided by the labels of the whole step over all devices."""
        if return_outputs:
            raise TypeError("TreeTrainer computes the loss only, no outputs; its evaluation loop does not call this.")
        loss, count = self._summed_loss(model, inputs, self.smoothing)
        if not torch.isfinite(loss):
            self._refuse("loss", f"step {self.state.global_step + 1}", [inputs])
        if num_items_in_batch is None:
            return loss / count
        devices = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1  # DDP averages over them
        return loss * devices / num_items_in_batch

    def _summed_loss(self, model: torch.nn.Module, inputs: dict[str, Any], smoothing: float = 0.0) -> tuple[torch.Tensor, int]:
        fields = dict(inputs)
        fields.pop(_COUNTED_LABELS, None)
        cached = take_example_fields(fields)
        batch = TreeBatch(**fields)
        with self.accelerator.autocast():
            result = tree_logprobs(
                model,
                batch,
                trie=self.trie if self.normalise_over == "catalog" else None,
                siblings=self.trie if smoothing else None,
            )
        logprobs = result.logprobs
        if result.siblings is not None:
            # (1 - e) log p(label) + e * mean log p(legal token); where nothing is smoothed the two are equal.
            logprobs = torch.lerp(logprobs, result.siblings, smoothing)
        own = leaf_model(self.accelerator.unwrap_model(model)) if self.trie is not None else None
        if self.mixture is not None and cached is not None:
            whole = self._whole_sids(own, batch, result, logprobs, len(cached[0]))
            return self._mixture_loss(self.mixture, batch, whole, *cached), len(batch.labels)
        if own is not None:
            return self._with_leaf_component(own, batch, result, logprobs), len(batch.labels)
        return -(batch.weights * logprobs).sum(), len(batch.labels)

    def _whole_sids(self, own: Any, batch: TreeBatch, result: TreeLogprobs, logprobs: torch.Tensor, count: int) -> torch.Tensor:
        """What the model says of the SID of each branch, (branches,) in nats, if all branches are SIDs.

        Args:
            own: the model if it has a second distribution over the catalog; what it says is then the mixture of both.
            count: branches.
        """
        if own is None:
            return batch.by_branch(logprobs, count, int(batch.steps.max()) + 1).sum(1)
        _, *parts = branch_logprobs(own, batch, result, logprobs, cast(CatalogTrie, self.trie))
        return mixed(*parts)

    def _with_leaf_component(self, model: Any, batch: TreeBatch, result: TreeLogprobs, logprobs: torch.Tensor) -> torch.Tensor:
        """The summed loss of a model with a second distribution over the catalog: of SIDs by both, of text by the first."""
        branches, written, dense, gate = branch_logprobs(model, batch, result, logprobs, cast(CatalogTrie, self.trie))
        count = int(batch.branches.max()) + 1
        weights = batch.by_branch(batch.weights, count, int(batch.steps.max()) + 1)[branches, 0]
        of_text = batch.trie_nodes < 0
        text = (batch.weights[of_text] * logprobs[of_text]).sum()
        return -(weights * mixed(written, dense, gate)).sum() - text

    def _mixture_loss(
        self, mixture: TargetMixture, batch: TreeBatch, model: torch.Tensor, cached: torch.Tensor, buckets: torch.Tensor
    ) -> torch.Tensor:
        """The summed loss of whole examples, whose labels all weigh the same.

        Args:
            model: (branches,) the model's log-probability of each branch's SID.
        """
        weights = batch.by_branch(batch.weights, len(cached), int(batch.steps.max()) + 1)[:, 0]
        if not torch.is_grad_enabled():  # a validation
            self._scored.append(ScoredTargets.of(model, cached, buckets))
        return -(weights * mixture.logprobs(model, cached, buckets)).sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        # Whole steps only: transformers would make a short step of the micro-batches that remain at an epoch's end, and the
        # number of steps would depend on how a batch is split. Each epoch leaves out different trees.
        trees = cast(list[Tree], self.train_dataset if train_dataset is None else train_dataset)
        step = self.args.per_device_train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return RandomSampler(trees, num_samples=len(trees) // step * step)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All validation trees, each in one process only: Trainer's sampler repeats some to make even shares."""
        trees = cast(list[Tree], self.eval_dataset if eval_dataset is None else eval_dataset)
        share: Any = trees[self.args.process_index :: self.args.world_size]
        workers = self.args.dataloader_num_workers
        size = self.args.per_device_eval_batch_size
        return DataLoader(share, batch_size=size, collate_fn=self.data_collator, num_workers=workers)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The mean loss over all validation labels, where Trainer would weigh batches by rows; and the evaluator's metrics."""
        phase = f"validation after step {self.state.global_step}"
        self._scored.clear()
        model = self.accelerator.unwrap_model(self.model).eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad(), enough_memory(lambda: (f"in the {phase}", _VALIDATION)):
            for inputs in dataloader:
                loss, count = self._summed_loss(model, self._prepare_inputs(inputs))
                if not torch.isfinite(loss):
                    self._refuse("loss", phase, [inputs], "The steps before had finite gradients, so training diverges. ")
                totals += torch.stack([loss.double(), torch.tensor(float(count), dtype=torch.float64, device=loss.device)])
            loss_sum, labels = self.accelerator.reduce(totals, "sum").tolist()
            metrics = {f"{metric_key_prefix}_loss": loss_sum / labels}
            if self.mixture is not None:
                metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._fitted(self.mixture, labels).items()}
            if self.evaluator is not None:
                metrics |= {f"{metric_key_prefix}_{name}": value for name, value in self.evaluator().items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _fitted(self, mixture: TargetMixture, labels: float) -> dict[str, float]:
        """Fit the cache's weights, if they are fitted, and give the losses with them and the mean weight.

        Every process fits the weights to what all processes have scored, so they agree.
        """
        scored = ScoredTargets.joined(gather_object(self._scored))
        if mixture.fitted:
            mixture.fit(scored)
        mixed = mixture.logprobs(*map(torch.from_numpy, (scored.model, scored.cached, scored.buckets)))
        return {
            "loss": -float(mixed.sum()) / labels,
            "model_loss": -float(scored.model.sum()) / labels,
            "cache_weight": 1 - float(mixture.weights[scored.buckets, 0].mean()),
        }
