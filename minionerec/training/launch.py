"""What the launcher decides: how many processes run, how a global batch splits over them, in which precision."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from minionerec.distributed import distributed_state
from minionerec.errors import ConfigError

# Read before transformers, whose TrainingArguments overwrite the variable with their own value.
_LAUNCHED_PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION")
_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
_CHOSEN_TENSORBOARD = os.environ.get(_TENSORBOARD)  # by the user, not by an earlier stage of this process


def split_batch(total_field: str, total: int, micro_field: str, micro: int, devices: int | None = None) -> tuple[int, int]:
    """Split a step's batch over devices and micro-batches.

    Args:
        total_field, micro_field: the names of the configuration's fields, for the message.
        total: units per optimiser step over all devices.
        micro: most units at once on one device.
        devices: how many there are to be, for a plan; None for those that run.

    Returns:
        units at once on one device, and gradient accumulation steps.

    Raises:
        ConfigError: it does not split evenly, or one process sees several GPUs.
    """
    world = devices or distributed_state().num_processes
    # Transformers would fall back to DataParallel, with another batch.
    if devices is None and world == 1 and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"This machine shows {torch.cuda.device_count()} GPUs, but one process runs. Start one per GPU with accelerate "
            "launch (scripts/sft.sh, scripts/rl.sh), or choose one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    micro = min(micro, total // world)
    if micro == 0 or total % (world * micro):
        raise ConfigError(
            f"{total_field} {total} does not split into {world} device(s) times micro-batches of {micro_field} {micro}; "
            f"choose a multiple of {world * max(micro, 1)}."
        )
    return micro, total // (world * micro)


def micro_batch_within(budget_field: str, budget: int, longest: int, share: int, most: int) -> int:
    """The largest micro-batch that divides a device's share of a step and keeps a budget of tokens.

    Args:
        budget_field: the name of the configuration's field, for the message.
        longest: tokens of the longest unit.
        share: units per optimiser step on one device.
        most: upper limit (units).

    Raises:
        ConfigError: a single unit exceeds the budget.
    """
    if longest > budget:
        raise ConfigError(
            f"{budget_field} is {budget}, but the longest training example has {longest} tokens. Raise it, or lower "
            "data.max_history or sft.history_stride."
        )
    return max(size for size in range(1, share + 1) if share % size == 0 and size <= min(most, budget // longest))


_MACHINES = {"NO": "one GPU", "MULTI_CPU": "CPUs (DDP)", "MULTI_GPU": "GPUs (DDP)", "DEEPSPEED": "DeepSpeed ZeRO-2"}


def check_distribution(kind: str, processes: int, stage: int | None = None) -> str:
    """What this launch has become, for the log; refuses one that silently became less than was asked for.

    Args:
        kind: accelerate's distributed type, such as DEEPSPEED or MULTI_GPU. processes: the world size that it works with.
        stage: DeepSpeed's stage of ZeRO; None without DeepSpeed.

    Raises:
        ConfigError: the launcher asked for DeepSpeed or for more processes, and that is not what runs; or for another stage of
            ZeRO than 2, whose checkpoints could not be written.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true" and kind != "DEEPSPEED":
        raise ConfigError(
            f"The launcher's configuration asks for DeepSpeed, but what runs is {kind}. Unset ACCELERATE_USE_CPU, which turns "
            "DeepSpeed off silently (sft/zero2.yaml runs on CPUs without it)."
        )
    if asked != processes:
        raise ConfigError(
            f"The launcher started {asked} processes, but {processes} train together. Do not launch with --cpu; on CPUs "
            "accelerate launch --num_processes N is enough."
        )
    if kind == "DEEPSPEED" and stage != 2:
        raise ConfigError(
            f"The launcher's configuration asks for stage {stage} of DeepSpeed's ZeRO; checkpoints here hold what stage 2 "
            "splits. Set zero_stage: 2, as sft/zero2.yaml does."
        )
    machine = "the CPU" if kind == "NO" and not torch.cuda.is_available() else _MACHINES.get(kind, kind)
    return f"{processes} process{'es' if processes > 1 else ''} on {machine}{', not distributed' * (kind == 'NO')}"


def launch_of(accelerator: Accelerator) -> str:
    """What the launch of a trainer has become, for the log.

    Raises:
        ConfigError: see `check_distribution`.
    """
    plugin = accelerator.state.deepspeed_plugin
    stage = None if plugin is None else plugin.zero_stage
    return check_distribution(accelerator.distributed_type.name, accelerator.num_processes, stage)


def keep_tensorboard(folder: Path, trackers: Sequence[str]) -> None:
    """Have TensorBoard's files written to a folder that stays, where it is among the trackers and no other was chosen.

    By default transformers puts them among a stage's checkpoints, which are deleted at its end.
    """
    if "tensorboard" in trackers and _CHOSEN_TENSORBOARD is None:
        os.environ[_TENSORBOARD] = str(folder)


def check_precision(field: str, bf16: bool) -> None:
    """Refuse a launcher whose mixed precision contradicts the configuration; transformers would stop with a traceback.

    Raises:
        ConfigError: `accelerate launch` was told another precision than `field` says.
    """
    if _LAUNCHED_PRECISION and (_LAUNCHED_PRECISION == "bf16") != bf16:
        wanted, fitting = ("bf16", "false") if bf16 else ("no", "true")
        raise ConfigError(
            f"accelerate launches with mixed precision {_LAUNCHED_PRECISION}, but {field} is {str(bf16).lower()}. "
            f"Pass --{field} {fitting}, or --mixed_precision {wanted} to the launcher."
        )


def requested_processes(command: Sequence[str]) -> int:
    """How many processes a command line of `accelerate launch` asks for; 1 where it does not say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int, default=1)
    return parser.parse_known_args(list(command))[0].num_processes


def start_all_processes() -> None:
    """Start the processes that `accelerate launch --num_processes N` was asked for on a machine without GPUs.

    There accelerate silently starts a single one, and its environment does not say N; its command line does. This
    process is then replaced by torch's launcher, which starts all N with gloo. Does nothing in any other situation.
    """
    if "LOCAL_RANK" in os.environ or _LAUNCHED_PRECISION is None:
        return
    parent = psutil.Process().parent()
    wanted = 1 if parent is None or torch.cuda.is_available() else requested_processes(parent.cmdline())
    if wanted > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(wanted)]
        os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])
