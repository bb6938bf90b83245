"""Transformers' training arguments from the section `sft`."""

import math
import multiprocessing
from pathlib import Path

import torch
from transformers import TrainingArguments

from minionerec.config import SftConfig
from minionerec.distributed import distributed_state
from minionerec.errors import ConfigError
from minionerec.training.arguments import validated_arguments
from minionerec.training.early import check_trackers
from minionerec.training.launch import check_precision, micro_batch_within, split_batch


def check_options(config: SftConfig, devices: int | None = None) -> None:
    """Refuse what can be refused before anything is loaded.

    Args:
        devices: how many to plan for; None for the devices of this launch.

    Raises:
        ConfigError: the launcher computes in another precision, the batch does not split over the devices, a package of
            `report_to` is missing, or `row_tokens` or `pack_workers` ask for what this machine does not have.
    """
    check_precision("sft.bf16", config.bf16)
    micro = config.micro_batch if config.micro_tokens is None else 1
    split_batch("sft.batch_size", config.batch_size, "sft.micro_batch", micro, devices)
    check_trackers("sft.report_to", config.report_to)
    check_cuda_options(config)
    pack_workers(config)


def check_cuda_options(config: SftConfig) -> None:
    """Refuse to choose by the memory of a GPU that is not there.

    Raises:
        ConfigError: `sft.row_tokens` is auto, and there is no GPU.
    """
    if config.row_tokens == "auto" and not torch.cuda.is_available():
        raise ConfigError(
            "sft.row_tokens is auto, which chooses by the memory of a GPU, and there is none here. Name a number, such as 256."
        )


def pack_workers(config: SftConfig) -> int:
    """How many processes pack the coming batches.

    Raises:
        ConfigError: some are asked for, but Python does not start processes by copying this one, which has the trees already.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if config.pack_workers and method != "fork":
        raise ConfigError(
            f"sft.pack_workers is {config.pack_workers}, but processes are started by {method} here, not by fork, so each "
            "would need a copy of all trees. Set it to 0."
        )
    if config.pack_workers is None:
        return 2 if method == "fork" and torch.cuda.is_available() else 0
    return config.pack_workers


def training_arguments(
    config: SftConfig, seed: int, folder: Path, trees: int, longest: int = 0, devices: int | None = None
) -> TrainingArguments:
    """Transformers' arguments: the global batch split over devices, evaluation and checkpoints evenly spaced.

    Args:
        trees: how many training trees there are.
        longest: tokens of the longest tree; needed for `micro_tokens` only.
        devices: how many to plan for; None for the devices of this launch.

    Raises:
        ConfigError: the launcher computes in another precision, the batch does not split over the devices, a package of
            `report_to` is missing, a tree is longer than `micro_tokens`, or there are fewer trees than one batch holds.
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
    return validated_arguments(
        folder,
        micro,
        accumulation,
        interval,
        config.best_metric,
        seed,
        max_steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        logging_steps=max(1, steps // 100),
        dataloader_num_workers=pack_workers(config),
        bf16=config.bf16,
        activation_checkpointing=config.gradient_checkpointing,
        report_to=[*config.report_to] or "none",
    )
