"""A call that `Frame` answers itself gets the answer that FastAPI's route gives."""

import asyncio
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from minionerec.config import ServeConfig
from minionerec.serve.app import create_app
from minionerec.serve.limits import RecommendBody, read_json
from tests.examples import examples
from tests.serve.conftest import running
from tests.serve.test_app import HOSTILE, LIMITS, MALFORMED

SHORT, LONG = "application/json", "application/json; charset=utf-8"  # FastAPI reads both alike; `Frame` answers only the first
GOOD = {
    "one": [{"history": ["i0", "i5"], "k": 3}],
    "two and an error": [{"history": ["i3"], "filters": {"deny": ["i1"]}}, {"history": ["nothing"]}, {"history": []}],
    "only errors": [{"history": ["nothing"]}, {"history": ["i1"], "filters": {"allow": []}}],
    "skipped": [{"history": ["i0", "nothing"], "on_unknown": "skip", "num_beams": 20}],
}


def both(app, *bodies):
    """The answers of both ways to calls with these bodies, and how many of each FastAPI's route has given."""
    routed = []
    [route] = [route for route in app.routes if getattr(route, "path", "") == "/v1/recommend"]
    handle = route.app

    async def counted(scope, receive, send):
        routed.append(dict(scope["headers"])[b"content-type"].decode())
        await handle(scope, receive, send)

    route.app = counted

    async def answer():
        async with running(app) as client:
            return [
                [await client.post("/v1/recommend", content=body, headers={"content-type": kind}) for kind in (SHORT, LONG)]
                for body in bodies
            ]

    return asyncio.run(answer()), [routed.count(kind) for kind in (SHORT, LONG)]


def seen(response):
    """What a client sees, without what differs from call to call."""
    content = response.json()
    for result in content.get("results", []):
        result.pop("milliseconds", None)
    headers = {name: value for name, value in response.headers.items() if name not in ("x-request-id", "content-length")}
    return response.status_code, headers, [*content], content


def test_a_good_call_is_answered_here_as_fastapi_answers_it(recommender):
    app = create_app(recommender)
    answers, routed = both(app, *(json.dumps({"requests": requests}).encode() for requests in GOOD.values()))
    assert routed == [0, len(GOOD)]
    for here, there in answers:
        assert seen(here) == seen(there)
        assert here.headers["x-request-id"] and here.headers["x-content-type-options"] == "nosniff"
    assert [here.status_code for here, _ in answers] == [200, 200, 422, 200]
    counters = app.state.service.metrics.page().decode()
    assert 'minionerec_calls_total{route="/v1/recommend",status="200"} 6.0' in counters
    assert 'minionerec_call_seconds_count{route="/v1/recommend"} 8.0' in counters


def test_what_has_another_shape_is_left_to_fastapi(recommender):
    bodies = [body for body, _ in MALFORMED.values()] + list(HOSTILE.values())
    answers, routed = both(create_app(recommender), *bodies)
    assert routed == [len(bodies)] * 2
    for here, there in answers:
        assert seen(here) == seen(there) and here.status_code in (400, 422)


@pytest.mark.parametrize("case", LIMITS)
def test_limits_hold_in_both_ways(case, recommender):
    requests, limits, status, *_ = LIMITS[case]
    [[here, there]], _ = both(create_app(recommender, ServeConfig(**limits)), json.dumps({"requests": requests}).encode())
    assert seen(here) == seen(there) and here.status_code == status


def test_of_two_content_types_both_take_the_first(recommender):
    body = json.dumps({"requests": GOOD["one"]}).encode()

    async def answer(app, kinds):
        async with running(app) as client:
            headers = [("content-type", kind) for kind in kinds]
            return (await client.post("/v1/recommend", content=body, headers=headers)).status_code

    assert asyncio.run(answer(create_app(recommender), [SHORT, "text/plain"])) == 200
    assert asyncio.run(answer(create_app(recommender), ["text/plain", SHORT])) == 422


TWICE = {
    "at the top": b'{"requests": [], "requests": [{"history": []}]}',
    "in a request": b'{"requests": [{"history": ["i0"], "k": 1, "k": 2}]}',
    "in a filter": b'{"requests": [{"history": [], "filters": {"deny": [], "deny": ["i0"]}}]}',
    "equal": b'{"requests": [{"history": [], "history": []}]}',
    "written in two ways": b'{"requests": [{"history": [], "k": 1, "\\u006b": 1}]}',
    "half a character": b'{"requests": [], "\\ud800": 1, "\\ud800": 2}',
}


@pytest.mark.parametrize("case", TWICE)
def test_a_field_that_is_there_twice_is_refused_in_both_ways(case, recommender):
    [[here, there]], routed = both(create_app(recommender), TWICE[case])
    assert seen(here) == seen(there) and here.status_code == 422 and routed == [0, 0]
    assert "is there twice in one object" in here.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{%s,"89999":1}' % b",".join(b'"%d":1' % n for n in range(90_000)), "'89999' is there twice"),
        (b'{"requests":[%s]}' % b",".join([b"{}"] * 300_000), "requests: List should have at most 10000 items"),
        (b'{"requests":[{"history":[%s]}]}' % b",".join([b"1"] * 300_000), "requests[0].history[0]: Input should be a valid"),
    ],
)
def test_a_body_full_of_mistakes_does_not_hold_up_other_calls(client, body, message):
    """A field of 100,000 that was there twice took 77 seconds of the one thread that answers."""
    began = time.process_time()
    response = client("POST", "/v1/recommend", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422 and message in response.json()["error"]["message"]
    assert time.process_time() - began < 1.5


def test_a_field_that_is_there_twice_is_refused_by_every_route(client):
    for path, body in (("explain", b'{"history": ["i0"], "k": 1, "k": 1}'), ("reload", b'{"run": "a", "run": "b"}')):
        response = client("POST", f"/v1/{path}", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 422 and "is there twice" in response.json()["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 600) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
REQUEST = st.fixed_dictionaries(
    {"history": st.lists(st.text(max_size=3), max_size=3) | JSON},
    optional={
        "k": st.integers() | JSON,
        "num_beams": st.integers() | JSON,
        "on_unknown": st.sampled_from(["skip", "error"]) | JSON,
        "filters": st.fixed_dictionaries({}, optional={"deny": st.lists(st.text(max_size=3)) | JSON, "category": JSON}) | JSON,
    },
)


VALIDATOR = TypeAdapter(RecommendBody)


@pytest.mark.fast
@examples(60)
@given(
    st.fixed_dictionaries({"requests": st.lists(REQUEST | JSON, max_size=3) | JSON}) | JSON,
    st.sampled_from(["utf-8", "utf-16"]),
)
def test_a_body_is_read_here_if_and_only_if_it_has_the_shape(content, encoding):
    body = json.dumps(content).encode(encoding)
    try:
        expected = VALIDATOR.validate_python(content, from_attributes=True)
    except ValidationError:
        expected = None
    assert RecommendBody.read(read_json(body)) == expected
