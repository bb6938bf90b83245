"""Requests that wait, and the one thread that computes them in batches.

`Waiting` decides which requests are computed together and when. It has no thread and no clock of its own: whoever calls it says
what time it is. `Worker` is the thread: it owns the model, so no two batches are ever computed at once.
"""

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHARE = 0.2  # of the latest batch in the running means
_PATIENCE = 0.25  # of a batch's time that others may take to join the next one


class QueueFullError(Exception):
    """No room for further requests, or no time: what waits already takes longer than they may.

    Attributes:
        seconds: after which there should be room.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full for about {seconds} s")
        self.seconds = seconds


class DeadlineError(Exception):
    """A request waited longer than it may take; it was not computed."""


class StoppedError(Exception):
    """The worker stopped before the request was computed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        result: the answer; None if there is an error.
        error: why there is none.
        waited: from its arrival until its batch began (seconds).
        computed: the time of its batch (seconds).
    """

    result: Any = None
    error: Exception | None = None
    waited: float = 0.0
    computed: float = 0.0


@dataclass(eq=False)
class Job:
    """A request that waits.

    Attributes:
        group: requests are computed together only if their groups are equal.
        payload: what is computed.
        beams: rows that it takes in a batch.
        length: of its prompt; a batch is padded to its longest.
        deadline: when it is no longer worth computing.
        settle: takes the outcome; `Worker` says where.
        arrived: when it was added.
    """

    group: Hashable
    payload: Any
    beams: int
    length: int
    deadline: float
    settle: Callable[[Outcome], None]
    arrived: float = 0.0


@dataclass
class Waiting:
    """The requests that wait, oldest first.

    Attributes:
        limit: how many may wait.
        max_wait: a batch that is not full begins when no request has come for so long (seconds).
        max_batch: requests of a batch.
        max_beam_rows: beams of a batch; a request with more is a batch alone.
    """

    limit: int
    max_wait: float
    max_batch: int
    max_beam_rows: int
    jobs: list[Job] = field(default_factory=list)

    def add(self, jobs: Sequence[Job], now: float) -> bool:
        """Let requests wait, all or none; whether there was room."""
        if len(self.jobs) + len(jobs) > self.limit:
            return False
        for job in jobs:
            job.arrived = now
        self.jobs += jobs
        return True

    def may_be_full(self) -> bool:
        """Whether a batch could begin at once: False if none can, whatever the groups."""
        return len(self.jobs) >= self.max_batch or sum(job.beams for job in self.jobs) >= self.max_beam_rows

    def withdraw(self, jobs: Sequence[Job]) -> None:
        """Take requests out that nobody waits for any longer."""
        left = set(map(id, jobs))
        self.jobs = [job for job in self.jobs if id(job) not in left]

    def take(
        self, now: float, at_once: bool = False, expected: float = 0.0, free_since: float = -math.inf
    ) -> tuple[list[Job], list[Job], float | None]:
        """What to do now.

        The oldest request decides which requests can join it: those of its group. If more wait than fit, those with prompts
        about as long as its own go first, since a batch is padded to its longest prompt. The oldest is in every batch, so none
        waits longer than those before it take.

        Args:
            at_once: do not wait for others to join.
            expected: how long a batch takes (seconds). A request that has less than that left, and less than half of its time,
                would be computed in vain: under overload the oldest would all end just so, and none in time.
            free_since: when the batch before ended. Its clients need a moment to ask again, and a batch of all of them takes
                less time than two of half the size; so whoever waits, waits from then on.

        Returns:
            the batch, in order of arrival, empty if there is nothing to compute yet; the requests that cannot end in time; the
            seconds until the batch begins even if no other joins it, None if it does now or nothing waits.
        """
        expired = [job for job in self.jobs if job.deadline - min(expected, (job.deadline - job.arrived) / 2) <= now]
        self.withdraw(expired)
        if not self.jobs:
            return [], expired, None
        oldest = self.jobs[0]
        candidates = [job for job in self.jobs if job.group == oldest.group]
        candidates.sort(key=lambda job: abs(_bucket(job) - _bucket(oldest)))  # stable: by age within each distance
        batch, rows = [oldest], oldest.beams
        full = self.max_batch == 1 or rows >= self.max_beam_rows
        for job in candidates[1:]:
            full = full or len(batch) == self.max_batch or rows + job.beams > self.max_beam_rows
            if full:
                break
            batch.append(job)
            rows += job.beams
        full = full or len(batch) == self.max_batch
        begins = min(
            max(self.jobs[-1].arrived, free_since) + self.max_wait,
            max(oldest.arrived, free_since) + max(self.max_wait, _PATIENCE * expected),
        )
        if not (full or at_once) and now < begins:
            return [], expired, begins - now
        batch.sort(key=lambda job: job.arrived)
        self.withdraw(batch)
        return batch, expired, None


def _bucket(job: Job) -> int:
    """Prompts of one bucket differ in length by less than a factor of two."""
    return job.length.bit_length()


def _mean(before: float, latest: float) -> float:
    """A running mean; the first value alone makes it."""
    return (1 - _SHARE) * before + _SHARE * latest if before else latest


def settle_all(outcomes: Sequence[tuple[Job, Outcome]]) -> None:
    """Give jobs their outcomes."""
    for job, outcome in outcomes:
        job.settle(outcome)


class Worker:
    """The thread that computes what waits.

    Attributes:
        waiting: the requests that wait; only to be changed through the worker.
    """

    def __init__(
        self,
        waiting: Waiting,
        compute: Callable[[Hashable, list[Any]], Sequence[Any]],
        observe: Callable[[int, float], None] = lambda size, seconds: None,
        clock: Callable[[], float] = time.monotonic,
        deliver: Callable[[Sequence[tuple[Job, Outcome]]], None] = settle_all,
    ) -> None:
        """Make a worker; `start` starts it.

        Args:
            compute: takes a group and payloads, returns one result per payload.
            observe: takes the size of each batch and its seconds.
            clock: the time in seconds.
            deliver: takes the outcomes of a batch, in the worker's thread; it lets `settle_all` run in another one.
        """
        self.waiting, self.clock = waiting, clock
        self._compute, self._observe, self._deliver = compute, observe, deliver
        self._changed = threading.Condition()
        self._stopping, self._idle = False, False
        self._seconds_each, self._seconds_batch = 0.0, 0.0  # running means
        self._free_since = -math.inf
        self._thread = threading.Thread(target=self._run, name="minionerec-worker", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Compute what waits, for at most so many seconds, and end. What then still waits gets a `StoppedError`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        with self._changed:
            left, self.waiting.jobs = self.waiting.jobs, []
        if left:
            self._deliver([(job, Outcome(error=StoppedError())) for job in left])

    @property
    def at_work(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let requests wait to be computed, all or none.

        Raises:
            QueueFullError: there is no room for all, or they could not end in time.
            StoppedError: the worker has been stopped.
        """
        with self._changed:
            if self._stopping:
                raise StoppedError
            now, left = self.clock(), len(self.waiting.jobs) * self._seconds_each
            if (left and now + left > min(job.deadline for job in jobs)) or not self.waiting.add(jobs, now):
                raise QueueFullError(max(1, math.ceil(left)))
            if self._idle or self.waiting.may_be_full():  # else the thread wakes up when the batch begins
                self._idle = False
                self._changed.notify()

    def withdraw(self, jobs: Sequence[Job]) -> None:
        """Take requests out that nobody waits for any longer; those in the running batch are computed."""
        with self._changed:
            self.waiting.withdraw(jobs)

    def _run(self) -> None:
        while True:
            with self._changed:
                while True:
                    batch, expired, seconds = self.waiting.take(
                        self.clock(), self._stopping, self._seconds_batch, self._free_since
                    )
                    if batch or expired:
                        break
                    if self._stopping:
                        return
                    self._idle = seconds is None
                    self._changed.wait(seconds)
                    self._idle = False
            if expired:
                now = self.clock()
                self._deliver([(job, Outcome(error=DeadlineError(), waited=now - job.arrived)) for job in expired])
            if batch:
                self._run_batch(batch)
                self._free_since = self.clock()

    def _run_batch(self, batch: list[Job]) -> None:
        began = self.clock()
        results = self._results(batch)
        seconds = self.clock() - began
        self._seconds_batch = _mean(self._seconds_batch, seconds)
        self._seconds_each = _mean(self._seconds_each, seconds / len(batch))
        self._observe(len(batch), seconds)
        outcomes = []
        for job, result in zip(batch, results, strict=True):
            error = result if isinstance(result, Exception) else None
            outcomes.append((job, Outcome(None if error else result, error, began - job.arrived, seconds)))
        self._deliver(outcomes)

    def _results(self, batch: list[Job]) -> list[Any]:
        """The results; if a batch fails, each request is computed alone, so that one cannot fail its neighbours."""
        try:
            results = list(self._compute(batch[0].group, [job.payload for job in batch]))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} requests")
            return results
        except Exception as error:  # noqa: BLE001, whatever it is, the thread lives on and the request's answer says so
            if len(batch) == 1:
                return [error]
        return [result for job in batch for result in self._results([job])]
