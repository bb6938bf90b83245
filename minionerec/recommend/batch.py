"""Lists for many users, from a file to files: `minionerec recommend --users FILE --out DIR`.

The users are cut into shards of `eval.shard_size` rows. Each shard becomes `part-NNNNN.parquet` in the output folder. An
interrupted run resumes after the parts that are complete, any number of processes writes the same parts, and memory does not
grow with the number of users. `manifest.json`, written last, has the counts and the digests of the model and the users.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minionerec.artifacts import (
    CHECKPOINTS,
    UNSEEDED,
    Draft,
    Manifest,
    Recipe,
    content_hash,
    file_hash,
    folder_digest,
    over_shards,
    shards_of,
    sharing,
)
from minionerec.distributed import is_main_process
from minionerec.errors import ArtifactError, DataError, MiniOneRecError
from minionerec.recommend.filters import Filters
from minionerec.recommend.lists import Recommendation
from minionerec.recommend.recommender import Recommender
from minionerec.recommend.requests import OnUnknown, Request, Search
from minionerec.recommend.users import RowReader, UserFiles

_COUNTS = b"minionerec"  # key of a part's own counts in its file
_MEASURED = 64  # users of the estimate
COUNTS = ("users", "items", "exact", "short", "fallbacks", "cut", "skipped")


@dataclass(frozen=True)
class Job:
    """What is asked for every user.

    Attributes:
        users: the file or folder with users and histories.
        filters: of every list.
        k, num_beams, widest, on_unknown: see `Recommender.recommend`.
    """

    users: Path
    filters: Filters = field(default_factory=Filters)
    k: int = 10
    num_beams: int | None = None
    widest: int | None = None
    on_unknown: OnUnknown = "error"


def recommend_users(
    recommender: Recommender, job: Job, out: Path, *, replace: bool = False, say: Callable[[str], None] = print
) -> tuple[Manifest, bool]:
    """Write the lists of all users. Every process of a launch calls it.

    Args:
        out: the folder for the parts and the manifest.
        replace: whether lists of another model, file or request may be replaced in this folder.
        say: prints the estimate of the cost.

    Returns:
        the manifest, whose `metrics` count users, listed items, exact and short lists, fallbacks, users with a cut history and
        users with skipped items; and whether the lists were made now.

    Raises:
        DataError: the file is malformed or empty, or a user's history or filter is refused; the message names the row.
        ConfigError: the numbers do not go together, or the folder holds something else and `replace` is not set.
        ArtifactError: a process did not finish its share, or the folder cannot be written.
        LockedError: another launch writes into the folder.
    """
    files = UserFiles(job.users)
    search = recommender.widths(job.k, job.num_beams, job.widest)
    recipe = _recipe(recommender, job, search, out, replace)
    return recipe.make(lambda: _Run(recommender, job, search, files).write(recipe, say), collective=True)


def _recipe(recommender: Recommender, job: Job, search: Search, out: Path, replace: bool) -> Recipe:
    made_with = {name: getattr(recommender.config, name) for name in ("normalise_over", "exclude_history", "shard_size")}
    made_with["dtype"] = str(recommender.model.dtype).removeprefix("torch.")
    sets = recommender.items.named
    made_with["named"] = {name: content_hash(sets[name].nonzero()[0].tolist()) for name in job.filters.named if name in sets}
    filters = {
        name: sorted(value) if isinstance(value, (set, frozenset)) else value for name, value in asdict(job.filters).items()
    }
    settings = {**asdict(search), "filters": filters, "on_unknown": job.on_unknown, **made_with}

    def inputs() -> dict[str, str]:
        users = folder_digest(job.users) if job.users.is_dir() else file_hash(job.users)
        return {**recommender.digests, "users": users}

    return Recipe(
        stage="recommend",
        folder=out,
        config={"recommend": settings},
        inputs=inputs(),
        seed=UNSEEDED,
        replace=replace,
        reread=inputs,
    )


class _Run:
    """Writes the parts of one job."""

    def __init__(self, recommender: Recommender, job: Job, search: Search, files: UserFiles) -> None:
        self._recommender, self._job, self._search, self._files = recommender, job, search, files
        self._reader: RowReader | None = None  # of this process's share

    def write(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        """Write all parts, and the manifest."""
        users = len(self._files)
        if not users:
            raise DataError(f"{self._files.path}: holds no user.")
        shards = shards_of(users, self._recommender.config.shard_size)
        if is_main_process():
            say(self._estimate(users, len(shards)))
        with recipe.write(resumable=True, collective=True) as draft:
            store = draft.path / CHECKPOINTS
            store.mkdir(exist_ok=True)
            parts = {store / f"part-{number:05d}.parquet": rows for number, rows in enumerate(shards)}
            over_shards(parts, self.write_part, "recommend", "users")
            if is_main_process():
                _collect(parts, draft)

    def _estimate(self, users: int, shards: int) -> str:
        """What the run will cost, from a measurement of its first users."""
        text = f"{users:,} users in {shards:,} shard{'s' if shards > 1 else ''}, lists of {self._search.k}"
        text += f", {self._search.num_beams} beams"
        if users <= 4 * _MEASURED:
            return f"{text}."
        table = RowReader(self._files).take(range(_MEASURED))
        requests = self._requests(range(_MEASURED), table)
        self._recommender.answer(requests[:8], self._search)  # the first call of a model takes longer
        started = time.perf_counter()
        self._recommender.answer(_by_length(requests)[0], self._search)
        seconds = (time.perf_counter() - started) / _MEASURED
        processes = sharing(shards)
        total = users * seconds / processes
        return (
            f"{text}: about {_duration(total)} ({1e3 * seconds:.1f} ms per user, measured on {_MEASURED}; "
            f"{processes} process{'es' if processes > 1 else ''})."
        )

    def _requests(self, rows: range, table: pa.Table) -> list[Request]:
        """The requests of some rows.

        Raises:
            MiniOneRecError: a history is refused; the message names the row and the user.
        """
        ask = partial(self._recommender.read, filters=self._job.filters, on_unknown=self._job.on_unknown)
        try:
            return ask(self._files.histories(table))
        except MiniOneRecError:  # find the row
            for number, row in enumerate(rows):
                try:
                    ask(self._files.histories(table.slice(number, 1)))
                except MiniOneRecError as error:
                    user, reason = table["user"][number].as_py(), str(error).removeprefix("history 0: ")
                    raise type(error)(f"{self._files.path}, row {row + 1}, user {user!r}: {reason}") from None
            raise

    def write_part(self, rows: range, path: Path) -> None:
        """Write the lists of some users."""
        self._reader = self._reader or RowReader(self._files)
        table = self._reader.take(rows)
        requests = self._requests(rows, table)
        ordered, positions = _by_length(requests)
        answers = self._recommender.answer(ordered, self._search)
        lists = [answers[position] for position in positions]
        part = _table(table, lists, self._files.columns)
        counts = {
            "users": len(lists),
            "items": part.num_rows,
            "exact": sum(one.exact for one in lists),
            "short": sum(one.reason is not None for one in lists),
            "fallbacks": sum(one.fallback is not None for one in lists),
            "cut": sum(one.cut > 0 for one in lists),
            "skipped": sum(bool(one.skipped) for one in lists),
        }
        temporary = path.with_name(path.name + ".tmp")
        pq.write_table(part.replace_schema_metadata({_COUNTS: json.dumps(counts)}), temporary)
        temporary.replace(path)


def _by_length(requests: list[Request]) -> tuple[list[Request], list[int]]:
    """The requests by length of history, so that a batch needs little padding; and where each of them now is."""
    order = sorted(range(len(requests)), key=lambda number: len(requests[number].history))
    positions = np.argsort(order, kind="stable").tolist()
    return [requests[number] for number in order], positions


def _table(users: pa.Table, lists: list[Recommendation], columns: list[str]) -> pa.Table:
    """One row per recommended item: the user, the item, and the further columns of the user."""
    lengths = [len(recommendation.items) for recommendation in lists]
    row_of = pa.array(np.repeat(np.arange(len(lists)), lengths))
    items = [item for recommendation in lists for item in recommendation.items]
    each = users.take(row_of)
    own = {
        "user": each["user"],
        "rank": pa.array([item.place for item in items], pa.int32()),
        "item_id": pa.array([item.item_id for item in items], pa.string()),
        "score": pa.array([item.score for item in items], pa.float32()),
        "exact": pa.array(np.repeat([recommendation.exact for recommendation in lists], lengths), pa.bool_()),
        "fallback": pa.array([one.fallback for one in lists for _ in one.items], pa.string()),
    }
    return pa.table(own | {name: each[name] for name in columns}).combine_chunks()


def _collect(parts: Mapping[Path, range], draft: Draft) -> None:
    """Put the parts into the finished folder, and add up their counts.

    Raises:
        ArtifactError: a part is damaged.
    """
    totals: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    for path in parts:
        try:
            counts = json.loads((pq.read_schema(path).metadata or {})[_COUNTS])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: damaged ({error}). Delete it and run the same command again.") from None
        for name in COUNTS:
            totals[name] += counts[name]
        try:
            os.link(path, draft.path / path.name)
        except OSError:  # a file system without hard links
            shutil.copy(path, draft.path / path.name)
    draft.metrics.update(totals)


def _duration(seconds: float) -> str:
    """A time in words.

    >>> _duration(40), _duration(400), _duration(20_000)
    ('40 seconds', '7 minutes', '5.6 hours')
    """
    if seconds < 90:
        return f"{math.ceil(seconds)} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
