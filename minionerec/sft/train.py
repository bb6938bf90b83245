"""Stage `sft`: supervised fine-tuning of a causal LM on the tasks, loss on the completion only.

Inputs: `data/` and `sid/` of the run; the base model, from scratch or pretrained. Outputs: `sft/model/` (safetensors, tokenizer
and model card), `sft/log.jsonl` (losses by step), `sft/curves.html` (the same, drawn), `sft/adapter/` where only a part is
trained through PEFT.

Deviations from the paper: examples that share a history are computed as one prefix tree (same loss and gradients); the
prompt is the one that RL and evaluation use; the answer is never in it; a SID ends by itself, without
an end token.

Command: `minionerec sft --config ml-100k`, or `accelerate launch --config_file sft/zero2.yaml sft/train.py --config NAME`.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from minionerec.artifacts import (
    CHECKPOINTS,
    ITEM_STAGES,
    Manifest,
    Recipe,
    check_disk_space,
    require,
)
from minionerec.config import DEFAULT_TASKS, RECOMMENDING, Config, TaskName
from minionerec.data.dataset import Dataset
from minionerec.model import adapters, base, checkpoint, pretrained
from minionerec.model.dropout import add_dropout
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.prompts.record import prompts_section
from minionerec.prompts.titles import check_evaluated, check_trained
from minionerec.recommend.cache.sequential import component_baseline
from minionerec.recommend.cache.vectors import component_texts, vectors_of_run
from minionerec.sft.arguments import check_options, training_arguments
from minionerec.sft.early import check_early
from minionerec.sft.mixture import Cache
from minionerec.sft.plan import check_lengths, disk_bytes, plan_of, planned_work, row_tokens_of, validation_of
from minionerec.sft.trainer import ADVICE, Tree, TreeCollator, TreeTrainer, tree_tokens
from minionerec.sft.trees import BeginEpochs, EpochTrees, Trees, training_trees, validation_trees
from minionerec.sid.encoder import vector_inputs, vector_origin, vector_settings
from minionerec.sid.index import SidIndex
from minionerec.training.checkpoints import MarkComplete, last_checkpoint
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.holdout import holdout_section, sft_rows
from minionerec.training.launch import keep_tensorboard
from minionerec.training.machine import warn_about_memory
from minionerec.training.memory import enough_memory
from minionerec.training.plan import Plan, Shape, Work, launched
from minionerec.training.progress import StepBar
from minionerec.training.stage import Begun, WriteCurves, announce, begin, finish
from minionerec.tree import CatalogTrie

log = logging.getLogger(__name__)


def starting_model(config: Config, dataset: Dataset, index: SidIndex) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untrained model with the catalog's SID tokens."""
    corpus = tokenizer_corpus(dataset, config.prompts_for_training, config.sft.task_names)
    vectors = partial(vectors_of_run, config, dataset)
    titles = dataset.catalog["title"].to_list()
    return base.base_model(config.model, index, corpus, config.seed, vectors=vectors, titles=titles)


def worded_tasks(config: Config) -> list[TaskName]:
    """The tasks whose words decide what the stage makes: those trained and validated, and the words of a new tokenizer."""
    tokenizer_tasks = DEFAULT_TASKS if config.model.init == "from_scratch" else ()
    return [*dict.fromkeys((*config.sft.task_names, RECOMMENDING, *tokenizer_tasks))]


def sft_recipe(config: Config) -> Recipe:
    """What the stage's artefact is made from.

    Raises:
        ArtifactError: data or SIDs are missing.
    """
    prompts = prompts_section(config.prompts_for_training, worded_tasks(config))
    sections = {**config.section("sft", "model"), "prompts": prompts, **holdout_section(config)}
    if config.sft.best_metric != "loss":
        sections["validation"] = config.decoding(config.model.dtype)
    if config.model.item_texts:
        sections["item_texts"] = vector_settings(config)
    if config.sft.mixture.weights != "none":
        sections["mixture"] = config.mixture_in_training
    sections |= component_texts(config, "sft")[0]
    return Recipe(
        stage="sft",
        folder=config.folder / "sft",
        config=sections,
        inputs=_inputs(config),
        seed=config.seed,
        key_fields={**sections, **config.key_fields("sft", "model")},
        replace=config.replace,
        wait=config.wait,
        reread=partial(_inputs, config),
    )


def _inputs(config: Config) -> dict[str, str]:
    """Digests of data, SIDs, the user's own base model, and of what the items' vectors are made with."""
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    if config.model.init == "from_pretrained" and (identity := pretrained.identity(str(config.model.path))) is not None:
        inputs["model"] = identity
    item_texts = vector_inputs(vector_origin(config)[0]) if config.model.item_texts else {}
    return inputs | item_texts | component_texts(config, "sft")[1] | component_baseline(config, "sft", inputs["data"])


def train_sft(config: Config, write_curves: WriteCurves | None = None) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Args:
        write_curves: writes the page of the log's curves; None for no page.

    Raises:
        ArtifactError: an input is missing, or the disk cannot hold the checkpoints.
        ConfigError: the options contradict one another or the launch, or they would replace a model trained with others.
        ConstraintError: the loss asks for the trie's children, but some SID is the beginning of another; or a prompt is longer
            than the model's window.
        DataError: the valid split is empty, a task needs descriptions that the catalog lacks, or titles that `eval` asks for
            cannot be written or searched.
        LockedError: another process trains this run's model.
        TrainingError: a loss or a gradient is not finite, or the memory does not suffice.
    """
    recipe = sft_recipe(config)
    return recipe.make(lambda: _train(config, recipe, write_curves), collective=True)


def _train(config: Config, recipe: Recipe, write_curves: WriteCurves | None) -> None:
    sft = config.sft
    check_early(config)
    check_options(sft)
    if sft.answer_in_prompt:
        log.warning("sft.answer_in_prompt is true: prompts about an item end with their own answer, as in the released code.")
    begun = begin(config, "sft", partial(starting_model, config))
    check_evaluated(begun.prompts, config.resolved_prompts, config.eval)  # not after hours of training
    check_trained(begun.prompts, sft.task_names)
    model = _prepared(begun)
    trie = _loss_trie(begun)
    cache = None if sft.mixture.weights == "none" else Cache.make(config, begun.prompts.dataset, begun.prompts.index)
    rows = _rows(begun)

    def trees_of(epoch: int | None) -> Trees:
        prompts = replace(begun.prompts, epoch=epoch)
        return training_trees(sft, config.seed, prompts, None if cache is None else cache.train, rows)

    drawn = begun.prompts.config.wording == "several"
    training = trees_of(0 if drawn else None)
    held_out = validation_trees(begun.prompts, sft.max_examples, None if cache is None else cache.valid, sft.task_names)
    longest = max(map(tree_tokens, training.trees)) if sft.micro_tokens is not None else 0
    arguments = training_arguments(sft, config.seed, recipe.folder, len(training.trees), longest)
    if config.model.item_texts:
        # Their layers have a gradient in every micro-batch, if of zeros. Those of the second distribution are used outside the
        # model's forward: there DDP would not find them and take them for unused.
        arguments.ddp_find_unused_parameters = False
    devices = launched(sft.bf16, sft.gradient_checkpointing)

    validation = validation_of(config, model, training, begun.prompts.index.codes.shape)

    def work_of(row_tokens: int) -> Work:
        return planned_work(training, arguments, TreeCollator(row_tokens, trie), validation)

    row_tokens = row_tokens_of(sft, model, work_of, devices)
    collator, work = TreeCollator(row_tokens, trie), work_of(row_tokens)
    check_lengths(model, [*training.trees, *held_out], work)

    def later(epoch: int) -> list[Tree]:
        made = trees_of(epoch)
        check_lengths(model, made.trees, planned_work(made, arguments, collator))
        return made.trees

    epochs = EpochTrees(training.trees, later) if drawn else None
    plan = plan_of(Shape.of(model), work, devices)
    plan.show()
    warn_about_memory(plan)
    keep_tensorboard(config.folder / "tensorboard" / "sft", sft.report_to)
    # Whatever can be refused has been refused: from here on the partial folder of an interrupted run is removed or resumed.
    with recipe.write(resumable=True, collective=True) as draft:
        arguments.output_dir = str(draft.path / CHECKPOINTS)
        with enough_memory(lambda: ADVICE.setup):
            trainer = TreeTrainer(
                model=model,
                args=arguments,
                train_dataset=training.trees if epochs is None else epochs,
                eval_dataset=held_out,
                data_collator=collator,
                trie=trie,
                normalise_over=sft.normalise_over,
                smoothing=sft.smoothing,
                mixture=None if cache is None else cache.mixture,
                evaluator=_evaluator(begun, model),
                failed=config.folder / "sft-failed",
                callbacks=[
                    MarkComplete(),
                    EarlyStoppingCallback(sft.patience),
                    *([] if epochs is None else [BeginEpochs(epochs, sft.batch_size)]),
                ],
            )
        StepBar.install(trainer, "sft")
        announce(begun, trainer, f"{work.micro} trees x {work.accumulation} micro-batches per process and step")
        trainer.train(resume_from_checkpoint=last_checkpoint(draft.path / CHECKPOINTS))
        figures = _figures(begun, trainer, plan)
        finish(begun, draft, trainer, plan, figures, partial(_save, begun, trainer), write_curves)


def _rows(begun: Begun) -> np.ndarray | None:
    """The training rows that `rl.holdout` leaves to SFT; None for all."""
    rows = sft_rows(begun.config, begun.prompts.dataset)
    if rows is not None:
        holdout = begun.config.rl.holdout
        log.info("rl.holdout %s: SFT leaves out %d of %d training rows.", holdout, int((~rows).sum()), len(rows))
    return rows


def _prepared(begun: Begun) -> PreTrainedModel:
    """The model with its adapters and its dropout, after a check that the disk holds its checkpoints."""
    sft = begun.config.sft
    model = adapters.attach(begun.model, sft, begun.prompts.sid_token_set)
    add_dropout(model, sft.dropout)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    check_disk_space(begun.config.folder / "sft", disk_bytes(begun.parameters, trainable))
    return model


def _loss_trie(begun: Begun) -> CatalogTrie | None:
    """The catalog, if the loss needs to know which tokens are legal."""
    sft = begun.config.sft
    if sft.normalise_over == "vocabulary" and not sft.smoothing:
        return None
    trie = CatalogTrie.from_codes(begun.prompts.sid_tokens)
    trie.check_normalisable()
    return trie


def _evaluator(begun: Begun, model: PreTrainedModel) -> RankingEvaluator | None:
    """Validates by the ranking metric that chooses the best model; None if the loss chooses it."""
    config = begun.config
    if config.sft.best_metric == "loss":
        return None
    return RankingEvaluator.in_training(config, model, begun.prompts, config.sft.validated_examples, config.sft.best_metric)


def _figures(begun: Begun, trainer: TreeTrainer, plan: Plan) -> dict[str, Any]:
    """What card and manifest say of the training."""
    return {
        "parameters": begun.parameters,
        "trainable": plan.shape.trainable,
        "examples": sum(counts["examples"] for counts in plan.work.tasks.values()),
        "trees": plan.work.units,
        "steps": trainer.state.global_step,
        "devices": trainer.accelerator.num_processes,
        "distributed": trainer.accelerator.distributed_type.name,
        f"best_valid_{begun.config.sft.best_metric}": trainer.state.best_metric,
    }


def _save(begun: Begun, trainer: TreeTrainer, folder: Path) -> None:
    """Save the whole model, and next to it the adapter if one was trained."""
    trained = trainer.accelerator.unwrap_model(trainer.model)
    dataset, index = begun.prompts.dataset, begun.prompts.index
    whole = adapters.merge(trained, folder.parent / "adapter", lambda: starting_model(begun.config, dataset, index)[0])
    checkpoint.save(whole, begun.prompts.tokenizer, folder)
