"""The one seam for long work: a list of shards, a function that writes a shard's file, and whoever computes.

A shard's file does not depend on who writes it, nor on how many do. It gets its final name when it is complete, so whoever
finds it does not write it again. When all are there, one process joins them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minionerec.artifacts import ray_engine
from minionerec.distributed import chosen_engine, is_main_process, place_in_launch, wait_for_everyone
from minionerec.errors import ArtifactError


def shards_of(rows: int, size: int) -> list[range]:
    """All rows in shards of a size; the last one may be smaller.

    >>> shards_of(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def is_there(_: range, path: Path) -> bool:
    """Whether a shard's file needs no work: it has its final name."""
    return path.is_file()


def over_shards(
    shards: Mapping[Path, range],
    make: Callable[[range, Path], None],
    doing: str,
    unit: str,
    *,
    collective: bool = True,
    intact: Callable[[range, Path], bool] = is_there,
) -> None:
    """Have the missing files of all shards written, and return when all are there.

    The engine that the command has chosen (`distributed.use_engine`) shares out the work. The processes of a launch take shards
    in turn and wait for one another; Ray's workers each take the next one as soon as they are free.

    Args:
        shards: file of each shard and its rows, ascending; whoever takes several asks for them in this order.
        make: writes a shard's file, which depends on the shard alone, through a temporary name. With Ray `make` and `intact`
            travel to other processes, so both must be picklable.
        doing, unit: of the progress bar, such as `decode test` and `examples`.
        collective: every process of the launch calls this function; otherwise only one does, which takes all shards.
        intact: whether a shard's file is there and need not be written.

    Raises:
        ArtifactError: a process or worker did not finish its share.
    """
    engine = chosen_engine()
    place, world = place_in_launch() if collective else (0, 1)
    share = list(shards.items())[place::world]
    with _progress(doing, unit, sum(len(rows) for _, rows in share)) as advance:
        missing = []
        for path, rows in share:
            if engine.name == "ray" and not intact(rows, path):
                missing.append((rows, path))
                continue
            if not intact(rows, path):
                make(rows, path)
            advance(len(rows))
        if missing:
            ray_engine.write(missing, make, intact, engine.workers, advance)
    if collective:
        wait_for_everyone()
    if is_main_process() and (absent := next((path for path in shards if not path.is_file()), None)) is not None:
        raise ArtifactError(
            f"{absent}: missing: a process did not finish its share. Run the same command again; what is stored is not made "
            "again."
        )


def sharing(shards: int) -> int:
    """How many processes or workers compute at the same time if all call `over_shards` with so many shards."""
    engine = chosen_engine()
    if engine.name == "ray":
        return ray_engine.worker_count(engine.workers, shards)
    return place_in_launch()[1]


@contextmanager
def _progress(doing: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of this process's share, in the main process; gives a function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), disable=not is_main_process()) as progress:
        task = progress.add_task(doing, total=total, rate="")

        def advance(rows: int) -> None:
            progress.advance(task, rows)
            progress.update(task, rate=f"{progress.tasks[task].speed or 0:.1f} {unit}/s")

        yield advance
