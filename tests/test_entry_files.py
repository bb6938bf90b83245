"""What is launched by path: entry files, their launcher configs and the shell scripts."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement

from tests.launch import ENVIRONMENT, ROOT

FOLDERS = ("data", "sid", "sft", "rl", "eval")
ENTRIES = sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
SHELL = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]
    if path.is_file() and path.suffix != ".py"
)


def test_the_entry_files_are_there():
    stages = {
        "data/prepare.py",
        "sid/build.py",
        "sft/train.py",
        "rl/train.py",
        "eval/predict.py",
        "eval/calc_level.py",
        "eval/paper_gap.py",
    }
    assert stages <= set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_from_another_folder(entry, tmp_path):
    command = [sys.executable, str(ROOT / entry), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ") and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def dependencies(name: str, seen: set[str]) -> set[str]:
    """The installed distributions that one needs, itself included, with their optional parts left out."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen:
        return seen
    try:
        needed = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return seen
    seen.add(name)
    for requirement in needed:
        if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
            dependencies(requirement.name, seen)
    return seen


# Packages that transformers, trl and accelerate import where they happen to be installed.
OPTIONAL = {"evaluate", "tokenizers", "peft", "bitsandbytes", "wandb", "trackio", "tensorboard", "deepspeed", "rouge_score"}


def test_no_entry_file_hides_a_package():
    """A script's folder comes first on `sys.path`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]  # itself it is not installed, see scripts/python
    extras = project["optional-dependencies"]
    ours: set[str] = set()
    for line in [*project["dependencies"], *extras["train"], *extras["text"], *extras["deepspeed"]]:
        dependencies(Requirement(line).name, ours)
    assert {"torch", "transformers", "trl"} <= ours
    owners = metadata.packages_distributions()
    taken = {package for package, names in owners.items() if ours & {re.sub(r"[-_.]+", "-", name).lower() for name in names}}
    stems = {entry.rpartition("/")[2].removesuffix(".py") for entry in ENTRIES}
    assert not stems & (taken | set(sys.stdlib_module_names) | OPTIONAL)


def test_no_launch_folder_is_a_package():
    assert not [folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()]


@pytest.mark.parametrize("script", SHELL)
def test_shell_scripts(script):
    content = (ROOT / script).read_text()
    assert content.startswith("#!/usr/bin/env bash\n")
    done = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for named in re.findall(r"(?<![\w./])(?:scripts|data|sid|sft|rl|eval)/[\w.]+", content):
        assert (ROOT / named).exists(), f"{script} names {named}, which is not there"


def test_the_scripts_that_are_started_directly_may_be():
    for script in ("scripts/python", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), script


def test_ci_runs_the_test_script():
    last = (ROOT / ".ci/run").read_text().splitlines()[-1]
    assert re.fullmatch(r'exec bash "\$\(dirname "\$\{BASH_SOURCE\[0\]\}"\)/\.\./scripts/test\.sh"', last)
    # pytest takes the place of the script, so its summary is the last line and its exit code is CI's.
    last = (ROOT / "scripts/test.sh").read_text().splitlines()[-1]
    assert last.startswith("exec scripts/python -m pytest ") and last.endswith(' "$@"')


@pytest.mark.parametrize(("file", "machines"), [("sft/zero2.yaml", 1), ("rl/zero2.yaml", 1), ("sft/zero2-multinode.yaml", 2)])
def test_zero2(file, machines):
    values = yaml.safe_load((ROOT / file).read_text())
    assert values["distributed_type"] == "DEEPSPEED" and values["deepspeed_config"]["zero_stage"] == 2
    assert values["num_machines"] == machines and values["num_processes"] % machines == 0
    # The trainers take the global batch from our config; a launcher that sets it too would contradict them.
    assert not {"gradient_accumulation_steps", "train_batch_size", "gradient_clipping"} & set(values["deepspeed_config"])
