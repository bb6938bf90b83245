"""What several files of SFT's tests begin with: a prepared run, and the training that was left alone. They only read it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minionerec.config import Config
from minionerec.pipeline import run
from tests.small import config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Config:
    """A run whose data and SIDs are made; its configuration file is `small.yaml` next to the run."""
    prepared = config(tmp_path_factory.mktemp("sft"))
    run(prepared, ("data", "sid"))
    return prepared


@pytest.fixture
def copy(prepared, tmp_path) -> Callable[..., Config]:
    """Copies the prepared run into the test's own folder; `fields` change section `sft`."""

    def copied(name: str = "run", **fields: Any) -> Config:
        for stage in ("data", "sid"):
            shutil.copytree(prepared.folder / stage, tmp_path / name / stage)
        return replace(prepared, out=str(tmp_path / name), sft=replace(prepared.sft, **fields))

    return copied


@pytest.fixture(scope="session")
def alone(prepared, tmp_path_factory) -> Path:
    """The folder of the SFT stage of the prepared run, trained by one process without interruption."""
    folder = tmp_path_factory.mktemp("alone")
    for stage in ("data", "sid"):
        shutil.copytree(prepared.folder / stage, folder / stage)
    run(replace(prepared, out=str(folder)), ("sft",))
    return folder / "sft"
