"""What the service does with a call, apart from HTTP: read it, let it wait, answer it; load another model."""

import asyncio
import concurrent.futures
import logging
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from starlette.types import Receive

from minionerec.config import ServeConfig
from minionerec.errors import CatalogError, ConstraintError, MiniOneRecError
from minionerec.recommend.explain import Explanation, explain
from minionerec.recommend.lists import Recommendation
from minionerec.recommend.requests import Request, Search
from minionerec.serve.batching import DeadlineError, Job, Outcome, QueueFullError, StoppedError, Waiting, Worker, settle_all
from minionerec.serve.limits import RefusedError, ReloadBody, RequestBody, check_limits
from minionerec.serve.metrics import Metrics
from minionerec.serve.served import ServedModel

log = logging.getLogger("minionerec.serve")


class GoneError(Exception):
    """The client has gone, so nobody waits for the answer."""


class _Lists(NamedTuple):
    """Requests that one search answers."""

    model: ServedModel
    search: Search


@dataclass(frozen=True, eq=False)
class _Tree:
    """The request whose search is explained, alone: no two of these are equal, so no two are computed together."""

    model: ServedModel
    search: Search


class _Answers:
    """What became of the requests of a call, as it comes.

    Attributes:
        outcomes: of each request; None while it waits.
        settled: done when none waits.
    """

    def __init__(self, count: int, settled: "asyncio.Future[None]") -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self.settled, self._left = settled, count

    def settle(self, place: int, outcome: Outcome) -> None:
        """Take the outcome of one request."""
        self.outcomes[place] = outcome
        self._left -= 1
        if not self._left:
            _finish(self.settled)


class Service:
    """A model that answers, the requests that wait for it, and the model before it.

    Attributes:
        model: answers what arrives now. Requests keep the model that read them, so a reload changes none of their answers.
        previous: a rollback goes back to it.
        draining: whether the service is being stopped.
    """

    def __init__(self, model: ServedModel, settings: ServeConfig) -> None:
        self.model, self.settings = model, settings
        self.previous: ServedModel | None = None
        self.draining = False
        waiting = Waiting(settings.queue, settings.max_wait_ms / 1000, settings.max_batch, settings.max_beam_rows)
        self.metrics = Metrics(lambda: len(waiting.jobs))
        self.worker = Worker(waiting, _compute, self.metrics.count_batch, deliver=self._deliver)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: float | None = None  # of the event loop's time: when a stop waits no longer
        self._gave_up = False
        self._unsettled: set[asyncio.Future[None]] = set()
        self._reloading = asyncio.Lock()
        self._loader: threading.Thread | None = None

    def start(self) -> None:
        """Begin to compute; the event loop that runs now gets the answers."""
        self._loop = asyncio.get_running_loop()
        self.worker.start()

    def stop(self) -> None:
        """Take no more calls. Those that wait now are answered, and refused after `serve.drain_s` seconds."""
        self.draining = True
        if self._ends is None and self._loop is not None:
            self._ends = self._loop.time() + self.settings.drain_s
            self._loop.call_at(self._ends, self._give_up)

    @property
    def seconds_left(self) -> float:
        """How long a stop still waits."""
        assert self._ends is not None and self._loop is not None
        return max(0.0, self._ends - self._loop.time())

    @property
    def at_work(self) -> bool:
        """Whether a thread computes or loads. After a stop: one that it has not waited for until the end."""
        return self.worker.at_work or (self._loader is not None and self._loader.is_alive())

    def _give_up(self) -> None:
        self._gave_up = True
        for settled in self._unsettled:
            _finish(settled)

    def _deliver(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        """Wake the event loop up once per batch, not once per request."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle_all, outcomes)

    def not_ready(self) -> str | None:
        """Why a proxy should send calls elsewhere; None if it should not."""
        if self.draining:
            return "the service is being stopped"
        if len(self.worker.waiting.jobs) >= self.settings.queue:
            return "the queue is full"
        return None

    # Requests

    async def recommend(self, bodies: list[RequestBody], receive: Receive) -> tuple[int, dict[str, Any], int | None]:
        """Answer the requests of a call.

        Args:
            receive: says when the client has gone.

        Returns:
            the status, the body, and for status 503 after how many seconds to come again. The status is that of the first
            error if no request gets a list, else 200.

        Raises:
            RefusedError: the call fails as a whole.
            GoneError: the client has gone.
        """
        self._accept()
        check_limits(bodies, self.settings)
        model = self.model
        results: list[dict[str, Any] | RefusedError] = []
        asked: dict[int, tuple[_Lists, Request]] = {}
        for number, body in enumerate(bodies):
            try:
                request, search = self._read(model, body, f"requests[{number}]")
            except RefusedError as error:
                results.append(error)
                continue
            results.append({})
            asked[number] = _Lists(model, search), request
        outcomes = await self._wait(list(asked.values()), receive)
        for number, outcome in zip(asked, outcomes, strict=True):
            if outcome.error is not None:
                results[number] = self._failed(outcome.error, f"requests[{number}]")
                continue
            self.metrics.count_list(outcome.result)
            results[number] = _as_json(outcome.result, outcome)
        errors = [result for result in results if isinstance(result, RefusedError)]
        for result in results:
            self.metrics.count_requests(result.status if isinstance(result, RefusedError) else 200)
        content = {
            "model": model.digest,
            "results": [result.content if isinstance(result, RefusedError) else result for result in results],
        }
        if len(errors) < len(results):
            return 200, content, None
        return errors[0].status, {**errors[0].content, **content}, errors[0].retry_after

    async def explain(self, body: RequestBody, receive: Receive) -> dict[str, Any]:
        """The search for one history as a tree.

        Raises:
            RefusedError: there is none.
            GoneError: the client has gone.
        """
        self._accept()
        check_limits([body], self.settings, prefix="")
        model = self.model
        request, search = self._read(model, body, None)
        if not request.history:
            message = "The history is empty: its list is the popularity list, and no search is there to explain."
            raise RefusedError(422, "invalid", message, "history")
        [outcome] = await self._wait([(_Tree(model, search), request)], receive)
        if outcome.error is not None:
            raise self._failed(outcome.error, None)
        explanation: Explanation = outcome.result
        return {
            "model": model.digest,
            "normalise_over": explanation.normalise_over,
            "list": _as_json(explanation.recommendation, outcome),
            "tree": asdict(explanation.root),
            **({} if explanation.shares is None else {"shares": explanation.shares}),
        }

    def _accept(self) -> None:
        if self.draining:
            raise RefusedError(503, "stopping", "The service is being stopped.", retry_after=self.settings.drain_s)

    def _read(self, model: ServedModel, body: RequestBody, where: str | None) -> tuple[Request, Search]:
        """A request in item indices.

        Raises:
            RefusedError: an item is unknown, nothing passes the filters, or numbers do not go together.
        """
        recommender = model.recommender
        try:
            search = recommender.widths(body.k, body.num_beams)
            [request] = recommender.read([body.history], body.filters.filters, body.on_unknown)
        except MiniOneRecError as error:
            code = "nothing_left" if isinstance(error, CatalogError) else "invalid"
            raise RefusedError(422, code, str(error).removeprefix("history 0: "), where) from None
        self.metrics.items_read.inc(len(request.history))
        return request, search

    async def _wait(self, asked: Sequence[tuple[_Lists | _Tree, Request]], receive: Receive) -> list[Outcome]:
        """What became of the requests of a call once all are settled, or the time is over.

        Raises:
            RefusedError: the queue has no room.
            GoneError: the client has gone.
        """
        if not asked:
            return []
        loop, seconds = asyncio.get_running_loop(), self.settings.timeout_ms / 1000
        settled = loop.create_future()
        answers, deadline = _Answers(len(asked), settled), self.worker.clock() + seconds
        jobs = [
            Job(group, request, group.search.num_beams, len(request.history), deadline, partial(answers.settle, place))
            for place, (group, request) in enumerate(asked)
        ]
        try:
            self.worker.submit(jobs)
        except QueueFullError as full:
            self.metrics.count_requests(503, len(jobs))
            waiting, settings = len(self.worker.waiting.jobs), self.settings
            message = (
                f"{waiting} requests wait already; at most {settings.queue} may (serve.queue), and none that could not end "
                f"within {settings.timeout_ms} ms (serve.timeout_ms)."
            )
            raise RefusedError(503, "busy", message, retry_after=full.seconds) from None
        except StoppedError as error:
            raise self._failed(error, None) from None
        gone = loop.create_task(_disconnected(receive))
        gone.add_done_callback(lambda _: _finish(settled))
        timer = loop.call_later(seconds, _finish, settled)
        self._unsettled.add(settled)
        try:
            await settled
            if gone.done() and None in answers.outcomes:
                raise GoneError
            late = Outcome(error=StoppedError() if self._gave_up else DeadlineError())
            return [late if outcome is None else outcome for outcome in answers.outcomes]
        finally:
            self._unsettled.discard(settled)
            left = [job for job, outcome in zip(jobs, answers.outcomes, strict=True) if outcome is None]
            if left:
                self.worker.withdraw(left)
            timer.cancel()
            gone.cancel()

    def _failed(self, error: Exception, where: str | None) -> RefusedError:
        """What a client is told of a request that was not computed."""
        if isinstance(error, DeadlineError):
            return RefusedError(504, "deadline", f"No answer within {self.settings.timeout_ms} ms (serve.timeout_ms).", where)
        if isinstance(error, StoppedError):
            return RefusedError(503, "stopping", "The service is being stopped.", where, self.settings.drain_s)
        if isinstance(error, MiniOneRecError) and not isinstance(error, ConstraintError):  # which is the model's fault
            return RefusedError(422, "invalid", str(error), where)
        log.error("a request could not be computed", exc_info=error)
        return RefusedError(500, "internal", "The server failed at this request; its log has the details.", where)

    # Other models

    async def reload(self, body: ReloadBody) -> dict[str, Any]:
        """Load another model next to the present one, compare it with its golden lists, and let it answer from now on.

        Raises:
            RefusedError: reloads are not allowed, one is running, the service is being stopped, or the new model is broken;
                the present one then stays.
        """
        if not self.settings.allow_reload:
            raise RefusedError(403, "forbidden", "Reloading is off; serve.allow_reload true switches it on.")
        self._accept()
        if self._reloading.locked():
            raise RefusedError(409, "reloading", "Another reload is running. Wait for its answer.", retry_after=5)
        async with self._reloading:
            try:
                model = await self._other_model(body)
            except (MiniOneRecError, OSError) as error:  # OSError: a path too long, a folder that must not be read
                self.metrics.reloads.labels("refused").inc()
                folder = body.run or self.model.source
                reason = f"{folder}: cannot be read ({error.strerror or error})." if isinstance(error, OSError) else error
                raise RefusedError(422, "invalid", f"{reason} The model before keeps answering.") from None
            self.model, self.previous = model, self.model
            self.metrics.reloads.labels("rolled back" if body.rollback else "loaded").inc()
            return model.facts

    async def _other_model(self, body: ReloadBody) -> ServedModel:
        if body.rollback:
            if body.run is not None or body.stage is not None:
                raise RefusedError(422, "invalid", "A rollback takes no run and no stage.", "rollback")
            if self.previous is None:
                raise RefusedError(409, "no_model", "There is no model to go back to.", "rollback")
            return self.previous
        present = self.model
        return await self._loaded(partial(self._load, body.run or present.source, body.stage, present))

    async def _loaded(self, load: Callable[[], ServedModel]) -> ServedModel:
        """What `load` gives, in a thread that ends with the process: a stop would wait for one of the event loop's threads.

        Raises:
            RefusedError: a stop has waited long enough.
        """
        outcome: concurrent.futures.Future[ServedModel] = concurrent.futures.Future()

        def run() -> None:
            try:
                outcome.set_result(load())
            except BaseException as error:  # noqa: BLE001, whoever waits for it gets it
                outcome.set_exception(error)

        settled = asyncio.get_running_loop().create_future()
        loading = asyncio.wrap_future(outcome)
        loading.add_done_callback(lambda _: _finish(settled))
        self._loader = threading.Thread(target=run, name="minionerec-reload", daemon=True)
        self._loader.start()
        self._unsettled.add(settled)
        try:
            await settled
        finally:
            self._unsettled.discard(settled)
        if not loading.done():
            raise self._failed(StoppedError(), None)
        return loading.result()

    def _load(self, folder: str, stage: str | None, present: ServedModel) -> ServedModel:
        weights = present.recommender.model
        dtype = str(weights.dtype).removeprefix("torch.")
        model = ServedModel.load(Path(folder), self.settings, stage, str(weights.device), dtype)
        if not model.golden:
            raise CatalogError(
                f"{folder}: has no lists to compare its model with. Run minionerec eval there first, or export it."
            )
        model.check()
        model.warm_up(self.settings)
        return model


def _as_json(recommendation: Recommendation, outcome: Outcome) -> dict[str, Any]:
    """A list as clients get it.

    Raises:
        ValueError: a score is no number, which JSON cannot say.
    """
    scores = [item.score for item in recommendation.items]
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"a list has scores that are no numbers: {scores}")
    return {
        "items": [
            {
                "item_id": item.item_id,
                "title": item.title,
                "score": item.score,
                "sid": item.sid,
                "tied": item.tied,
                "place": item.place,
            }
            for item in recommendation.items
        ],
        "exact": recommendation.exact,
        "beams": recommendation.beams,
        "cut": recommendation.cut,
        "skipped": recommendation.skipped,
        "fallback": recommendation.fallback,
        "reason": recommendation.reason,
        "milliseconds": {"queue": round(1000 * outcome.waited, 2), "compute": round(1000 * outcome.computed, 2)},
    }


def _finish(settled: "asyncio.Future[None]") -> None:
    if not settled.done():
        settled.set_result(None)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _compute(group: Hashable, requests: list[Any]) -> list[Any]:
    """What the worker does with a batch."""
    assert isinstance(group, _Lists | _Tree)
    recommender = group.model.recommender
    recommendations = recommender.answer(requests, group.search)
    if isinstance(group, _Lists):
        return list(recommendations)
    return [explain(recommender, *pair) for pair in zip(requests, recommendations, strict=True)]
