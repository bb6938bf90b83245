"""What several files of SFT's tests begin with: a prepared run, and the training that was left alone. They only read it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minionerec.config import Config, ModelConfig
from minionerec.pipeline import run
from tests.small import config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Config:
    """A run whose data and SIDs are made; its configuration file is `small.yaml` next to the run."""
    # 18 steps, validations and checkpoints after each 6
    prepared = config(tmp_path_factory.mktemp("sft"), sft={"epochs": 2, "evaluations": 3}, model={"layers": 1})
    run(prepared, ("data", "sid"))
    return prepared


@pytest.fixture
def copy(prepared, tmp_path) -> Callable[..., Config]:
    """Copies the prepared run into the test's own folder; `base` is the model to begin with, `fields` change section `sft`."""

    def copied(name: str = "run", base: Path | None = None, **fields: Any) -> Config:
        model = prepared.model if base is None else ModelConfig(init="from_pretrained", path=str(base))
        for stage in ("data", "sid"):
            shutil.copytree(prepared.folder / stage, tmp_path / name / stage)
        return replace(prepared, out=str(tmp_path / name), model=model, sft=replace(prepared.sft, **fields))

    return copied


@pytest.fixture(scope="session")
def alone(prepared, tmp_path_factory) -> Path:
    """The folder of the SFT stage of the prepared run, trained by one process without interruption."""
    folder = tmp_path_factory.mktemp("alone")
    for stage in ("data", "sid"):
        shutil.copytree(prepared.folder / stage, folder / stage)
    run(replace(prepared, out=str(folder)), ("sft",))
    return folder / "sft"
