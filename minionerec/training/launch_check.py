"""Whether the processes of a launch see one another and one folder, and how fast they exchange gradients.

A training on several machines needs three things that fail late and unclearly: one world of all processes, a folder that all of
them read and write, and a network. This checks them in seconds, before any hour is spent.
"""

import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from accelerate.utils import gather_object

from minionerec.distributed import distributed_state
from minionerec.errors import ConfigError
from minionerec.training.launch import check_distribution

MEGABYTES = 64  # of the exchange that is timed: larger than what a network buffers, small next to a model
REPEATS = 3
PATIENCE = 10.0  # seconds in which a process must see what another has written


@dataclass(frozen=True)
class Process:
    """One process of the launch.

    Attributes:
        rank: among all processes.
        host: name of its machine.
        device: it computes there.
    """

    rank: int
    host: str
    device: str


@dataclass(frozen=True)
class LaunchFacts:
    """What a launch consists of.

    Attributes:
        launch: in words, as trainings log it.
        backend: of torch.distributed; None for a single process.
        processes: by rank.
        seconds: of one sum over all processes, the fastest of `REPEATS`; None for a single process.
    """

    launch: str
    backend: str | None
    processes: Sequence[Process]
    seconds: float | None

    def lines(self) -> list[str]:
        """The facts as a user reads them."""
        hosts = {process.host for process in self.processes}
        places = [f"  rank {process.rank}: {process.host}, {process.device}" for process in self.processes]
        named = f"{self.launch}; {len(hosts)} host name{'s' if len(hosts) > 1 else ''}"
        if self.seconds is None:
            return [named, *places, "One process exchanges nothing."]
        rate = MEGABYTES * 8 / 1000 / self.seconds
        return [
            f"{named}; backend {self.backend}",
            *places,
            f"A sum of {MEGABYTES} MB over all processes takes {self.seconds * 1000:.0f} ms ({rate:.1f} Gbit/s of payload).",
        ]


def check_launch(folder: Path, machines: int | None = None) -> LaunchFacts:
    """Check that all processes of this launch form one world and see one folder, and time one exchange.

    Args:
        folder: of the runs; made if it is missing. Nothing stays in it.
        machines: how many must take part, told apart by their host names; None if it does not matter.

    Raises:
        ConfigError: fewer processes run together than the launcher started, another number of machines takes part, or some
            process does not see what another wrote.
    """
    state = distributed_state()
    launch = check_distribution(state.distributed_type.name, state.num_processes)
    processes = gather_object([Process(state.process_index, socket.gethostname(), str(state.device))])
    hosts = sorted({process.host for process in processes})
    if machines is not None and len(hosts) != machines:
        raise ConfigError(
            f"--machines {machines}: {len(hosts)} take part ({', '.join(hosts)}). Start the same command on every machine, "
            "each with its --machine_rank and with the first one's address."
        )
    _check_folder(folder, processes, state.process_index)
    several = state.num_processes > 1
    return LaunchFacts(
        launch,
        torch.distributed.get_backend() if several else None,
        processes,
        _seconds_of_a_sum(state.device) if several else None,
    )


def _check_folder(folder: Path, processes: Sequence[Process], rank: int) -> None:
    """Every process writes a file, and every process looks for the files of all.

    Raises:
        ConfigError: a process cannot write, or does not see another's file.
    """
    # The first process's word is the name, so that files of an earlier check do not count.
    name = gather_object([uuid.uuid4().hex])[0]
    mine = folder / f".launch-check-{name}-{rank}"
    failure = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text(str(rank), encoding="utf-8")
    except OSError as error:
        failure = f"{error.filename}: cannot be written ({error.strerror})"
    failures = gather_object([failure])  # all files are written from here on
    missing = _unseen([folder / f".launch-check-{name}-{other}" for other in range(len(processes))])
    all_missing = gather_object([missing])  # and all were looked for
    mine.unlink(missing_ok=True)
    places = [f"rank {process.rank} on {process.host}" for process in processes]
    for place, reason in zip(places, failures, strict=True):
        if reason is not None:
            raise ConfigError(f"{place}: {reason}. Choose a folder that every machine may write to.")
    for place, others in zip(places, all_missing, strict=True):
        if others:
            raise ConfigError(
                f"{place} does not see in {folder.absolute()} what {places[others[0]]} wrote. All machines need one "
                "shared folder under the same path, such as a network file system."
            )


def _unseen(files: Sequence[Path]) -> list[int]:
    """Which of the files stay away for `PATIENCE` seconds: a network file system may show them late."""
    end = time.monotonic() + PATIENCE
    while (unseen := [number for number, file in enumerate(files) if not file.is_file()]) and time.monotonic() < end:
        time.sleep(0.2)
    return unseen


def _seconds_of_a_sum(device: torch.device) -> float:
    """Seconds of an all-reduce of `MEGABYTES`, the fastest of some."""
    values = torch.ones(MEGABYTES * 10**6 // 4, device=device)
    fastest = float("inf")
    for _ in range(REPEATS + 1):  # the first opens the connections
        values.fill_(1)
        torch.distributed.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(values)
        world = values[0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - began)
        if world != torch.distributed.get_world_size():
            raise ConfigError(
                f"A sum of ones over {torch.distributed.get_world_size()} processes gave {world:g}. The network or its driver "
                f"is broken (backend {torch.distributed.get_backend()}, first machine {os.environ.get('MASTER_ADDR')})."
            )
    return fastest
