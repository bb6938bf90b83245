"""What a client may send to a socket before any of our code sees a call; an application that says what it got stands behind."""

import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn

from minionerec.serve import protocol

pytestmark = pytest.mark.fast

PROTOCOLS = {"h11": protocol.H11, "installed": protocol.Protocol}  # the latter is httptools if that is there


async def tell(scope, receive, send):
    """An application that answers with what it got."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [name.decode() for name, _ in scope["headers"]]
    content = json.dumps({"path": scope["path"], "headers": headers, "body": body.decode()}).encode()
    start = {"status": 200, "headers": [(b"content-length", str(len(content)).encode())]}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": content})


@contextlib.contextmanager
def serving(application, http):
    """A server in a thread of its own; gives its address and the server."""
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=http, lifespan="off", log_config=None, timeout_keep_alive=1, loop="asyncio")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: running.run(sockets=[bound]))
    thread.start()
    while not running.started:
        time.sleep(0.005)
    try:
        yield bound.getsockname(), running
    finally:
        running.should_exit = True
        thread.join(10)
        bound.close()


@pytest.fixture(params=PROTOCOLS, scope="module")
def talk(request):
    """A function that sends parts of text over a new connection and returns all that comes back until it is closed."""

    def talk(*parts):
        with socket.create_connection(address) as connection:
            connection.settimeout(10)
            received = b""
            try:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(0.002 if len(parts) > 1 else 0)
                while chunk := connection.recv(1 << 16):
                    received += chunk
            except ConnectionError:  # cut off while it was still sending
                pass
            return received

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "HEADER_SECONDS", 0.5)
        with serving(tell, PROTOCOLS[request.param]) as (address, _):
            yield talk


def call(*headers, body=b"", method=b"POST", host=b"Host: x\r\n"):
    """A call as bytes; the connection is closed after it."""
    lines = b"".join(header + b"\r\n" for header in headers)
    length = b"" if b"chunked" in lines else b"Content-Length: %d\r\n" % len(body)
    return method + b" /lists?a=1 HTTP/1.1\r\n" + host + length + b"Connection: close\r\n" + lines + b"\r\n" + body


def answers(received):
    """The statuses and the JSON of all answers."""
    parts = received.split(b"HTTP/1.1 ")[1:]
    return [(int(part[:3]), json.loads(part.partition(b"\r\n\r\n")[2] or b"null")) for part in parts]


def refused(received):
    """Whether the connection was cut off, with status 400 or, for one that went on sending, without."""
    return received == b"" or received.startswith(b"HTTP/1.1 400 ")


def test_a_call_arrives_whole_also_bit_by_bit_and_in_chunks(talk):
    whole = call(b"X-Name: value", body=b"hello")
    [(status, got)] = answers(talk(whole))
    assert (status, got["path"], got["body"]) == (200, "/lists", "hello") and "x-name" in got["headers"]
    assert answers(talk(*(whole[place : place + 7] for place in range(0, len(whole), 7)))) == [(status, got)]
    chunks = b"2;extension=1\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    [(status, got)] = answers(talk(call(b"Transfer-Encoding: chunked", body=chunks)))
    assert (status, got["body"]) == (200, "hello")


def test_calls_that_do_not_wait_for_answers_are_answered_in_order(talk):
    first = call(body=b"one").replace(b"Connection: close\r\n", b"")
    assert [got["body"] for _, got in answers(talk(first + first.replace(b"one", b"two") + call(body=b"three")))] == [
        "one",
        "two",
        "three",
    ]


def statuses(received):
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_a_malformed_call_is_refused_after_those_ahead_of_it_are_answered(talk):
    good = call(body=b"one").replace(b"Connection: close\r\n", b"")
    bad_chunk = call(b"Transfer-Encoding: chunked", body=b"2\r\nhe\r\nx\r\n")
    for malformed in (AMBIGUOUS["no HTTP"], AMBIGUOUS["two hosts"], bad_chunk):
        for count in range(4):
            received = talk(count * good + malformed + good)
            assert statuses(received) == count * [200] + [400]
            assert received.count(b'"body": "one"') == count


def test_a_body_is_asked_for_if_the_client_waits_to_be_asked(talk):
    assert talk(call(b"Expect: 100-continue"), b"").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_a_header_has_a_bound_whatever_it_is_made_of(talk):
    line = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    assert refused(talk(line + b"X: " + b"y" * 2**20 + b"\r\n\r\n"))  # one value
    assert refused(talk(line + b"X" * 2**20 + b": y\r\n\r\n"))  # one name
    assert refused(talk(line + b"".join(b"X%d: y\r\n" % number for number in range(100_000)) + b"\r\n"))
    assert refused(talk(b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert refused(talk(line + b"X: ", *[b"y" * 10_000] * 60))  # a value that never ends
    [(status, _)] = answers(talk(call(b"X: " + b"y" * 10_000)))
    assert status == 200


def test_trailers_have_a_bound_and_never_become_headers(talk):
    chunked = b"Transfer-Encoding: chunked"
    [(status, got)] = answers(talk(call(chunked, body=b"2\r\nhe\r\n0\r\nContent-Type: x\r\n\r\n")))
    assert status == 200 and "content-type" not in got["headers"]
    trailers = b"".join(b"X%d: y\r\n" % number for number in range(100_000))
    received = talk(call(chunked, body=b"2\r\nhe\r\n0\r\n" + trailers + b"\r\n"))
    assert b"400 Bad Request" in received or received == b""


AMBIGUOUS = {  # two readers of the same bytes could see different calls
    "no host": call(host=b""),
    "two hosts": call(host=b"Host: x\r\nHost: y\r\n"),
    "two lengths": call(b"Content-Length: 7", body=b"hello"),
    "a length with a sign": call(method=b"GET").replace(b"Length: 0", b"Length: +0"),
    "another coding": call(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "a blank before the colon": call(b"X : y"),
    "a zero byte in a value": call(b"X: a\0b"),
    "no version": b"GET /\r\nHost: x\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 100,
    "a target that is not ASCII": call().replace(b"/lists", b"/l\xffsts"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(case, talk):
    received = talk(AMBIGUOUS[case])
    assert received.startswith(b"HTTP/1.1 400 ") and received.count(b"HTTP/1.1 ") == 1


def test_a_call_that_offers_another_protocol_is_answered_in_this_one(talk):
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    whole = call(*offer, body=b"hello").replace(b"Connection: close\r\n", b"")
    last = call(body=b"last")
    for parts in (
        [whole + last],
        [whole, last],
        [whole[:-3], whole[-3:] + last],
        [whole[:-8], whole[-8:-2], whole[-2:] + last],
    ):
        assert [(status, got["body"]) for status, got in answers(talk(*parts))] == [(200, "hello"), (200, "last")]
    received = talk(whole.replace(offer[1], b"X: y") + whole + last)  # the offer next to a call that is not yet answered
    assert b"HTTP/1.1 400 " in received or [got["body"] for _, got in answers(received)] == ["hello", "hello", "last"]


def test_a_client_that_does_not_go_on_is_cut_off(talk):
    began = time.monotonic()
    assert talk(b"POST /lists HTTP/1.1\r\nHost: x") == b""
    assert talk() == b""
    assert 0.5 <= time.monotonic() - began < 8


@pytest.mark.parametrize("http", PROTOCOLS)
def test_a_client_that_closes_its_side_counts_as_gone(http):
    received = []

    async def wait(scope, receive, send):
        """An application that answers nothing while its client is there."""
        while not received or received[-1]["type"] != "http.disconnect":
            received.append(await receive())

    with serving(wait, PROTOCOLS[http]) as (address, _), socket.create_connection(address) as connection:
        connection.settimeout(10)
        connection.sendall(call(body=b"hello"))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert received[0]["body"] == b"hello" and received[-1] == {"type": "http.disconnect"}


SIZE = 32 * 2**20  # more than the buffers of the system take


async def tell_much(scope, receive, send):
    """An application with a large answer."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % SIZE)]})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


@pytest.mark.parametrize("http", PROTOCOLS)
def test_a_client_that_does_not_read_is_cut_off_and_a_slow_one_is_not(http, monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 1.0)
    with (
        serving(tell_much, PROTOCOLS[http]) as (address, running),
        socket.create_connection(address) as slow,
        socket.create_connection(address) as silent,
    ):
        for connection in (slow, silent):
            connection.settimeout(10)
            connection.sendall(call())
        assert drained(slow, pause=0.02) > SIZE
        began = time.monotonic()
        while running.server_state.connections and time.monotonic() < began + 10:  # else it may stay as long as it likes
            time.sleep(0.01)
        assert drained(silent) < SIZE


def drained(connection, pause=0.0):
    """How many bytes come until the connection is closed or cut off."""
    received = 0
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(1 << 20):
            received += len(chunk)
            time.sleep(pause)
    return received
