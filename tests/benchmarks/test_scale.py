"""`benchmarks/scale.py` on little data: every stage runs, in a process of its own."""

import subprocess
import sys

import pytest

from tests.benchmarks.conftest import FOLDER


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path):
    command = [sys.executable, str(FOLDER / "scale.py"), "--interactions", "5000", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["written", "data", "sid", "sft", "eval", "trie", "report"]
    assert all(float(line.split()[2]) > 0 and " GB" in line for line in lines[1:])
