"""TRL's arguments from the section `rl`; settings that need neither model nor data are checked before either is loaded."""

import math
from pathlib import Path

import torch
from trl import GRPOConfig

from minionerec.config import RlConfig
from minionerec.rl.monitor import interval
from minionerec.rl.objectives import objective_arguments
from minionerec.training.early import check_trackers
from minionerec.training.launch import check_precision, split_batch


def split_prompts(config: RlConfig, devices: int | None = None) -> tuple[int, int]:
    """Prompts at once on one device, and micro-batches per step; a prompt's group stays whole.

    Args:
        devices: how many to plan for; None for the devices of this launch.

    Raises:
        ConfigError: `rl.prompts_per_step` does not split over the devices, the launcher's precision is another one, or a
            tracker is not installed.
    """
    check_precision("rl.bf16", config.bf16)
    check_trackers("rl.report_to", config.report_to)
    return split_batch(
        "rl.prompts_per_step", config.prompts_per_step, "rl.micro_batch_prompts", config.micro_batch_prompts, devices
    )


def grpo_arguments(
    config: RlConfig, levels: int, seed: int, folder: Path, prompts: int, devices: int | None = None
) -> GRPOConfig:
    """TRL's arguments: the global batch split over devices by whole groups.

    Args:
        folder: of the checkpoints.
        prompts: how many are rolled out, a multiple of `rl.prompts_per_step`.
        devices: how many to plan for; None for the devices of this launch.

    Raises:
        ConfigError: the settings do not fit the launch, see `split_prompts`.
    """
    micro, accumulation = split_prompts(config, devices)
    steps = math.ceil(prompts // config.prompts_per_step * config.epochs) * config.updates_per_rollout
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
        save_steps=interval(steps, config.checkpoints, config.updates_per_rollout),
        logging_steps=max(1, steps // 50),
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        bf16=config.bf16,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        report_to=config.report_to or "none",
    )
