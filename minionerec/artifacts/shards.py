"""A long piece of work as files of some rows each, written by any number of processes and resumed after an interruption.

A shard's file does not depend on the number of processes. It gets its final name when it is complete, so whoever finds it does
not write it again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minionerec.distributed import distributed_state, is_main_process, wait_for_everyone


def shards_of(rows: int, size: int) -> list[range]:
    """All rows in shards of a size; the last one may be smaller.

    >>> shards_of(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def over_shards(
    shards: Sequence[range], file_of: Callable[[range], Path], write: Callable[[range, Path], None], doing: str, unit: str
) -> None:
    """Write the missing files of all shards. Every process of a launch calls it, takes its share in turn, and waits for all.

    Args:
        shards: ranges of rows, ascending; a process asks for its own in this order.
        file_of: the file of a shard.
        write: writes a shard's file through a temporary name.
        doing, unit: of the progress bar, such as `decode test` and `examples`.
    """
    state = distributed_state()
    share = shards[state.process_index :: state.num_processes]
    with _progress(doing, unit, sum(map(len, share))) as advance:
        for rows in share:
            path = file_of(rows)
            if not path.is_file():
                write(rows, path)
            advance(len(rows))
    wait_for_everyone()


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
