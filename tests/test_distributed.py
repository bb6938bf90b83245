import os
import subprocess
import sys

import pytest

from minionerec import distributed
from minionerec.cli import main
from minionerec.distributed import decide_on_main, other_work, share_cores

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("chosen", [None, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_idle_threads_give_up_their_cores_unless_the_user_has_chosen_how_they_wait(monkeypatch, chosen):
    if chosen:
        monkeypatch.setenv(chosen, "mine")
    share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == {None: "1000", "GOMP_SPINCOUNT": "mine", "OMP_WAIT_POLICY": None}[chosen]


def test_every_command_does_so_before_anything_else_and_the_import_alone_does_not():
    assert main(["--version"]) == 0 and os.environ.pop("GOMP_SPINCOUNT") == "1000"
    code = "import os, sys, minionerec; sys.exit('GOMP_SPINCOUNT' in os.environ)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("load", "running", "threads", "words"),
    [
        (0.3, 0.0, 2, None),
        (1.0, 100.0, 2, None),
        (2.0, 1.0, 2, None),  # a command that has just ended
        (2.0, 100.0, 2, "its load is 2.0 on 2 cores, and this run adds 2 threads. Expect about 2.0 times"),
        (2.5, 100.0, 1, "this run adds 1 thread. Expect about 1.8 times"),
    ],
)
def test_other_work_is_named_if_it_leaves_clearly_too_little(monkeypatch, load, running, threads, words):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(distributed.psutil, "cpu_percent", lambda interval: running)
    monkeypatch.setattr(distributed.psutil, "cpu_count", lambda: 2)
    line = other_work(threads)
    assert line is None if words is None else words in line
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert other_work(64) == line


def test_a_system_without_a_load_says_nothing(monkeypatch):
    monkeypatch.delattr(os, "getloadavg")
    assert other_work(64) is None


def test_a_single_process_decides_for_itself():
    assert decide_on_main(lambda: 7) == 7
