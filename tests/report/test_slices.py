"""Tables of slices, and the refusal to compare lists with the history with lists without it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from minionerec.artifacts import REVISIONS, Manifest
from minionerec.cli import main
from minionerec.commands import result_table
from minionerec.config import BaselineConfig, Config, EvalConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import values_per_row
from minionerec.eval.slices import parts_of_training
from minionerec.report.build import write_report
from minionerec.report.comparison import compare_runs
from minionerec.report.evaluated import compare_evaluated, of_present_inputs, read_evaluated
from minionerec.report.paper_gap import write_gap_report
from minionerec.report.runs import load_runs
from minionerec.report.slices import screen_tables, slices_of_run
from minionerec.training.ranking import TIES
from tests.report.run_folder import make_run
from tests.report.test_page import Page, plain
from tests.small import reseal


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("slices")
    return make_run(folder, collide=True, baseline=BaselineConfig(model="markov"))


@pytest.fixture
def unlike(tmp_path) -> Config:
    """A run whose baseline keeps the history, and whose other recommenders leave it out."""
    config = make_run(tmp_path / "run", users=12, baseline=BaselineConfig(model="markov"))
    for name in ("popularity", "repeat", "sft", "rl"):
        folder = config.folder / "eval" / name
        sections = Manifest.load(folder).config
        reseal(folder, config={**sections, "eval": {**sections["eval"], "exclude_history": True}})
    return config


def test_rows_are_the_metrics_of_their_parts_paired_with_the_reference(run):
    sliced = slices_of_run(run.folder, "NDCG@10", resamples=100, seed=1)
    dataset = Dataset.load(run.folder / "data")
    parts = parts_of_training(RankedLists.read(run.folder / "eval/markov/predictions.jsonl"), dataset)
    assert sliced.reference == "SFT + RL" and sliced.history == "kept"
    values = {
        one.label: values_per_row(one.lists, (10,), "item")["NDCG@10"]
        for one in (read_evaluated(run.folder / "eval" / name) for name in ("popularity", "sft", "rl", "markov"))
    }
    whole, *rest = sliced.rows
    for label, per_row in values.items():
        assert whole.cells[label]["value"] == pytest.approx(per_row.mean())
        for row in rest:
            assert row.cells[label]["value"] == pytest.approx(per_row[parts[row.question][row.answer]].mean())
    expected = compare_evaluated(
        *(read_evaluated(run.folder / "eval" / name) for name in ("rl", "sft")), resamples=100, seed=1, on="item", cutoffs=(10,)
    )["NDCG@10"]
    assert {name: whole.changes["SFT"][name] for name in ("value", "p", "detectable", "noise")} == pytest.approx(
        {name: expected[name] for name in ("value", "p", "detectable", "noise")}
    )
    assert (whole.changes["SFT"]["low"], whole.changes["SFT"]["high"]) == pytest.approx(
        (expected["low"], expected["high"]),
        abs=0.02,  # the draws of the bootstrap depend on how many metrics it resamples
    )
    assert (whole.rows, whole.share) == (60, 1.0)
    shares = {question: sum(row.share for row in rest if row.question == question) for question in parts}
    assert shares == pytest.approx(dict.fromkeys(parts, 1.0))


def test_rows_in_another_order_are_paired_by_example(run, tmp_path):
    config = make_run(tmp_path, collide=True)
    path = config.folder / "eval/rl/predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(np.random.default_rng(0).permutation(lines)))
    reseal(path.parent)
    names = ("popularity", "sft", "rl")
    mixed, whole = (slices_of_run(folder, only=names, resamples=50) for folder in (config.folder, run.folder))
    assert [row.cells for row in mixed.rows] == [row.cells for row in whole.rows]


def test_the_command_prints_values_and_differences(run, capsys):
    arguments = ["slices", str(run.folder), "--resamples", "50", "--frequent", "3", "--metric", "HR@10"]
    assert main([*arguments, "--only", "markov,rl,sft", "--reference", "markov"]) == 0
    printed = plain(capsys.readouterr().out)
    for words in (
        "HR@10 on items, history kept",
        "seen transition",
        "the 3 most frequent targets",
        "SFT minus Markov chain",
        "head",
    ):
        assert words in printed
    assert "Popularity" not in printed
    assert main([*arguments, "--only", "markov"]) == 0
    assert "minus" not in capsys.readouterr().out


def test_mistakes_are_named(run):
    with pytest.raises(ConfigError, match=r"sasrec is not evaluated there; expected one of markov, popularity"):
        slices_of_run(run.folder, only=["sasrec"])
    with pytest.raises(ConfigError, match=r"--reference rl: not among the recommenders of --only"):
        slices_of_run(run.folder, only=["markov"], reference="rl")
    with pytest.raises(ArtifactError, match=r"eval: nothing evaluated here"):
        slices_of_run(make_empty(run), only=[])


def make_empty(run):
    """The same data and SIDs, and nothing evaluated."""
    folder = run.folder.parent / "empty"
    folder.mkdir()
    for name in ("data", "sid"):
        (folder / name).symlink_to(run.folder / name)
    return folder


def test_the_pages_show_the_slices(run, tmp_path):
    write_report(run)
    words = Page(run.folder / "report/index.html").words
    for text in (
        "seen transition",
        "the 2 most frequent targets",
        "its own",
        "Each recommender compared with SFT + RL",
    ):
        assert text in words
    assert "the history is kept, for all recommenders" in words
    gap = Page(run.folder / "report/paper_gap.html").words
    assert "NDCG@10 on items, with 95 % intervals" in gap and "users, on SIDs, history kept" in gap
    assert "| training shows | cold |" in (run.folder / "report/paper_gap.md").read_text()
    assert "history kept" in Page(run.folder / "report/rl.html").words


def test_lists_with_and_without_the_history_are_not_compared(unlike, capsys):
    folder = unlike.folder
    message = r"Markov chain may recommend items of the history, .* may not \(eval.exclude_history in the manifests\)"
    for refused in (lambda: slices_of_run(folder), lambda: write_report(unlike)):
        with pytest.raises(ArtifactError, match=message):
            refused()
    assert main(["baseline", "table", str(folder)]) == 2
    assert "Evaluate all of them with one setting" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match=message):
        compare_evaluated(*(read_evaluated(folder / "eval" / name) for name in ("markov", "sft")), resamples=50, seed=0)
    assert slices_of_run(folder, only=["sft", "rl"], resamples=50).history == "left out"


def test_the_gap_page_marks_them_and_leaves_out_their_difference(unlike, tmp_path):
    report = write_gap_report([unlike.folder], tmp_path / "gap", resamples=50)
    section = report.datasets[-1]
    assert {run.label: run.history for run in section.runs}["run, Markov chain (history kept)"] == "kept"
    assert "run, SFT (history left out)" in {run.label for run in section.runs}
    pairs = {(pair.first, pair.second): pair for pair in section.pairs}
    unlike_pair = pairs["run, Markov chain (history kept)", "run, SFT (history left out)"]
    assert unlike_pair.metrics == {} and "only one of them keeps the history" in unlike_pair.note
    assert pairs["run, SFT (history left out)", "run, SFT + RL (history left out)"].metrics
    assert "only one of them keeps the history" in Page(tmp_path / "gap/paper_gap.html").words
    assert json.loads((tmp_path / "gap/paper_gap.json").read_text())["datasets"][-1]["runs"][0]["history"]


def test_the_table_of_the_command_line_says_which(run, unlike):
    """As the evaluations have recorded it, whatever the command says."""
    title = "demo, 12 examples of the test split, 50 beams, history kept, on items, 95 % intervals"
    assert result_table(run).title.endswith("50 beams, history kept, on items, 95 % intervals")
    other = dataclasses.replace(run, eval=EvalConfig(exclude_history=True, num_beams=7, split="valid"))
    assert result_table(other).title == result_table(run).title
    table = result_table(unlike)
    assert table.title == title.replace("history kept, ", "") and table.caption is None
    rows = dict(cell.split("\n") for cell in table.columns[0].cells)
    assert rows == {"markov": "history kept"} | dict.fromkeys(("popularity", "repeat", "sft", "rl"), "history left out")
    folder = unlike.folder / "eval/rl"
    settings = Manifest.load(folder).config
    reseal(folder, config={"eval": {**settings["eval"], "num_beams": 7, "dtype": "bfloat16"}})
    rows = dict(cell.split("\n", 1) for cell in result_table(unlike).columns[0].cells)
    assert rows["rl"] == "7 beams\nhistory left out\nbfloat16" and rows["sft"] == "50 beams\nhistory left out"


def test_rows_of_another_model_than_the_run_has_are_left_out(unlike):
    evaluation, baseline = unlike.folder / "eval/markov", Manifest.load(unlike.folder / "baselines/markov")
    reseal(evaluation, inputs={**Manifest.load(evaluation).inputs, "baselines/markov": baseline.digest})
    assert result_table(unlike).caption is None
    for name, folder in (("sft", "sft"), ("markov", "baselines/markov")):
        reseal(unlike.folder / folder, digest="1" * 64)
        table = result_table(unlike)
        assert name not in "\n".join(table.columns[0].cells) and f"{name} (made from another {folder} than" in table.caption
    shutil.rmtree(unlike.folder / "rl")
    assert "rl (made from another rl than the run has)" in result_table(unlike).caption
    assert "minionerec eval makes them anew" in result_table(unlike).caption


def test_rows_that_an_earlier_version_measured_otherwise_are_left_out(tmp_path, monkeypatch):
    """Equal scores counted in catalog order there. Lists that say nothing of them cannot be evaluated anew, but made anew."""
    folder = make_run(tmp_path / "run", rl=False, users=12, baseline=BaselineConfig(model="markov")).folder
    evaluation, baseline = Manifest.load(folder / "eval/markov"), Manifest.load(folder / "baselines/markov")
    reseal(folder / "eval/markov", inputs={**evaluation.inputs, "baselines/markov": baseline.digest})
    reseal(folder / "eval/popularity", stage="eval/popularity")
    assert Manifest.load(folder / "eval/popularity").key.endswith("-2")
    names = ["markov", "popularity", "repeat", "sft"]
    monkeypatch.delitem(REVISIONS, "eval/popularity")
    assert of_present_inputs(folder, names) == (names, None)
    monkeypatch.setitem(REVISIONS, "eval/popularity", 1)
    section = {name: value for name, value in baseline.config["baseline"].items() if name not in TIES}
    reseal(folder / "baselines/markov", config={"baseline": section})
    present, sentence = of_present_inputs(folder, names)
    assert present == ["repeat", "sft"]
    assert "markov (made by an earlier version, which measured otherwise; first minionerec baseline --baseline.m" in sentence
    assert "popularity (made by an earlier version, which measured otherwise)." in sentence
    compared = compare_runs([folder], resamples=50)
    assert sorted(row.name for row in compared.recommenders) == present and sentence in compared.left_out
    runs = {one.name: one for one in load_runs(folder, "run", resamples=50, seed=0)}
    assert {name for name, run in runs.items() if run.stale} == {"markov", "popularity"}
    assert "made by an earlier version" in runs["popularity"].notes[-1]


def test_slices_and_the_table_of_a_run_leave_such_rows_out_too(tmp_path):
    folder = make_run(tmp_path / "run", users=12, baseline=BaselineConfig(model="markov")).folder
    assert slices_of_run(folder, resamples=50).outdated is None and not compare_runs([folder], resamples=50).left_out
    reseal(folder / "sft", digest="1" * 64)
    sliced, left_out = slices_of_run(folder, resamples=50), "sft (made from another sft than the run has)"
    assert "SFT" not in sliced.rows[0].cells and len(sliced.rows[0].cells) == 4
    assert all(left_out in screen.caption for screen in screen_tables(sliced, "run"))
    compared = compare_runs([folder], resamples=50)
    assert left_out in compared.left_out[0]
    assert sorted(row.name for row in compared.recommenders) == ["markov", "popularity", "repeat", "rl"]
    notes = {one.name: one.notes for one in load_runs(folder, "run", resamples=50, seed=0)}
    assert "made from another sft than the run has; the run's present settings stand here" in notes.pop("sft")[-1]
    assert not any(notes.values())
    for asked in ({"only": ["sft", "markov"]}, {"reference": "sft"}):
        with pytest.raises(ArtifactError, match=r"made from another sft than the run has\). minionerec eval makes them anew"):
            slices_of_run(folder, resamples=50, **asked)
    reseal(folder / "data", digest="2" * 64)
    for refused in (lambda: slices_of_run(folder), lambda: compare_runs([folder])):
        with pytest.raises(ArtifactError, match=r"Make it anew: minionerec eval --config"):
            refused()
