"""Stage `rl`: GRPO from the SFT model, with ranked beams as rollouts and the ranking reward.

Inputs: `data/`, `sid/` and `sft/model/` of the run, and `baselines/` for the collaborative reward. Outputs: `rl/model/`
(safetensors, tokenizer and model card), the model that was best on valid; `rl/log.jsonl` (rewards, KL, hits and validations by
step), `rl/curves.html` (the same, drawn).

Deviations from the paper: rollouts come from the decoder that evaluation uses, on the prompts that SFT used; the target
travels with its row; the KL is the plain k3 estimate to a fixed SFT model; a prompt is computed once for its group (same
log-probabilities); prompts are drawn from the tasks at random and not from all rows.

Command: `minionerec rl --config ml-100k`, or `bash scripts/rl.sh --config NAME`.
"""

import logging
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as TokenDataset
from transformers import TrainerState, set_seed
from transformers.integrations import get_available_reporting_integrations
from trl import GRPOConfig

from minionerec.artifacts import (
    CHECKPOINTS,
    ITEM_STAGES,
    Manifest,
    check_space,
    content_hash,
    distributed_state,
    is_current,
    require,
    write_artifact,
)
from minionerec.config import Config, RlConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError
from minionerec.model import card, checkpoint, plan
from minionerec.model.launch import check_precision, split_batch
from minionerec.model.progress import StepBar
from minionerec.model.validator import Measure, Validator
from minionerec.prompts.builder import TokenExample, check_prompts, prompts_section, sample_examples
from minionerec.rl import rewards
from minionerec.rl.exact import ExactTrainer
from minionerec.rl.monitor import Watch, best
from minionerec.rl.objectives import KeepReference, ListwiseTrainer, ObjectiveTrainer, objective_arguments
from minionerec.rl.rewards import Reward
from minionerec.rl.rollouts import Rollouts
from minionerec.rl.targets import with_targets
from minionerec.rl.trainer import TreeGRPOTrainer, grouped
from minionerec.sid.index import SidIndex
from minionerec.tree import NO_TOKEN, Branch, CatalogTrie, pack

log = logging.getLogger(__name__)


def grpo_arguments(
    config: RlConfig, levels: int, seed: int, folder: Path, prompts: int, devices: int | None = None
) -> GRPOConfig:
    """TRL's arguments: the global batch split over devices by whole groups.

    Args:
        devices: how many there are to be, for a plan; None for those that run.

    Raises:
        ConfigError: see `split_batch` and `check_precision`; or there are fewer prompts than one step takes, or a tracker is
            not there.
    """
    check_precision("rl.bf16", config.bf16)
    micro, accumulation = split_batch(
        "rl.prompts_per_step", config.prompts_per_step, "rl.micro_batch_prompts", config.micro_batch_prompts, devices
    )
    if prompts < config.prompts_per_step:
        raise ConfigError(f"rl.prompts_per_step is {config.prompts_per_step}, but there are only {prompts} prompts; lower it.")
    absent = sorted({*config.report_to} - {*get_available_reporting_integrations()})
    if absent:
        raise ConfigError(
            f"rl.report_to names {absent[0]}, which transformers does not know or whose package is not installed; here are: "
            f"{', '.join(sorted(get_available_reporting_integrations())) or 'none'}."
        )
    steps = math.ceil(prompts // config.prompts_per_step * config.epochs)
    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro * config.num_generations,
        gradient_accumulation_steps=accumulation,
        num_generations=config.num_generations,
        max_completion_length=levels,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        **objective_arguments(config, accumulation),
        reward_weights=list(config.rewards.values()),
        use_bias_correction_kl=False,
        save_strategy="steps",
        save_steps=max(1, math.ceil(steps / config.checkpoints)),
        save_total_limit=1,
        logging_steps=max(1, steps // 50),
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        bf16=config.bf16,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        report_to=config.report_to or "none",
    )


def whole_steps(examples: list[TokenExample], prompts_per_step: int) -> list[TokenExample]:
    """As many as fill whole steps: TRL would make a short one of what is left over."""
    return examples[: max(len(examples) // prompts_per_step, 1) * prompts_per_step]


def work(examples: list[TokenExample], token_ids: torch.Tensor, arguments: GRPOConfig, config: RlConfig) -> plan.Work:
    """What training on these prompts takes.

    Rollouts are not known before the policy is there: SIDs drawn at random stand for them, which share less of their
    beginnings, so that positions are counted rather too high.

    Args:
        token_ids: the catalogue's SIDs, (items, levels).
    """
    group, levels = config.num_generations, token_ids.shape[1]
    micro = arguments.per_device_train_batch_size // group
    sids = [[token for token in row if token != NO_TOKEN] for row in token_ids.tolist()]
    chance = random.Random(int(arguments.seed))

    def packed(some: list[TokenExample]) -> plan.Batch:
        longest = max(len(example.prompt) for example in some)
        branches = [Branch(example.prompt, sid) for example in some for sid in chance.sample(sids, min(group, len(sids)))]
        return plan.Batch.of(pack(branches, row_tokens=longest + group * (levels - 1)).tensors())

    sizes = [group * (len(example.prompt) + levels) for example in examples]
    sample, largest = plan.draw(examples, sizes, micro, packed, int(arguments.seed))
    longest = max(len(example.prompt) for example in examples)
    return plan.Work(
        unit="prompts",
        units=len(examples),
        steps=arguments.max_steps,
        micro=micro,
        accumulation=arguments.gradient_accumulation_steps,
        tokens=sum(sizes),
        labels=sum(group * levels for _ in examples),
        sample=sample,
        largest=largest,
        rollout=micro * (longest + group * (levels - 1)),
        reference=config.beta > 0,
    )


def check_spaces(sft: Manifest, config: RlConfig) -> None:
    """Warn where the SFT model was trained with probabilities that add up over something else than here."""
    trained = sft.config["sft"]["normalise"]
    if trained != config.logp_space:
        log.warning(
            "The SFT model was trained with sft.normalise %s, but rl.logp_space is %s: its probabilities mean something else "
            "here, and the KL is to a model that nobody trained. Set rl.logp_space %s unless you mean it.",
            *(trained, config.logp_space, trained),
        )


def make_trainer(
    config: RlConfig,
    trie: CatalogTrie,
    seed: int,
    functions: dict[str, Reward],
    **arguments: Any,
) -> TreeGRPOTrainer:
    """The trainer of the objective.

    Args:
        trie: the valid SIDs, on the model's device.
        functions: the rewards by name, in the order of `rl.rewards`.
        arguments: see TreeGRPOTrainer.
    """
    arguments["reward_funcs"] = [grouped(name, function, config.num_generations) for name, function in functions.items()]
    if config.objective == "exact":
        weights = list(config.rewards.values())
        return ExactTrainer(
            trie=trie,
            rewards=functions,
            weights=weights,
            sft_weight=config.sft_weight,
            **arguments,
        )
    pad_token = arguments["processing_class"].pad_token_id
    kind = ObjectiveTrainer if config.objective == "grpo" else ListwiseTrainer
    return kind(
        config=config,
        rollout_func=Rollouts(trie, config, pad_token, seed),
        catalogue=trie if config.logp_space == "catalogue" else None,
        **arguments,
    )


def run(config: Config, validator: Validator, draw: Callable[[Path, Path, str], None] | None = None) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Args:
        validator: makes what measures the policy on valid; it is called where `rl.evaluations` asks for it.
        draw: writes the curves of a log (first) as a page (second) with a title (third); None for no page.

    Raises:
        ArtifactError: an input is missing, or the disk cannot hold the checkpoints.
        CatalogError: the SFT checkpoint lacks the catalogue's SID tokens.
        ConfigError: see `grpo_arguments`; or the catalogue is smaller than a group.
        DataError: the valid split is empty, and validations are asked for.
        DivergenceError: see `Watch`.
    """
    folder = config.folder / "rl"
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    sft = require(config.folder / "sft", "minionerec sft", made_from=inputs)
    inputs |= {"sft": sft.digest, **rewards.sources(config, inputs["data"])}
    prompts = config.asked.for_training()
    sections = {**config.section("rl"), "prompts": prompts_section(prompts)}
    if config.rl.evaluations:
        sections |= {"validation": config.decoding}
    key = content_hash({"config": {**sections, **config.decisive("rl")}, "seed": config.seed, "inputs": inputs})
    if is_current(folder, key):
        return Manifest.load(folder), False
    check_prompts(sft.config, prompts, str(config.folder / "sft"))
    check_spaces(sft, config.rl)
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    set_seed(config.seed)
    origin = config.folder / "sft" / "model"
    model, tokenizer = checkpoint.load(str(origin))  # TRL reads the reference model from the same folder
    context = getattr(model.config, "max_position_embeddings", None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # The model, the best so far and the one that replaces it; weights and two moments of the last and the next checkpoint.
    check_space(folder, parameters * 4 * 9)
    token_ids = checkpoint.sid_token_ids(tokenizer, index)
    trie = CatalogTrie.from_codes(token_ids, distributed_state().device)
    if len(trie) < config.rl.num_generations and config.rl.rollouts != "sampling" and config.rl.objective != "exact":
        raise ConfigError(
            f"rl.num_generations is {config.rl.num_generations}, but the catalogue has only {len(trie)} SIDs; lower it."
        )
    examples = sample_examples(
        config.rl.tasks,
        dataset,
        index,
        tokenizer,
        split="train",
        count=config.rl.max_examples,
        seed=config.seed,
        context=context,
        prompts=prompts,
    )
    examples = whole_steps(examples, config.rl.prompts_per_step)
    examples = with_targets(examples, config.rl, dataset, index, tokenizer, context, prompts)
    rows = TokenDataset.from_dict(
        {
            "prompt": [example.prompt for example in examples],
            "target": [[token for token in token_ids[example.target].tolist() if token != NO_TOKEN] for example in examples],
            "row": [example.row for example in examples],
            "number": list(range(len(examples))),
        }
    )
    functions = rewards.build(config, dataset, token_ids)
    measure: Measure = dict
    if config.rl.evaluations:
        measure = validator(model, tokenizer, dataset, index, config, config.rl.valid_examples, config.rl.best_metric)
    with write_artifact(
        folder,
        stage="rl",
        key=key,
        config=sections,
        inputs=inputs,
        seed=config.seed,
        resumable=True,
        collective=True,
    ) as draft:
        checkpoints = draft.path / CHECKPOINTS
        arguments = grpo_arguments(config.rl, index.levels, config.seed, checkpoints, len(rows))
        devices = plan.launched(config.rl.bf16, config.rl.gradient_checkpointing)
        planned = plan.Plan("rl", plan.Shape.of(model), work(examples, token_ids, arguments, config.rl), devices)
        planned.show()
        watch = Watch(config.rl, measure, tokenizer, checkpoints, origin)
        trainer = make_trainer(
            config.rl,
            trie,
            config.seed,
            functions,
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            watch=watch,
        )
        last = checkpoint.last_checkpoint(checkpoints)
        if config.rl.sync_reference is not None:
            reference = KeepReference(trainer)
            trainer.add_callback(reference)
            if last is not None:
                reference.restore(last)
        trainer.add_callback(checkpoint.MarkComplete())
        StepBar.install(trainer, "rl")
        stopped = TrainerState.load_from_json(f"{last}/trainer_state.json") if last else None
        if stopped is not None and watch.is_over(stopped.log_history):  # interrupted after the last step, before the end
            trainer.state = stopped
        else:
            trainer.train(resume_from_checkpoint=last)
        chosen = best(trainer.state.log_history, config.rl.best_metric)
        if chosen is not None:
            trainer.state.log_history.append(_verdict(config.rl, chosen, trainer.state))
        figures: dict[str, float] = {
            "parameters": parameters,
            "prompts": len(rows),
            "steps": trainer.state.global_step,
            "devices": trainer.accelerator.num_processes,
        }
        if chosen is not None:
            figures |= {"best_step": chosen[0], f"best valid {config.rl.best_metric}": chosen[1]}
        if trainer.is_world_process_zero():
            if chosen is None:
                checkpoint.save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, draft.path / "model")
            else:
                shutil.copytree(watch.best_model(trainer.state.log_history), draft.path / "model")
            card.write(draft.path / "model", "rl", config, dataset, index, figures)
            checkpoint.write_log(trainer.state, draft.path / "log.jsonl")
            if draw is not None:
                draw(draft.path / "log.jsonl", draft.path / "curves.html", f"{config.name}: RL")
        draft.metrics.update(**figures, **planned.metrics())
    return Manifest.load(folder), True


def _verdict(config: RlConfig, chosen: tuple[int, float], state: TrainerState) -> dict[str, float]:
    """The log's last row: which step's model was kept; said in words where it is the SFT model."""
    step, value = chosen
    if step == 0:
        log.warning(
            "No step of rl has a higher %s on valid than the SFT model (%.4f): rl/model holds the SFT model's weights.",
            *(config.best_metric, value),
        )
    return {"step": state.global_step, "best_step": step, f"best_{config.best_metric}": value}
