"""Sides of a benchmark that get ready at the same time and measure one after another.

A side spends most of its time on imports, data and weights. On a machine that is lent by the minute, with a core for each side,
all of them together get ready in the time of one.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER, _SIDES = "MINIONEREC_TURNS", "MINIONEREC_TURNS_OF"
_FAILED = "failed"


def environment(folder: str, sides: int) -> dict[str, str]:
    """What a process needs to find its turn among `sides` processes that share an empty folder."""
    return {_FOLDER: folder, _SIDES: str(sides)}


def fail(folder: str) -> None:
    """Tell the sides that wait that one of them will not come."""
    (Path(folder) / _FAILED).touch()


@contextmanager
def turn() -> Iterator[None]:
    """What a side measures: it waits until all sides are ready, and for those that measure. Alone, it does not wait.

    Raises:
        SystemExit: another side failed before it was ready.
    """
    if (folder := os.environ.get(_FOLDER)) is None:
        yield
        return
    (Path(folder) / f"ready-{os.getpid()}").touch()
    while len(list(Path(folder).glob("ready-*"))) < int(os.environ[_SIDES]):
        if (Path(folder) / _FAILED).exists():
            raise SystemExit("Another side failed.")
        time.sleep(0.1)
    with (Path(folder) / "measures").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
