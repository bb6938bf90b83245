"""Sides that get ready at the same time measure one after another, and do not wait for one that failed."""

import subprocess
import sys
from itertools import pairwise

import pytest

from tests.benchmarks.conftest import FOLDER

SIDE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from turns import turn
if sys.argv[3] == "fails":
    raise SystemExit("no such data")
with turn():
    began = time.monotonic()
    time.sleep(0.3)
    Path(sys.argv[2], sys.argv[3]).write_text(f"{began} {time.monotonic()}")
"""


@pytest.fixture
def start(tmp_path, script):
    """Starts sides that share a folder; their windows are written next to it."""
    turns = script("turns")

    shared = tmp_path / "shared"
    shared.mkdir()

    def started(*sides, of):
        environment = turns.environment(str(shared), of)
        return [
            subprocess.Popen([sys.executable, "-c", SIDE, FOLDER, tmp_path, side], env=environment, stderr=subprocess.PIPE)
            for side in sides
        ]

    return started


def test_windows_do_not_overlap(start, tmp_path):
    for process in start("one", "two", "three", of=3):
        assert process.wait(30) == 0
    windows = sorted(tuple(map(float, (tmp_path / side).read_text().split())) for side in ("one", "two", "three"))
    assert all(ended <= began for (_, ended), (began, _) in pairwise(windows))


def test_nobody_waits_for_a_side_that_failed(start, tmp_path):
    import turns

    (waiting,) = start("one", of=2)
    (failing,) = start("fails", of=2)
    assert failing.wait(30) == 1
    turns.fail(str(tmp_path / "shared"))
    assert waiting.wait(30) == 1 and b"Another side failed." in waiting.stderr.read()
    assert not (tmp_path / "one").exists()


def test_a_side_alone_does_not_wait(tmp_path):
    subprocess.run([sys.executable, "-c", SIDE, FOLDER, tmp_path, "alone"], check=True, timeout=30)
    assert (tmp_path / "alone").exists()
