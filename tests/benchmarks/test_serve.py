"""The load generator and the hostile client, for a moment and against a tiny model."""

import asyncio
import importlib.util

import pytest

from tests.launch import ROOT
from tests.recommend.conftest import make, recommender  # noqa: F401, fixtures
from tests.serve.test_server import served  # noqa: F401, fixture


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_the_service", ROOT / "benchmarks/serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_loads_are_measured(benchmark, served, capsys):  # noqa: F811
    target = benchmark.Target(f"http://127.0.0.1:{served}")
    histories = [["i0", "i5"], ["i3"]]
    best = asyncio.run(benchmark.saturate(target, histories, [2], 0.5))
    assert best > 1
    load = asyncio.run(benchmark.open_loop(target, histories, 40, 0.5))
    assert set(load.statuses) == {200} and 1 <= load.statuses[200] == len(load.latencies) <= 40
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["load", "lists/s", "p50"] and line.startswith("closed, 2 clients") and line.endswith("  none")


def test_the_hostile_client_gets_a_clear_status_each(benchmark, served, capsys):  # noqa: F811
    asyncio.run(benchmark.hostile(benchmark.Target(f"http://127.0.0.1:{served}"), [["i0", "i5"]], 10))
    lines = {line[:36].strip(): line[37:41].strip() for line in capsys.readouterr().out.splitlines() if line[37:40].strip()}
    statuses = {name: status for name, status in lines.items() if status.isdigit()}
    assert statuses.pop("a body of 2 MiB") == "413" and statuses.pop("another host's name") == "421"
    good = [name for name in statuses if name.startswith("a good request")]
    assert len(good) == 3 and {statuses.pop(name) for name in good} == {"200"}
    assert set(statuses.values()) <= {"400", "403", "404", "422"} and len(statuses) >= 20
