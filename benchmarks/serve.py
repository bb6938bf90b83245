"""The service under load, on this machine only: saturation, latency, overload, a long run, and a hostile client.

    scripts/python benchmarks/serve.py --run runs/ml-100k                       # 25 minutes
    scripts/python benchmarks/serve.py --run runs/ml-100k --seconds 5 --soak-minutes 0.2
    scripts/python benchmarks/serve.py --run runs/ml-100k --hostile             # only the hostile client
    scripts/python benchmarks/serve.py --run runs/ml-100k --http                # only what HTTP costs

It starts `minionerec serve` on a free port of 127.0.0.1 and asks it from this process with the histories of the test split, one
in ten with a filter. Closed loop: each of n clients asks again as soon as it has its answer. Open loop: requests arrive at
random times (Poisson) that do not depend on the answers, and latency counts from the planned arrival, so a stall is not hidden.
CPU time and memory are the server's own, from its /metrics. The service without a model shows what HTTP and this generator
cost.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
CLIENTS = (1, 4, 16, 64)
SHARES = (0.25, 0.5, 0.75)
OVERLOAD = 3
REFUSED_SECONDS = 0.1  # a client that is refused waits so long
MOST_PENDING = 2000  # requests of the open loop that may be on their way; more are counted as not sent


@dataclass
class Load:
    """What a load has measured."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    exact: int = 0
    seconds: float = 0.0

    def row(self, name: str, before: dict[str, float], after: dict[str, float]) -> str:
        """One line of the table."""
        answered = self.statuses[200]
        p50, p90, p99 = (np.percentile(self.latencies, (50, 90, 99)) * 1000) if self.latencies else (float("nan"),) * 3
        change = {key: after[key] - before[key] for key in after}
        batch = change["requests"] / change["batches"] if change["batches"] else float("nan")
        cpu = 1000 * change["cpu"] / max(sum(self.statuses.values()), 1)
        others = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()) if status != 200) or "none"
        figures = [answered / self.seconds, p50, p90, p99, batch]
        texts = [*(f"{figure:.1f}" for figure in figures), f"{self.exact / max(answered, 1):.0%}", f"{cpu:.2f}"]
        return f"{name:28} " + " ".join(f"{text:>8}" for text in (*texts, f"{after['memory'] / 2**20:.0f}")) + f"  {others}"


COLUMNS = ("lists/s", "p50 ms", "p90 ms", "p99 ms", "batch", "exact", "CPU ms", "MiB")
HEADER = f"{'load':28} " + " ".join(f"{name:>8}" for name in COLUMNS) + "  other answers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run")
    parser.add_argument("--seconds", type=float, default=60, help="of each load")
    parser.add_argument("--soak-minutes", type=float, default=10, help="of the long run at half the saturation; 0 for none")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), help="of the closed loops")
    parser.add_argument("--hostile", action="store_true", help="only the hostile client")
    parser.add_argument("--http", action="store_true", help="only the service without a model, and uvicorn without the service")
    parser.add_argument("--hanging", type=int, default=1000, help="connections of the hostile client that send nothing")
    options = parser.parse_args()
    histories = read_histories(options.run)
    if options.http:
        http_alone(histories, options)
        return
    command = [sys.executable, "-m", "minionerec", "serve", "--run", str(options.run), "--serve.port", "0"]
    began = time.monotonic()
    with Server([*command, "--serve.allow_reload", "true"] if options.hostile else command) as server:
        ask_once(server, histories)
        seconds = time.monotonic() - began
        print(f"start to first answer: {seconds:.1f} s, CPU time {server.counters()['cpu']:.1f} s", flush=True)
        if options.hostile:
            asyncio.run(hostile(server, histories, options.hanging))
            return
        asyncio.run(loads(server, histories, options))
    print("\nwithout batching (serve.max_batch 1)")
    with Server([*command, "--serve.max_batch", "1", "--serve.timeout_ms", "60000"]) as server:
        ask_once(server, histories)
        asyncio.run(saturate(server, histories, [16], options.seconds))
    http_alone(histories, options)


def http_alone(histories: list[list[str]], options: argparse.Namespace) -> None:
    """What calls cost besides their lists, and the least that they can cost."""
    print("\nwithout a model: HTTP and the generator alone")
    with Server([sys.executable, __file__, "--no-model", str(options.run)]) as server:
        asyncio.run(saturate(server, histories, [1, 16], options.seconds))
    for loop, http in (("asyncio", "h11"), ("uvloop", "httptools")):
        print(f"\nuvicorn alone, {loop} and {http}")
        with Server([sys.executable, __file__, "--bare", loop, http]) as server:
            asyncio.run(saturate(server, histories, [16], options.seconds))


def read_histories(run: Path) -> list[list[str]]:
    """The histories of the test split, as item ids."""
    from minionerec.data.dataset import Dataset

    dataset = Dataset.load(run / "data")
    ids = dataset.catalog["item_id"].to_list()
    return [[ids[item] for item in history] for history in dataset.test["history"].to_list() if history]


@dataclass
class Target:
    """A server that is asked."""

    url: str

    def counters(self) -> dict[str, float]:
        """CPU seconds, bytes, batches and requests of these."""
        text = httpx.get(self.url + "/metrics", timeout=30).text

        def value(name: str) -> float:
            match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
            return float(match.group(1)) if match else 0.0

        return {
            "cpu": value("process_cpu_seconds_total"),
            "memory": value("process_resident_memory_bytes"),
            "batches": value("minionerec_batch_size_count"),
            "requests": value("minionerec_batch_size_sum"),
        }


class Server(Target):
    """A server in a process of its own."""

    def __init__(self, command: list[str]) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.search(r"http://\S+?(?=:? the page|$)", line):
                self.url = match.group().rstrip(":")
                return
        self._reader.join(5)
        raise SystemExit("the server did not start:\n" + "".join(self.log[-20:]))

    def _read(self) -> None:
        """Keep the last lines of the log, so that the pipe never fills."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            del self.log[:-200]

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        print(f"stopped with status {code}", flush=True)


def body_of(histories: list[list[str]], random_numbers: random.Random) -> dict:
    """A call with one request, one in ten with a filter."""
    request: dict = {"history": random_numbers.choice(histories), "k": 10}
    if random_numbers.random() < 0.1:
        request["filters"] = {"deny": random_numbers.choice(histories), "exclude_history": True}
    return {"requests": [request]}


def ask_once(server: Target, histories: list[list[str]]) -> None:
    """One list; waits for the port, which may open a moment after the line that names it."""
    ends = time.monotonic() + 30
    while True:
        try:
            answer = httpx.post(server.url + "/v1/recommend", json={"requests": [{"history": histories[0]}]}, timeout=30)
        except httpx.ConnectError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)
            continue
        answer.raise_for_status()
        return


async def ask(client: aiohttp.ClientSession, body: dict, planned: float, load: Load) -> None:
    """One call; its latency counts from when it was planned."""
    try:
        async with client.post("/v1/recommend", json=body) as response:
            content = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        load.statuses[type(error).__name__] += 1
        return
    load.statuses[response.status] += 1
    if response.status == 503:
        await asyncio.sleep(REFUSED_SECONDS)
    if response.status == 200:
        load.latencies.append(time.monotonic() - planned)
        load.exact += json.loads(content)["results"][0]["exact"]


def client_of(server: Target) -> aiohttp.ClientSession:
    """Connections without a limit: a call never waits for one, which would look like a slow service."""
    timeout, connector = aiohttp.ClientTimeout(30), aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(server.url, timeout=timeout, connector=connector)


async def closed_loop(server: Target, histories: list[list[str]], clients: int, seconds: float) -> Load:
    load, began = Load(), time.monotonic()
    async with client_of(server) as client:

        async def one(number: int) -> None:
            random_numbers = random.Random(SEED + number)
            while time.monotonic() - began < seconds:
                await ask(client, body_of(histories, random_numbers), time.monotonic(), load)

        await asyncio.gather(*(one(number) for number in range(clients)))
    load.seconds = time.monotonic() - began
    return load


async def open_loop(server: Target, histories: list[list[str]], rate: float, seconds: float) -> Load:
    load, began, random_numbers = Load(), time.monotonic(), random.Random(SEED)
    pending: set[asyncio.Task] = set()
    async with client_of(server) as client:
        planned = began
        while (planned := planned + random_numbers.expovariate(rate)) < began + seconds:
            await asyncio.sleep(max(0.0, planned - time.monotonic()))
            if len(pending) >= MOST_PENDING:
                load.statuses["not sent"] += 1
                continue
            task = asyncio.create_task(ask(client, body_of(histories, random_numbers), planned, load))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)
    load.seconds = time.monotonic() - began
    return load


async def measure(server: Target, name: str, run: Awaitable[Load]) -> Load:
    """Run a load and print its line."""
    before = server.counters()
    load = await run
    print(load.row(name, before, server.counters()), flush=True)
    return load


async def saturate(server: Target, histories: list[list[str]], clients: list[int], seconds: float) -> float:
    """Closed loops; the most lists per second."""
    print(HEADER, flush=True)
    best = 0.0
    for count in clients:
        load = await measure(server, f"closed, {count} clients", closed_loop(server, histories, count, seconds))
        best = max(best, load.statuses[200] / load.seconds)
    return best


async def loads(server: Target, histories: list[list[str]], options: argparse.Namespace) -> None:
    best = await saturate(server, histories, options.clients, options.seconds)
    for share in SHARES:
        rate = share * best
        await measure(server, f"open, {share:.0%}: {rate:.1f}/s", open_loop(server, histories, rate, options.seconds))
    rate = OVERLOAD * best
    await measure(server, f"open, {OVERLOAD}x: {rate:.1f}/s", open_loop(server, histories, rate, options.seconds))
    await measure(server, "right after it, 50%", open_loop(server, histories, best / 2, options.seconds))
    if options.soak_minutes:
        await soak(server, histories, best / 2, 60 * options.soak_minutes)


async def soak(server: Target, histories: list[list[str]], rate: float, seconds: float) -> None:
    """A long run in ten parts; how memory grows over the last nine."""
    memory = []
    for part in range(10):
        load = open_loop(server, histories, rate, seconds / 10)
        await measure(server, f"soak {part + 1} of 10, {rate:.1f}/s", load)
        memory.append(server.counters()["memory"] / 2**20)
    slope = np.polyfit(np.arange(9), memory[1:], 1)[0] / (seconds / 10) * 3600
    print(f"soak: memory {memory[0]:.0f} to {memory[-1]:.0f} MiB, {slope:+.1f} MiB an hour after the first part", flush=True)


# The hostile client


async def hostile(server: Target, histories: list[list[str]], hanging: int) -> None:
    """What a hostile client sends, and what it gets."""
    history, before = histories[0], server.counters()
    requests: dict[str, dict | bytes] = {
        "a body of 2 MiB": b" " * 2**21,
        "a million brackets": b'{"requests":' + b"[" * 10**6,
        "JSON of depth 200,000": b"[" * 200_000 + b"]" * 200_000,
        "half a JSON": b'{"requests": [',
        "a number of 100,000 digits": b'{"requests": [{"history": [], "k": ' + b"9" * 100_000 + b"}]}",
        "wrong types": {"requests": [{"history": "50", "k": "ten"}]},
        "numbers for ids": {"requests": [{"history": [50, 172]}]},
        "an unknown field": {"requests": [{"history": history, "histroy": []}]},
        "ids with quotes": {"requests": [{"history": ["\"'; DROP TABLE items; --"]}]},
        "ids with line breaks": {"requests": [{"history": ["a\r\nSet-Cookie: b"]}]},
        "half a character": b'{"requests": [{"history": ["\\ud800"]}]}',
        "k of 10^9": {"requests": [{"history": history, "k": 10**9}]},
        "no request": {"requests": []},
        "65 requests": {"requests": [{"history": history}] * 65},
        "a history of 1,001 items": {"requests": [{"history": [history[0]] * 1001}]},
        "a filter that leaves nothing": {"requests": [{"history": history, "filters": {"allow": []}}]},
        "an unknown category": {"requests": [{"history": history, "filters": {"category": "x"}}]},
    }
    json_type = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=httpx.Limits(max_connections=None)) as client:
        for name, body in requests.items():
            content = body if isinstance(body, bytes) else json.dumps(body)
            await attempt(name, lambda content=content: client.post("/v1/recommend", content=content, headers=json_type))
        text = {"content-type": "text/plain"}
        await attempt("a form of another site", lambda: client.post("/v1/recommend", content="{}", headers=text))
        await attempt("another host's name", lambda: client.get("/v1/items", headers={"host": "evil.example"}))
        await attempt("a query of 5,000 characters", lambda: client.get("/v1/items", params={"query": "x" * 5000}))
        await attempt("a header of 1 MiB", lambda: client.get("/health", headers={"x": "y" * 2**20}))
        await attempt("a path upwards", lambda: client.get("/../../etc/passwd"))
        await attempt("reload of a broken run", lambda: client.post("/v1/reload", json={"run": "/nowhere"}))
        await attempt("rollback to nothing", lambda: client.post("/v1/reload", json={"rollback": True}))
        good = {"requests": [{"history": history}]}
        await attempt("a good request", lambda: client.post("/v1/recommend", json=good))
        cancelled = [asyncio.create_task(client.post("/v1/recommend", json=good)) for _ in range(200)]
        await asyncio.sleep(0.05)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        await attempt("a good request after 200 cancelled", lambda: client.post("/v1/recommend", json=good))
        await hang(server, hanging, lambda: client.post("/v1/recommend", json=good))
        ready = (await client.get("/ready")).json()
    after = server.counters()
    print(f"ready: {ready['ready']}; memory {before['memory'] / 2**20:.0f} to {after['memory'] / 2**20:.0f} MiB", flush=True)


async def attempt(name: str, call: Callable[[], Awaitable[httpx.Response]]) -> None:
    """One call, and one line about its answer."""
    began = time.monotonic()
    try:
        response = await call()
        answer = response.json() if response.headers.get("content-type") == "application/json" else {}
        text = answer.get("error", {}).get("message", "a list" if response.status_code == 200 else response.text)
        status = str(response.status_code)
    except httpx.HTTPError as error:
        status, text = "cut", f"connection closed ({type(error).__name__})"
    print(f"{name:36} {status:4} {1000 * (time.monotonic() - began):6.0f} ms  {' '.join(text.split())[:110]}", flush=True)


async def hang(server: Target, count: int, call: Callable[[], Awaitable[httpx.Response]]) -> None:
    """Connections that send nothing, or half a header: others are answered, and in the end they are cut off."""
    host, port = re.findall(r"//\[?([\w.:]+?)\]?:(\d+)", server.url)[0]
    connections = [socket.create_connection((host, int(port))) for _ in range(count)]
    for connection in connections[::2]:
        connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n")
    await attempt(f"a good request next to {count} that hang", call)
    began, closed = time.monotonic(), 0
    for connection in connections:
        connection.settimeout(max(0.01, began + 20 - time.monotonic()))
        try:
            closed += connection.recv(1) == b""
        except OSError as error:
            closed += isinstance(error, ConnectionError)
        connection.close()
    print(f"of {count} that hang, {closed} are cut off within {time.monotonic() - began:.0f} s", flush=True)


def serve_without_model(run: Path) -> None:
    """The service with a model that answers at once: every list is the same."""
    from minionerec.config import ServeConfig
    from minionerec.recommend.recommender import Recommender
    from minionerec.serve import server
    from minionerec.serve.app import create_app

    recommender = Recommender.load(run)
    ids = recommender.items.ids
    [answer] = recommender.recommend([[ids[0]]])
    recommender.answer = lambda requests, search: [answer] * len(requests)  # type: ignore[method-assign]
    settings = ServeConfig(port=0)
    server.run(create_app(recommender, settings), server.bind(settings), settings)


def serve_bare(loop: str, http: str) -> None:
    """An application that reads a call and answers with as many bytes as a list of ten has: the least that uvicorn costs."""
    import uvicorn
    from prometheus_client import generate_latest

    content = json.dumps({"results": [{"exact": True, "items": "x" * 1500}]}).encode()

    async def answer(scope: dict, receive: Callable, send: Callable) -> None:
        while (await receive()).get("more_body"):
            pass
        body = generate_latest() if scope["path"] == "/metrics" else content
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    bound = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
    config = uvicorn.Config(answer, loop=loop, http=http, lifespan="off", log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--no-model"]:
        serve_without_model(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--bare"]:
        serve_bare(*sys.argv[2:])
    else:
        main()
