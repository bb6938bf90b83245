"""What a client may send: the shape of each body, the limits, and the one form of every error."""

import json
from functools import cached_property
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from minionerec.config import ServeConfig
from minionerec.config.documents import first_twice
from minionerec.config.serve import MOST_NAMED, MOST_REQUESTS
from minionerec.recommend.filters import Filters

JSON_TYPE = b"application/json"
_MOST_MISTAKES = 3  # named in a message
_MOST_SHOWN = 40  # characters of a field's name in a message


class RefusedError(Exception):
    """A call or a request that gets no list.

    Attributes:
        status: of HTTP.
        code: one word for programs.
        message: for people.
        where: the field in question, None if it is none.
        retry_after: seconds after which the same call may succeed.
    """

    def __init__(self, status: int, code: str, message: str, where: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.where, self.retry_after = status, code, message, where, retry_after

    @property
    def content(self) -> dict[str, Any]:
        """The error as JSON."""
        return {"error": {"code": self.code, "message": self.message, "where": self.where}}

    @property
    def body(self) -> bytes:
        """The same, written."""
        return to_json(self.content)

    @property
    def response(self) -> Response:
        """The answer to a call that fails as a whole."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return Response(self.body, self.status, headers, JSON_TYPE.decode())


def read_json(body: bytes) -> Any:
    """What a body says; None if it is no JSON, which is then for FastAPI to refuse.

    Raises:
        RefusedError: an object has a field twice. Python would take the last, a proxy in front may have read the first.
    """
    try:
        return json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(fields)
    if len(content) < len(fields):
        twice = first_twice(name for name, _ in fields)
        raise RefusedError(422, "malformed", f"the field {twice[:_MOST_SHOWN]!r} is there twice in one object.", "the body")
    return content


def _whole(text: str) -> str:
    """Refuse half a character, which JSON can say but nothing can write.

    Raises:
        ValueError: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


class _Body(BaseModel):
    """No unknown field, no conversion: the number 50 is not the id "50"."""

    model_config = ConfigDict(extra="forbid", strict=True)


# Of a list the first mistake is named: 500,000 of them would hold up all other calls for seconds.
class FiltersBody(_Body):
    """What a list may hold; `minionerec.recommend.filters.Filters` describes the fields."""

    allow: list[Text] | None = Field(default=None, fail_fast=True)
    deny: list[Text] = Field(default_factory=list, fail_fast=True)
    category: Text | None = None
    named: list[Text] = Field(default_factory=list, fail_fast=True)
    exclude_history: bool | None = None

    @cached_property
    def filters(self) -> Filters:
        """The same for the recommender."""
        return Filters(self.allow, self.deny, self.category, self.named, self.exclude_history)


_NO_FILTERS = FiltersBody()  # one for all requests without any: nothing changes a body


class RequestBody(_Body):
    """One history: items' ids, oldest first."""

    history: list[Text] = Field(fail_fast=True)
    k: int = 10
    filters: FiltersBody = Field(default_factory=lambda: _NO_FILTERS)
    num_beams: int | None = None
    on_unknown: Literal["error", "skip"] = "error"


class RecommendBody(_Body):
    """The body of `/v1/recommend`."""

    requests: list[RequestBody] = Field(max_length=MOST_REQUESTS)

    @classmethod
    def read(cls, content: Any) -> "RecommendBody | None":
        """What FastAPI makes of the content of a body; None if it would refuse it, which is then for FastAPI to do."""
        try:
            return cls.model_validate(content, from_attributes=True)
        except ValidationError:
            return None


class ReloadBody(_Body):
    """The body of `/v1/reload`: the folder of a run, the present one again if there is none; or back to the model before."""

    run: Text | None = None
    stage: Text | None = None
    rollback: bool = False


def check_limits(requests: list[RequestBody], settings: ServeConfig, prefix: str = "requests[{}].") -> None:
    """Refuse what is too much, before anything is looked up.

    Args:
        prefix: of a field of the request with this number.

    Raises:
        RefusedError: the message has the limit.
    """
    if not 1 <= len(requests) <= settings.max_requests:
        raise _limit("requests", f"a call has 1 to {settings.max_requests} requests, found {len(requests)}")
    for number, request in enumerate(requests):
        where = prefix.format(number)
        for name, items, most in (
            ("history", request.history, settings.max_history),
            ("filters.allow", request.filters.allow or [], settings.max_listed),
            ("filters.deny", request.filters.deny, settings.max_listed),
            ("filters.named", request.filters.named, MOST_NAMED),
        ):
            if len(items) > most:
                raise _limit(where + name, f"{most} at most, found {len(items)}")
        for name, value, most in (
            ("k", request.k, settings.max_k),
            ("num_beams", request.num_beams, settings.max_beams),
        ):
            if value is not None and not 1 <= value <= most:
                raise _limit(where + name, f"1 to {most}, found {value}")


def _limit(where: str, message: str) -> RefusedError:
    return RefusedError(422, "limit", f"{where}: {message}.", where)


def malformed(error: RequestValidationError) -> RefusedError:
    """What is wrong with a body or a query; what was sent is not repeated, it may be long."""
    mistakes = []
    for mistake in error.errors()[:_MOST_MISTAKES]:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"][1:]).lstrip(".")
        if mistake["type"] == "json_invalid":
            where, text = f"byte {mistake['loc'][-1]}", f"not JSON ({mistake['ctx']['error']})"
        else:
            text = mistake["msg"]
        mistakes.append((where or "the body", text))
    message = "; ".join(f"{where}: {text}" for where, text in mistakes)
    left = len(error.errors()) - len(mistakes)
    return RefusedError(422, "malformed", message + (f"; and {left} more" if left > 0 else "") + ".", mistakes[0][0])
