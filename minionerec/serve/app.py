"""The ASGI application: routes, and the one form of every error."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from minionerec import __version__
from minionerec.config import ServeConfig
from minionerec.errors import MiniOneRecError
from minionerec.recommend.recommender import Recommender
from minionerec.serve import metrics
from minionerec.serve.frame import GONE, LISTS, Answer, Call, Frame, Recommend
from minionerec.serve.limits import RecommendBody, RefusedError, ReloadBody, RequestBody, malformed
from minionerec.serve.served import ServedModel
from minionerec.serve.service import GoneError, Service

MOST_FOUND = 100  # titles of a search
LONGEST_QUERY = 200  # characters


class Application(FastAPI):
    """FastAPI's application with a `Frame` around all of it.

    As a middleware the frame would stand inside FastAPI's outermost layers, which take a tenth of the CPU time of a call.

    Attributes:
        frame: takes every call.
    """

    frame: Frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        await self.frame(scope, receive, send)

    def stop(self) -> None:
        """Take no more calls; those that have arrived are answered within `serve.drain_s` seconds from now."""
        self.frame.bodies.stop()
        self.state.service.stop()

    async def routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call that the frame passes on."""
        await super().__call__(scope, receive, send)


def create_app(model: ServedModel | Recommender, settings: ServeConfig | None = None) -> Application:
    """The service of a model as an ASGI application; `app.state.service` is its `Service`.

    Args:
        model: a loaded and checked model, or a recommender made in memory.
        settings: limits and timings; None for the defaults. Host and port are not used.
    """
    settings = settings or ServeConfig()
    service = Service(model if isinstance(model, ServedModel) else ServedModel(model), settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        app.stop()
        service.worker.stop(service.seconds_left)

    # FastAPI's own pages of documentation load scripts from another host; /openapi.json stays.
    app = Application(title="MiniOneRec", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service

    async def recommend(body: RecommendBody, call: Call, receive: Receive) -> Answer:
        call.note = "histories of " + ",".join([str(len(each.history)) for each in body.requests[:64]])
        try:
            status, content, retry_after = await service.recommend(body.requests, receive)
        except GoneError:
            return Answer(GONE, b"")
        return Answer(status, to_json(content), retry_after)

    app.frame = Frame(app.routed, settings, service.metrics, recommend)
    _add_errors(app)
    _add_operations(app, service)
    _add_questions(app, service, recommend)
    return app


def _add_questions(app: FastAPI, service: Service, lists: Recommend) -> None:
    """The routes that ask the model, and the page."""
    page, policy = _page()

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy, "referrer-policy": "no-referrer"})

    @app.post(LISTS, summary="Lists for 1 to 64 histories, in their order")
    async def recommend(body: RecommendBody, request: Request) -> Response:
        answer = await lists(body, request.state.call, request.receive)  # `Frame` has answered most calls already
        headers = {name.decode(): value.decode() for name, value in answer.headers}
        return Response(answer.body, answer.status, headers)

    @app.post("/v1/explain", summary="One list, and the search that made it as a tree")
    async def explain(body: RequestBody, request: Request) -> Response:
        request.state.call.note = f"history of {len(body.history)}"
        try:
            return JSONResponse(await service.explain(body, request.receive))
        except GoneError:
            return Response(status_code=GONE)

    @app.get("/v1/items", summary="Items by words of their titles")
    def items(  # in a thread of its own: a search of a large catalog would hold up all other calls
        query: Annotated[str, Query(max_length=LONGEST_QUERY)] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_FOUND)] = 20,
    ) -> JSONResponse:
        return JSONResponse({"items": service.model.find(query, limit)})

    @app.get("/v1/example", summary="The history of a user of the test split")
    async def example(number: int = 0) -> JSONResponse:
        if not service.settings.shows_examples:
            raise RefusedError(403, "forbidden", "Histories of the test split are not shown; serve.examples true shows them.")
        try:
            return JSONResponse(service.model.example(number))
        except MiniOneRecError as error:
            raise RefusedError(422, "invalid", str(error), "number") from None


def _add_operations(app: FastAPI, service: Service) -> None:
    """The routes of those who run the service."""
    settings = service.settings

    @app.get("/health", summary="The process lives")
    async def health() -> JSONResponse:
        return JSONResponse({"alive": True})

    @app.get("/ready", summary="Calls are welcome")
    async def ready() -> JSONResponse:
        reason = service.not_ready()
        return JSONResponse({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

    @app.get("/metrics", summary="Counters for Prometheus")
    async def counters() -> Response:
        return Response(service.metrics.page(), media_type=metrics.CONTENT_TYPE)

    @app.get("/v1/model", summary="What is served, and the limits")
    async def model() -> JSONResponse:
        limits = {
            name: getattr(settings, name)
            for name in ("max_body", "max_requests", "max_history", "max_listed", "max_k", "max_beams", "queue", "timeout_ms")
        }
        return JSONResponse(
            {**service.model.facts, "version": __version__, "limits": limits, "examples": _examples(service)},
        )

    @app.post("/v1/reload", summary="Load another model, or go back to the one before")
    async def reload(body: ReloadBody) -> JSONResponse:
        return JSONResponse(await service.reload(body))


def _examples(service: Service) -> int:
    """How many histories of the test split the page may show."""
    return len(service.model.recommender.prompts.dataset.test) if service.settings.shows_examples else 0


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return malformed(error).response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return request.state.call.failure.response  # `Frame` writes the error into the log

    @app.exception_handler(HTTPException)
    async def refused_by_framework(request: Request, error: HTTPException) -> Response:
        code, message = {404: "not_found", 405: "method"}.get(error.status_code, "malformed"), str(error.detail)
        if error.status_code == 400:
            message = "The body cannot be read as JSON: it is nested too deep, has a number too long, or is not UTF-8."
        response = RefusedError(error.status_code, code, message).response
        response.headers.update(error.headers or {})
        return response


def _page() -> tuple[str, str]:
    """The page, and the policy that lets nothing but its own style and script act in it."""
    page = resources.files("minionerec.serve").joinpath("page.html").read_text(encoding="utf-8")
    sources: dict[str, Any] = {}
    for tag in ("style", "script"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources[tag] = f"{tag}-src 'sha256-{digest}'"
    policy = f"default-src 'none'; {sources['style']}; {sources['script']}; connect-src 'self'; img-src data:; "
    return page, policy + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
