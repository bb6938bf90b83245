import json

import pytest

from minionerec.cli import main
from minionerec.config import run_file
from minionerec.report import pair_page
from minionerec.report.pair_audit import published_tables
from minionerec.report.pair_page import AUDITS, DEFECTS, NOT_RUN
from tests.report.test_pair_audit import clean
from tests.shared import shared

pytestmark = pytest.mark.fast


def board(rows=()):
    """A leaderboard of a control and the named rows."""
    interval = {"value": 0.6123, "low": 0.6, "high": 0.63}
    change = {**interval, "p": 0.2, "noise": True, "detectable": 0.05}

    def entry(name, kind):
        metrics = dict.fromkeys(("AUC", "GAUC", "NDCG@5", "LRAP", "MRR-first"), interval)
        return {"name": name, "label": f"our {name}", "kind": kind, "run": "x", "metrics": metrics}

    entries = [
        entry("like-rate", "control"),
        *({**entry(name, "model"), "against_reference": {"GAUC": change}} for name in rows),
    ]
    split = {
        "rows": 200,
        "users": 20,
        "users_judged": 20,
        "likes": 80,
        "rows_older_than_history": 0,
        "parts": {"seen": 200, "unseen": 0},
    }
    settings = {"split": "test", "ties": "expected"}
    return {"run": "x", "rule": "rated", "entries": entries, "split": split, "settings": settings, "left_out": {}}


def test_our_rows_stand_in_the_column_of_our_data_and_the_table_of_their_scheme(tmp_path, monkeypatch):
    stored = {"runs/x": {"data": {"source": "ml-100k"}}, "runs/y": {"data": {"source": "csv"}}}
    monkeypatch.setattr(run_file, "load", lambda folder: stored[str(folder)])
    rows = ("zero-shot-smollm2", "matching-minilm-dot", "yes-no-sid")
    page = pair_page.pair_page({"runs/x": board(rows), "runs/y": board(rows)})
    place = published_tables().columns.index("MovieLens")
    for table, name in zip(page.published, rows, strict=True):
        ours = [row for row in table.rows if row.headings[1].startswith("ours")]
        assert [row.headings for row in ours] == [
            (f"our {label}", f"ours, {metric}") for label in ("like-rate", name) for metric in ("AUC", "GAUC")
        ]
        assert {[cell.text for cell in row.cells].index("0.6123") for row in ours} == {place}
        assert table.columns[2] == "MicroLens †" and table.columns[place] == "MovieLens"
    text = pair_page.render(page)
    for part in ("our yes-no-sid", "runs/y", "p 0.200", "8,030M"):
        assert part in text, part
    assert all(f"<dt>{name}</dt>" in text for name in [*AUDITS, *(models for models, _ in NOT_RUN)])
    assert all(defect.text in text for defect in DEFECTS if "'" not in defect.text)


def test_every_audit_is_explained_and_the_shipped_tables_are_those_of_the_reference():
    shipped, reference = published_tables(), json.loads(shared("reference/recbench.json").read_text())
    assert shipped.columns == reference["columns"]
    for name, rows in reference["tables"].items():
        assert shipped.models[name] == [row["model"] for row in rows]
        assert shipped.values[name].tolist() == [row["values"] for row in rows]
    green = reference["green"]["backbones"]
    assert [row["values"] for row in shipped.green] == [values for rows in green.values() for values in rows.values()]
    page = pair_page.pair_page({})
    assert {finding.audit for finding in page.findings} <= set(AUDITS)
    assert {"near-duplicate columns", "repeated row", "random negatives", "carbon"} <= {f.audit for f in page.findings}
    assert any(cell.tone == "loss" for cell in page.published[0].rows[1].cells) and clean().green == ()


def test_the_command_writes_the_page_without_a_run(tmp_path, capsys):
    assert main(["pairs", "table", "--html", str(tmp_path / "pairs.html")]) == 0
    assert "random negatives, all: MicroLens" in capsys.readouterr().out
    assert "Defects of the original code" in (tmp_path / "pairs.html").read_text()
    assert main(["pairs", "audit"]) == 0
    assert "repeated row" in capsys.readouterr().out
    assert main(["pairs", "table", str(tmp_path / "none")]) == 2
    assert "minionerec score" in capsys.readouterr().err
