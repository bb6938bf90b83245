"""Pages of docs/ that a script prints are as it prints them."""

import importlib.util

import pytest

from tests.launch import ROOT

pytestmark = pytest.mark.fast


def test_the_page_of_tasks_is_what_the_script_prints():
    spec = importlib.util.spec_from_file_location("task_examples", ROOT / "scripts/task_examples.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs/tasks.md").read_text(encoding="utf-8") == script.page() + "\n"
