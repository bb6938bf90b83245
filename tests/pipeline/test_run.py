"""Whole runs: the same result every time, whatever interrupts them."""

import contextlib
import io
import shutil
import signal
from pathlib import Path

import pytest
import torch

from minionerec.artifacts import read_json
from minionerec.cli import main
from minionerec.config import FLOORS
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError
from minionerec.eval.lists import RankedLists
from minionerec.pipeline import run
from minionerec.sid.index import SidIndex
from tests.launch import forked, minionerec
from tests.pipeline.test_same_results import assert_as_kept
from tests.small import config, write_config

STAGES = ("data", "sid", "sft", "rl", "eval", "report")
# Other data, and trainings of 10 and of 4 steps.
OTHER = ["--data.max_history", "5", "--sft.history_stride", "5", "--sft.epochs", "1", "--rl.max_examples", "32"]
RESULTS = [f"eval/{who}/{name}" for who in (*FLOORS, "sft", "rl") for name in ("predictions.jsonl", "metrics.json")]


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """One run in a process of its own, as a user starts it; the folder of its configuration, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = minionerec("run", "--config", str(write_config(folder)))
    assert done.stdout.rstrip().endswith(str(folder / "run/report/index.html"))
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="module")
def undisturbed(launched):
    """The folder of that run."""
    return launched[0] / "run"


@pytest.fixture(scope="module")
def replaced(undisturbed, tmp_path_factory):
    """A copy of that run that was made anew with other settings; the folder of its configuration, and what it printed."""
    folder = tmp_path_factory.mktemp("replaced")
    shutil.copytree(undisturbed, folder / "run")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["run", "--config", str(write_config(folder)), *OTHER, "--replace"]) == 0
    return folder, printed.getvalue()


def test_a_run_shows_how_far_it_is_and_what_it_made(launched):
    folder, printed = launched
    assert "sft step 36/72 " in printed and "all " in printed  # a log file shows how far it is
    for stage in ("data", "sid", "sft", "rl", "eval/popularity", "eval/sft", "eval/rl", "report"):
        assert f"{stage} {folder / 'run' / stage}:" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_training_on_cpus_says_so_and_warns_of_no_accelerator(launched):
    folder, printed = launched
    assert "sft: 1 process on the CPU, not distributed; 4 trees x 2 micro-batches per process and step" in printed
    assert "accelerator" not in printed.lower()
    assert read_json(folder / "run/sft/manifest.json")["metrics"]["distributed"] == "NO"


def test_the_run_learns_something(undisturbed):
    metrics = {who: read_json(undisturbed / f"eval/{who}/metrics.json")["sid"] for who in ("popularity", "sft", "rl")}
    assert metrics["sft"]["HR@10"]["value"] > metrics["popularity"]["HR@10"]["value"]
    assert read_json(undisturbed / "rl/manifest.json")["metrics"]["steps"] == 8
    assert (undisturbed / "sft/model/model.safetensors").read_bytes() != (
        undisturbed / "rl/model/model.safetensors"
    ).read_bytes()
    assert not list(undisturbed.rglob("*.partial")) + list(undisturbed.rglob("checkpoint-*"))


def test_the_bytes_are_those_of_an_earlier_version(undisturbed):
    assert_as_kept("plain", undisturbed)


def fresh(printed: str) -> list[str]:
    """The stages that were made anew."""
    return [line.split()[0] for line in printed.splitlines() if line.endswith(" s)")]


def test_an_unchanged_run_is_skipped_and_a_changed_one_redoes_only_what_depends_on_it(undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    small = config(tmp_path)
    small.replace = False
    run(small, STAGES)  # the raw files lie elsewhere now, with the same content
    assert fresh(capsys.readouterr().out) == ["report"]
    run(small, STAGES)
    assert fresh(capsys.readouterr().out) == []
    evaluations = [f"eval/{who}" for who in (*FLOORS, "sft", "rl")]
    small.eval.resamples = 100
    run(small, STAGES)
    assert fresh(capsys.readouterr().out) == [*evaluations, "report"]
    small.eval.num_beams = 12  # the validations that choose rl's best step are decoded so as well
    with pytest.raises(ConfigError, match=r"rl is finished.*\n  eval.num_beams: 10 there, 12 now\n"):
        run(small, STAGES)
    assert fresh(capsys.readouterr().out) == []
    small.replace = True
    run(small, STAGES[:-1])
    assert fresh(capsys.readouterr().out) == ["rl", *evaluations]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_model_is_replaced_only_on_request(undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    path, before = str(write_config(tmp_path)), contents(folder)
    assert main(["sft", "--config", path, "--sft.epochs", "1"]) == 2
    message = capsys.readouterr().err
    assert "sft is finished, but was made from something else" in message and "sft.epochs: 8.0 there, 1.0 now" in message
    assert contents(folder) == before
    assert main(["sft", "--config", path, "--sft.epochs", "1", "--replace"]) == 0
    assert read_json(folder / "sft/manifest.json")["config"]["sft"]["epochs"] == 1
    assert read_json(folder / "rl/manifest.json") == read_json(undisturbed / "rl/manifest.json")
    assert main(["sft", "--config", str(folder)]) == 0  # the run knows what it was made with last
    assert fresh(capsys.readouterr().out) == ["sft"]
    assert main(["rl", "--config", str(folder)]) == 2  # its SFT model is another one now
    assert "input sft: changed" in capsys.readouterr().err


def test_a_whole_run_is_replaced_only_on_request(undisturbed, replaced, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    before = contents(folder)
    assert main(["run", "--config", str(write_config(tmp_path)), *OTHER]) == 2
    assert "data.max_history: 6 there, 5 now" in capsys.readouterr().err and contents(folder) == before
    evaluations = [f"eval/{who}" for who in (*FLOORS, "sft", "rl")]
    assert fresh(replaced[1]) == ["data", "sid", "sft", "rl", *evaluations, "report"]
    assert main(["run", "--config", str(replaced[0] / "run")]) == 0
    assert fresh(capsys.readouterr().out) == []
    # Back to the settings of before only on request, too.
    assert main(["run", "--config", str(replaced[0] / "small.yaml")]) == 2
    assert "data.max_history: 5 there, 6 now" in capsys.readouterr().err


def test_a_run_whose_sids_differ_in_length(tmp_path):
    made = config(
        tmp_path,
        sid={"codebook_size": 4, "collisions": "suffix"},
        sft={"epochs": 1, "evaluations": 1},
        rl={"max_examples": 16, "checkpoints": 1},
    )
    run(made, STAGES)
    index = SidIndex.load(made.folder / "sid", Dataset.load(made.folder / "data"))
    ended = index.codes[:, -1] == -1
    assert index.levels == 4 and 0 < ended.sum() < len(ended) and index.collisions() == 0
    for who in (*FLOORS, "sft", "rl"):
        lists = RankedLists.read(made.folder / f"eval/{who}/predictions.jsonl")
        assert (lists.target_sids == index.codes[lists.targets]).all() and (lists.target_sids == -1).any()
        metrics = read_json(made.folder / f"eval/{who}/metrics.json")
        assert "HR@1" in metrics["sid"] and metrics["invalid"] == 0
        for name, figure in metrics["sid"].items():
            assert figure["value"] == metrics["item"][name]["value"], name
    assert "every item has its own" in (made.folder / "report/index.html").read_text(encoding="utf-8")


def test_a_second_run_gives_the_same_bytes_though_it_is_killed_in_every_stage(replaced, tmp_path):
    options, folder = ["--config", str(write_config(tmp_path)), *OTHER], tmp_path / "run"
    for stage in ("data", "sid", "sft", "rl", "eval/sft"):
        killed = forked(1, "tests/pipeline/killed.py", stage, *options, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stdout
        assert (folder / f"{stage}.partial").is_dir() and not (folder / stage).exists()
    assert main(["run", *options]) == 0
    assert results(folder) == results(replaced[0] / "run")
    assert not list(folder.rglob("*.partial")) + list(folder.rglob("*.old"))


def test_a_stage_without_its_input_names_the_command(tmp_path, capsys):
    path = str(write_config(tmp_path))
    assert main(["sft", "--config", path]) == 2
    assert "minionerec data prepare" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sid_index_of_another_dataset(undisturbed, tmp_path, capsys):
    from minionerec.artifacts import Manifest, content_hash
    from tests.small import write_csv

    shutil.copytree(undisturbed, tmp_path / "run")
    path = str(write_config(tmp_path))
    write_csv(tmp_path / "raw", items=40)
    assert main(["data", "prepare", "--config", path, "--replace"]) == 0
    assert main(["sft", "--config", path]) == 2
    assert "input data: changed" in capsys.readouterr().err
    assert main(["sft", "--config", path, "--replace"]) == 2
    assert "belongs to another dataset (48 items" in capsys.readouterr().err
    assert Manifest.load(tmp_path / "run/sft").key != content_hash("")  # the finished model is untouched


def test_a_model_of_another_index(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "run")
    path = str(write_config(tmp_path, sid={"codebook_size": 12}))
    assert main(["sid", "--config", path, "--replace"]) == 0
    assert main(["rl", "--config", path]) == 2
    assert main(["eval", "--config", path]) == 2
    errors = capsys.readouterr().err
    assert errors.count("sft: was made from another sid than the one in this run. Make it again: minionerec sft --replace") == 2
    assert "Traceback" not in errors
