"""The table of the reference's mistakes at a tiny size: what it compares, and that it resumes."""

import importlib
from pathlib import Path

import pytest

from minionerec.artifacts import read_json
from minionerec.cli import parse
from tests.small import write_config

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gap_causes(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gap_causes")


def test_every_arm_is_a_configuration_that_differs_from_its_parent(gap_causes):
    made = {
        name: parse("run", ["--config", "industrial-tiny", *arm.fields.split()]).section("prompts", "sft", "rl", "eval")
        for name, arm in gap_causes.ARMS.items()
    }
    assert all(made[name] != made[arm.parent] for name, arm in gap_causes.ARMS.items() if arm.parent)
    assert all(mistaken != clean and {mistaken, clean} <= made.keys() for mistaken, clean in gap_causes.QUIRKS.values())


def test_what_is_no_quirk(gap_causes, tmp_path):
    with pytest.raises(SystemExit, match="'nonsense' is no quirk; there are answer-in-prompt"):
        gap_causes.main(["--config", "ml-100k", "--out", str(tmp_path), "--quirks", "nonsense"])


@pytest.mark.slow
def test_a_table_and_again(gap_causes, tmp_path, capfd):
    command = ["--config", str(write_config(tmp_path)), "--out", str(tmp_path / "out"), "--seeds", "2"]
    command += ["--quirks", "eval-sentence", "rl-last-row"]
    gap_causes.main(command)
    printed = capfd.readouterr().out
    assert "| prompt mismatch | eval-sentence - reference-prompts |" in printed
    stored = read_json(tmp_path / "out/gap_causes.json")
    assert set(stored["quirks"]) == {
        *("prompt mismatch", "prompts of the reference, with the mismatch", "wrong reward targets")
    }
    assert stored["seeds"] == 2 and stored["examples"] == 40
    trained = [path for path in (tmp_path / "out").glob("*/seed-*/*/manifest.json") if not path.parent.is_symlink()]
    before = {path: path.stat().st_mtime_ns for path in trained}
    gap_causes.main(command)
    assert {path: path.stat().st_mtime_ns for path in trained} == before
    assert read_json(tmp_path / "out/gap_causes.json")["quirks"] == stored["quirks"]
