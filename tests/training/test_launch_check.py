"""`minionerec launch check`: one world, one folder, a timed exchange."""

import socket
import threading
from types import SimpleNamespace

import pytest

from minionerec.errors import ConfigError
from minionerec.training import launch_check
from minionerec.training.launch_check import LaunchFacts, Process, check_launch
from tests.launch import forked, machines

TWO = (Process(0, "a", "cpu:0"), Process(1, "b", "cpu:0"))


def test_one_process(tmp_path):
    facts = check_launch(tmp_path / "new", machines=1)
    assert [process.host for process in facts.processes] == [socket.gethostname()] and facts.seconds is None
    assert facts.lines()[-1] == "One process exchanges nothing."
    assert list((tmp_path / "new").iterdir()) == []


def test_lines():
    facts = LaunchFacts("2 processes on CPUs (DDP)", "gloo", TWO, 0.256)
    assert facts.lines() == [
        "2 processes on CPUs (DDP); 2 host names; backend gloo",
        "  rank 0: a, cpu:0",
        "  rank 1: b, cpu:0",
        "A sum of 64 MB over all processes takes 256 ms (2.0 Gbit/s of payload).",
    ]


def test_too_few_machines(tmp_path):
    with pytest.raises(ConfigError, match=r"--machines 2: 1 take part .* its --machine_rank"):
        check_launch(tmp_path, machines=2)


def exchange(monkeypatch, others):
    """Let a second process answer each exchange with the next of these."""
    monkeypatch.setattr(launch_check, "PATIENCE", 0.3)
    answers = iter(others)
    monkeypatch.setattr(launch_check, "gather_object", lambda mine: [*mine, next(answers)])
    monkeypatch.setattr(
        launch_check, "distributed_state", lambda: SimpleNamespace(
            distributed_type=SimpleNamespace(name="MULTI_CPU"), num_processes=2, process_index=0, device="cpu:0"
        )
    )  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    exchange(monkeypatch, [TWO[1], "name", None, []])
    with pytest.raises(ConfigError, match=r"rank 0 on .* does not see in .* what rank 1 on b wrote. All machines need one"):
        check_launch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_machine_cannot_write(tmp_path, monkeypatch):
    exchange(monkeypatch, [TWO[1], "name", "/runs: cannot be written (Read-only file system)", [0]])
    with pytest.raises(ConfigError, match=r"rank 1 on b: /runs: cannot be written \(Read-only file system\). Choose a folder"):
        check_launch(tmp_path)


def test_a_file_that_shows_late(tmp_path):
    late, there = tmp_path / "late", tmp_path / "there"
    there.touch()
    timer = threading.Timer(0.1, late.touch)
    timer.start()
    assert launch_check._unseen([there, late]) == []
    timer.join()


@pytest.mark.parametrize("several", [pytest.param(machines, marks=pytest.mark.slow), forked])
def test_two_processes(several, tmp_path):
    done = several(2, "-m", "minionerec", "launch", "check", "--out", str(tmp_path))
    lines = (done if several is forked else done[0]).stdout.splitlines()
    assert "2 processes on CPUs (DDP); 1 host name; backend gloo" in lines
    assert sum("Gbit/s" in line for line in lines) == 1
    assert list(tmp_path.iterdir()) == []
