"""What the benchmarks share: figures of a profile, and sides in processes of their own."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType


@pytest.fixture
def setting(script):
    return script("setting")


def event(key, kind, count, device, host):
    return SimpleNamespace(
        key=key, device_type=kind, count=count, self_device_time_total=1000 * device, self_cpu_time_total=1000 * host
    )


def test_calls_of_the_host_are_no_kernels(setting, monkeypatch):
    events = [
        event("short", DeviceType.CUDA, 2, 0.5, 0),
        event("cudaLaunchKernel", DeviceType.CPU, 3, 0, 7),
        event("long", DeviceType.CUDA, 1, 4, 0),
    ]
    profile = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    found = setting.kernels_of(profile)
    assert (found["calls"], found["ms"]) == (3, 4.5) and [one["name"] for one in found["longest"]] == ["long", "short"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert setting.kernels_of(profile)["longest"] == [{"name": "cudaLaunchKernel", "ms": 7, "calls": 3}]


def test_the_side_that_failed_says_why(setting, monkeypatch):
    """And not one that waited for it, though it comes first."""

    def measure(script, options, waits):
        if options[-1] == "failing":
            raise SystemExit("no such data")
        deadline = time.monotonic() + 20
        while not (Path(waits["MINIONEREC_TURNS"]) / "failed").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        raise SystemExit("Another side failed.")

    monkeypatch.setattr(setting, "in_fresh_process", measure)
    with pytest.raises(SystemExit, match="no such data"):
        setting.alternate("script.py", ("waiting", "failing"), [], 1, together=True)
