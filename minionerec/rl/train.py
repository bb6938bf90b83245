"""Stage `rl`: GRPO from the SFT model, with ranked beams as rollouts and the ranking reward.

Inputs: `data/`, `sid/` and `sft/model/` of the run. Outputs: `rl/model/` (safetensors and tokenizer), `rl/log.jsonl`
(reward, KL, hit rate by step).

Deviations from the paper: rollouts come from the decoder that evaluation uses, on the prompts that SFT used; the target
travels with its row; the KL is the plain k3 estimate to a fixed SFT model; a prompt is computed once for its group (same
log-probabilities); prompts are drawn from the tasks at random and not from all rows.

Command: `minionerec rl --config ml-100k`, or `bash scripts/rl.sh --config NAME`.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as TokenDataset
from transformers import set_seed
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
from minionerec.model import checkpoint
from minionerec.model.launch import check_precision, split_batch
from minionerec.model.progress import StepBar
from minionerec.prompts.builder import sample_examples, templates_digest
from minionerec.rl.exact import ExactTrainer
from minionerec.rl.objectives import KeepReference, ListwiseTrainer, ObjectiveTrainer, objective_arguments
from minionerec.rl.rewards import REWARDS
from minionerec.rl.rollouts import rollouts
from minionerec.rl.trainer import TreeGRPOTrainer, grouped
from minionerec.sid.index import SidIndex
from minionerec.tree import NO_TOKEN, CatalogTrie


def grpo_arguments(config: RlConfig, levels: int, seed: int, folder: Path, prompts: int) -> GRPOConfig:
    """TRL's arguments: the global batch split over devices by whole groups.

    Raises:
        ConfigError: see `split_batch` and `check_precision`; or there are fewer prompts than one step takes.
    """
    check_precision("rl.bf16", config.bf16)
    micro, accumulation = split_batch(
        "rl.prompts_per_step", config.prompts_per_step, "rl.micro_batch_prompts", config.micro_batch_prompts
    )
    if prompts < config.prompts_per_step:
        raise ConfigError(f"rl.prompts_per_step is {config.prompts_per_step}, but there are only {prompts} prompts; lower it.")
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
        report_to="none",
    )


def make_trainer(config: RlConfig, trie: CatalogTrie, seed: int, **arguments: Any) -> TreeGRPOTrainer:
    """The trainer of the objective.

    Args:
        trie: the valid SIDs, on the model's device.
        arguments: see GRPOTrainer.
    """
    if config.objective == "exact":
        reward = REWARDS[config.reward]
        return ExactTrainer(
            trie=trie, reward=lambda sids, row: reward(sids, row["target"]), sft_weight=config.sft_weight, **arguments
        )
    pad_token = arguments["processing_class"].pad_token_id
    kind = ObjectiveTrainer if config.objective == "grpo" else ListwiseTrainer
    return kind(config=config, rollout_func=rollouts(trie, config, pad_token, seed), **arguments)


def run(config: Config) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Raises:
        ArtifactError: an input is missing, or the disk cannot hold the checkpoints.
        CatalogError: the SFT checkpoint lacks the catalogue's SID tokens.
        ConfigError: see `grpo_arguments`; or the catalogue is smaller than a group.
    """
    folder = config.folder / "rl"
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    inputs["sft"] = require(config.folder / "sft", "minionerec sft", made_from=inputs).digest
    sections = config.section("rl")
    key = content_hash({"config": sections, "seed": config.seed, "inputs": inputs, "prompts": templates_digest()})
    if is_current(folder, key):
        return Manifest.load(folder), False
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    set_seed(config.seed)
    policy = str(config.folder / "sft" / "model")  # TRL reads the reference model from the same folder
    model, tokenizer = checkpoint.load(policy)
    context = getattr(model.config, "max_position_embeddings", None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    check_space(folder, parameters * 4 * 7)  # the model, and weights and two moments of the last and the next checkpoint
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
    )
    # Whole steps only: TRL would make a short one of what is left over.
    examples = examples[: max(len(examples) // config.rl.prompts_per_step, 1) * config.rl.prompts_per_step]
    rows = TokenDataset.from_dict(
        {
            "prompt": [example.prompt for example in examples],
            "target": [[token for token in token_ids[example.target].tolist() if token != NO_TOKEN] for example in examples],
            "number": list(range(len(examples))),
        }
    )
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
        trainer = make_trainer(
            config.rl,
            trie,
            config.seed,
            model=model,
            args=grpo_arguments(config.rl, index.levels, config.seed, checkpoints, len(rows)),
            train_dataset=rows,
            processing_class=tokenizer,
            reward_funcs=grouped(REWARDS[config.rl.reward], config.rl.num_generations),
        )
        last = checkpoint.last_checkpoint(checkpoints)
        if config.rl.sync_reference is not None:
            reference = KeepReference(trainer)
            trainer.add_callback(reference)
            if last is not None:
                reference.restore(last)
        trainer.add_callback(checkpoint.MarkComplete())
        StepBar.install(trainer, "rl")
        trainer.train(resume_from_checkpoint=last)
        if trainer.is_world_process_zero():
            checkpoint.save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, draft.path / "model")
            checkpoint.write_log(trainer.state, draft.path / "log.jsonl")
        draft.metrics.update(
            parameters=parameters, prompts=len(rows), steps=trainer.state.global_step, devices=trainer.accelerator.num_processes
        )
    return Manifest.load(folder), True
