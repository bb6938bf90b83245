"""The notebook of the documentation runs, cell by cell."""

import json

import pytest

from tests.launch import ROOT
from tests.recommend.conftest import write_run


@pytest.fixture
def cells():
    notebook = json.loads((ROOT / "docs/recommend.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)  # they would grow old
    return ["".join(cell["source"]) for cell in cells]


def test_every_cell_runs(cells, make, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs/ml-100k", make(num_beams=8))
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in cells:
        exec(compile(cell, "docs/recommend.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert "21 lists" not in printed and "13 lists" in printed and "popularity" in printed
    assert "Result(prompts=1, overlap=1.0, " in printed
