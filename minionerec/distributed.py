"""Who computes: the launcher's processes and their devices. Read from the environment, so that `--help` imports no torch."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from minionerec.errors import MiniOneRecError

if TYPE_CHECKING:  # importing it takes seconds, which `--help` should not
    from accelerate import PartialState

_Result = TypeVar("_Result")


def distributed_state() -> "PartialState":
    """Accelerate's view of processes and devices: gloo on CPUs if there is no GPU."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def expect_no_gpu() -> None:
    """If the machine has no GPU, tell DeepSpeed so; it would warn that it found none, also if nobody asked for it."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def wait_for_everyone() -> None:
    """Wait until all processes of the launch reach this point; does nothing in a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed_state().wait_for_everyone()


def is_main_process() -> bool:
    """Whether this process writes: the launch's first, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def decide_on_main(decide: Callable[[], _Result]) -> _Result:
    """What `decide` returns in the main process, in every process: all go the same way, whatever each sees on its disk.

    Raises:
        MiniOneRecError: the main process's, in every process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    distributed_state()
    outcome: list = [None, None]
    if is_main_process():
        try:
            outcome[0] = decide()
        except MiniOneRecError as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result
