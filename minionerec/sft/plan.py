"""What `minionerec sft` would take: its plan from the data, the SIDs and the model's configuration alone."""

from collections.abc import Iterable
from functools import partial

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.model import adapters
from minionerec.model.base import base_model
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.recommend.cache.vectors import vectors_of_run
from minionerec.sft.arguments import check_options, training_arguments
from minionerec.sft.trainer import Tree, TreeCollator, tree_tokens
from minionerec.sft.trees import Trees, training_trees
from minionerec.sid.index import SidIndex
from minionerec.training.holdout import sft_rows
from minionerec.training.plan import PackedShape, Plan, Shape, Work, planned_devices, sample_batches
from minionerec.training.stage import begin
from minionerec.tree import Branch
from minionerec.tree.architecture import check_length


def planned_work(training: Trees, arguments: TrainingArguments, collator: TreeCollator) -> Work:
    """What training on these trees takes."""
    trees = training.trees
    sizes = [sum(len(branch.prompt) + len(branch.completion) for branch in tree) for tree in trees]
    labels = [sum(map(_labels, tree)) for tree in trees]
    micro, seed = arguments.per_device_train_batch_size, int(arguments.seed)
    sample, largest = sample_batches(trees, sizes, micro, lambda batch: PackedShape.of(collator(batch)), seed, labels)
    return Work(
        unit="trees",
        units=len(trees),
        steps=arguments.max_steps,
        micro=micro,
        accumulation=arguments.gradient_accumulation_steps,
        tokens=sum(sizes),
        labels=sum(labels),
        sample=sample,
        largest=largest,
        tasks=training.statistics,
    )


def check_lengths(model: PreTrainedModel, trees: Iterable[Tree], work: Work) -> None:
    """Refuse paths and rows before the first step that the model would refuse in some step.

    Args:
        trees: everything that is trained or validated on.

    Raises:
        ConstraintError: a path is longer than the model's window, or a row is longer than it computes exactly.
    """
    paths = (len(branch.prompt) + len(branch.completion) - 1 for tree in trees for branch in tree)
    check_length(model, max(paths), work.longest_row)


def _labels(branch: Branch) -> int:
    return len(branch.completion) if branch.weights is None else int(np.count_nonzero(branch.weights))


def plans(config: Config, devices: int | None = None) -> list[Plan]:
    """One plan per way to distribute: ZeRO-2 and DDP on several devices.

    Args:
        devices: how many to plan for; None for the devices of this launch.

    Raises:
        ArtifactError: data or SIDs are missing.
        ConfigError: the batch does not split over the devices, or the model's configuration cannot be read.
    """

    def load_without_weights(dataset: Dataset, index: SidIndex) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        corpus = tokenizer_corpus(dataset, config.prompts_for_training, config.sft.task_names)
        vectors = partial(vectors_of_run, config, dataset)
        return base_model(config.model, index, corpus, config.seed, vectors=vectors, weights=False)

    check_options(config.sft, devices)
    begun = begin(config, "sft", load_without_weights)
    model = adapters.attach(begun.model, config.sft, begun.prompts.sid_token_set)
    rows = sft_rows(config, begun.prompts.dataset)
    training = training_trees(config.sft, config.seed, begun.prompts, rows=rows)
    longest = max(map(tree_tokens, training.trees))
    arguments = training_arguments(config.sft, config.seed, config.folder / "sft", len(training.trees), longest, devices)
    work, shape = planned_work(training, arguments, TreeCollator(config.sft.row_tokens)), Shape.of(model)
    check_lengths(model, training.trees, work)
    ways = planned_devices(devices, config.sft.bf16, config.sft.gradient_checkpointing)
    return [Plan("sft", shape, work, way) for way in ways]
