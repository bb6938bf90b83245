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
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import get_available_reporting_integrations

from minionerec.artifacts import (
    CHECKPOINTS,
    ITEM_STAGES,
    Manifest,
    check_disk_space,
    content_hash,
    folder_digest,
    is_current,
    require,
    write_artifact,
)
from minionerec.config import DEFAULT_TASKS, RECOMMENDING, Config, SftConfig, TaskName
from minionerec.data.dataset import Dataset
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ConfigError
from minionerec.model import adapters, checkpoint, scratch
from minionerec.model.dropout import add_dropout
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.record import prompts_section
from minionerec.recommend.recommender import Recommender
from minionerec.sft.trainer import TreeCollator, TreeTrainer, setting_up, tree_tokens
from minionerec.sft.trees import Trees, training_trees, validation_trees
from minionerec.sid.index import SidIndex
from minionerec.training import card, plan
from minionerec.training.checkpoints import MarkComplete, last_checkpoint, write_log
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.launch import check_precision, keep_tensorboard, launch_of, micro_batch_within, split_batch
from minionerec.training.memory import enough_memory
from minionerec.training.progress import StepBar
from minionerec.tree import NO_TOKEN, Branch, CatalogTrie

log = logging.getLogger(__name__)


def base_model(config: Config, dataset: Dataset, index: SidIndex) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untrained model with the catalog's SID tokens."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    if config.model.init == "from_scratch":
        corpus = tokenizer_corpus(dataset, config.resolved_prompts, config.sft.task_names)
        model, tokenizer = scratch.create(corpus, config.model, config.seed)
    else:
        model, tokenizer = checkpoint.load(str(config.model.path), config.model.dtype)
    titles = dataset.catalog["title"].to_list()
    checkpoint.add_sid_tokens(model, tokenizer, index, config.seed, config.model.sid_init, titles)
    return model, tokenizer


def worded_tasks(config: Config) -> list[TaskName]:
    """The tasks whose words decide what the stage makes: those trained and validated, and the words of a new tokenizer."""
    tokenizer_tasks = DEFAULT_TASKS if config.model.init == "from_scratch" else ()
    return [*dict.fromkeys((*config.sft.task_names, RECOMMENDING, *tokenizer_tasks))]


def check_options(config: SftConfig, devices: int | None = None) -> None:
    """What can be refused before anything is loaded; `training_arguments` does as well.

    Raises:
        ConfigError: see `check_precision` and `split_batch`; or a package of `report_to` is missing.
    """
    check_precision("sft.bf16", config.bf16)
    micro = config.micro_batch if config.micro_tokens is None else 1
    split_batch("sft.batch_size", config.batch_size, "sft.micro_batch", micro, devices)
    missing = set(config.report_to) - set(get_available_reporting_integrations())
    if missing:
        name = min(missing)
        raise ConfigError(f"sft.report_to names {name}, which is not installed: pip install {name}.")


def training_arguments(
    config: SftConfig, seed: int, folder: Path, trees: int, longest: int = 0, devices: int | None = None
) -> TrainingArguments:
    """Transformers' arguments: the global batch split over devices, evaluation and checkpoints evenly spaced.

    Args:
        trees, longest: how many training trees there are, and the tokens of the longest.
        devices: how many there are to be, for a plan; None for those that run.

    Raises:
        ConfigError: see `check_options` and `micro_batch_within`; or there are fewer trees than one batch holds.
    """
    check_options(config, devices)
    micro = config.micro_batch
    if config.micro_tokens is not None:
        share = config.batch_size // (devices or distributed_state().num_processes)
        micro = micro_batch_within("sft.micro_tokens", config.micro_tokens, longest, max(share, 1), micro)
    micro, accumulation = split_batch("sft.batch_size", config.batch_size, "sft.micro_batch", micro, devices)
    if trees < config.batch_size:
        raise ConfigError(f"sft.batch_size is {config.batch_size}, but there are only {trees} trees; lower it.")
    steps = math.ceil(trees // config.batch_size * config.epochs)
    interval = max(1, math.ceil(steps / config.evaluations))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{config.best_metric}",
        greater_is_better=config.best_metric != "loss",
        logging_steps=max(1, steps // 100),
        logging_first_step=True,
        dataloader_drop_last=True,
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting after an interruption
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=config.bf16,
        activation_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        report_to=[*config.report_to] or "none",
    )


def work(training: Trees, arguments: TrainingArguments, collator: TreeCollator) -> plan.Work:
    """What training on these trees takes."""
    trees = training.trees
    sizes = [sum(len(branch.prompt) + len(branch.completion) for branch in tree) for tree in trees]
    labels = [sum(map(_labels, tree)) for tree in trees]
    micro, seed = arguments.per_device_train_batch_size, int(arguments.seed)
    sample, largest = plan.sample_batches(trees, sizes, micro, lambda some: plan.PackedShape.of(collator(some)), seed, labels)
    return plan.Work(
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


def _labels(branch: Branch) -> int:
    return len(branch.completion) if branch.weights is None else int(np.count_nonzero(branch.weights))


def run(config: Config, draw: Callable[[Path, Path, str], None] | None = None) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Args:
        draw: writes the curves of a log (first) as a page (second) with a title (third); None for no page.

    Raises:
        ArtifactError: an input is missing, or the disk cannot hold the checkpoints.
        ConfigError: see `check_options`, `training_arguments`, `checkpoint.load`, `launch_of`, `adapters.attach`,
            `LossWeights`.
        ConstraintError: the loss asks for the trie's children, but some SID is the beginning of another.
        TrainingError: see `TreeTrainer.train`.
    """
    folder = config.folder / "sft"
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    if config.model.init == "from_pretrained" and Path(str(config.model.path)).is_dir():
        inputs["model"] = folder_digest(Path(str(config.model.path)))
    asked = config.resolved_prompts.for_training()
    sections = {**config.section("sft", "model"), "prompts": prompts_section(asked, worded_tasks(config))}
    if config.sft.best_metric != "loss":
        sections |= {"validation": config.decoding}
    decisive = {**sections, **config.key_fields("sft", "model")}
    key = content_hash({"config": decisive, "seed": config.seed, "inputs": inputs})
    if is_current(folder, key):
        return Manifest.load(folder), False
    check_options(config.sft)
    if config.sft.answer_in_prompt:
        log.warning("sft.answer_in_prompt is true: prompts about an item end with their own answer, as in the released code.")
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    set_seed(config.seed)
    model, tokenizer = base_model(config, dataset, index)
    prompts = Prompts(dataset, index, tokenizer, asked, checkpoint.context_of(model))
    token_ids = prompts.sid_tokens  # refuses a tokenizer that splits SIDs
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = adapters.attach(model, config.sft, token_ids[token_ids != NO_TOKEN].unique().tolist())
    add_dropout(model, config.sft.dropout)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # The model; weights and two moments of the best, last and next checkpoint.
    check_disk_space(folder, (parameters + trainable * 9) * 4)
    training = training_trees(config.sft, config.seed, prompts)
    trees = training.trees
    held_out = validation_trees(prompts)
    evaluator: RankingEvaluator | None = None
    if config.sft.best_metric != "loss":
        recommender = Recommender(model.to(distributed_state().device), prompts)
        evaluator = RankingEvaluator(recommender, config.eval, config.sft.valid_examples, config.sft.best_metric)
    trie = CatalogTrie.from_codes(token_ids) if config.sft.normalise_over == "catalog" or config.sft.smoothing else None
    if trie is not None:
        trie.check_normalisable()
    longest = max(map(tree_tokens, trees)) if config.sft.micro_tokens is not None else 0
    arguments = training_arguments(config.sft, config.seed, folder, len(trees), longest)
    collator = TreeCollator(config.sft.row_tokens, trie)
    devices = plan.launched(config.sft.bf16, config.sft.gradient_checkpointing)
    planned = plan.Plan("sft", plan.Shape.of(model), work(training, arguments, collator), devices)
    planned.show()
    keep_tensorboard(config.folder / "tensorboard" / "sft", config.sft.report_to)
    # All that the configuration or the data can be refused for lies behind: a partial folder of other options is removed now.
    with write_artifact(
        folder,
        stage="sft",
        key=key,
        config=sections,
        inputs=inputs,
        seed=config.seed,
        resumable=True,
        collective=True,
    ) as draft:
        arguments.output_dir = str(draft.path / CHECKPOINTS)
        with enough_memory(setting_up):
            trainer = TreeTrainer(
                model=model,
                args=arguments,
                train_dataset=trees,
                eval_dataset=held_out,
                data_collator=collator,
                trie=trie,
                normalise_over=config.sft.normalise_over,
                smoothing=config.sft.smoothing,
                evaluator=evaluator,
                failed=config.folder / "sft-failed",
                callbacks=[MarkComplete(), EarlyStoppingCallback(config.sft.patience)],
            )
        StepBar.install(trainer, "sft")
        kind = _launched_as(trainer)
        trainer.train(resume_from_checkpoint=last_checkpoint(draft.path / CHECKPOINTS))
        figures = {
            "parameters": parameters,
            "trainable": trainable,
            "examples": sum(len(tree) for tree in trees),
            "trees": len(trees),
            "steps": trainer.state.global_step,
            "devices": trainer.accelerator.num_processes,
            "distributed": kind,
            f"best_valid_{config.sft.best_metric}": trainer.state.best_metric,
        }
        if trainer.is_world_process_zero():
            trained = trainer.accelerator.unwrap_model(trainer.model)
            whole = adapters.merge(trained, draft.path / "adapter", lambda: base_model(config, dataset, index)[0])
            checkpoint.save(whole, tokenizer, draft.path / "model")
            card.write(draft.path / "model", "sft", config, dataset, index, figures)
            write_log(trainer.state, draft.path / "log.jsonl")
            if draw is not None:
                draw(draft.path / "log.jsonl", draft.path / "curves.html", f"{config.name}: SFT")
        draft.metrics.update(**figures, tasks=training.statistics, **planned.metrics())
    return Manifest.load(folder), True


def _launched_as(trainer: TreeTrainer) -> str:
    """Accelerate's distributed type, after its check; the main process prints what the launch has become.

    Raises:
        ConfigError: see `launch_of`.
    """
    launched = launch_of(trainer.accelerator)
    if is_main_process():
        batch = f"{trainer.args.per_device_train_batch_size} x {trainer.args.gradient_accumulation_steps}"
        print(f"sft on {launched}, micro-batches of trees per process: {batch}", flush=True)
    return trainer.accelerator.distributed_type.name
