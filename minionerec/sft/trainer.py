"""Transformers' Trainer on prefix-tree batches: the same loss and gradients as padded batches, for fewer tokens."""

from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers.trainer_utils import EvalLoopOutput

from minionerec.artifacts import read_json, write_json
from minionerec.sft.mixture import ScoredTargets, TargetMixture, example_fields, take_example_fields
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.summed_loss import COUNTED_LABELS, Advice, SummedLossTrainer
from minionerec.tree import Branch, CatalogTrie, Normalise, TreeBatch, TreeLogprobs, pack, tree_logprobs
from minionerec.tree.leaf_component import branch_logprobs, leaf_model, mixed

Tree = list[Branch]
_MIXTURE = "mixture.json"  # in a checkpoint: the cache's weights

ADVICE = Advice(
    section="sft",
    unit="trees",
    weights=(
        "Weights, gradients and AdamW's moments do not fit, whatever the micro-batch. Take more devices under ZeRO-2 "
        "(sft/zero2.yaml), sft.train lora or sid_rows, sft.bf16 true under ZeRO-2, or a smaller model. --dry-run shows what "
        "each takes."
    ),
    step=(
        "Lower sft.micro_batch or sft.micro_tokens; the global batch and the result stay the same. If a single tree is too "
        "large: sft.gradient_checkpointing true, a lower sft.history_stride or sft.row_tokens, sft.train lora, more devices."
    ),
    validation=(
        "Lower sft.micro_batch, which validation uses too; with a ranking metric as sft.best_metric also eval.num_beams or "
        "eval.batch_size."
    ),
    checkpoint=(
        "The main process gathers the optimiser's state in main memory, about 12 bytes for each trained parameter. Free some "
        "memory, or set sft.train lora or sid_rows."
    ),
)


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
        return {**fields, COUNTED_LABELS: fields["labels"], **example_fields(branches)}


class TreeTrainer(SummedLossTrainer):
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
        super().__init__(*args, failed=failed, **kwargs)
        self.trie = None if trie is None else trie.to(self.args.device)
        self.normalise_over, self.smoothing, self.evaluator = normalise_over, smoothing, evaluator
        self.mixture = mixture
        self._scored: list[ScoredTargets] = []  # of a validation with a mixture, so far

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.mixture is not None and self.args.should_save:
            write_json(Path(output_dir) / _MIXTURE, self.mixture.state())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.mixture is not None and checkpoint is not None:
            self.mixture.load(read_json(Path(checkpoint) / _MIXTURE))

    advice = ADVICE

    def _training_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return self._summed_loss(model, inputs, self.smoothing)

    def _validation_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return self._summed_loss(model, inputs)

    def _summed_loss(self, model: torch.nn.Module, inputs: dict[str, Any], smoothing: float = 0.0) -> tuple[torch.Tensor, int]:
        fields = dict(inputs)
        fields.pop(COUNTED_LABELS, None)
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

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """A validation as `SummedLossTrainer` has it; with a mixture, its weights are refitted to all that was scored."""
        self._scored.clear()
        return super().evaluation_loop(*args, **kwargs)

    def _validated(self, loss_sum: float, labels: float) -> dict[str, float]:
        metrics = super()._validated(loss_sum, labels) if self.mixture is None else self._fitted(self.mixture, labels)
        return metrics if self.evaluator is None else metrics | self.evaluator()

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
