"""Stage `yes-no`: a causal LM learns from the pairs of the train users which candidates a user likes.

Inputs: `<run>/pairs`; `<run>/sid` if items are shown as semantic IDs, text vectors if they are shown by these; the base model
(section `model`), from scratch or pretrained. Outputs: `<run>/yes-no/<name>/` with `model/`, `adapter/` if one was trained,
`log.jsonl`, and a manifest; the name says by what items are shown, and whether the model says YES or NO or makes vectors.
`minionerec score` then has a row of its scores.
Differs from RecBench: users are shuffled, each user's pairs are one prefix tree (same loss and gradients), new tokens learn
their rows beside a LoRA, and each user's own history is compared, where RecBench's code gives all users one text.
Nothing of the run's own SFT is used: its model has seen sequences of the test users.
Command: `minionerec score --train --config ml-100k-pairs`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from minionerec.artifacts import CHECKPOINTS, Manifest, Recipe, check_disk_space, require
from minionerec.config import Config
from minionerec.data.pairs import PairSet
from minionerec.distributed import expect_no_gpu, is_main_process
from minionerec.model import adapters, checkpoint, pretrained
from minionerec.prompts.pairs import PairPrompts, PairTexts
from minionerec.scoring.early import check_early, few_users
from minionerec.scoring.encoders import CausalEncoder
from minionerec.scoring.items import WORDS, Shown, index_of, item_inputs, item_sections, starting_model
from minionerec.scoring.models import FOLDER
from minionerec.scoring.trainer import (
    BEST_METRIC,
    MatchingTrainer,
    PairCollator,
    TextCollator,
    UserPairs,
    UserTexts,
    YesNoTrainer,
)
from minionerec.training.arguments import validated_arguments
from minionerec.training.checkpoints import MarkComplete, last_checkpoint, write_log
from minionerec.training.launch import check_precision, launch_of, split_batch
from minionerec.training.memory import enough_memory
from minionerec.training.progress import StepBar
from minionerec.training.scored_pairs import refuse_one_sided

log = logging.getLogger(__name__)


def train_yes_no(config: Config) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Raises:
        ArtifactError: an input is missing, or the disk cannot hold the checkpoints.
        ConfigError: the options contradict one another or the launch, or would replace a model trained with others.
        DataError: train or valid has no user with both labels.
        TrainingError: a loss or a gradient is not finite, or the memory does not suffice.
    """
    check_early(config)
    recipe = _recipe(config)
    return recipe.make(lambda: _train(config, recipe), collective=True)


def _recipe(config: Config) -> Recipe:
    sections = {**config.section("yes_no", "model"), "words": asdict(WORDS), **item_sections(config)}

    def inputs() -> dict[str, str]:
        digests = {"pairs": require(config.folder / "pairs", "minionerec pairs prepare").digest}
        digests |= item_inputs(config, config.yes_no.items)
        if config.model.init == "from_pretrained" and (identity := pretrained.identity(str(config.model.path))) is not None:
            digests["model"] = identity
        return digests

    folder, replace, wait = config.folder / FOLDER / config.yes_no.name, config.replace, config.wait
    deciding = {**sections, **config.key_fields("yes_no", "model")}
    return Recipe(f"{FOLDER}/{config.yes_no.name}", folder, sections, inputs(), config.seed, deciding, replace, wait, inputs)


def user_pairs(rows: pl.DataFrame, prompts: PairPrompts) -> list[UserPairs]:
    """The pairs of a split by user, in the order of the rows, as prompts that ask for YES or NO."""
    users = []
    for number, row in enumerate(_by_user(rows)):
        asked = prompts.of_user(row["history"], row["candidate"])
        users.append(UserPairs(number, asked.tokens, row["label"], asked.shared))
    return users


def user_texts(rows: pl.DataFrame, texts: PairTexts, tokens: Callable[[str], list[int]]) -> list[UserTexts]:
    """The pairs of a split by user, in the order of the rows, as texts whose vectors are compared."""
    return [
        UserTexts(
            number,
            tokens(texts.of_user(row["history"])[0]),
            [tokens(texts.of_item(candidate)) for candidate in row["candidate"]],
            row["label"],
        )
        for number, row in enumerate(_by_user(rows))
    ]


def _by_user(rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    return rows.group_by("user", maintain_order=True).agg(pl.col("history").first(), "candidate", "label").iter_rows(named=True)


class _Task(NamedTuple):
    """What the scheme decides: who trains, on what, from which collator."""

    trainer: type[YesNoTrainer]
    train: Sequence[UserPairs | UserTexts]
    valid: Sequence[UserPairs | UserTexts]
    collator: PairCollator | TextCollator


def _task(config: Config, pairs: PairSet, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shown: Shown) -> _Task:
    section = config.yes_no
    if section.scheme == "matching":
        encoder = CausalEncoder(model, tokenizer, section.pooling, section.row_tokens)
        texts = PairTexts(WORDS, shown.items, encoder.length, encoder.limit)
        train, valid = (user_texts(rows, texts, encoder.tokens) for rows in (pairs.train, pairs.valid))
        return _Task(MatchingTrainer, train, valid, TextCollator(section.pooling, section.row_tokens))
    prompts = PairPrompts(tokenizer, WORDS, shown.items, checkpoint.context_of(model), breakable=not shown.tokens)
    asked, validated = (user_pairs(rows, prompts) for rows in (pairs.train, pairs.valid))
    collator = PairCollator(prompts.answers(), section.row_tokens, section.next_code, frozenset(shown.tokens))
    return _Task(YesNoTrainer, asked, validated, collator)


def _train(config: Config, recipe: Recipe) -> None:
    pairs = PairSet.load(config.folder / "pairs")
    index = index_of(config, pairs, config.yes_no.items)
    refuse_one_sided(pairs, config)
    if config.yes_no.items == "sid":
        _warn_about_lookahead(config)
    expect_no_gpu()
    set_seed(config.seed)
    model, tokenizer = starting_model(config, pairs, index)
    shown = Shown.of(pairs, index, tokenizer)
    task = _task(config, pairs, model, tokenizer, shown)
    arguments = training_arguments(config, recipe.folder, len(task.train))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    check_disk_space(recipe.folder, 4 * 10 * parameters)  # float32: the model, and three checkpoints with two moments
    model = _trained_part(config, model, shown.tokens)
    with recipe.write(resumable=True, collective=True) as draft:
        arguments.output_dir = str(draft.path / CHECKPOINTS)
        with enough_memory(lambda: YesNoTrainer.advice.setup):
            trainer = task.trainer(
                model=model,
                args=arguments,
                train_dataset=task.train,
                eval_dataset=task.valid,
                data_collator=task.collator,
                failed=config.folder / f"{FOLDER}-failed",
                callbacks=[MarkComplete(), EarlyStoppingCallback(config.yes_no.patience)],
            )
        StepBar.install(trainer, FOLDER)
        if is_main_process():
            users = f"{len(task.train):,} users, {len(pairs.train):,} pairs"
            print(f"{FOLDER}: {launch_of(trainer.accelerator)}; {users}", flush=True)
        trainer.train(resume_from_checkpoint=last_checkpoint(draft.path / CHECKPOINTS))
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if trainer.is_world_process_zero():
            trained = trainer.accelerator.unwrap_model(trainer.model)
            whole = adapters.merge(trained, draft.path / "adapter", lambda: starting_model(config, pairs, index)[0])
            checkpoint.save(whole, tokenizer, draft.path / "model")
            write_log(trainer.state, draft.path / "log.jsonl")
        draft.metrics.update(
            parameters=parameters,
            trainable=trainable,
            users=len(task.train),
            pairs=len(pairs.train),
            steps=trainer.state.global_step,
            **{f"best_valid_{BEST_METRIC}": trainer.state.best_metric},
        )


def _trained_part(config: Config, model: PreTrainedModel, tokens: list[int]) -> PreTrainedModel:
    """The model with what shall not train frozen, and with adapters if they are asked for.

    Args:
        tokens: of the items, whose rows train in any case.
    """
    section = config.yes_no
    first = adapters.first_tuned(model, section.tune_from, "yes_no")
    if section.train == "full" and section.tune_from is not None:
        adapters.freeze_below(model, first, embeddings=not tokens)
    return adapters.attach(model, section, tokens, "yes_no", first)


def _warn_about_lookahead(config: Config) -> None:
    if not config.sid.shipped and (config.sid.fusion or config.sid.method == "letter"):
        log.warning(
            "sid.%s: the semantic IDs were shaped by what test users had one after the other. Set sid.collaborative to 0, and "
            "another sid.method than letter, for IDs of texts alone.",
            "method is letter" if config.sid.method == "letter" else f"collaborative is {config.sid.collaborative:g}",
        )


def training_arguments(config: Config, folder: Path, users: int) -> TrainingArguments:
    """Transformers' arguments: whole steps, a validation and a checkpoint after each epoch.

    Args:
        users: how many train.

    Raises:
        ConfigError: the launcher computes in another precision, the batch does not split over the devices, or there are fewer
            users than one batch holds.
    """
    section = config.yes_no
    check_precision("yes_no.bf16", section.bf16)
    micro, accumulation = split_batch("yes_no.batch_size", section.batch_size, "yes_no.micro_batch", section.micro_batch)
    if users < section.batch_size:
        raise few_users(section.batch_size, users)
    interval = users // section.batch_size
    return validated_arguments(
        folder,
        micro,
        accumulation,
        interval,
        BEST_METRIC,
        config.seed,
        max_steps=interval * section.epochs,
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        warmup_steps=section.warmup,
        max_grad_norm=section.max_grad_norm,
        logging_steps=max(1, math.ceil(interval * section.epochs / 100)),
        bf16=section.bf16,
        report_to="none",
    )
