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
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minionerec.config import ServeConfig
from minionerec.config.serve import LOOPBACK
from minionerec.serve.limits import RecommendBody, RefusedError
from minionerec.serve.metrics import Metrics

BODY_SECONDS = 10.0  # in which a body must arrive
LISTS = "/v1/recommend"  # the route that is answered from here
GONE = 499  # the status, in log and metrics, of a call whose client has gone
log = logging.getLogger("minionerec.serve")

Recommend = Callable[[RecommendBody, "Call", Receive], Awaitable[Response]]


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
        self.body_seconds = body_seconds
        self._prefix, self._numbers = secrets.token_hex(3), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = Call(scope, send, f"{self._prefix}-{next(self._numbers)}")
        try:
            headers = dict([*scope["headers"]][::-1])  # of two with one name the first, which FastAPI takes
            self._check_host(headers.get(b"host", b"").decode("latin-1"))
            body = await self._body(headers, receive)
            asked = None
            if scope["path"] == LISTS and scope["method"] == "POST" and headers.get(b"content-type") == b"application/json":
                asked = RecommendBody.read(body)
            if asked is None:
                scope["state"] = {**scope.get("state", {}), "call": call}
                await self.app(scope, _replayed(body, receive), call.send)
            else:
                call.route = LISTS
                response = await self.recommend(asked, call, receive)
                await response(scope, receive, call.send)
        except RefusedError as refusal:
            await refusal.response(scope, receive, call.send)
        except ConnectionResetError:
            call.status = GONE
        except Exception:
            log.exception("call %s failed", call.name)
            if call.began_to_answer:
                raise  # the server cuts the connection, so that nobody takes half an answer for a whole one
            message = f"The server failed; its log has the details under {call.name}."
            await RefusedError(500, "internal", message).response(scope, receive, call.send)
        finally:
            self._count(call, scope)

    def _check_host(self, host: str) -> None:
        """Refuse a page of another site that has its name point to this machine: it could otherwise read our answers.

        Raises:
            RefusedError: the service is for this machine only, and was asked by another name.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets around what is no IPv6 address
            name = ""
        if not self.settings.open and name not in (*LOOPBACK, self.settings.host):
            raise RefusedError(
                421,
                "host",
                "This service answers to 127.0.0.1, localhost and ::1 only; serve.open true lifts that.",
                "host",
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body.

        Raises:
            RefusedError: it is too large or too slow.
            ConnectionResetError: the client has gone.
        """
        most = self.settings.max_body
        too_large = RefusedError(413, "too_large", f"the body: {most} bytes at most.", "the body")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 20 or int(length) > most:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise RefusedError(
                408, "slow", f"the body did not arrive within {self.body_seconds:g} seconds.", "the body"
            ) from None

    def _count(self, call: "Call", scope: Scope) -> None:
        path = call.route or getattr(scope.get("route"), "path", "other")  # a client may make up any number of paths
        seconds = time.perf_counter() - call.began
        self.metrics.calls.labels(path, str(call.status)).inc()
        self.metrics.total.labels(path).observe(seconds)
        level = logging.WARNING if call.status >= 500 else logging.INFO
        log.log(level, "%s %s %s %d %.1f ms %s", call.name, scope["method"], path, call.status, 1000 * seconds, call.note)


class Call:
    """A call while it is answered.

    Attributes:
        name: for the log; the client gets it in the header `x-request-id`.
        status: of the answer.
        note: for the log, never what is in a history.
        route: of a call that no route of the application answers, for log and metrics.
        began_to_answer: whether the client has the status already.
    """

    def __init__(self, scope: Scope, send: Send, name: str) -> None:
        self.name, self.note, self.route, self.status, self.began_to_answer = name, "", "", GONE, False
        self.began = time.perf_counter()
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a part of the answer, the first with our headers."""
        if message["type"] == "http.response.start":
            self.status, self.began_to_answer = message["status"], True
            headers = [(b"x-request-id", self.name.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", []), *headers]}
        await self._send(message)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that begins with a body that was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
