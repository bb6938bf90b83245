import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from minionerec.errors import DataError
from minionerec.eval.predictions import read_predictions, write_predictions
from minionerec.report import causes, runs
from minionerec.report.paper_gap import build, main
from minionerec.report.published import METRICS, published
from minionerec.report.runs import dataset_of, load
from tests.report.run_folder import make_run
from tests.report.test_page import Page


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """A run of SIDs that collide, and the same recipe with another seed and other predictions."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "a", collide=True)
    make_run(root / "b", collide=True, skill=1.4)
    for path in (root / "b").rglob("manifest.json"):
        values = json.loads(path.read_text()) | {"seed": 43}
        path.write_text(json.dumps(values))
    return root


def reference_file(path, hits: float, rows: int = 4533):
    """A result file of the reference for as many rows as Industrial's test split, with a share of the targets at rank 1."""
    rng = np.random.default_rng(0)
    records = [
        {
            "input": "items <a_1><b_1><c_1>",
            "output": "<a_1><b_2><c_3>\n",
            "predict": [
                "<a_1><b_2><c_3>" if rng.random() < hits else "<a_1><b_2><c_4>",
                *(f"<a_2><b_0><c_{c}>" for c in range(9)),
            ],
        }
        for _ in range(rows)
    ]
    path.write_text(json.dumps(records))
    return path


def test_without_runs_the_published_tables_alone(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "new")]) == 0
    found = json.loads((tmp_path / "new/paper_gap.json").read_text(encoding="utf-8"))
    assert [section["name"] for section in found["datasets"]] == list(published()["datasets"])
    page = Page(tmp_path / "new/paper_gap.html")
    text = (tmp_path / "new/paper_gap.md").read_text(encoding="utf-8")
    for words in ("NDCG ~13-16 % below, HR ~12-16 % below the paper", "D3", "NDCG falls from @3 to @5 by 0.0002"):
        assert words in page.words and words in text
    raw = (tmp_path / "new/paper_gap.html").read_text(encoding="utf-8")
    assert raw.count('class="n flagged"') == 8 + 10  # all four cells of each contradiction, shared ones once
    assert "replication" in capsys.readouterr().out


@pytest.mark.parametrize(("hits", "verdict"), [(0.05, "below"), (0.40, "above")])
def test_a_reference_file_is_held_against_the_paper(tmp_path, hits, verdict):
    path = reference_file(tmp_path / "final.json", hits)
    found = build([path], tmp_path, None, 200, 0)
    industrial = found["datasets"][0]
    (run,) = industrial["runs"]
    assert run["comparable"] and "taken on trust" in run["notes"][0] and set(run["metrics"]) == set(METRICS)
    cell, target = run["metrics"]["HR@10"], industrial["published"]["MiniOneRec"]["HR@10"]["value"]
    assert cell["verdict"] == verdict and cell["gap"] == pytest.approx(cell["value"] - target, abs=1e-4)
    assert (cell["high"] < target) == (verdict == "below")
    assert run["summary"].endswith("the paper")


def test_noise_is_called_noise(tmp_path):
    (run,) = build([reference_file(tmp_path / "final.json", 0.1586)], tmp_path, None, 200, 0)["datasets"][0]["runs"]
    assert run["metrics"]["HR@10"]["verdict"] == "within noise"


def test_a_run_without_the_history_is_not_held_against_the_paper(tmp_path):
    reference_file(tmp_path / "final.json", 0.1)
    (run,) = load(tmp_path / "final.json", 200, 0)
    counts = published()["datasets"]["Industrial_and_Scientific"]["counts"]
    whole = replace(run, counts=counts, split="test")
    assert dataset_of(whole, None) == ("Industrial_and_Scientific", True, None)
    _, fits, why = dataset_of(replace(whole, whole=False), None)
    assert not fits and "history is left out" in why


def test_runs_seeds_pairs_and_causes(two_seeds, tmp_path):
    found = build([two_seeds / "a", two_seeds / "b"], tmp_path, None, 200, 0)
    own = found["datasets"][-1]
    assert own["published"] is None and len(own["runs"]) == 8 and own["asked"] == "a, SFT + RL"
    groups = {group["label"]: group for group in own["seeds"]}
    assert groups["a, SFT"]["seeds"] == [42, 43] and groups["a, SFT"]["metrics"]["HR@10"]["sd"] > 0
    assert len(own["pairs"]) == 28
    pair = next(p for p in own["pairs"] if (p["first"], p["second"]) == ("a, SFT", "b, SFT"))["metrics"]["NDCG@10"]
    assert pair["value"] > 0 and not pair["noise"] and pair["p"] < 0.05
    causes = {cause["title"]: cause for cause in own["causes"]}
    assert "with the luckiest order" in causes["collisions"]["effect"] and "share their SID" in causes["collisions"]["effect"]
    assert "without them" in causes["repeats"]["effect"] and "over 2 seeds" in causes["seeds"]["effect"]
    for title in ("prompt mismatch", "wrong reward targets", "validation labels in training rewards", "answer in the prompt"):
        assert (
            causes[title]["effect"].startswith("not in these runs; on industrial-partial") and "--" in causes[title]["switch"]
        )
    assert causes["prompt mismatch"]["effect"].count("NDCG@10 -0.0") == 1
    assert causes["model size"]["effect"] is None and causes["model size"]["switch"]
    assert "not measured" in Page(tmp_path / "paper_gap.html").words


def test_search_error_is_told_of_the_beams_that_the_run_used(two_seeds, monkeypatch):
    run = next(run for run in load(two_seeds / "a", 50, 0) if run.recommender == "sft")
    rates = {"HR@1": 0.1, "HR@10": 0.3, "NDCG@10": 0.2}
    widths = {"10": {**rates, "overlap": 0.8, "missed": 0.25}, "50": {**rates, "overlap": 1.0, "missed": 0.0}}
    search = {"rows": 128, "num_beams": 10, "exact": rates, "widths": widths, "pruned": [], "calibration": []}
    effect = causes._search(replace(run, metrics={**run.metrics, "search": search}), [])
    assert "with this run's 10 beams the search itself loses a target that belongs into the list in 25.00%" in effect
    old = {**run.metrics, "search": {name: value for name, value in search.items() if name != "num_beams"}}
    monkeypatch.setattr(runs, "read_json", lambda _: old)
    with pytest.raises(DataError, match=r"search.num_beams is missing.*Delete .*eval/.* and evaluate again"):
        load(two_seeds / "a", 50, 0)


def test_pairs_are_compared_as_far_as_both_lists_reach(two_seeds, tmp_path):
    path = tmp_path / "short.jsonl"
    shorter = [
        replace(one, sids=one.sids[:16], scores=one.scores[:16], sizes=one.sizes[:16], items=one.items[: sum(one.sizes[:16])])
        for one in read_predictions(two_seeds / "a/eval/sft/predictions.jsonl")
    ]
    write_predictions(path, shorter)
    build([two_seeds / "a/eval/sft/predictions.jsonl", path], tmp_path, None, 100, 0)
    (pair,) = json.loads((tmp_path / "paper_gap.json").read_text())["datasets"][-1]["pairs"]
    assert "HR@50" not in pair["metrics"] and pair["metrics"]["HR@10"]["value"] == 0
    assert pair["note"] == "lists of 40 and 16 places: cut-offs beyond 16 are left out"
    assert pair["note"] in Page(tmp_path / "paper_gap.html").words and pair["note"] in (tmp_path / "paper_gap.md").read_text()


def test_generation_defaults_are_shown_where_the_shipped_figures_have_them(monkeypatch):
    (cause,) = (cause for cause in causes.CAUSES if cause.title == "generation defaults")
    shipped = causes._elsewhere()
    others = {name: cells for name, cells in shipped["quirks"].items() if name not in cause.quirks}
    cell = {"value": -0.0052, "low": -0.0104, "high": -0.0007, "p": 0.056, "noise": False}
    monkeypatch.setattr(causes, "_elsewhere", lambda: {**shipped, "quirks": others})
    assert causes._measured(cause.quirks) is None
    sampled = {"HR@10": cell, "NDCG@10": cell, "sd": 0.001, "examples": 512, "invalid": 0.1}
    monkeypatch.setattr(causes, "_elsewhere", lambda: {**shipped, "quirks": {**others, "generation defaults": sampled}})
    assert "3 seeds: HR@10 -0.0052 [-0.0104, -0.0007], NDCG@10" in causes._measured(cause.quirks)


def test_equal_inputs_give_equal_bytes(two_seeds, tmp_path):
    for name in ("one", "two"):
        build([two_seeds / "a"], tmp_path / name, None, 100, 0)
    for name in ("paper_gap.json", "paper_gap.md", "paper_gap.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_page_is_self_contained(two_seeds, tmp_path):
    build([two_seeds / "a"], tmp_path, None, 100, 0)
    raw = (tmp_path / "paper_gap.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=", raw)
    assert not re.search(r"built-in|object at 0x|Undefined|\bNone\b|\bnan\b", Page(tmp_path / "paper_gap.html").words)
    for plot in re.findall(r'<script type="application/json">(.*?)</script>', raw):
        layout = json.loads(plot)["layout"]
        assert layout["yaxis"]["title"]["text"]


def test_a_dataset_chosen_by_hand_is_shown_without_verdict(two_seeds, tmp_path):
    found = build([two_seeds / "a"], tmp_path, "Office_Products", 100, 0)
    runs = found["datasets"][1]["runs"]
    assert len(runs) == 4 and not any(run["comparable"] for run in runs)
    assert runs[0]["metrics"]["HR@10"]["verdict"] == "not comparable" and runs[0]["summary"] is None
    assert "80 items, published 3,459" in runs[0]["notes"][0]


@pytest.fixture
def fails(capsys, tmp_path):
    def run(*arguments) -> str:
        assert main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in error and not (tmp_path / "out").exists()
        return error

    return run


def test_bad_runs(two_seeds, tmp_path, fails):
    assert "not found; expected the folder of a run" in fails("--runs", tmp_path / "none")
    assert "data: no finished artefact here" in fails("--runs", tmp_path)
    assert "--resamples is 0" in fails("--resamples", 0)
    assert "no published table of that name" in fails("--runs", two_seeds / "a", "--dataset", "Beauty")
    short = shutil.copytree(two_seeds / "a", tmp_path / "short")
    path = short / "eval/sft/predictions.jsonl"
    write_predictions(path, read_predictions(path)[1:])
    manifest = json.loads(path.with_name("manifest.json").read_text())
    manifest["files"]["predictions.jsonl"]["bytes"] = path.stat().st_size
    path.with_name("manifest.json").write_text(json.dumps(manifest))
    assert "is missing" in fails("--runs", short)


def test_runs_on_other_examples_cannot_be_compared(tmp_path, fails):
    first, second = reference_file(tmp_path / "a.json", 0.1), reference_file(tmp_path / "b.json", 0.1)
    second.write_text(second.read_text().replace("<a_1><b_2><c_3>\\n", "<a_1><b_2><c_9>\\n", 1))
    assert "do not have the same target SIDs" in fails("--runs", first, second)
