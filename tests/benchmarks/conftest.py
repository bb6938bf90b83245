"""Scripts of `benchmarks/` as modules."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch) -> Callable[[str], ModuleType]:
    """Imports a script by its name; scripts import one another as they do when they run."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module
