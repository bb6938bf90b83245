"""Stage `yes-no`: a causal LM learns to say YES or NO about the pairs of the train users.

Inputs: `<run>/pairs`; `<run>/sid` if items are shown as semantic IDs; the base model (section `model`), from scratch or
pretrained. Outputs: `<run>/yes-no/model/`, `log.jsonl`, and a manifest. `minionerec score` then has a row of its scores.
Differs from RecBench: all parameters train, users are shuffled, and each user's pairs are one prefix tree (same loss and
gradients). Nothing of the run's own SFT is used: its model has seen sequences of the test users.
Command: `minionerec score --train --config ml-100k-pairs`.
"""

import logging
import math
from dataclasses import asdict
from pathlib import Path

import polars as pl
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from minionerec.artifacts import CHECKPOINTS, Manifest, Recipe, check_disk_space, require
from minionerec.config import Config, ScoreConfig
from minionerec.data.dataset import Dataset
from minionerec.data.pairs import PairSet
from minionerec.distributed import distributed_state, expect_no_gpu, is_main_process
from minionerec.errors import ConfigError
from minionerec.model import base, checkpoint, pretrained, scratch
from minionerec.prompts.pairs import NO, YES, PairPrompts, PairWords
from minionerec.prompts.plain_text import PlainText
from minionerec.scoring.early import check_early
from minionerec.scoring.trainer import BEST_METRIC, PairCollator, UserPairs, YesNoTrainer
from minionerec.scoring.yes_no import Scorer, score_in_shards, titles
from minionerec.sid.index import SidIndex
from minionerec.training.arguments import validated_arguments
from minionerec.training.checkpoints import MarkComplete, last_checkpoint, write_log
from minionerec.training.launch import check_precision, launch_of, split_batch
from minionerec.training.memory import enough_memory
from minionerec.training.progress import StepBar
from minionerec.training.scored_pairs import pairs_of_split, refuse_one_sided, score_recipe, write_scores

log = logging.getLogger(__name__)
FOLDER = "yes-no"
_WORDS = PairWords.of(ScoreConfig())


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
    sections = {**config.section("yes_no", "model"), "words": asdict(_WORDS)}

    def inputs() -> dict[str, str]:
        digests = {"pairs": require(config.folder / "pairs", "minionerec pairs prepare").digest}
        if config.yes_no.items == "sid":
            digests["sid"] = require(config.folder / "sid", "minionerec sid").digest
        if config.model.init == "from_pretrained" and (identity := pretrained.identity(str(config.model.path))) is not None:
            digests["model"] = identity
        return digests

    folder, replace, wait = config.folder / FOLDER, config.replace, config.wait
    deciding = {**sections, **config.key_fields("yes_no", "model")}
    return Recipe(FOLDER, folder, sections, inputs(), config.seed, deciding, replace, wait, inputs)


def _index(config: Config) -> SidIndex | None:
    """The run's semantic IDs, if items are shown by them."""
    return SidIndex.load(config.folder / "sid", Dataset.load(config.folder / "data")) if config.yes_no.items == "sid" else None


def starting_model(config: Config, pairs: PairSet, index: SidIndex | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untrained model and its tokenizer, which has the words of the prompts and, with an index, the SID tokens."""
    texts = [text for name in ("text", "title") for text in pairs.catalog[name].to_list()]
    words = [*asdict(_WORDS).values(), f"{_WORDS.suffix} {YES}", f"{_WORDS.suffix} {NO}"]
    corpus = [*texts, *(words * len(pairs.catalog))]
    if index is not None:
        return base.base_model(config.model, index, corpus, config.seed, titles=pairs.catalog["title"].to_list())
    if config.model.init == "from_scratch":
        return scratch.create(corpus, config.model, config.seed)
    return checkpoint.load(str(config.model.path), config.model.dtype)


def prompts_of(
    pairs: PairSet, index: SidIndex | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PairPrompts:
    """The prompts that a model is trained and asked with: items as titles, or as SIDs if there is an index."""
    if index is None:
        items = titles(pairs, PlainText(tokenizer))
    else:
        checkpoint.sid_token_ids(tokenizer, index)  # refuses a tokenizer that splits them
        items = ["".join(index.tokens(item)) for item in range(len(index.codes))]
    return PairPrompts(tokenizer, _WORDS, items, checkpoint.context_of(model), breakable=index is None)


def user_pairs(rows: pl.DataFrame, prompts: PairPrompts) -> list[UserPairs]:
    """The pairs of a split by user, in the order of the rows."""
    grouped = rows.group_by("user", maintain_order=True).agg(pl.col("history").first(), "candidate", "label")
    return [
        UserPairs(number, prompts.of_user(row["history"], row["candidate"]).tokens, row["label"])
        for number, row in enumerate(grouped.iter_rows(named=True))
    ]


def _train(config: Config, recipe: Recipe) -> None:
    pairs, index = PairSet.load(config.folder / "pairs"), _index(config)
    refuse_one_sided(pairs, config)
    if index is not None and not config.sid.shipped and (config.sid.fusion or config.sid.method == "letter"):
        log.warning(
            "sid.%s: the semantic IDs were shaped by what test users had one after the other. Set sid.collaborative to 0, and "
            "another sid.method than letter, for IDs of texts alone.",
            "method is letter" if config.sid.method == "letter" else f"collaborative is {config.sid.collaborative:g}",
        )
    expect_no_gpu()
    set_seed(config.seed)
    model, tokenizer = starting_model(config, pairs, index)
    prompts = prompts_of(pairs, index, model, tokenizer)
    collator = PairCollator(prompts.answers(), config.yes_no.row_tokens)
    train, valid = user_pairs(pairs.train, prompts), user_pairs(pairs.valid, prompts)
    arguments = training_arguments(config, recipe.folder, len(train))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    check_disk_space(config.folder / FOLDER, 4 * 10 * parameters)  # float32: the model, and three checkpoints with two moments
    with recipe.write(resumable=True, collective=True) as draft:
        arguments.output_dir = str(draft.path / CHECKPOINTS)
        with enough_memory(lambda: YesNoTrainer.advice.setup):
            trainer = YesNoTrainer(
                model=model,
                args=arguments,
                train_dataset=train,
                eval_dataset=valid,
                data_collator=collator,
                failed=config.folder / f"{FOLDER}-failed",
                callbacks=[MarkComplete(), EarlyStoppingCallback(config.yes_no.patience)],
            )
        StepBar.install(trainer, FOLDER)
        if is_main_process():
            print(f"{FOLDER}: {launch_of(trainer.accelerator)}; {len(train):,} users, {len(pairs.train):,} pairs", flush=True)
        trainer.train(resume_from_checkpoint=last_checkpoint(draft.path / CHECKPOINTS))
        if trainer.is_world_process_zero():
            checkpoint.save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, draft.path / "model")
            write_log(trainer.state, draft.path / "log.jsonl")
        draft.metrics.update(
            parameters=parameters,
            users=len(train),
            pairs=len(pairs.train),
            steps=trainer.state.global_step,
            **{f"best_valid_{BEST_METRIC}": trainer.state.best_metric},
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
        raise ConfigError(f"yes_no.batch_size is {section.batch_size}, but there are only {users} train users; lower it.")
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


def score_trained(config: Config) -> tuple[Manifest, bool]:
    """Score the pairs by the run's trained model; every process calls it and takes its share of the users.

    Raises:
        ArtifactError: the model is not trained, or belongs to other pairs or semantic IDs.
    """
    trained = require(config.folder / FOLDER, "minionerec score --train")

    def inputs() -> dict[str, str]:
        made_from = {"pairs": require(config.folder / "pairs", "minionerec pairs prepare").digest}
        if trained.config["yes_no"]["items"] == "sid":  # other SIDs may have the same tokens
            made_from["sid"] = require(config.folder / "sid", "minionerec sid").digest
        return {FOLDER: require(config.folder / FOLDER, "minionerec score --train", made_from=made_from).digest}

    recipe = score_recipe(config, FOLDER, inputs=inputs)
    return recipe.make(lambda: _score_trained(config, trained, recipe), collective=True)


def _score_trained(config: Config, trained: Manifest, recipe: Recipe) -> None:
    pairs = PairSet.load(config.folder / "pairs")
    rows = pairs_of_split(pairs, config)
    items = trained.config["yes_no"]["items"]
    index = SidIndex.load(config.folder / "sid", Dataset.load(config.folder / "data")) if items == "sid" else None
    model, tokenizer = checkpoint.load(config.folder / FOLDER / "model")
    prompts = prompts_of(pairs, index, model, tokenizer)
    with recipe.write(resumable=True, collective=True) as draft:
        scorer = Scorer(model.to(distributed_state().device).eval(), prompts, config)
        scores, figures = score_in_shards(scorer, rows, draft.path / CHECKPOINTS)
        if is_main_process():
            path = trained.config["model"]["path"]
            label = f"{'from scratch' if path is None else Path(path).name}, trained on pairs, items as {items}"
            write_scores(draft, rows, scores, label=label, kind="model", scale="logit", **figures)
