"""What stands around every call: who may ask, how large and how slow a body may be, and one line in the log.

A well-formed call for lists is answered from here: the layers of FastAPI take most of the CPU time of a call
(benchmarks/serve.py). All else goes through them, so every refusal is FastAPI's and its schema has all routes.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minionerec.config import ServeConfig
from minionerec.config.serve import LOOPBACK
from minionerec.serve.limits import JSON_TYPE, RecommendBody, RefusedError, read_json
from minionerec.serve.metrics import Metrics

BODY_SECONDS = 10.0  # in which a body must arrive
LISTS = "/v1/recommend"  # the route that is answered from here
GONE = 499  # the status, in log and metrics, of a call whose client has gone
_HOSTS = 256  # names by which the service was asked, remembered
log = logging.getLogger("minionerec.serve")


class Answer(NamedTuple):
    """An answer in JSON.

    Attributes:
        status: of HTTP.
        body: the JSON.
        retry_after: seconds after which the same call may succeed.
    """

    status: int
    body: bytes
    retry_after: int | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that tell this."""
        headers = [(b"content-length", b"%d" % len(self.body)), (b"content-type", JSON_TYPE)]
        return headers if self.retry_after is None else [(b"retry-after", b"%d" % self.retry_after), *headers]


Recommend = Callable[[RecommendBody, "Call", Receive], Awaitable[Answer]]


class Frame:
    """An ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeConfig,
        metrics: Metrics,
        recommend: Recommend,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        """Stand around an application.

        Args:
            recommend: answers a call for lists, as the application's route does.
            body_seconds: in which a body must arrive.
        """
        self.app, self.settings, self.metrics, self.recommend = app, settings, metrics, recommend
        self.bodies = OpenBodies(settings, body_seconds)
        self._prefix, self._numbers = secrets.token_hex(3), itertools.count(1)
        self._is_ours = lru_cache(_HOSTS)(self._is_our_name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = Call(send, f"{self._prefix}-{next(self._numbers)}")
        try:
            headers = dict([*scope["headers"]][::-1])  # of two with one name the first, which FastAPI takes
            self._check_host(headers.get(b"host", b""))
            body = await self._body(headers, receive)
            asked, is_json = None, headers.get(b"content-type") == JSON_TYPE
            if body:
                content = read_json(body)
                if is_json and scope["path"] == LISTS and scope["method"] == "POST":
                    asked = RecommendBody.read(content)
            if asked is None:
                await self.app(_inner(scope, call), _replayed(body, receive), call.send)
            else:
                call.route = LISTS
                await call.answer(await self.recommend(asked, call, receive))
        except RefusedError as refusal:
            await call.refuse(refusal)
        except ConnectionResetError:
            call.status = GONE
        except Exception:
            log.exception("call %s failed", call.name)
            if not call.began_to_answer:
                await call.refuse(call.failure)
            elif not call.is_answered:
                raise  # the server cuts the connection, so that nobody takes half an answer for a whole one
        finally:
            self._count(call, scope)

    def _check_host(self, host: bytes) -> None:
        """Refuse a page of another site that has its name point to this machine: it could otherwise read our answers.

        Raises:
            RefusedError: the service is for this machine only, and was asked by another name.
        """
        if not self.settings.open and not self._is_ours(host):
            raise RefusedError(
                421,
                "host",
                "This service answers to 127.0.0.1, localhost and ::1 only; serve.open true lifts that.",
                "host",
            )

    def _is_our_name(self, host: bytes) -> bool:
        try:
            name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
        except ValueError:  # brackets around what is no IPv6 address
            return False
        return name in (*LOOPBACK, self.settings.host)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body.

        Raises:
            RefusedError: it is too large or too slow.
            ConnectionResetError: the client has gone.
        """
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 20 or int(length) > self.settings.max_body:
            raise _too_large(self.settings)
        return await self.bodies.read(receive)

    def _count(self, call: "Call", scope: Scope) -> None:
        route = call.route or getattr(call.scope.get("route"), "path", "other")  # a client may make up any number of paths
        seconds = time.perf_counter() - call.began
        self.metrics.count_call(route, call.status, seconds)
        level = logging.WARNING if call.status >= 500 else logging.INFO
        log.log(level, "%s %s %s %d %.1f ms %s", call.name, scope["method"], route, call.status, 1000 * seconds, call.note)


class OpenBodies:
    """The bodies that have not arrived yet.

    Nearly all bodies arrive with their headers, so none has a timer of its own: one looks after all of them.
    """

    def __init__(self, settings: ServeConfig, seconds: float) -> None:
        """Await bodies.

        Args:
            seconds: in which one must arrive; it is refused at most half of that later.
        """
        self.settings, self.seconds = settings, seconds
        self._began: dict[asyncio.Task[object], float] = {}
        self._cut_off: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    def stop(self) -> None:
        """Refuse those that have not arrived, and from now on every one that does not come with its headers."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._look()

    async def read(self, receive: Receive) -> bytes:
        """A body, once it is whole.

        Raises:
            RefusedError: it is too large or too slow, or the service is being stopped.
            ConnectionResetError: the client has gone.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancelled = task.cancelling()
        self._began[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(0 if self._stopping else self.seconds / 2, self._look)
        try:
            return await self._whole(receive)
        except asyncio.CancelledError:
            if task not in self._cut_off or task.uncancel() > cancelled:
                raise  # someone else ends the call
            if self._stopping:
                message, seconds = "The service is being stopped, and the body has not arrived.", self.settings.drain_s
                raise RefusedError(503, "stopping", message, "the body", seconds) from None
            raise RefusedError(408, "slow", f"the body did not arrive within {self.seconds:g} seconds.", "the body") from None
        finally:
            del self._began[task]
            self._cut_off.discard(task)

    async def _whole(self, receive: Receive) -> bytes:
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.settings.max_body:
                raise _too_large(self.settings)
            if not message.get("more_body"):
                return b"".join(chunks)

    def _look(self) -> None:
        """Cut off what is late, and look again later if there is any."""
        loop = asyncio.get_running_loop()
        latest = loop.time() - self.seconds
        for task, began in self._began.items():
            if (self._stopping or began <= latest) and task not in self._cut_off:
                self._cut_off.add(task)
                task.cancel()
        again = self._began and not self._stopping  # a body that begins later has a look of its own
        self._timer = loop.call_later(self.seconds / 2, self._look) if again else None


def _too_large(settings: ServeConfig) -> RefusedError:
    return RefusedError(413, "too_large", f"the body: {settings.max_body} bytes at most.", "the body")


class Call:
    """A call while it is answered.

    Attributes:
        name: for the log; the client gets it in the header `x-request-id`.
        began: when it arrived (seconds).
        status: of the answer.
        note: for the log, never what is in a history.
        route: of a call that no route of the application answers, for log and metrics.
        scope: of ASGI, as the application has it.
        began_to_answer: whether the client has the status already.
        is_answered: whether the client has the whole answer.
    """

    __slots__ = ("_send", "began", "began_to_answer", "is_answered", "name", "note", "route", "scope", "status")

    def __init__(self, send: Send, name: str) -> None:
        self.name, self.note, self.route, self.status = name, "", "", GONE
        self.scope: Scope = {}
        self.began_to_answer = self.is_answered = False
        self.began = time.perf_counter()
        self._send = send

    @property
    def failure(self) -> RefusedError:
        """What a client is told of a fault of ours."""
        return RefusedError(500, "internal", f"The server failed; its log has the details under {self.name}.")

    async def send(self, message: Message) -> None:
        """Send a part of the answer, the first with our headers."""
        if message["type"] == "http.response.start":
            self.status, self.began_to_answer = message["status"], True
            headers = [(b"x-request-id", self.name.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", []), *headers]}
        elif not message.get("more_body"):
            self.is_answered = True
        await self._send(message)

    async def answer(self, answer: Answer) -> None:
        """Send a whole answer."""
        await self.send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await self.send({"type": "http.response.body", "body": answer.body})

    async def refuse(self, refusal: RefusedError) -> None:
        """Send an error."""
        await self.answer(Answer(refusal.status, refusal.body, refusal.retry_after))


def _inner(scope: Scope, call: Call) -> Scope:
    """What the application sees of a call: HEAD is GET without the body, which the server leaves out of the answer."""
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    call.scope = {**scope, "method": method, "state": {**scope.get("state", {}), "call": call}}
    return call.scope


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that begins with a body that was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
