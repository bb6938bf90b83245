"""Stage `rl`: GRPO from the SFT model, with ranked beams as rollouts and the ranking reward.

Inputs: `data/`, `sid/` and `sft/model/` of the run, and `baselines/` for the collaborative reward. Outputs: `rl/model/`
(safetensors and tokenizer), the model that was best on valid; `rl/log.jsonl` (rewards, KL, hits and validations by step).

Deviations from the paper: rollouts come from the decoder that evaluation uses, on the prompts that SFT used; the target
travels with its row; the KL is the plain k3 estimate to a fixed SFT model; a prompt is computed once for its group (same
log-probabilities); prompts are drawn from the tasks at random and not from all rows.

Command: `minionerec rl --config ml-100k`, or `bash scripts/rl.sh --config NAME`.
"""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset as TokenDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, set_seed
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
from minionerec.model import checkpoint
from minionerec.model.launch import check_precision, split_batch
from minionerec.model.progress import StepBar
from minionerec.prompts.builder import sample_examples, templates_digest
from minionerec.rl import rewards
from minionerec.rl.monitor import Measure, Watch, best
from minionerec.rl.trainer import TreeGRPOTrainer, beam_rollouts, grouped
from minionerec.sid.index import SidIndex
from minionerec.tree import NO_TOKEN, CatalogTrie

log = logging.getLogger(__name__)

Validator = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Dataset, SidIndex, Config], Measure]


def grpo_arguments(config: RlConfig, levels: int, seed: int, folder: Path, prompts: int) -> GRPOConfig:
    """TRL's arguments: the global batch split over devices by whole groups.

    Raises:
        ConfigError: see `split_batch` and `check_precision`; or there are fewer prompts than one step takes, or a tracker is
            not there.
    """
    check_precision("rl.bf16", config.bf16)
    micro, accumulation = split_batch(
        "rl.prompts_per_step", config.prompts_per_step, "rl.micro_batch_prompts", config.micro_batch_prompts
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
        steps_per_generation=1,  # a rollout per micro-batch: TRL would shuffle groups apart otherwise; the policy is the same
        num_generations=config.num_generations,
        max_completion_length=levels,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        beta=config.beta,
        loss_type="grpo",
        scale_rewards="group",
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


def check_spaces(sft: Manifest, config: RlConfig) -> None:
    """Warn where the SFT model was trained with probabilities that add up over something else than here."""
    trained = sft.config["sft"]["normalise"]
    if trained != config.logp_space:
        log.warning(
            "The SFT model was trained with sft.normalise %s, but rl.logp_space is %s: its probabilities mean something else "
            "here, and the KL is to a model that nobody trained. Set rl.logp_space %s unless you mean it.",
            *(trained, config.logp_space, trained),
        )


def run(config: Config, validator: Validator) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Args:
        validator: makes what measures the policy on valid; it is called where `rl.evaluations` asks for it.

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
    sections = config.section("rl")
    key = content_hash({"config": sections, "seed": config.seed, "inputs": inputs, "prompts": templates_digest()})
    if is_current(folder, key):
        return Manifest.load(folder), False
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
    if len(trie) < config.rl.num_generations:
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
            "row": [example.row for example in examples],
        }
    )
    functions = [
        grouped(name, reward, config.rl.num_generations) for name, reward in rewards.build(config, dataset, token_ids).items()
    ]
    measure: Measure = validator(model, tokenizer, dataset, index, config) if config.rl.evaluations else dict
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
        watch = Watch(config.rl, measure, tokenizer, checkpoints, origin)
        trainer = TreeGRPOTrainer(
            model=model,
            args=grpo_arguments(config.rl, index.levels, config.seed, checkpoints, len(rows)),
            train_dataset=rows,
            processing_class=tokenizer,
            reward_funcs=functions,
            rollout_func=beam_rollouts(trie, config.rl.num_generations, tokenizer.pad_token_id, config.rl.logp_space),
            callbacks=[checkpoint.MarkComplete()],
            catalogue=trie if config.rl.logp_space == "catalogue" else None,
            watch=watch,
        )
        StepBar.install(trainer, "rl")
        last = checkpoint.last_checkpoint(checkpoints)
        stopped = TrainerState.load_from_json(f"{last}/trainer_state.json") if last else None
        if stopped is not None and watch.is_over(stopped.log_history):  # interrupted after the last step, before the end
            trainer.state = stopped
        else:
            trainer.train(resume_from_checkpoint=last)
        chosen = best(trainer.state.log_history, config.rl.best_metric)
        if chosen is not None:
            trainer.state.log_history.append(_verdict(config.rl, chosen, trainer.state))
        if trainer.is_world_process_zero():
            if chosen is None:
                checkpoint.save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, draft.path / "model")
            else:
                shutil.copytree(watch.best_model(trainer.state.log_history), draft.path / "model")
            checkpoint.write_log(trainer.state, draft.path / "log.jsonl")
        draft.metrics.update(
            parameters=parameters, prompts=len(rows), steps=trainer.state.global_step, devices=trainer.accelerator.num_processes
        )
        if chosen is not None:
            draft.metrics.update({"best_step": chosen[0], f"best valid {config.rl.best_metric}": chosen[1]})
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
