"""What a launch decides: how many processes run, how a batch splits over them, in which precision they compute."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file

from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ConfigError

# Read before transformers, whose TrainingArguments overwrite the variable with their own value.
_LAUNCHED_PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION")
_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
_CHOSEN_TENSORBOARD = os.environ.get(_TENSORBOARD)  # by the user, not by an earlier stage of this process

log = logging.getLogger(__name__)


def split_batch(total_field: str, total: int, micro_field: str, micro: int, devices: int | None = None) -> tuple[int, int]:
    """Split the batch of an optimiser step over devices and micro-batches.

    Args:
        total_field, micro_field: names of the configuration's fields, for the message.
        total: units per step over all devices.
        micro: upper limit of the units computed at once on one device.
        devices: how many to plan for; None for the devices of this launch.

    Returns:
        units computed at once on one device, and gradient accumulation steps.

    Raises:
        ConfigError: the batch does not split evenly, or there are several GPUs for a single process.
    """
    world = devices or distributed_state().num_processes
    # Transformers would use DataParallel on all GPUs, which multiplies the batch.
    if devices is None and world == 1 and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"This machine has {torch.cuda.device_count()} GPUs, but only one process runs. Start one process per GPU with "
            "accelerate launch (scripts/sft.sh, scripts/rl.sh), or choose one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    micro = min(micro, total // world)
    if micro == 0 or total % (world * micro):
        raise ConfigError(
            f"{total_field} {total} does not split into {world} device(s) times micro-batches of {micro_field} {micro}; "
            f"choose a multiple of {world * max(micro, 1)}."
        )
    return micro, total // (world * micro)


def micro_batch_within(budget_field: str, budget: int, longest: int, share: int, most: int) -> int:
    """The largest micro-batch that divides a device's share of a step and stays within a budget of tokens.

    Args:
        budget_field: name of the configuration's field, for the message.
        budget: tokens of a micro-batch, if all its units are as long as the longest.
        longest: tokens of the longest unit.
        share: units per optimiser step on one device.
        most: upper limit of the result (units).

    Raises:
        ConfigError: the longest unit alone exceeds the budget.
    """
    if longest > budget:
        raise ConfigError(
            f"{budget_field} is {budget}, but the longest training example has {longest} tokens. Raise it, or lower "
            "data.max_history or sft.history_stride."
        )
    return max(size for size in range(1, share + 1) if share % size == 0 and size <= min(most, budget // longest))


_MACHINES = {"NO": "one GPU", "MULTI_CPU": "CPUs (DDP)", "MULTI_GPU": "GPUs (DDP)", "DEEPSPEED": "DeepSpeed ZeRO-2"}


def check_distribution(kind: str, processes: int, stage: int | None = None) -> str:
    """Describe a launch for the log. Accelerate may silently run less than the launcher asked for; that is refused.

    The main process warns of an elastic launcher (`torchrun`, or `accelerate launch` with `--max_restarts`) that is to start
    all processes again if one dies and could not.

    Args:
        kind: accelerate's distributed type, such as DEEPSPEED or MULTI_GPU.
        processes: how many train together.
        stage: DeepSpeed's stage of ZeRO; None without DeepSpeed.

    Raises:
        ConfigError: the launcher asked for DeepSpeed or for more processes than what runs, or for another stage of ZeRO than 2,
            which checkpoints are not made for.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true" and kind != "DEEPSPEED":
        raise ConfigError(
            f"The launcher's configuration asks for DeepSpeed, but what runs is {kind}. Unset ACCELERATE_USE_CPU, which turns "
            "DeepSpeed off silently (sft/zero2.yaml runs on CPUs without it)."
        )
    if started != processes:
        raise ConfigError(
            f"The launcher started {started} processes, but {processes} train together. Do not launch with --cpu; on CPUs "
            "accelerate launch --num_processes N is enough."
        )
    if kind == "DEEPSPEED" and stage != 2:
        raise ConfigError(
            f"The launcher's configuration asks for stage {stage} of DeepSpeed's ZeRO, but checkpoints are made for stage 2 "
            "only. Set zero_stage: 2, as sft/zero2.yaml does."
        )
    # The launcher's store outlives its processes, and those that are started again read the addresses of the dead from it
    # (github.com/pytorch/pytorch/issues/135712; seen with torch 2.13).
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and processes > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and is_main_process():
        log.warning(
            "The launcher would start all processes again %d time(s) if one dies, but they would not find each other. Launch "
            "with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the launcher's environment and --rdzv_backend c10d.",
            restarts,
        )
    machine = "the CPU" if kind == "NO" and not torch.cuda.is_available() else _MACHINES.get(kind, kind)
    return f"{processes} process{'es' if processes > 1 else ''} on {machine}{', not distributed' * (kind == 'NO')}"


def launch_of(accelerator: Accelerator) -> str:
    """Describe the launch of a trainer for the log, see `check_distribution`.

    Raises:
        ConfigError: the launcher asked for something else than what runs.
    """
    plugin = accelerator.state.deepspeed_plugin
    stage = None if plugin is None else plugin.zero_stage
    return check_distribution(accelerator.distributed_type.name, accelerator.num_processes, stage)


def keep_tensorboard(folder: Path, trackers: Sequence[str]) -> None:
    """Let TensorBoard, if it is among the trackers, write into a folder that stays, unless the user has chosen another.

    By default transformers writes next to a stage's checkpoints, which are deleted at its end.
    """
    if "tensorboard" in trackers and _CHOSEN_TENSORBOARD is None:
        os.environ[_TENSORBOARD] = str(folder)


def check_precision(field: str, bf16: bool) -> None:
    """Refuse a launcher whose mixed precision contradicts the configuration; transformers would stop with a traceback.

    Raises:
        ConfigError: `accelerate launch` computes in another precision than `field` asks for.
    """
    if _LAUNCHED_PRECISION and (_LAUNCHED_PRECISION == "bf16") != bf16:
        precision, value = ("bf16", "false") if bf16 else ("no", "true")
        raise ConfigError(
            f"accelerate launches with mixed precision {_LAUNCHED_PRECISION}, but {field} is {str(bf16).lower()}. "
            f"Pass --{field} {value}, or --mixed_precision {precision} to the launcher."
        )


@dataclass(frozen=True)
class RequestedLaunch:
    """What a command line of `accelerate launch` asks for.

    Attributes:
        processes: on all machines together.
        machines: how many take part.
        machine_rank: which of them this one is, from 0.
        address, port: where the first machine waits for the others; None with one machine.
    """

    processes: int = 1
    machines: int = 1
    machine_rank: int = 0
    address: str | None = None
    port: int | None = None

    @classmethod
    def read(cls, command: Sequence[str]) -> "RequestedLaunch":
        """Read the options, and for those that are missing the configuration file, as accelerate does.

        Args:
            command: the words of the command line; options that accelerate has besides are passed over.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--config_file", "--config-file")
        parser.add_argument("--num_processes", "--num-processes", type=int)
        parser.add_argument("--num_machines", "--num-machines", type=int)
        parser.add_argument("--machine_rank", "--machine-rank", type=int)
        parser.add_argument("--main_process_ip", "--main-process-ip")
        parser.add_argument("--main_process_port", "--main-process-port", type=int)
        options = parser.parse_known_args(list(command))[0]
        if options.config_file is not None or Path(default_config_file).is_file():
            settings = load_config_from_file(options.config_file)
            for name, value in vars(options).items():
                if value is None:
                    setattr(options, name, getattr(settings, name, None))
        return cls(
            processes=max(options.num_processes or 1, 1),
            machines=options.num_machines or 1,
            machine_rank=options.machine_rank or 0,
            address=options.main_process_ip,
            port=options.main_process_port,
        )

    def torch_launcher(self) -> list[str]:
        """The options of torch's launcher that start this machine's share of the processes.

        Raises:
            ConfigError: the processes do not split evenly over the machines, or the first machine's address is missing.
        """
        if self.machines == 1:
            return ["--standalone", "--nproc_per_node", str(self.processes)]
        if self.processes % self.machines:
            raise ConfigError(
                f"--num_processes {self.processes} is the number on all machines together and does not split over "
                f"--num_machines {self.machines}. Pass a multiple of {self.machines}."
            )
        if not 0 <= self.machine_rank < self.machines:
            raise ConfigError(f"--machine_rank {self.machine_rank} is not one of 0 to {self.machines - 1} (--num_machines).")
        if self.address is None or self.port is None:
            raise ConfigError("Several machines need the first one's address: --main_process_ip and --main_process_port.")
        return [
            *("--nnodes", str(self.machines), "--node_rank", str(self.machine_rank)),
            *("--nproc_per_node", str(self.processes // self.machines)),
            *("--master_addr", self.address, "--master_port", str(self.port)),
        ]


def start_all_processes() -> None:
    """Start all processes of `accelerate launch --num_processes N` that belong to this machine, if it has no GPUs.

    Accelerate silently starts a single one there. N is not in this process's environment, only in the command line of its
    parent. Torch's launcher then replaces this process and starts this machine's share with gloo. Does nothing in any other
    situation.

    Raises:
        ConfigError: the launcher's options contradict one another.
    """
    if "LOCAL_RANK" in os.environ or _LAUNCHED_PRECISION is None:
        return
    parent = psutil.Process().parent()
    if parent is None or torch.cuda.is_available():
        return
    requested = RequestedLaunch.read(parent.cmdline())
    if requested.processes > 1 or requested.machines > 1:
        launcher = ["-m", "torch.distributed.run", *requested.torch_launcher()]
        os.execv(sys.executable, [sys.executable, *launcher, *_this_program()])


def _this_program() -> list[str]:
    """The script or module that runs, with its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return sys.argv
    # Its path alone would put our rooms first on `sys.path`, where `statistics` would hide Python's.
    return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
