"""A change of the code that should change no result changes none: small runs against results that are kept beside this file.

`same_results/` holds what the commit before the house's second edition made of the two configurations, and on which machine.
On such a machine the files must be equal byte for byte; elsewhere rounding differs, and figures must be near. A change that is
meant to change results replaces the files, and says so:

    python -m tests.pipeline.test_same_results
"""

import json
import platform
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from minionerec.artifacts import read_json, write_json
from minionerec.pipeline import run
from tests.small import config

KEPT = Path(__file__).parent / "same_results"
STAGES = ("data", "sid", "sft", "rl", "eval")
# Most of what the first configuration leaves at its default.
VARIANT = {
    "prompts": {"wording": "released", "style": "alpaca", "category": "thing"},
    "sft": {
        "tasks": ["history_sid_to_sid", "sid_to_title", "history_title_to_sid"],
        "task_shares": {"sid_to_title": 0.5, "history_title_to_sid": 0.5},
        "history_stride": 1,
        "epochs": 0.6,
        "evaluations": 2,
        "normalise_over": "catalog",
        "best_metric": "NDCG@10",
        "valid_examples": 20,
        "dropout": 0.1,
        "level_weights": [1.0, 2.0, 1.0],
        "frequency_power": 0.5,
        "smoothing": 0.05,
    },
    "rl": {
        "tasks": ["history_sid_to_sid", "history_title_to_sid"],
        "task_shares": {"history_title_to_sid": 0.5},
        "max_examples": 24,
        "normalise_over": "catalog",
        "rollouts": "stochastic",
        "add_target": True,
        "rewards": {"ranking": 1.0, "prefix": 0.5, "semantic": 0.2, "popularity": 0.1},
        "dynamic_sampling": "refill",
        "sft_weight": 0.1,
        "sync_reference": 2,
        "targets": "last_row",
        "evaluations": 0,
    },
    "eval": {"normalise_over": "catalog", "exclude_history": True, "oracle_examples": 10},
}
CONFIGURATIONS: dict[str, dict] = {"plain": {}, "variant": VARIANT}
FILES = [(stage, name) for stage in ("sft", "rl") for name in ("predictions.jsonl", "metrics.json")]


def machine() -> dict[str, str]:
    """What decides rounding. Virtual machines call several processors by one name, so their numbers stand here, too."""
    cpu = {"model name": platform.processor()}
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()  # of the first core
        shown = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        cpu |= {name: shown[name] for name in ("model name", "cpu family", "model", "stepping", "cache size") if name in shown}
    return {
        "cpu": ", ".join(cpu.values()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def assert_as_kept(name: str, folder: Path) -> None:
    """Compare the evaluations of a run with those that are kept.

    Args:
        name: of the configuration.
        folder: of the run.
    """
    for stage, file in FILES:
        now, then = folder / "eval" / stage / file, KEPT / name / f"{stage}-{file}"
        if machine() == read_json(KEPT / "machine.json"):
            assert now.read_bytes() == then.read_bytes(), f"{name}: {stage}/{file}"
        elif file == "metrics.json":
            ours, theirs = (read_json(path)["sid"]["HR@10"]["value"] for path in (now, then))
            assert ours == pytest.approx(theirs, abs=0.2), f"{name}: {stage}"
        else:
            users = [[json.loads(line)["user"] for line in path.read_text().splitlines()] for path in (now, then)]
            assert users[0] == users[1]


def test_results_are_those_that_are_kept(tmp_path):
    """Of the variant; test_run.py has runs of the plain configuration."""
    run(config(tmp_path, **VARIANT), STAGES)
    assert_as_kept("variant", tmp_path / "run")


def replace_kept() -> None:
    """Write the results of this code and machine over those that are kept."""
    for name, changes in CONFIGURATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            run(config(Path(folder), **changes), STAGES)
            for stage, file in FILES:
                shutil.copy(Path(folder) / "run/eval" / stage / file, KEPT / name / f"{stage}-{file}")
    write_json(KEPT / "machine.json", machine())


if __name__ == "__main__":
    replace_kept()
