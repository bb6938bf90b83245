"""All routes in process, without a socket."""

import asyncio
import html
import json
import re
import threading
from unittest.mock import Mock

import pytest

from minionerec.config import ServeConfig
from minionerec.errors import ConstraintError
from minionerec.serve.app import create_app
from minionerec.serve.served import ServedModel
from tests.serve.conftest import Client, running

HISTORY = ["i0", "i5", "i7"]


def error_of(response):
    """The error of a call that failed as a whole, which has no other field."""
    error = response.json()["error"]
    assert set(error) == {"code", "message", "where"}
    return error


def test_lists_over_http_are_those_of_the_recommender(recommender, ask):
    bodies = [
        {"history": HISTORY, "k": 3},
        {"history": ["i3"], "k": 5, "filters": {"deny": ["i1"], "exclude_history": True}},
        {"history": HISTORY[::-1], "k": 5, "num_beams": 20},
    ]
    response = ask(*bodies)
    assert response.status_code == 200 and response.headers["x-request-id"]
    results = response.json()["results"]
    expected = [
        recommender.recommend([HISTORY], 3)[0],
        recommender.recommend([["i3"]], 5, deny=["i1"], exclude_history=True)[0],
        recommender.recommend([HISTORY[::-1]], 5, num_beams=20)[0],
    ]
    for result, ours in zip(results, expected, strict=True):
        assert [item["item_id"] for item in result["items"]] == [item.item_id for item in ours.items]
        assert [item["score"] for item in result["items"]] == pytest.approx([item.score for item in ours.items], abs=1e-5)
        assert [(item["title"], item["sid"], item["tied"], item["place"]) for item in result["items"]] == [
            (item.title, item.sid, item.tied, item.place) for item in ours.items
        ]
        assert (result["exact"], result["beams"], result["cut"]) == (ours.exact, ours.beams, ours.cut)
        assert (result["fallback"], result["reason"], result["skipped"]) == (None, None, [])
        assert set(result["milliseconds"]) == {"queue", "compute"}


def test_each_request_of_a_call_has_its_own_list_or_error(ask):
    response = ask(
        {"history": ["i0", "nothing"]},
        {"history": []},
        {"history": ["i0", "nothing"], "on_unknown": "skip", "k": 2},
        {"history": ["i1"], "filters": {"allow": ["i2"], "deny": ["i2"]}},
    )
    assert response.status_code == 200
    unknown, empty, skipped, nothing = response.json()["results"]
    assert unknown["error"]["where"] == "requests[0]" and "no item 'nothing'" in unknown["error"]["message"]
    assert empty["fallback"] == "popularity" and not empty["exact"] and len(empty["items"]) == 10
    assert skipped["skipped"] == ["nothing"] and len(skipped["items"]) == 2
    assert nothing["error"]["code"] == "nothing_left" and nothing["error"]["where"] == "requests[3]"


def test_requests_that_arrive_together_are_one_batch(recommender):
    app = create_app(recommender, ServeConfig(max_wait_ms=300, max_batch=8))
    calls = [("POST", "/v1/recommend", {"json": {"requests": [{"history": [f"i{item}"]}]}}) for item in range(8)]
    responses = Client(app).together(*calls, ("GET", "/metrics", {}))
    together = [response.json()["results"][0]["items"][0]["item_id"] for response in responses[:-1]]
    assert together == [recommender.recommend([[f"i{item}"]])[0].items[0].item_id for item in range(8)]
    counters = app.state.service.metrics.page().decode()
    assert 'minionerec_batch_size_bucket{le="4.0"} 0.0' in counters
    assert 'minionerec_batch_size_bucket{le="8.0"} 1.0' in counters
    assert "minionerec_lists_total 8.0" in counters and "minionerec_history_items_total 8.0" in counters
    assert 'minionerec_calls_total{route="/v1/recommend",status="200"} 8.0' in counters


LIMITS = {
    "no request": ([], {}, 422, "requests", "1 to 64 requests, found 0"),
    "too many requests": ([{"history": []}] * 3, {"max_requests": 2}, 422, "requests", "1 to 2 requests, found 3"),
    "a long history": ([{"history": ["i0"] * 4}], {"max_history": 3}, 422, "requests[0].history", "3 at most, found 4"),
    "a huge k": ([{"history": [], "k": 10**9}], {}, 422, "requests[0].k", "1 to 500, found 1000000000"),
    "no k": ([{"history": [], "k": 0}], {}, 422, "requests[0].k", "1 to 500, found 0"),
    "many beams": ([{"history": [], "num_beams": 501}], {}, 422, "requests[0].num_beams", "1 to 500, found 501"),
    "a long filter": (
        [{"history": [], "filters": {"deny": ["i0"] * 3}}],
        {"max_listed": 2},
        422,
        "requests[0].filters.deny",
        "2 at most, found 3",
    ),
    "a large body": ([{"history": ["i0" * 600]}], {"max_body": 1024}, 413, "the body", "1024 bytes at most"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_what_is_too_much_is_refused_with_the_limit(case, ask):
    requests, settings, status, where, words = LIMITS[case]
    response = ask(*requests, settings=settings)
    error = error_of(response)
    assert (response.status_code, error["where"]) == (status, where) and words in error["message"]


MALFORMED = {
    "no JSON": (b"{", "not JSON"),
    "an empty body": (b"", "Field required"),
    "an unknown field": (b'{"requests": [{"history": [], "histories": []}]}', "requests[0].histories: Extra inputs"),
    "an unknown filter": (b'{"requests": [{"history": [], "filters": {"brand": "x"}}]}', "filters.brand: Extra inputs"),
    "a number for an id": (b'{"requests": [{"history": [50]}]}', "requests[0].history[0]: Input should be a valid string"),
    "a text for k": (b'{"requests": [{"history": [], "k": "10"}]}', "requests[0].k: Input should be a valid integer"),
    "true for k": (b'{"requests": [{"history": [], "k": true}]}', "requests[0].k: Input should be a valid integer"),
    "not a number": (b'{"requests": [{"history": [], "k": NaN}]}', "requests[0].k: Input should be a valid integer"),
    "half a character": (b'{"requests": [{"history": ["\\ud800"]}]}', "requests[0].history[0]: Value error, half a character"),
    "a list": (b"[]", "the body: Input should be"),
    "many mistakes": (b'{"requests": [1, 2, 3, 4, 5]}', "and 2 more"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_body_of_another_shape_says_where(case, client):
    content, words = MALFORMED[case]
    response = client("POST", "/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422 and words in error_of(response)["message"]


HOSTILE = {
    "deep": b'{"requests":' + b"[" * 200_000,
    "a number of thousands of digits": b'{"requests": [{"history": [], "k": ' + b"9" * 10_000 + b"}]}",
    "not UTF-8": b'{"requests": "\xff\xfe"}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_parser_reads_is_refused(case, client):
    response = client("POST", "/v1/recommend", content=HOSTILE[case], headers={"content-type": "application/json"})
    assert response.status_code in (400, 422) and error_of(response)["code"] == "malformed"


def test_ids_with_quotes_markup_and_line_breaks_are_only_unknown_ids(ask):
    for item_id in ('"; DROP TABLE items', "a\nb\r\nSet-Cookie: x", "<script>alert(1)</script>", "\x00", "i0\u202e"):
        response = ask({"history": [item_id]})
        error = response.json()["error"]
        assert response.status_code == 422 and repr(item_id) in error["message"] and error["where"] == "requests[0]"


def test_the_tree_is_that_of_the_recommender_and_ends_in_the_lists_scores(recommender, client):
    body = {"history": HISTORY, "k": 4, "filters": {"deny": ["i1"]}}
    answer = client("POST", "/v1/explain", json=body).json()
    expected = recommender.explain(HISTORY, 4, deny=["i1"])
    assert [item["item_id"] for item in answer["list"]["items"]] == [item.item_id for item in expected.recommendation.items]

    def leaves(node):
        return [leaf for child in node["children"] for leaf in leaves(child)] if node["children"] else [node]

    scores = {place: leaf["score"] for leaf in leaves(answer["tree"]) for place in leaf["places"]}
    ours = {item["place"]: item["score"] for item in answer["list"]["items"]}
    assert scores == pytest.approx(ours, abs=1e-5) and set(ours) == {1, 2, 3, 4}
    assert answer["normalise_over"] == "vocabulary"
    assert error_of(client("POST", "/v1/explain", json={"history": []}))["where"] == "history"
    assert error_of(client("POST", "/v1/explain", json={"history": ["i0"], "k": 0}))["where"] == "k"


def test_a_filter_that_leaves_nothing_is_no_empty_list(ask):
    response = ask({"history": HISTORY, "filters": {"allow": []}})
    assert response.status_code == 422 and response.json()["error"]["code"] == "nothing_left"


def test_another_content_type_host_path_or_method_is_refused(client):
    text = {"content-type": "text/plain"}  # which a page of another site may send without asking
    assert client("POST", "/v1/recommend", content=b'{"requests": []}', headers=text).status_code == 422
    for host in ("evil.example", "[", "[x]:80"):
        response = client("GET", "/health", headers={"host": host})
        assert response.status_code == 421 and "serve.open" in error_of(response)["message"]
    assert client("GET", "/health", headers={"host": "localhost:8000"}).status_code == 200
    assert error_of(client("GET", "/nothing"))["code"] == "not_found"
    assert error_of(client("GET", "/docs"))["code"] == "not_found"
    response = client("DELETE", "/v1/recommend")
    assert response.status_code == 405 and response.headers["allow"] == "POST"


class Held:
    """A recommender whose searches wait until they are released."""

    def __init__(self, recommender, monkeypatch):
        self.entered, self.released, self.batches = threading.Event(), threading.Event(), []
        answer = recommender.answer

        def held(requests, search):
            self.batches.append(len(requests))
            self.entered.set()
            assert self.released.wait(10)
            return answer(requests, search)

        monkeypatch.setattr(recommender, "answer", held)


@pytest.fixture
def held(recommender, monkeypatch):
    return Held(recommender, monkeypatch)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


BODY = {"requests": [{"history": HISTORY, "k": 20}]}


def test_a_full_queue_answers_at_once_and_says_when_to_come_again(recommender, held):
    app = create_app(recommender, ServeConfig(queue=2, max_requests=2, max_batch=1))

    async def scenario():
        async with running(app) as client:
            first = asyncio.ensure_future(client.post("/v1/recommend", json=BODY))
            await until(held.entered.is_set)
            others = [asyncio.ensure_future(client.post("/v1/recommend", json=BODY)) for _ in range(2)]
            await until(lambda: len(app.state.service.worker.waiting.jobs) == 2)
            full = await client.post("/v1/recommend", json=BODY)
            ready = await client.get("/ready")
            held.released.set()
            return full, ready, await asyncio.gather(first, *others), await client.get("/ready")

    full, busy, answered, ready = asyncio.run(scenario())
    assert full.status_code == 503 and int(full.headers["retry-after"]) >= 1 and error_of(full)["code"] == "busy"
    assert busy.status_code == 503 and busy.json()["reason"] == "the queue is full"
    assert [response.status_code for response in answered] == [200] * 3 and ready.status_code == 200


def test_a_request_that_takes_too_long_gets_504_and_is_not_computed(recommender, held):
    app = create_app(recommender, ServeConfig(timeout_ms=80, max_batch=1))

    async def scenario():
        async with running(app) as client:
            first = asyncio.ensure_future(client.post("/v1/recommend", json=BODY))
            await until(held.entered.is_set)
            late = await client.post("/v1/recommend", json=BODY)
            waiting = len(app.state.service.worker.waiting.jobs)
            held.released.set()
            return await first, late, waiting

    first, late, waiting = asyncio.run(scenario())
    assert {first.status_code, late.status_code} == {504} and error_of_first(late)["code"] == "deadline"
    assert waiting == 0 and held.batches == [1]


def error_of_first(response):
    [result] = response.json()["results"]
    assert response.json()["error"] == result["error"]
    return result["error"]


def test_a_client_that_goes_frees_its_place_and_is_not_computed(recommender, held):
    """The ASGI protocol itself: httpx cannot go away in the middle of a call."""
    app = create_app(recommender, ServeConfig(max_batch=1))
    content = json.dumps(BODY).encode()

    def call(gone):
        messages = [{"type": "http.request", "body": content}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/recommend",
            "headers": headers,
            "query_string": b"",
            "state": {},
        }
        return asyncio.ensure_future(app(scope, receive, send))

    async def scenario():
        async with running(app):
            first = call(asyncio.Event())
            await until(held.entered.is_set)
            gone = asyncio.Event()
            second = call(gone)
            await until(lambda: app.state.service.worker.waiting.jobs)
            gone.set()
            await second
            waiting = len(app.state.service.worker.waiting.jobs)
            held.released.set()
            await first
            return waiting

    assert asyncio.run(scenario()) == 0 and held.batches == [1]
    assert 'route="/v1/recommend",status="499"} 1.0' in app.state.service.metrics.page().decode()


def test_a_body_that_does_not_arrive_is_not_waited_for(recommender):
    app = create_app(recommender)
    app.frame.bodies.seconds = 0.05

    async def slow():
        yield b'{"requests": '
        await asyncio.sleep(0.2)
        yield b"[]}"

    response = Client(app)("POST", "/v1/recommend", content=slow())
    assert response.status_code == 408 and error_of(response)["code"] == "slow"


def test_a_body_of_unknown_length_is_counted_as_it_comes(client):
    async def endless():
        for _ in range(1000):
            yield b" " * 10_000

    response = client("POST", "/v1/recommend", content=endless())
    assert response.status_code == 413


def test_a_stop_answers_what_has_arrived_and_takes_nothing_more(recommender, held):
    app = create_app(recommender)

    async def scenario():
        async with running(app) as client:
            first = asyncio.ensure_future(client.post("/v1/recommend", json=BODY))
            await until(held.entered.is_set)
            app.state.service.draining = True
            refused, ready = await client.post("/v1/recommend", json=BODY), await client.get("/ready")
            held.released.set()
            return await first, refused, ready

    first, refused, ready = asyncio.run(scenario())
    assert first.status_code == 200
    assert refused.status_code == 503 and error_of(refused)["code"] == "stopping" and "retry-after" in refused.headers
    assert ready.status_code == 503 and ready.json()["reason"] == "the service is being stopped"


def test_a_stop_gives_up_once_after_the_time_that_it_has(recommender, held, monkeypatch):
    app = create_app(recommender, ServeConfig(drain_s=1, timeout_ms=600_000, max_batch=1))
    seconds = []
    stop = app.state.service.worker.stop
    monkeypatch.setattr(app.state.service.worker, "stop", lambda left: (seconds.append(left), stop(left)))

    async def scenario():
        async with running(app) as client:
            calls = [asyncio.ensure_future(client.post("/v1/recommend", json=BODY)) for _ in range(2)]
            await until(lambda: held.entered.is_set() and app.state.service.worker.waiting.jobs)
            app.stop()  # one is being computed, the other waits
            began = asyncio.get_running_loop().time()
            responses = await asyncio.gather(*calls)
            taken = asyncio.get_running_loop().time() - began
        held.released.set()
        return responses, taken

    responses, taken = asyncio.run(scenario())
    for response in responses:
        assert response.status_code == 503 and error_of_first(response)["code"] == "stopping"
        assert response.headers["retry-after"] == "1"
    assert taken > 0.9 and seconds == [0.0]


def test_a_body_that_has_not_arrived_does_not_hold_up_a_stop(recommender):
    app = create_app(recommender)
    app.frame.bodies.seconds = 600  # else a body that is late for another reason would be refused as well
    opened = asyncio.Event()

    async def open_body():
        yield b'{"requests": '
        opened.set()
        await asyncio.sleep(30)

    async def scenario():
        async with running(app) as client:
            before = asyncio.ensure_future(client.post("/v1/recommend", content=open_body()))
            await opened.wait()
            app.stop()
            refused = await before
            after = await client.post("/v1/recommend", content=open_body())
            return refused, after, await client.get("/ready")

    refused, after, ready = asyncio.run(asyncio.wait_for(scenario(), 10))
    for response in (refused, after):
        assert response.status_code == 503 and error_of(response)["where"] == "the body"
        assert error_of(response)["code"] == "stopping" and "retry-after" in response.headers
    assert ready.json()["reason"] == "the service is being stopped"


@pytest.mark.parametrize("fault", [RuntimeError, ConstraintError])  # the latter: the model's scores are not numbers
def test_a_fault_of_ours_is_500_without_details_and_the_next_call_is_answered(recommender, monkeypatch, caplog, fault):
    app = create_app(recommender)
    broken = threading.Event()
    answer = recommender.answer

    def sometimes(requests, search):
        if not broken.is_set():
            broken.set()
            raise fault("secret")
        return answer(requests, search)

    monkeypatch.setattr(recommender, "answer", sometimes)

    async def scenario():
        async with running(app) as client:
            return await client.post("/v1/recommend", json=BODY), await client.post("/v1/recommend", json=BODY)

    first, second = asyncio.run(scenario())
    assert first.status_code == 500 and "secret" not in first.text and error_of_first(first)["code"] == "internal"
    assert second.status_code == 200 and "secret" in caplog.text


def test_a_fault_elsewhere_is_500_too(client, monkeypatch):
    monkeypatch.setattr(ServedModel, "find", lambda *arguments: 1 / 0)
    response = client("GET", "/v1/items")
    assert response.status_code == 500 and error_of(response)["code"] == "internal" and "ZeroDivision" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]["message"]


def test_logs_hold_lengths_and_no_histories(ask, caplog):
    with caplog.at_level("INFO", logger="minionerec.serve"):
        ask({"history": ["i17", "i3"]}, {"history": ["unknown-to-all"]})
    [line] = [record.getMessage() for record in caplog.records if record.name == "minionerec.serve"]
    assert "POST /v1/recommend 200" in line and "histories of 2,1" in line
    assert "i17" not in line and "unknown-to-all" not in line


def test_items_are_found_by_the_words_of_their_titles_or_by_id(recommender, client):
    def find(query, **more):
        response = client("GET", "/v1/items", params={"query": query, **more})
        return [(item["item_id"], item["title"]) for item in response.json()["items"]]

    titles = dict(zip(recommender.items.ids, recommender.items.titles, strict=True))
    found = find("LAMP  re")
    assert found and all("lamp" in title and "re" in title for _, title in found)
    assert set(found) == {(item, title) for item, title in titles.items() if "lamp" in title and "re" in title}
    assert find("i7")[0] == ("i7", titles["i7"])
    assert find("(") == [] and find("%") == []
    popularity = dict(zip(recommender.items.ids, recommender.popularity, strict=True))
    everything = find("", limit=100)
    assert [popularity[item] for item, _ in everything] == sorted(popularity.values(), reverse=True)
    assert len(find("", limit=3)) == 3
    assert client("GET", "/v1/items", params={"limit": 10**6}).status_code == 422
    assert client("GET", "/v1/items", params={"query": "x" * 1000}).status_code == 422


def test_histories_of_the_test_split_are_shown_only_if_they_may(recommender, client):
    example = client("GET", "/v1/example", params={"number": 2}).json()
    row = recommender.prompts.dataset.test.row(2, named=True)
    assert [item["item_id"] for item in example["history"]] == [f"i{item}" for item in row["history"]]
    assert example["next"]["item_id"] == f"i{row['target']}" and example["of"] == len(recommender.prompts.dataset.test)
    assert client("GET", "/v1/example", params={"number": 10**6}).status_code == 422
    app = create_app(recommender, ServeConfig(open=True))
    example, model = Client(app).together(("GET", "/v1/example", {}), ("GET", "/v1/model", {}))
    assert example.status_code == 403 and model.json()["examples"] == 0


def test_the_model_route_says_what_is_served_and_the_limits(recommender, client):
    facts = client("GET", "/v1/model").json()
    assert (facts["items"], facts["sids"], facts["levels"], facts["num_beams"]) == (20, 14, 3, 50)
    assert facts["categories"][:1] == ["Home"] and set(facts["categories"]) >= {"Lamps", "Cups"}
    assert facts["limits"]["max_k"] == 500 and facts["examples"] == len(recommender.prompts.dataset.test)
    assert "/" not in facts["run"]
    assert client("GET", "/openapi.json").status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client):
    response = client("GET", "/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert re.findall(r"(?:https?:)?//[\w.]+", html.unescape(response.text)) in ([], ["http://www.w3.org"])


def test_a_service_for_others_answers_to_any_name(recommender):
    app = create_app(recommender, ServeConfig(open=True, host="0.0.0.0"))
    assert Client(app)("GET", "/health", headers={"host": "shop.example"}).status_code == 200


def test_reloads_are_off_unless_allowed_and_change_no_running_answer(recommender, make, monkeypatch):
    assert error_of(Client(create_app(recommender))("POST", "/v1/reload", json={}))["code"] == "forbidden"
    other = ServedModel(make(exclude_history=True), "other", digest="new")
    app = create_app(ServedModel(recommender, "first", digest="old"), ServeConfig(allow_reload=True, max_wait_ms=50))
    monkeypatch.setattr(app.state.service, "_load", lambda *arguments: other)

    async def scenario():
        async with running(app) as client:
            before = asyncio.ensure_future(client.post("/v1/recommend", json=BODY))
            await until(lambda: app.state.service.worker.waiting.jobs)
            loaded = await client.post("/v1/reload", json={"run": "other"})
            after = await client.post("/v1/recommend", json=BODY)
            back = await client.post("/v1/reload", json={"rollback": True})
            return await before, loaded, after, back, await client.post("/v1/recommend", json=BODY)

    before, loaded, after, back, again = asyncio.run(scenario())
    assert [response.json()["model"] for response in (before, after, again)] == ["old", "new", "old"]
    assert loaded.json()["digest"] == "new" and back.json()["digest"] == "old"
    lists = [[item["item_id"] for item in response.json()["results"][0]["items"]] for response in (before, after, again)]
    assert lists[0] == lists[2] and not set(HISTORY) & set(lists[1]) and set(HISTORY) & set(lists[0])
    assert 'minionerec_reloads_total{result="rolled back"} 1.0' in app.state.service.metrics.page().decode()


def test_a_broken_run_is_not_loaded_and_the_model_before_goes_on(recommender, tmp_path):
    app = create_app(recommender, ServeConfig(allow_reload=True))

    async def scenario():
        async with running(app) as client:
            bodies = [
                {"run": str(tmp_path)},
                {"rollback": True},
                {"run": 5},
                {"rollback": True, "run": "x"},
                {"run": "x" * 5000},
            ]
            responses = [await client.post("/v1/reload", json=body) for body in bodies]
            return responses, await client.post("/v1/recommend", json=BODY)

    responses, after = asyncio.run(scenario())
    assert [response.status_code for response in responses] == [422, 409, 422, 422, 422]
    assert all("The model before keeps answering" in error_of(responses[number])["message"] for number in (0, 4))
    assert after.status_code == 200


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError("denied")])
def test_a_reload_that_the_system_refuses_says_why(recommender, monkeypatch, error):
    app = create_app(recommender, ServeConfig(allow_reload=True))
    monkeypatch.setattr(app.state.service, "_load", Mock(side_effect=error))  # libraries raise some without a number

    async def scenario():
        async with running(app) as client:
            return await client.post("/v1/reload", json={"run": "other"})

    message = error_of(asyncio.run(scenario()))["message"]
    assert message == "other: cannot be read (denied). The model before keeps answering."


def test_a_stop_does_not_wait_for_a_reload_longer_than_for_other_calls(recommender, monkeypatch):
    app = create_app(recommender, ServeConfig(allow_reload=True, drain_s=1))
    released = threading.Event()
    monkeypatch.setattr(app.state.service, "_load", lambda *arguments: released.wait(60))

    async def scenario():
        async with running(app) as client:
            first = asyncio.ensure_future(client.post("/v1/reload", json={}))
            await until(app.state.service._reloading.locked)
            app.stop()
            return await client.post("/v1/reload", json={}), await first

    try:
        responses = asyncio.run(scenario())  # its end waits for all threads of the event loop
        assert not released.is_set() and app.state.service.model.recommender is recommender
    finally:
        released.set()
    for response in responses:
        assert response.status_code == 503 and error_of(response)["code"] == "stopping"


def test_a_second_reload_does_not_start_while_one_runs(recommender, monkeypatch):
    app = create_app(recommender, ServeConfig(allow_reload=True))
    released = threading.Event()
    model = ServedModel(recommender, digest="new")
    monkeypatch.setattr(app.state.service, "_load", lambda *arguments: released.wait(5) and model)

    async def scenario():
        async with running(app) as client:
            first = asyncio.ensure_future(client.post("/v1/reload", json={}))
            await until(app.state.service._reloading.locked)
            second = await client.post("/v1/reload", json={})
            answered = await client.post("/v1/recommend", json=BODY)
            released.set()
            return await first, second, answered

    first, second, answered = asyncio.run(scenario())
    assert (first.status_code, second.status_code, answered.status_code) == (200, 409, 200)
