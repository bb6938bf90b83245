"""A stage that several processes make together has one lock, and all of them decide alike."""

import dataclasses
import json

import pytest

from minionerec.artifacts import Manifest, lock
from tests.launch import forked

SCRIPT = "tests/artifacts/collective.py"


@pytest.mark.slow
def test_processes_of_a_launch_make_it_skip_it_and_refuse_it_together(tmp_path):
    def lines(seed: int) -> list[str]:
        done = forked(2, SCRIPT, str(tmp_path / "toy"), str(seed))
        return sorted(line for line in done.stdout.splitlines() if line.startswith("process "))

    assert lines(1) == ["process 0: seed 1, made", "process 1: seed 1, made"]
    assert set(Manifest.load(tmp_path / "toy").files) == {"0", "1"}
    assert lines(1) == ["process 0: seed 1, up to date", "process 1: seed 1, up to date"]
    assert lines(2) == ["process 0: ConfigError", "process 1: ConfigError"]
    other = dataclasses.replace(lock._this_process(), machine="elsewhere")
    (tmp_path / "toy.lock").write_text(json.dumps(dataclasses.asdict(other)))
    assert lines(2) == ["process 0: LockedError", "process 1: LockedError"]
    assert Manifest.load(tmp_path / "toy").seed == 1
