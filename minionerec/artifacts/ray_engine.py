"""Shards over Ray's workers (extra `ray`): of this machine, or of the cluster that RAY_ADDRESS names.

Ray only calls the functions that the engine `processes` calls, so the files are the same, and nothing of Ray is in them.
Workers on this machine listen to 127.0.0.1 alone, without dashboard and without reports of use.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minionerec.config.extras import require_package
from minionerec.distributed import available_cores
from minionerec.errors import ArtifactError, ConfigError, MiniOneRecError

_RESTARTS = 3  # of a worker that died, before the work is given up
_STORE = 1 << 30  # bytes of Ray's object store here, which holds what travels to the workers
# Set before Ray is imported: no reports, and every port bound to 127.0.0.1, which Ray does elsewhere by default.
_LOCAL = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class _Worker:
    """Runs in a process of Ray's: holds what `make` holds, such as a model, for all shards that it is given."""

    def __init__(self, make: Callable[[range, Path], None], intact: Callable[[range, Path], bool]) -> None:
        self._make, self._intact = make, intact

    def write(self, rows: range, path: Path) -> int:
        """Write a shard's file unless another try has left it intact; returns its number of rows."""
        if not self._intact(rows, path):
            self._make(rows, path)
        return len(rows)


def worker_count(workers: int | None, shards: int) -> int:
    """How many workers share some shards, see `write`."""
    return min(workers or _devices() or available_cores(), shards)


def _devices() -> int:
    import torch

    return torch.cuda.device_count()


def check_engine() -> None:
    """Refuse Ray where it cannot work.

    Raises:
        ConfigError: it is not installed, or several processes were launched.
    """
    require_package("ray", "engine ray")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("engine is ray, which starts its workers itself: start one process, without a launcher.")


def write(
    missing: Sequence[tuple[range, Path]],
    make: Callable[[range, Path], None],
    intact: Callable[[range, Path], bool],
    workers: int | None,
    advance: Callable[[int], None],
) -> None:
    """Write shards' files.

    Args:
        missing: the shards, ascending; a worker is given its own in this order.
        make, intact: see `shards.over_shards`.
        workers: how many; None for one per GPU, or per core.
        advance: is told the rows of each finished shard.

    Raises:
        ConfigError: Ray is not installed, or several processes were launched.
        ArtifactError: a worker died again and again.
        MiniOneRecError: what `make` raised.
    """
    check_engine()
    count, devices = worker_count(workers, len(missing)), _devices()
    with _cluster(count) as ray:
        needs = {"num_cpus": 1, "num_gpus": min(1.0, devices / count)}
        actor = ray.remote(_Worker).options(**needs, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
        held = ray.put(make), ray.put(intact)
        pool = [actor.remote(*held) for _ in range(count)]
        waiting = list(missing)
        running: dict[Any, Any] = {}  # what each busy worker will return, and the worker
        try:
            while waiting or running:
                free = [worker for worker in pool if worker not in running.values()]
                for worker in free[: len(waiting)]:
                    running[worker.write.remote(*waiting.pop(0))] = worker
                [done], _ = ray.wait(list(running))
                advance(ray.get(done))
                del running[done]
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, MiniOneRecError) else error) from None
        except ray.exceptions.RayActorError as error:
            raise ArtifactError(
                f"{missing[0][1].parent}: a worker of Ray died {_RESTARTS + 1} times ({str(error).splitlines()[0]}). Is the "
                "memory enough? Give fewer --engine_workers. Shards that are stored are not made again."
            ) from error


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Ray, started here for the time of the work, unless the program or RAY_ADDRESS has one already."""
    if "RAY_ADDRESS" not in os.environ:
        for name, value in _LOCAL.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": "ERROR"}
    if "RAY_ADDRESS" not in os.environ:
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _STORE}
    ray.init(**options)
    try:
        yield ray
    finally:
        ray.shutdown()
