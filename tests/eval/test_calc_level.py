import json
import subprocess
import sys
from pathlib import Path

import pytest

from minionerec.cli import main
from minionerec.eval import level_tables
from minionerec.eval.predictions import write_predictions
from tests.eval.samples import random_predictions
from tests.launch import forked

ENTRY = Path(__file__).parents[2] / "eval/calc_level.py"


@pytest.fixture
def path(tmp_path):
    write_predictions(tmp_path / "predictions.jsonl", random_predictions(users=8))
    return tmp_path / "predictions.jsonl"


def test_prints_three_tables_and_writes_beside_the_file(path, capsys):
    assert main(["levels", "--path", str(path)]) == 0
    written = json.loads((path.parent / "levels.json").read_text(encoding="utf-8"))
    expected = level_tables(random_predictions(users=8), (1, 3, 5, 10, 20))  # no list is 50 long
    assert {name: written[name] for name in expected} == expected
    assert (written["users"], written["rows"], written["lengths"]) == (
        8,
        8,
        {"shortest": 30, "longest": 30},
    )  # items, of 23 to 26 SIDs
    assert (path.parent / "levels.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for words in (
        "on items",
        "MRR@20",
        "lost the target",
        "Independent",
        "Cumulative",
        "Drop-off",
        "Exact",
        "L1+L2+L3",
        "8 users",
    ):
        assert words in printed


def test_out_folder_is_made(path, tmp_path):
    assert main(["levels", "--path", str(path), "--out", str(tmp_path / "new/folder")]) == 0
    assert (tmp_path / "new/folder/levels.json").is_file()
    assert not (tmp_path / "levels.json").exists()


def test_errors_without_traceback(path, tmp_path, capsys):
    assert main(["levels", "--path", str(tmp_path / "none.jsonl")]) == 2
    assert "not found" in capsys.readouterr().err
    assert main(["levels", "--path", str(path), "--out", str(path)]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_entry_file(path):
    done = subprocess.run([sys.executable, ENTRY, "--path", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path.write_text("{")
    failed = forked(1, str(ENTRY), "--path", str(path), check=False)
    assert failed.returncode == 2
    assert "line 1" in failed.stdout and "Traceback" not in failed.stdout


def test_what_counts_for_no_level_is_said(tmp_path, capsys):
    """A SID outside the catalog has the target's first code: it counts without the catalog, as in the published tables."""
    records = [{"input": "", "output": "<a_1><b_2>", "predict": ["<a_1><b_9>", "hello"]}]
    (tmp_path / "result.json").write_text(json.dumps(records))
    (tmp_path / "index.json").write_text('{"0": ["<a_1>", "<b_2>"]}')
    shares, words = [], []
    for index in ([], ["--index", str(tmp_path / "index.json")]):
        assert main(["levels", "--path", str(tmp_path / "result.json"), *index]) == 0
        shares.append(json.loads((tmp_path / "levels.json").read_text())["cumulative"]["1"]["L1"])
        words.append(capsys.readouterr().out)
    assert shares == [1.0, 0.0]
    assert "50.00% of the listed texts are no SID and count for no level" in words[0]
    assert "100.00% of the listed texts are no SID of the catalog and count for no level (tables that are made" in words[1]
