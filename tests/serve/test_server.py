"""The process: a real socket, clients that hang, a stop by signal."""

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from minionerec import commands
from minionerec.config import Config, ServeConfig
from minionerec.errors import ConfigError
from minionerec.recommend.recommender import Recommender
from minionerec.serve import protocol, server
from minionerec.serve.app import create_app
from tests.recommend.conftest import write_run


@pytest.fixture
def served(recommender, monkeypatch):
    """A server in a thread of its own, on a free port; it gives its port."""
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    settings = ServeConfig(port=0, drain_s=5)
    app, bound = create_app(recommender, settings), server.bind(settings)
    config = server.configure(app, settings)
    running = server.Server(config)
    thread = threading.Thread(target=lambda: running.run(sockets=[bound]))
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield bound.getsockname()[1]
    running.handle_exit(signal.SIGTERM, None)
    thread.join(10)
    assert not thread.is_alive()


def test_a_real_socket_answers_and_clients_that_hang_are_cut_off(served):
    hanging = [socket.create_connection(("127.0.0.1", served)) for _ in range(50)]
    for number, connection in enumerate(hanging):
        if number % 2:
            connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x")
    with httpx.Client(base_url=f"http://127.0.0.1:{served}") as client:
        for _ in range(2):
            response = client.post("/v1/recommend", json={"requests": [{"history": ["i0", "i5"], "k": 3}]})
            assert response.status_code == 200 and len(response.json()["results"][0]["items"]) == 3
        assert client.get("/ready").json() == {"ready": True, "reason": None}
        assert "minionerec_lists_total 2.0" in client.get("/metrics").text
    for connection in hanging:
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):  # on a busy machine it is cut off before what it sent is read
            assert connection.recv(1) == b""
        connection.close()


def test_a_head_is_answered_as_a_get_without_the_body(served):
    with httpx.Client(base_url=f"http://127.0.0.1:{served}") as client:
        for path in ("/", "/health", "/ready", "/v1/model"):
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) == len(get.content)
            assert head.headers["content-type"] == get.headers["content-type"]
        assert client.head("/nothing").status_code == 404 and client.head("/v1/recommend").status_code == 405


def test_a_taken_port_is_refused_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"serve.port {port}: cannot be had .Address already in use"):
            server.serve(Path("no run"), ServeConfig(port=port))


def test_a_start_is_not_held_up_by_collections_and_calls_are_not_either(recommender, monkeypatch):
    seen = []
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: seen.append((gc.isenabled(), gc.get_freeze_count() > 0)))
    settings = ServeConfig(port=0)

    def serve(*arguments):
        seen.append(gc.isenabled())
        with server.bind(settings) as bound:
            server.run(create_app(recommender, settings), bound, settings)
        raise ConfigError("no")

    monkeypatch.setattr(server, "serve", serve)
    for name in ("_log_to_the_screen", "_allow_connections"):
        monkeypatch.setattr(server, name, lambda: None)
    monkeypatch.setattr("minionerec.pipeline.set_up", lambda threads: None)
    try:
        with pytest.raises(ConfigError, match="no"):
            commands.serve(Config(), Path("run"), None, None, None)
        assert seen == [False, (True, True)] and gc.isenabled()
    finally:
        gc.unfreeze()


def _load_for_ever(*arguments):
    import torch

    while True:
        torch.ones(300, 300) @ torch.ones(300, 300)


def _serve_slowly(run, settings, bound):
    recommender = Recommender.load(run)
    answer = recommender.answer
    recommender.answer = lambda *arguments: (time.sleep(0.5), answer(*arguments))[1]
    app = create_app(recommender, settings)
    app.state.service._load = _load_for_ever
    server.run(app, bound, settings)


@pytest.fixture
def process(recommender, tmp_path):
    """A process that serves slowly and reloads for ever, and a client of it.

    It is a new one: a copy made by fork lacks the threads of polars, and waits for them for ever.
    """
    settings = ServeConfig(port=0, drain_s=5, allow_reload=True)
    bound = server.bind(settings)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_slowly, args=(write_run(tmp_path, recommender), settings, bound)
    )
    process.start()
    bound.close()
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            while process.is_alive():
                with contextlib.suppress(httpx.ConnectError):
                    client.get("/health")
                    break
                time.sleep(0.1)
            yield process, client
    finally:
        process.kill()


def test_a_stop_by_signal_answers_what_has_arrived_and_ends_with_status_0_though_a_model_is_loaded(process):
    process, client = process
    with ThreadPoolExecutor() as pool:
        reloads = [pool.submit(client.post, "/v1/reload", json={}) for _ in range(2)]
        refused, reloads = wait(reloads, return_when=FIRST_COMPLETED)
        assert [reload.result().status_code for reload in refused] == [409]  # so the other one is loading
        answer = pool.submit(client.post, "/v1/recommend", json={"requests": [{"history": ["i0"]}]})
        while "minionerec_history_items_total 1.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert [call.result().status_code for call in (answer, *reloads)] == [200, 503]
        process.join(10)
    assert process.exitcode == 0
