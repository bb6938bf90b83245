"""The table of the released code's mistakes at a tiny size: what it compares, and that it resumes."""

from pathlib import Path

import pytest

from minionerec.artifacts import read_json
from minionerec.cli import parse
from minionerec.report import gap_causes as shipped
from tests.small import write_config


@pytest.fixture
def gap_causes(script):
    return script("gap_causes")


def test_every_arm_is_a_configuration_that_differs_from_its_parent(gap_causes):
    sections = {
        name: parse("run", ["--config", "industrial-tiny", *arm.fields.split()]).section("prompts", "sft", "rl", "eval")
        for name, arm in gap_causes.ARMS.items()
    }
    assert all(sections[name] != sections[arm.parent] for name, arm in gap_causes.ARMS.items() if arm.parent)
    assert all(mistaken != clean and {mistaken, clean} <= sections.keys() for mistaken, clean in gap_causes.QUIRKS.values())


def test_what_is_no_quirk(gap_causes, tmp_path):
    with pytest.raises(SystemExit, match="'nonsense' is no quirk; expected one of answer-in-prompt"):
        gap_causes.main(["--config", "ml-100k", "--out", str(tmp_path), "--quirks", "nonsense"])


def test_what_is_only_asked_for_is_printed(gap_causes, tmp_path, capsys):
    gap_causes.main(["--config", "ml-100k", "--out", str(tmp_path), "--print_config"])
    assert "num_beams: 50" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_places_on_this_machine_are_not_stored(gap_causes):
    fields = ["--data.path", "/here", "--sft.epochs", "6", "--data.path=/there", "--seed=3"]
    assert gap_causes.shown_fields(fields) == ["--sft.epochs", "6", "--seed=3"]


def test_earlier_figures_of_the_same_configuration_are_taken_over(gap_causes):
    now = {"config": "a", "seeds": 3, "machine": "new", "quirks": {"x": {"sd": 1.0}}}
    earlier = {"config": "a", "seeds": 3, "machine": "old", "quirks": {"x": {"sd": 9.0}, "y": {"sd": 2.0}}}
    stored = gap_causes.merged(now, earlier, Path("earlier.json"))
    assert stored == {**now, "quirks": {"x": {"sd": 1.0}, "y": {"sd": 2.0, "machine": "old"}}}
    with pytest.raises(SystemExit, match="seeds is 1, here it is 3; the two cannot be merged"):
        gap_causes.merged(now, {**earlier, "seeds": 1}, Path("earlier.json"))


@pytest.mark.slow
def test_a_table_and_again(gap_causes, tmp_path, capfd):
    command = ["--config", str(write_config(tmp_path)), "--out", str(tmp_path / "out"), "--seeds", "2"]
    command += ["--dataset", "toys", "--quirks", "eval-sentence", "rl-last-row", "generation-defaults"]
    command += ["--examples", "20", "--data.path", str(tmp_path / "raw"), "--sft.epochs", "2"]
    gap_causes.main(command)
    printed = capfd.readouterr().out
    assert "| prompt mismatch | eval-sentence - released-prompts |" in printed
    stored = read_json(tmp_path / "out/gap_causes.json")
    assert set(stored["quirks"]) == {
        *("prompt mismatch", "prompts of the released code, with the mismatch", "wrong reward targets", "generation defaults")
    }
    assert stored["seeds"] == 2 and stored["examples"] == 40
    assert set(stored) == set(shipped.stored_effects())  # it can be shipped as it is
    assert stored["dataset"].startswith(f"toys ({stored['train']:,} training rows) with a model of 0.0 M")
    assert stored["fields"] == ["--sft.epochs", "2"]  # no place on this machine
    sampled = stored["quirks"]["generation defaults"]
    assert sampled["examples"] == 20 and 0 <= sampled["invalid"] < 1 and sampled["NDCG@10"]["low"] <= sampled["NDCG@10"]["high"]
    trained = [path for path in (tmp_path / "out").glob("*/seed-*/*/manifest.json") if not path.parent.is_symlink()]
    before = {path: path.stat().st_mtime_ns for path in trained}
    gap_causes.main(command)
    assert {path: path.stat().st_mtime_ns for path in trained} == before
    assert read_json(tmp_path / "out/gap_causes.json")["quirks"] == stored["quirks"]
