"""What `minionerec sft` would take: its plan from the data, the SIDs and the model's configuration alone."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from minionerec.config import Config, SftConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConstraintError
from minionerec.model import adapters
from minionerec.model.base import base_model
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.prompts.titles import check_evaluated
from minionerec.recommend.cache.vectors import shape_of_vectors
from minionerec.sft.arguments import check_options, training_arguments
from minionerec.sft.trainer import Tree, TreeCollator, tree_tokens
from minionerec.sft.trees import Trees, training_trees
from minionerec.sid.index import SidIndex
from minionerec.training.holdout import sft_rows
from minionerec.training.plan import Devices, PackedShape, Plan, Shape, Validation, Work, planned_devices, sample_batches
from minionerec.training.stage import begin
from minionerec.tree import Branch
from minionerec.tree.architecture import check_length

log = logging.getLogger(__name__)
WorkOf = Callable[[int], Work]
ROW_TOKENS = (256, 512, 1024, 2048, 4096)  # what `sft.row_tokens` auto chooses from
_MASK_BYTES = 3  # per pair of positions of a row: a boolean, and its copy in the half width that attention adds to the scores


def planned_work(
    training: Trees, arguments: TrainingArguments, collator: TreeCollator, validation: Validation | None = None
) -> Work:
    """What training on these trees takes.

    Args:
        validation: see `validation_of`.
    """
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
        validation=validation,
        tasks=training.statistics,
    )


def validation_of(config: Config, model: PreTrainedModel, training: Trees, sids: tuple[int, int]) -> Validation | None:
    """What validations by a ranking metric hold; None if the loss chooses the best model.

    Args:
        sids: how many there are at most, and the levels of one.
    """
    if config.sft.best_metric == "loss":
        return None
    longest = max(len(branch.prompt) for tree in training.trees for branch in tree)
    return Validation.of(config, model, longest, sids)


def row_tokens_of(config: SftConfig, model: PreTrainedModel, work_of: WorkOf, devices: Devices) -> int:
    """The length of the rows into which trees are packed: `sft.row_tokens`, or what `auto` means on this GPU.

    Args:
        model: with its adapters.
        work_of: what training takes with a length.
    """
    if config.row_tokens != "auto":
        return config.row_tokens
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    chosen = fitting_row_tokens(model, work_of, devices, memory)
    log.info("sft.row_tokens auto: rows of %d tokens.", chosen)
    return chosen


def fitting_row_tokens(model: PreTrainedModel, work_of: WorkOf, devices: Devices, memory: int) -> int:
    """Of `ROW_TOKENS` the length with the fewest planned operations among those that fit a memory; the shortest if none fits.

    In longer rows less is computed twice and less is padding, but the mask is dense: attention costs the whole row.

    Args:
        model, work_of: see `row_tokens_of`; lengths that the model does not compute exactly are left out.
        memory: of a device, a tenth of which is for what plans leave out (bytes).
    """
    shape, operations = Shape.of(model), dict[int, float]()
    for tokens in ROW_TOKENS:
        plan = plan_of(shape, work_of(tokens), devices)
        try:
            check_length(model, 0, plan.work.longest_row)
        except ConstraintError:
            continue
        mask = _MASK_BYTES * max(batch.positions * batch.length for batch in plan.work.largest)
        if plan.memory_per_process + mask <= 0.9 * memory:
            operations[tokens] = plan.flops
    return min(operations, key=lambda tokens: operations[tokens], default=ROW_TOKENS[0])


def disk_bytes(parameters: int, trainable: int) -> int:
    """Bytes that the stage writes at most, in float32.

    The whole model; weights and two moments of what is trained, in the best, the last and the next checkpoint.
    """
    return 4 * (parameters + 3 * 3 * trainable)


def plan_of(shape: Shape, work: Work, devices: Devices) -> Plan:
    """The stage's plan."""
    return Plan("sft", shape, work, devices, disk_bytes(shape.parameters, shape.trainable))


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
        ConfigError: the batch does not split over the devices, the model's configuration cannot be read, or titles that `eval`
            asks for can never be written.
        DataError: an item has no title, or one that leaves no room for a prompt, and `eval` searches titles.
    """

    def load_without_weights(dataset: Dataset, index: SidIndex) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        corpus = tokenizer_corpus(dataset, config.prompts_for_training, config.sft.task_names)
        vectors = partial(shape_of_vectors, config, dataset)
        return base_model(config.model, index, corpus, config.seed, vectors=vectors, weights=False)

    check_options(config.sft, devices)
    begun = begin(config, "sft", load_without_weights)
    check_evaluated(begun.prompts, config.resolved_prompts, config.eval)
    model = adapters.attach(begun.model, config.sft, begun.prompts.sid_token_set)
    rows = sft_rows(config, begun.prompts.dataset)
    drawn = begun.prompts.config.wording == "several"
    training = training_trees(config.sft, config.seed, replace(begun.prompts, epoch=0 if drawn else None), rows=rows)
    longest = max(map(tree_tokens, training.trees))
    arguments = training_arguments(config.sft, config.seed, config.folder / "sft", len(training.trees), longest, devices)

    validation = validation_of(config, model, training, begun.prompts.index.codes.shape)

    def work_of(row_tokens: int) -> Work:
        return planned_work(training, arguments, TreeCollator(row_tokens), validation)

    ways = planned_devices(devices, config.sft.bf16, config.sft.gradient_checkpointing)
    plans = [plan_of(Shape.of(model), work_of(row_tokens_of(config.sft, model, work_of, way)), way) for way in ways]
    for plan in plans:
        check_lengths(model, training.trees, plan.work)
    return plans
