"""The table of all recommenders of some runs: its values, seeds, published cells, and the rows that it refuses."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from minionerec.artifacts import MILLISECONDS, Manifest
from minionerec.cli import main
from minionerec.config import BaselineConfig, EvalConfig, LetterConfig, RlConfig, SftConfig, SidConfig
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import values_per_row
from minionerec.report import comparison
from minionerec.report.comparison import compare_runs
from minionerec.report.comparison_pages import page_table, render_page, screen_table
from minionerec.report.evaluated import compare_evaluated, read_evaluated
from minionerec.report.published import METRICS, published
from minionerec.report.rivals import PUBLISHED_ROW, kind_of
from minionerec.report.runs import DatasetMatch, read_run
from minionerec.statistics.intervals import intervals
from tests.report.run_folder import make_run
from tests.report.test_page import plain
from tests.small import reseal

RESAMPLES = 60


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three runs that differ in their seed, and so in their model's lists."""
    folder = tmp_path_factory.mktemp("seeds")
    return [
        make_run(folder / f"seed-{seed}", skill=skill, given={"seed": seed}, baseline=BaselineConfig(model="sasrec")).folder
        for seed, skill in ((1, 0.7), (2, 0.9), (3, 1.2))
    ]


def values(folder, name, on="item"):
    return values_per_row(RankedLists.read(folder / "eval" / name / "predictions.jsonl"), (3, 5, 10), on)


def row_of(compared, name):
    [row] = [row for row in compared.recommenders if row.name == name]
    return row


def test_the_rows_of_a_run_are_its_metrics_and_paired_differences(seeds):
    compared = compare_runs(seeds[:1], resamples=RESAMPLES, seed=5)
    assert (compared.reference, compared.history, compared.split, compared.rows) == ("SFT + RL", "kept", "test", 60)
    assert {row.name for row in compared.recommenders} == {"popularity", "repeat", "sft", "rl", "sasrec"}
    shown = [row.metrics["NDCG@10"]["value"] for row in compared.recommenders]
    assert shown == sorted(shown, reverse=True)
    for row in compared.recommenders:
        expected = {name: row for name, row in values(seeds[0], row.name).items() if name in METRICS}
        assert {name: cell["value"] for name, cell in row.metrics.items()} == pytest.approx(
            {name: value.mean() for name, value in expected.items()}
        )
        assert list(row.metrics) == list(METRICS)
    rl, sft = (read_evaluated(seeds[0] / "eval" / name) for name in ("rl", "sft"))
    expected = compare_evaluated(rl, sft, RESAMPLES, 5, "item", (3, 5, 10))
    change = row_of(compared, "sft").change
    assert {name: change[name]["value"] for name in METRICS} == pytest.approx(
        {name: expected[name]["value"] for name in METRICS}
    )
    assert {name: change[name]["p"] for name in METRICS} == pytest.approx({name: expected[name]["p"] for name in METRICS})
    assert row_of(compared, "rl").change == {}
    sft = row_of(compared, "sft")
    seconds = Manifest.load(seeds[0] / "sft").seconds
    assert (sft.parameters, sft.minutes, sft.milliseconds) == (1_900_000, pytest.approx(seconds / 60), None)
    both = seconds + Manifest.load(seeds[0] / "rl").seconds
    assert row_of(compared, "rl").minutes == pytest.approx(both / 60) and row_of(compared, "popularity").minutes is None


def test_seeds_are_averaged_for_each_user_and_then_resampled(seeds):
    compared = compare_runs(seeds, resamples=RESAMPLES, seed=5)
    rl, sft = row_of(compared, "rl"), row_of(compared, "sft")
    assert rl.seeds == (1, 2, 3) and rl.runs == ("seed-1", "seed-2", "seed-3") and rl.label == "SFT + RL"
    by_seed = {name: [values(folder, name) for folder in seeds] for name in ("rl", "sft")}
    means = {
        name: np.stack([np.mean([one[metric] for one in many], axis=0) for metric in METRICS]) for name, many in by_seed.items()
    }
    for cell, expected in zip(rl.metrics.values(), intervals(means["rl"], RESAMPLES, 5), strict=True):
        assert (cell["value"], cell["low"], cell["high"]) == pytest.approx(tuple(expected))
    single = [one["NDCG@10"].mean() for one in by_seed["rl"]]
    assert rl.metrics["NDCG@10"]["seeds"]["sd"] == pytest.approx(np.std(single, ddof=1))
    assert sft.change["NDCG@10"]["value"] == pytest.approx((means["sft"] - means["rl"])[-1].mean())
    assert row_of(compared, "popularity").seeds == (None,)  # nothing random in it: the first stands for all
    kinds = [row.headings[1] for row in page_table(compared).rows if row.headings[0] == "SFT + RL"]
    assert kinds == ["here, mean of 3 seeds", "sd over seeds"]


def test_a_seed_that_is_given_twice_counts_once(seeds, tmp_path):
    again = shutil.copytree(seeds[1], tmp_path / "again")
    compared = compare_runs([*seeds, again], resamples=RESAMPLES)
    assert row_of(compared, "sft").seeds == (1, 2, 3)
    assert "again: SFT with seed 2 is there already, from seed-1." in compared.left_out


def test_how_a_step_is_cut_into_parts_parts_no_seeds(seeds, tmp_path):
    other = shutil.copytree(seeds[1], tmp_path / "cut")
    sections = Manifest.load(other / "sft").config
    config = {**sections, "sft": {**sections["sft"], "micro_batch": 1, "row_tokens": 8}}
    reseal(other / "sft", config=config)
    digest = Manifest.load(other / "sft").digest
    for name in ("sft", "rl"):
        inputs = Manifest.load(other / "eval" / name).inputs
        reseal(other / "eval" / name, inputs={**inputs, "sft": digest} if "sft" in inputs else inputs)
    assert row_of(compare_runs([seeds[0], other], resamples=RESAMPLES), "sft").seeds == (1, 2)


def test_a_null_field_that_an_earlier_version_did_not_have_parts_no_seeds(seeds, tmp_path):
    other = shutil.copytree(seeds[1], tmp_path / "later")
    sections = Manifest.load(other / "sft").config
    reseal(other / "sft", config={**sections, "sft": {**sections["sft"], "new_option": None}})
    digest = Manifest.load(other / "sft").digest
    reseal(other / "eval/sft", inputs={**Manifest.load(other / "eval/sft").inputs, "sft": digest})
    assert row_of(compare_runs([seeds[0], other], resamples=RESAMPLES), "sft").seeds == (1, 2)


def test_what_only_other_recommenders_read_parts_no_seeds(seeds, tmp_path):
    other = shutil.copytree(seeds[1], tmp_path / "titles")
    sections = Manifest.load(other / "eval/sft").config
    reseal(other / "eval/sft", config={**sections, "eval": {**sections["eval"], "grounding": "trained", "assistant": "sasrec"}})
    assert row_of(compare_runs([seeds[0], other], resamples=RESAMPLES), "sft").seeds == (1, 2)
    sections = {**sections, "eval": {**sections["eval"], "num_beams": sections["eval"]["num_beams"] + 1}}
    reseal(other / "eval/sft", config=sections)
    apart = [row.seeds for row in compare_runs([seeds[0], other], resamples=RESAMPLES).recommenders if row.name == "sft"]
    assert sorted(apart) == [(1,), (2,)]


def test_recipes_of_one_name_are_told_apart_by_their_runs(seeds, tmp_path):
    other = shutil.copytree(seeds[0], tmp_path / "wide")
    sections = Manifest.load(other / "baselines/sasrec").config
    reseal(other / "baselines/sasrec", config={"baseline": {**sections["baseline"], "hidden_size": 96}})
    compared = compare_runs([seeds[0], other], reference="SASRec (wide)", resamples=RESAMPLES)
    assert {row.label for row in compared.recommenders if row.name == "sasrec"} == {"SASRec (seed-1)", "SASRec (wide)"}
    assert compared.reference == "SASRec (wide)"
    with pytest.raises(ConfigError, match=r"--reference sasrec: names several rows. Expected one of: SASRec \(seed-1\)"):
        compare_runs([seeds[0], other], reference="sasrec", resamples=RESAMPLES)
    with pytest.raises(ConfigError, match="--reference tiger: is not evaluated in these runs"):
        compare_runs(seeds, reference="tiger", resamples=RESAMPLES)


def test_a_model_of_sdpo_is_no_grpo(tmp_path):
    rl = RlConfig(objective="sdpo", add_target=True)
    folder = make_run(tmp_path / "run", users=12, given={"rl": rl}).folder
    assert {kind_of(run) for run in read_run(folder)} == {"popularity", "repeat", "sft", "sdpo"}
    compared = compare_runs([folder], resamples=RESAMPLES)
    assert compared.reference == "SFT" and row_of(compared, "rl").label == "SFT + S-DPO"
    assert {absent.label for absent in compared.not_run} >= {"SFT + RL", "TIGER"}
    assert "S-DPO" not in {absent.label for absent in compared.not_run}


def assisted(folder, stage, parameters):
    """Give a run lists of `stage` with the assistant SASRec: those of the model itself."""
    reseal(folder / "baselines/sasrec", metrics={"parameters": parameters}, seconds=90.0)
    helped = shutil.copytree(folder / "eval" / stage, folder / f"eval/{stage}-d3")
    inputs = Manifest.load(helped).inputs
    reseal(helped, inputs={**inputs, "baselines/sasrec": Manifest.load(folder / "baselines/sasrec").digest})


def test_d3_costs_what_the_model_and_its_assistant_cost(seeds, tmp_path):
    folder = shutil.copytree(seeds[0], tmp_path / "run")
    for stage in ("sft", "rl"):
        assisted(folder, stage, 339_264)
    compared = compare_runs([folder], resamples=RESAMPLES)
    alone, helped = row_of(compared, "rl"), row_of(compared, "rl-d3")
    assert (helped.label, helped.parameters, helped.helper_parameters) == ("SFT + RL, assisted (D3)", 1_900_000, 339_264)
    assert alone.helper_parameters is None and helped.minutes == pytest.approx(alone.minutes + 1.5)
    cells = {row.headings[0]: row.cells[0].text for row in page_table(compared).rows if row.headings[1] == "here"}
    assert cells["SFT + RL, assisted (D3)"] == "1,900,000 + 339,264" and cells["SFT + RL"] == "1,900,000"
    assert cells["SASRec"] == "339,264"
    reseal(folder / "baselines/sasrec", metrics={})  # of a version that did not count them
    helped = row_of(compare_runs([folder], resamples=RESAMPLES), "rl-d3")
    assert (helped.parameters, helped.helper_parameters) == (1_900_000, None)


def test_an_assisted_model_of_sdpo_is_no_assisted_grpo(tmp_path):
    rl = RlConfig(objective="sdpo", add_target=True)
    sasrec = BaselineConfig(model="sasrec")
    folder = make_run(tmp_path / "run", users=12, given={"rl": rl}, baseline=sasrec).folder
    assisted(folder, "rl", 339_264)
    assert {run.name: kind_of(run) for run in read_run(folder)}["rl-d3"] == "sdpo-d3"
    compared = compare_runs([folder], resamples=RESAMPLES)
    assert row_of(compared, "rl-d3").label == "SFT + S-DPO, assisted (D3)"
    assert "D3" not in {absent.label for absent in compared.not_run}


def test_published_cells_stand_beside_ours_and_impossible_ones_are_marked(seeds, monkeypatch):
    match = DatasetMatch("Industrial_and_Scientific", False, "2 train, published 36,259")
    monkeypatch.setattr(comparison, "match_dataset", lambda run, dataset: match)
    compared = compare_runs(seeds[:1], resamples=RESAMPLES)
    table = published()["datasets"]["Industrial_and_Scientific"]["published"]
    assert {name: cell.value for name, cell in row_of(compared, "rl").published.items()} == table["MiniOneRec"]
    assert row_of(compared, "sft").published == {} and row_of(compared, "sasrec").published["HR@3"].possible
    [d3] = [absent for absent in compared.not_run if absent.label == "D3"]
    assert [name for name in METRICS if not d3.published[name].possible] == ["HR@3", "HR@5", "NDCG@3", "NDCG@5"]
    screen = screen_table(compared)
    cells = list(screen.columns[screen.columns.index(next(c for c in screen.columns if c.header == "NDCG@5"))].cells)
    assert f"{table['D3']['NDCG@5']:.4f}!" in cells and f"{table['MiniOneRec']['NDCG@5']:.4f}" in cells
    assert "Not comparable with ours: 2 train, published 36,259." in screen.caption
    assert f"Not run here: TIGER: minionerec baseline --config {seeds[0]} --baseline.model tiger" in screen.caption
    page = render_page(compared, "seed 1")
    assert f'<td class="n flagged">{table["D3"]["NDCG@5"]:.4f}</td>' in page and "--baseline.model tiger" in page
    assert "Impossible: D3, 3 to 5: NDCG falls from @3 to @5" in plain(page)


def test_a_model_of_titles_is_not_sent_to_rl(tmp_path):
    titles = SftConfig(tasks=["history_title_to_title"], normalise_over="vocabulary", best_metric="loss", valid_examples=None)
    of_titles = make_run(tmp_path / "titles", users=12, rl=False, given={"sft": titles}).folder
    of_sids = make_run(tmp_path / "sids", users=12, rl=False).folder
    for folders in ([of_titles, of_sids], [of_sids]):
        commands = {absent.label: absent.command for absent in compare_runs(folders, resamples=RESAMPLES).not_run}
        assert commands["SFT + RL"] == f"minionerec rl --config {of_sids} && minionerec eval --config {of_sids}"
        assert f"--config {of_sids} --name demo-sdpo" in commands["S-DPO"]
        on_titles = folders[0] == of_titles
        assert f"{folders[0]} --baseline" in commands["D3"] and ("--eval.title_trie true" in commands["D3"]) is on_titles
        assert commands["TIGER"] == f"minionerec baseline --config {folders[0]} --baseline.model tiger"
    compared = compare_runs([of_titles], resamples=RESAMPLES)
    without = {absent.label: absent.note for absent in compared.not_run if absent.command is None}
    assert {*without} == {"SFT + RL", "S-DPO", "RPG"} and all(str(of_titles) in note for note in without.values())
    assert "none of them has a SID as its answer" in without["S-DPO"]
    assert f"Not run here: S-DPO: not in {of_titles}: sft.tasks is" in screen_table(compared).caption
    assert "none of them has a SID as its answer" in plain(render_page(compared, "titles"))


def test_short_lists_have_no_figures_beyond_their_length(tmp_path):
    folder = make_run(tmp_path / "run", users=12, given={"eval": EvalConfig(num_beams=5, resamples=50)}).folder
    compared = compare_runs([folder], resamples=RESAMPLES)
    assert all(list(row.metrics) == ["HR@3", "HR@5", "NDCG@3", "NDCG@5"] for row in compared.recommenders)
    assert page_table(compared).rows[0].cells[5].text == ""


def changed_evaluation(folder, name, **options):
    evaluation = folder / "eval" / name
    sections = Manifest.load(evaluation).config
    reseal(evaluation, config={**sections, "eval": {**sections["eval"], **options}})


def test_rows_that_are_not_alike_are_refused(seeds, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", users=12).folder
    with pytest.raises(ArtifactError, match="were made from different data"):
        compare_runs([seeds[0], folder], resamples=RESAMPLES)
    monkeypatch.setattr(comparison, "read_run", lambda folder, only: [replace(sft, split="valid"), sft])
    sft = read_evaluated(folder / "eval" / "sft")
    with pytest.raises(ArtifactError, match=r"is of the valid split.* of the test split"):
        compare_runs([folder], resamples=RESAMPLES)
    monkeypatch.undo()
    changed_evaluation(folder, "rl", exclude_history=True)
    with pytest.raises(ArtifactError, match="may recommend items of the history"):
        compare_runs([folder], resamples=RESAMPLES)
    empty = tmp_path / "empty"
    (empty / "eval").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="nothing evaluated here"):
        compare_runs([empty], resamples=RESAMPLES)


def test_sids_of_different_catalogs_are_not_counted_in_one_table(tmp_path):
    plain_run, shared = (
        make_run(tmp_path / name, users=12, collide=collide).folder for name, collide in (("a", False), ("b", True))
    )
    with pytest.raises(ArtifactError, match=r"different semantic IDs.*Compare them on items"):
        compare_runs([plain_run, shared], on="sid", resamples=RESAMPLES)
    assert compare_runs([plain_run, shared], resamples=RESAMPLES).on == "item"
    on_sids = compare_runs([shared], on="sid", resamples=RESAMPLES)
    assert row_of(on_sids, "sft").metrics["HR@10"]["value"] == pytest.approx(values(shared, "sft", "sid")["HR@10"].mean())


def test_the_command_prints_and_writes_it(seeds, tmp_path, capsys):
    changed = Manifest.load(seeds[2] / "eval/sft")
    reseal(seeds[2] / "eval/sft", metrics={**changed.metrics, MILLISECONDS: 12.5})
    out, page = tmp_path / "table.json", tmp_path / "table.html"
    command = ["baseline", "table", *map(str, seeds), "--reference", "sft", "--resamples", "60"]
    assert main([*command, "--json", str(out), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "sd over seeds" in printed and "1,900,000" in printed and "Not run here: TIGER" in printed
    stored = json.loads(out.read_text())
    compared = compare_runs(seeds, reference="sft", resamples=60)
    assert stored == json.loads(json.dumps(asdict(compared)))
    assert row_of(compared, "sft").milliseconds == 12.5
    assert page.read_text(encoding="utf-8").startswith("\n<!DOCTYPE html>") or "<!DOCTYPE html>" in page.read_text(
        encoding="utf-8"
    )
    for wrong, message in (
        (["beauty", str(seeds[0])], "beauty is a table of its own; ask for it alone"),
        (["beauty", "--html", str(page)], "baseline table beauty takes no --html: that is for folders of runs"),
        (["nowhere", str(seeds[0])], "baseline table nowhere: no folder of a run with eval/ in it"),
        ([str(seeds[0]), "--runs", str(tmp_path)], "--runs is for the tables beauty and lastfm"),
    ):
        assert main(["baseline", "table", *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", ["letter", "rq-vae"])
def test_tiger_on_sids_of_letter_is_no_tiger(tmp_path, method):
    sid = SidConfig(
        method=method,
        codebook_size=8,
        letter=LetterConfig(groups=2),
        collaborative_model="sasrec" if method == "letter" else None,
    )
    make_run(tmp_path / "run", users=12, rl=False, given={"sid": sid}, baseline=BaselineConfig(model="tiger"))
    compared = compare_runs([tmp_path / "run"], resamples=RESAMPLES)
    row, letters = row_of(compared, "tiger"), method == "letter"
    assert row.label == ("LETTER-TIGER" if letters else "TIGER")
    assert (PUBLISHED_ROW.get(row.kind) is None) == letters
    absent = {absent.label: absent for absent in compared.not_run}
    assert ("TIGER" in absent) == letters
    if letters:
        assert absent["TIGER"].command is None and "TIGER needs a run with SIDs of another method" in absent["TIGER"].note
