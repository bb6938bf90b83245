"""Shared by all tests: no network, and one thread, since models are tiny and two wait for one another on a busy machine."""

import functools
import gc
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.quick import settle

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.getloadavg = lambda: (0.0, 0.0, 0.0)  # the tests themselves are the other work on this machine
gc.disable()  # until all tests are collected, as imports leave next to no garbage

TESTS = Path(__file__).parent
# Two workers take whole files (scripts/test.sh), so the longest must not be the last to begin.
LONGEST = [
    "sft/test_processes.py",
    "pipeline/test_run.py",
    "baselines/test_train.py",
    "rl/test_processes.py",
    "sft/test_mixture_of_texts.py",
    "rl/test_train.py",
    "sft/test_mixture.py",
    "sid/test_quantize.py",
    "model/sequential/test_models.py",
    "baselines/test_liger.py",
    "rl/test_objectives.py",
    "test_presets.py",
    "recommend/test_bundle.py",
    "sft/test_train.py",
    "baselines/test_coded.py",
    "eval/test_coded.py",
    "tree/test_search.py",
    "test_cli.py",
    "report/test_paper_gap.py",
    "pipeline/test_prompts.py",
    "sft/test_trainer.py",
    "report/test_page.py",
    "scoring/test_train.py",
    "artifacts/test_lock.py",
    "recommend/test_recommender.py",
    "serve/test_protocol.py",
    "sid/test_letter.py",
    "sft/test_adapters.py",
    "artifacts/test_recipe.py",
    "sft/test_pack_workers.py",
    "data/test_layouts.py",
    "recommend/test_dtype.py",
    "prompts/test_tasks.py",
    "config/test_run_file.py",
]


def pytest_configure(config: pytest.Config) -> None:
    """All examples of hypothesis with `-m slow`; no example of the package is fast, as their modules import torch."""
    if config.option.markexpr == "slow":
        from tests import examples

        examples.ALL = True
    if config.option.markexpr == "fast" and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = [str(TESTS)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what would be imported in vain: scripts that tests start, and all but fast files under `-m fast`.

    A fast file says so itself, in its line `pytestmark = pytest.mark.fast`. It is read before anything is imported, as the
    imports of all other files (torch, transformers, trl) take longer than the fast tests.
    """
    files = collection_path.rglob("*.py") if collection_path.is_dir() else [collection_path]
    if config.option.markexpr == "fast" and not any(map(_is_fast, files)):
        return True
    is_helper = collection_path.suffix == ".py" and not collection_path.name.startswith(("test_", "conftest", "__init__"))
    return True if is_helper and collection_path.is_relative_to(TESTS) else None


def _is_fast(file: Path) -> bool:
    return file.suffix == ".py" and "\npytestmark = pytest.mark.fast\n" in file.read_text("utf-8")


@functools.cache
def _forks(file: str) -> bool:
    return re.search(r"^from tests\.launch import .*\bforked\b", Path(file).read_text("utf-8"), re.MULTILINE) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files to each worker, and all that use `launch.forked` to one: its server takes ten seconds to start."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ForkedTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "forked" if _forks(str(config.rootpath / file)) else file

    return ForkedTogether(config, log)


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first; without a GPU, skip what needs one; properties are slow, too, if asked about all examples."""
    if config.option.markexpr == "slow":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker("slow")
    on_gpu = [item for item in items if item.get_closest_marker("cuda")]
    if on_gpu and not sys.modules["torch"].cuda.is_available():  # whoever needs a GPU has imported it
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what the imports made out of every later garbage collection; a small run spends a fifth of its time there."""
    whole = any(Path(argument).resolve() == TESTS for argument in session.config.args)
    if whole and session.config.option.markexpr == "fast" and "torch" in sys.modules:
        raise pytest.UsageError("a fast file imports torch, which takes longer than all fast tests")
    gc.enable()
    gc.collect()
    gc.freeze()
    settle()
