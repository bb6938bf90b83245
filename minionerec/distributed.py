"""Who computes: the launcher's processes, their devices, and how they share the machine with other work.

All is read from the environment, so that `--help` imports no torch.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import psutil

from minionerec.errors import MiniOneRecError

if TYPE_CHECKING:  # importing it takes seconds, which `--help` should not
    from accelerate import PartialState

_Result = TypeVar("_Result")
# How often an idle thread of OpenMP looks for work before it gives up its core. By default GNU's library looks 300,000 times:
# on a machine with other work it spins for nothing while the thread that it waits for has no core (benchmarks/busy.py).
SPINS = 1_000


EngineName = Literal["processes", "ray"]


@dataclass(frozen=True)
class Engine:
    """Who does work that comes in shards.

    Attributes:
        name: `processes`, those of the launch, or `ray`.
        workers: of Ray; None for one per GPU, or per core.
    """

    name: EngineName = "processes"
    workers: int | None = None


PROCESSES = Engine()
_engine: ContextVar[Engine] = ContextVar("engine", default=PROCESSES)


def chosen_engine() -> Engine:
    """The engine for work in shards: what `use_engine` says, else the processes of the launch."""
    return _engine.get()


@contextmanager
def use_engine(engine: Engine) -> Iterator[None]:
    """Let an engine do all work in shards inside this block. No result depends on it."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


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


def place_in_launch() -> tuple[int, int]:
    """The number of this process in the launch, from 0, and how many processes there are; imports no torch."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


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
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result


def share_cores() -> None:
    """Let idle threads of OpenMP give up their cores soon, unless the user has chosen how they wait.

    Commands call it first of all: OpenMP reads the variable when torch is imported. `import minionerec` alone changes nothing.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def other_work(threads: int) -> str | None:
    """A line for the log if other processes leave a run clearly fewer cores than it computes with; None if they do not.

    Args:
        threads: with which a run will compute; an OMP_NUM_THREADS in the environment wins.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(chosen) if chosen.isdecimal() else threads
    if not hasattr(os, "getloadavg"):
        return None
    cores = available_cores()
    load = os.getloadavg()[0]
    if load + threads <= 1.5 * cores:
        return None
    # The load of a minute may be that of a command that has just ended; what is running now decides.
    running = psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or cores)
    if running + threads <= 1.25 * cores:
        return None
    return (
        f"This machine is busy: its load is {load:.1f} on {cores} core{'s' if cores > 1 else ''}, and this run adds {threads} "
        f"thread{'s' if threads > 1 else ''}. Expect about {(load + threads) / cores:.1f} times the time of a quiet machine."
    )
