import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from minionerec.cli import main
from minionerec.config import BaselineConfig, PromptsConfig, RlConfig
from minionerec.errors import ArtifactError
from minionerec.eval import metrics_json
from minionerec.eval.predictions import read_predictions, write_predictions
from minionerec.report import gap_causes
from minionerec.report.page import signed
from minionerec.report.paper_gap import write_gap_report
from minionerec.report.published import METRICS, published
from minionerec.report.runs import distinct_names, load_runs, match_dataset, seed_groups
from tests.report.run_folder import make_run
from tests.report.test_page import Page, plain
from tests.small import reseal


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """A run of SIDs that collide, and the same recipe with another seed and other predictions."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "a", collide=True)
    make_run(root / "b", collide=True, skill=1.4)
    for path in (root / "b").rglob("manifest.json"):
        reseal(path.parent, seed=43)
    return root


def released_file(path, hits: float, rows: int = 4533):
    """A result file of the released code for as many rows as Industrial's test split, with a share of the targets at rank 1."""
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
    assert main(["gap", "--out", str(tmp_path / "new")]) == 0
    found = json.loads((tmp_path / "new/paper_gap.json").read_text(encoding="utf-8"))
    assert [section["name"] for section in found["datasets"]] == list(published()["datasets"])
    page = Page(tmp_path / "new/paper_gap.html")
    text = (tmp_path / "new/paper_gap.md").read_text(encoding="utf-8")
    for words in ("NDCG ~13-16 % below, HR ~12-16 % below the paper", "D3", "NDCG falls from @3 to @5 by 0.0002"):
        assert words in page.words and words in text
    raw = (tmp_path / "new/paper_gap.html").read_text(encoding="utf-8")
    # All four cells of each contradiction, shared ones once; the hit rates that are no counts, one of them the paper's.
    assert raw.count('class="n flagged"') == 8 + 10 + 1 + 3
    for words in ("HR@3 0.0915 is no share of 4,533 test rows", "sibling, 2 epochs", "+13.9 % over it and +4.0 %", "V-STAR"):
        assert words in page.words and words in text
    assert "replication" in capsys.readouterr().out
    assert "folded" not in page.words and not any(attributes.get("id") == "published" for _, attributes in page.tags)


@pytest.mark.parametrize(("hits", "verdict"), [(0.05, "below"), (0.40, "above")])
def test_a_released_file_is_compared_with_the_paper(tmp_path, hits, verdict):
    path = released_file(tmp_path / "final.json", hits)
    report = write_gap_report([path], tmp_path, resamples=200, seed=0)
    industrial = report.datasets[0]
    (run,) = industrial.runs
    assert run.comparable and "taken on trust" in run.notes[0] and set(run.metrics) == set(METRICS)
    cell, target = run.metrics["HR@10"], industrial.tables.published["MiniOneRec"]["HR@10"]["value"]
    assert cell["verdict"] == verdict and cell["gap"] == pytest.approx(cell["value"] - target, abs=1e-4)
    assert (cell["high"] < target) == (verdict == "below")
    assert run.summary.endswith("the paper")


def test_a_runs_own_facts_come_before_the_papers(two_seeds, tmp_path):
    write_gap_report([two_seeds / "a"], tmp_path, resamples=100, seed=0)
    page, markdown = Page(tmp_path / "paper_gap.html"), (tmp_path / "paper_gap.md").read_text(encoding="utf-8")
    for text in (page.words, markdown):
        assert text.index("a, SFT + RL") < text.index("Across datasets") < text.index("replication, RL (2 epochs)")
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["d3", "published", "across", "d1", "d2"]  # the last three are folded
    released = released_file(tmp_path / "final.json", 0.1)
    write_gap_report([released], tmp_path, resamples=100, seed=0)
    sections = [attributes["id"] for tag, attributes in Page(tmp_path / "paper_gap.html").tags if tag == "section"]
    assert sections == ["across", "d1", "published", "d2"]  # it can be compared with a published table


def test_noise_is_called_noise(tmp_path):
    (run,) = (
        write_gap_report([released_file(tmp_path / "final.json", 0.1586)], tmp_path, resamples=200, seed=0).datasets[0].runs
    )
    assert run.metrics["HR@10"]["verdict"] == "within noise"


def test_a_run_without_the_history_is_not_compared_with_the_paper(tmp_path):
    released_file(tmp_path / "final.json", 0.1)
    (run,) = load_runs(tmp_path / "final.json", "final", 200, 0)
    counts = published()["datasets"]["Industrial_and_Scientific"]["counts"]
    whole = replace(run, counts=counts, split="test")
    assert match_dataset(whole, None) == ("Industrial_and_Scientific", True, None)
    _, fits, why = match_dataset(replace(whole, ranks_whole_catalog=False), None)
    assert not fits and "history is left out" in why


def test_runs_seeds_pairs_and_causes(two_seeds, tmp_path):
    report = write_gap_report([two_seeds / "a", two_seeds / "b"], tmp_path, resamples=200, seed=0)
    section = report.datasets[-1]
    assert section.tables is None and len(section.runs) == 8 and section.run_in_question == "a, SFT + RL"
    groups = {group.label: group for group in section.seeds}
    assert groups["a, SFT"].seeds == [42, 43] and groups["a, SFT"].metrics["HR@10"]["sd"] > 0
    assert len(section.pairs) == 28
    pair = next(pair for pair in section.pairs if (pair.first, pair.second) == ("a, SFT", "b, SFT")).metrics["NDCG@10"]
    assert pair["value"] > 0 and not pair["noise"] and pair["p"] < 0.05
    causes = {cause.title: cause for cause in section.causes}
    assert "with the luckiest order" in causes["collisions"].effect and "share their SID" in causes["collisions"].effect
    assert "without them" in causes["repeats"].effect and "over 2 seeds" in causes["seeds"].effect
    for title in ("prompt mismatch", "wrong reward targets", "validation labels in training rewards", "answer in the prompt"):
        assert causes[title].effect.startswith("not set in these runs; on industrial-partial")
        assert "--" in causes[title].switch and causes[title].on == []
    assert causes["prompt mismatch"].effect.count("NDCG@10 \N{MINUS SIGN}0.0") == 1
    assert causes["model size"].effect is None and causes["model size"].switch
    assert "not measured" in Page(tmp_path / "paper_gap.html").words


def test_causes_ask_the_settings_of_the_runs(tmp_path):
    clean, quirks, asked = (tmp_path / name for name in ("clean", "quirks", "asked"))
    make_run(clean)
    mistakes = {"rl": RlConfig(targets="released"), "prompts": PromptsConfig(eval_style="released")}
    make_run(quirks, skill=1.4, given=mistakes)
    make_run(asked, skill=1.4, given={"prompts": PromptsConfig(eval_style="released")})
    single = tmp_path / "single.jsonl"
    shutil.copy(clean / "eval/sft/predictions.jsonl", single)
    section = write_gap_report(
        [clean, quirks, asked, single], tmp_path / "out", "Office_Products", resamples=200, seed=0
    ).datasets[1]
    causes = {cause.title: cause for cause in section.causes}
    prompts, targets = causes["prompt mismatch"], causes["validation labels in training rewards"]
    assert prompts.on == ["quirks, SFT", "quirks, SFT + RL", "asked, SFT", "asked, SFT + RL"]
    assert prompts.effect.startswith("ON in quirks, SFT (prompts.eval_style released), ")
    pairs = {(pair.first, pair.second): pair.metrics["HR@10"] for pair in section.pairs}
    pair = pairs["clean, SFT", "asked, SFT"]
    figures = f"HR@10 {signed(pair['value'])} [{signed(pair['low'])}, {signed(pair['high'])}]"
    assert f"asked, SFT minus clean, SFT (prompts.eval_style same), paired: {figures}" in prompts.effect
    assert "quirks, SFT + RL minus" not in prompts.effect  # it differs in the targets as well
    assert targets.on == ["quirks, SFT + RL"] and "ON in quirks, SFT + RL (rl.targets released)" in targets.effect
    pair = pairs["quirks, SFT + RL", "asked, SFT + RL"]  # the other way round than the effect
    figures = f"HR@10 {signed(-pair['value'])} [{signed(-pair['high'])}, {signed(-pair['low'])}]"
    assert f"quirks, SFT + RL minus asked, SFT + RL (rl.targets row), paired: {figures}" in targets.effect
    for cause in (prompts, targets):
        assert "unknown for single.jsonl" in cause.effect and "on industrial-partial" in cause.effect
    assert causes["answer in the prompt"].effect.startswith("not set in these runs; unknown for single.jsonl; on")


def test_a_single_file_does_not_tell_its_settings(tmp_path):
    report = write_gap_report([released_file(tmp_path / "final.json", 0.1)], tmp_path, resamples=100, seed=0)
    causes = {cause.title: cause.effect for cause in report.datasets[0].causes}
    assert causes["prompt mismatch"].startswith("unknown: a predictions file does not say")
    assert "39.3 % of the targets have the timestamp of the item before" in causes["same-day ties"]
    assert "6.99 % of the targets share their SID" in causes["collisions"]


def test_names_tell_runs_apart(tmp_path):
    paths = [tmp_path / run / "eval/sft/predictions.jsonl" for run in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert distinct_names([*paths, tmp_path / "a", tmp_path / "link", paths[0]]) == {
        "a/eval/sft/predictions.jsonl": paths[0],
        "b/eval/sft/predictions.jsonl": paths[1],
        "a": tmp_path / "a",
    }


def test_only_runs_of_one_recipe_are_seeds(two_seeds):
    runs = [run for name in "ab" for run in load_runs(two_seeds / name, name, 100, 0)]
    assert [[run.label for run in group] for group in seed_groups(runs)] == [
        ["a, SFT", "b, SFT"],
        ["a, SFT + RL", "b, SFT + RL"],
    ]
    assert seed_groups([runs[2], replace(runs[2], label="again")]) == []  # one seed, twice
    assert len(seed_groups([runs[2], replace(runs[2], seed=1)])) == 1
    assert seed_groups([runs[2], replace(runs[2], seed=1, stale=True)]) == []  # lists of a model that is gone


def test_baselines_of_other_settings_are_no_seeds(tmp_path):
    for name, width in (("a", 32), ("b", 64)):
        make_run(tmp_path / name, users=8, baseline=BaselineConfig(model="sasrec", hidden_size=width))
        for path in (tmp_path / name).rglob("manifest.json"):
            reseal(path.parent, seed=width)
    runs = [run for name in "ab" for run in load_runs(tmp_path / name, name, 100, 0) if run.name == "sasrec"]
    assert len(runs) == 2 and seed_groups(runs) == []
    assert len(seed_groups([runs[0], replace(runs[0], seed=1)])) == 1


def test_search_error_is_that_of_the_beams_that_the_run_used(two_seeds, monkeypatch):
    run = next(run for run in load_runs(two_seeds / "a", "a", 50, 0) if run.name == "sft")
    rates = {"HR@1": 0.1, "HR@10": 0.3, "NDCG@10": 0.2}
    widths = {"10": {**rates, "overlap": 0.8, "missed": 0.25}, "50": {**rates, "overlap": 1.0, "missed": 0.0}}
    search = {"rows": 128, "num_beams": 10, "exact": rates, "widths": widths, "pruned": [], "calibration": []}
    effect = gap_causes.search_error_effect(replace(run, metrics=replace(run.metrics, search=search)), [])
    assert "with this run's 10 beams the search itself loses a target that belongs in the list in 25.00%" in effect
    old = {**run.metrics.as_dict(), "search": {name: value for name, value in search.items() if name != "num_beams"}}
    monkeypatch.setattr(metrics_json, "read_json", lambda _: old)
    with pytest.raises(ArtifactError, match=r"search.num_beams is missing.*Delete .*eval/.* and evaluate again"):
        load_runs(two_seeds / "a", "a", 50, 0)


def test_pairs_are_compared_as_far_as_both_lists_reach(two_seeds, tmp_path):
    path = tmp_path / "short.jsonl"
    shorter = [
        replace(one, sids=one.sids[:16], scores=one.scores[:16], sizes=one.sizes[:16], items=one.items[: sum(one.sizes[:16])])
        for one in read_predictions(two_seeds / "a/eval/sft/predictions.jsonl")
    ]
    write_predictions(path, shorter)
    write_gap_report([two_seeds / "a/eval/sft/predictions.jsonl", path], tmp_path, resamples=100, seed=0)
    (pair,) = json.loads((tmp_path / "paper_gap.json").read_text())["datasets"][-1]["pairs"]
    assert "HR@50" not in pair["metrics"] and pair["metrics"]["HR@10"]["value"] == 0
    assert pair["note"] == "lists of 40 and 16 places: cut-offs beyond 16 are left out"
    assert pair["note"] in Page(tmp_path / "paper_gap.html").words and pair["note"] in (tmp_path / "paper_gap.md").read_text()


def test_the_arms_of_rl_are_shown_once_they_are_measured(monkeypatch, tmp_path):
    (cause,) = (cause for cause in gap_causes.CAUSES if cause.title == "RL after SFT that stopped early")
    cell = {"value": 0.0031, "low": 0.0012, "high": 0.005, "p": 0.002, "noise": False}
    cells = {"NDCG@10": cell, "HR@10": {**cell, "low": -0.001, "noise": True}, "HR@50": cell}
    stored = {"dataset": "toy", "split": "test", "seeds": 3, "comparisons": dict.fromkeys(cause.comparisons, cells)}
    monkeypatch.setattr(gap_causes, "stored_arms", lambda: stored)
    text = gap_causes.stored_comparisons(cause.comparisons)
    assert text.startswith("on toy, test split, 3 seeds: RL after SFT chosen by loss, against more SFT: HR@10 +0.0031")
    assert "(noise), NDCG@10 +0.0031 [+0.0012, +0.0050]; SFT chosen by ranking" in text
    assert gap_causes.stored_comparisons(()) is None
    monkeypatch.setattr(gap_causes, "stored_arms", lambda: None)
    assert gap_causes.stored_comparisons(cause.comparisons) is None


def test_generation_defaults_are_shown_where_the_shipped_figures_have_them(monkeypatch):
    (cause,) = (cause for cause in gap_causes.CAUSES if cause.title == "generation defaults")
    shipped = gap_causes.stored_effects()
    others = {name: cells for name, cells in shipped["quirks"].items() if name not in cause.quirks}
    cell = {"value": -0.0052, "low": -0.0104, "high": -0.0007, "p": 0.056, "noise": False}
    monkeypatch.setattr(gap_causes, "stored_effects", lambda: {**shipped, "quirks": others})
    assert gap_causes.stored_effect(cause.quirks) is None
    sampled = {"HR@10": cell, "NDCG@10": cell, "sd": 0.001, "examples": 512, "invalid": 0.1}
    monkeypatch.setattr(gap_causes, "stored_effects", lambda: {**shipped, "quirks": {**others, "generation defaults": sampled}})
    assert "3 seeds: HR@10 -0.0052 [-0.0104, -0.0007], NDCG@10" in plain(gap_causes.stored_effect(cause.quirks))


def test_equal_inputs_give_equal_bytes(two_seeds, tmp_path):
    for name in ("one", "two"):
        write_gap_report([two_seeds / "a"], tmp_path / name, resamples=100, seed=0)
    for name in ("paper_gap.json", "paper_gap.md", "paper_gap.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_page_needs_only_the_script_next_to_it(two_seeds, tmp_path):
    write_gap_report([two_seeds / "a"], tmp_path, resamples=100, seed=0)
    raw = (tmp_path / "paper_gap.html").read_text(encoding="utf-8")
    assert re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[^>]*>", raw) == ['<script src="plotly.min.js">']
    assert (tmp_path / "plotly.min.js").is_file()
    assert not re.search(r"built-in|object at 0x|Undefined|\bNone\b|\bnan\b", Page(tmp_path / "paper_gap.html").words)
    for plot in re.findall(r'<script type="application/json">(.*?)</script>', raw):
        layout = json.loads(plot)["layout"]
        assert layout["yaxis"]["title"]["text"]


def test_a_dataset_chosen_by_hand_is_shown_without_verdict(two_seeds, tmp_path):
    report = write_gap_report([two_seeds / "a"], tmp_path, "Office_Products", resamples=100, seed=0)
    runs = report.datasets[1].runs
    assert len(runs) == 4 and not any(run.comparable for run in runs)
    assert runs[0].metrics["HR@10"]["verdict"] == "not comparable" and runs[0].summary is None
    assert any("80 items, published 3,459" in note for note in runs[0].notes)
    assert any("80 of 80) share their SID" in note for note in runs[0].notes)


@pytest.fixture
def fails(capsys, tmp_path):
    def run(*arguments) -> str:
        assert main(["gap", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
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
    reseal(path.parent)
    assert "is missing" in fails("--runs", short)


def test_runs_on_other_examples_cannot_be_compared(tmp_path, fails):
    first, second = released_file(tmp_path / "a.json", 0.1), released_file(tmp_path / "b.json", 0.1)
    second.write_text(second.read_text().replace("<a_1><b_2><c_3>\\n", "<a_1><b_2><c_9>\\n", 1))
    assert "do not have the same target SIDs" in fails("--runs", first, second)


def test_levels_stand_next_to_the_replications(tmp_path):
    path = released_file(tmp_path / "final.json", 0.1586)
    report = write_gap_report([path], tmp_path / "out", resamples=100, seed=0)
    levels = report.datasets[0].runs[0].levels
    page = Page(tmp_path / "out/paper_gap.html").words
    markdown = (tmp_path / "out/paper_gap.md").read_text(encoding="utf-8")
    shares = " | ".join(f"{share:.4f}" for share in levels["cumulative"]["10"].values())
    assert f"| 10 | final.json | {shares} |" in markdown
    assert "| 10 | replication, RL (2 epochs) | 0.3905 | 0.1915 | 0.1396 |" in markdown
    assert "| 10 | replication, SFT | 0.4161 | 0.2358 | 0.1935 | 0.1379 |" in markdown
    for text in ("Independent: one level's code alone", "Cumulative: all codes so far", "0.3905", "L1 → L1+L2 retention"):
        assert text in page


def test_a_catalog_tells_the_collisions_of_a_result_file(tmp_path, fails):
    path, index = released_file(tmp_path / "final.json", 0.1), tmp_path / "index.json"
    sids = ["<a_1><b_2><c_3>", "<a_1><b_2><c_3>", "<a_1><b_2><c_4>", *(f"<a_2><b_0><c_{c}>" for c in range(9))]
    index.write_text(json.dumps({str(item): [f"{code}>" for code in sid.split(">")[:3]] for item, sid in enumerate(sids)}))
    assert main(["gap", "--runs", str(path), "--index", str(index), "--out", str(tmp_path), "--resamples", "50"]) == 0
    found = json.loads((tmp_path / "paper_gap.json").read_text(encoding="utf-8"))["datasets"][0]
    (run,) = found["runs"]
    assert run["item"]["HR@1"]["value"] == pytest.approx(run["all_metrics"]["HR@1"]["value"] / 2)
    effect = next(cause["effect"] for cause in found["causes"] if cause["title"] == "collisions")
    assert "100.0% of the targets share their SID" in effect and "released" not in effect
    assert "is not in the catalog" in fails("--runs", path, "--index", _index_of(tmp_path, "<a_0><b_0><c_0>"))
    make_run(tmp_path / "run", users=8)
    assert "only for result files" in fails("--runs", tmp_path / "run", "--index", index)


def _index_of(folder, sid):
    (folder / "other.json").write_text(json.dumps({"0": sid}))
    return folder / "other.json"


def test_names_fit_a_markdown_table(tmp_path):
    make_run(tmp_path / "a|b", users=8)
    write_gap_report([tmp_path / "a|b"], tmp_path / "out", resamples=50, seed=0)
    rows = [line for line in (tmp_path / "out/paper_gap.md").read_text(encoding="utf-8").splitlines() if "a\\|b" in line]
    assert rows and not any("a|b" in line for line in rows if line.startswith("|"))


def test_tables_of_a_single_file(tmp_path):
    write_gap_report([released_file(tmp_path / "final.json", 0.1)], tmp_path / "out", resamples=50, seed=0)
    words = Page(tmp_path / "out/paper_gap.html").words
    for text in ("history length", "diversity", "Where the lists lost their target"):
        assert text in words
