import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from minionerec.artifacts import CHECKPOINTS, Manifest, read_json
from minionerec.cli import main
from minionerec.config import Config, GreenConfig, LegoConfig, LegoPlmConfig, ScoreConfig, SidConfig
from minionerec.errors import ArtifactError, ConfigError, DataError, TrainingError
from minionerec.eval.pair_leaderboard import read_leaderboard, write_leaderboard
from minionerec.legommenders import catalog_fields, train
from minionerec.legommenders.caches import CachedScores
from minionerec.legommenders.carbon import Meter
from minionerec.legommenders.examples import draw_negatives, histories
from minionerec.legommenders.train import load_lego, load_task, make_model, score_lego, train_lego, trained_on_pairs
from minionerec.report.lego_table import _auc_of_pairs, cost_rows
from minionerec.training import epochs as loop
from tests.legommenders.language_models import save_models
from tests.legommenders.parts import lego as small
from tests.scoring.data import planted, save
from tests.small import write_config

OPTIONS = {"task": "pairs", "scheme": "ranking", "width": 32, "dropout": 0.0, "learning_rate": 1e-2, "epochs": 8}


def config_of(folder, **fields):
    options = {"item": "pooling", "user": "additive", "hidden": 16, "fields": ["title"], **OPTIONS, **fields}
    lego = LegoConfig(**{name: value for name, value in options.items() if value is not None})
    return Config(name="planted", out=str(folder), lego=lego, sid=SidConfig(encoder="tfidf"), score=ScoreConfig(resamples=60))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of pairs whose label is a shared genre; the candidates of test users are items that no train user has."""
    folder = tmp_path_factory.mktemp("lego")
    save(planted("genre", unseen=True), folder)
    train_lego(config_of(folder))
    return folder


def test_texts_rank_unseen_items_and_a_table_of_ids_cannot(run):
    texts = score_lego(config_of(run), "pooling-additive-dot")[0]
    assert texts.metrics["AUC"] > 0.9 and texts.metrics["scale"] == "logit"
    ids = config_of(run, item="id", fields=None, epochs=3)
    train_lego(ids)
    assert score_lego(ids, "id-additive-dot")[0].metrics["AUC"] < 0.6


def test_scores_stand_in_the_table_of_pairs_split_by_what_training_has_seen(run):
    score_lego(config_of(run), "pooling-additive-dot")
    write_leaderboard(config_of(run))
    board = read_leaderboard(run)
    [entry] = [entry for entry in board["entries"] if entry["name"] == "lego-pooling-additive-dot"]
    assert entry["label"] == "pooling-additive-dot (pooling/additive/dot, ranking)" and entry["kind"] == "model"
    assert board["split"]["parts"] == {"seen": 0, "unseen": board["split"]["rows"]}
    assert entry["auc_of"] == {"seen": None, "unseen": entry["metrics"]["AUC"]}
    [cost] = [row for row in cost_rows(run, "pairs") if row["title"] == "pooling-additive-dot"]
    assert cost["auc"] == pytest.approx(entry["metrics"]["AUC"]["value"]) and cost["grams_co2e"] is cost["apc"] is None
    assert cost["parameters"] > 0 and cost["cpu_seconds"] > 0
    trained = Manifest.load(run / "lego/pairs/pooling-additive-dot")
    assert _auc_of_pairs(run, "pooling-additive-dot", trained) == cost["auc"]
    assert _auc_of_pairs(run, "pooling-additive-dot", replace(trained, digest="of a later training")) is None


def test_emissions_are_unknown_if_those_of_an_epoch_are():
    counted = {"cpu_seconds": 2.0, "wall_seconds": 1.0, "grams_co2e": 0.5}
    both = loop.Course(log=[counted, counted])
    interrupted = loop.Course(log=[{"cpu_seconds": 3.0, "wall_seconds": 2.0}, counted])
    with Meter(GreenConfig(watts=50, grams_per_kwh=400)) as meter:
        assert train._costs(both, meter) == {"cpu_seconds": 4, "wall_seconds": 2, "grams_co2e": 1, "emissions": meter.note}
        assert train._costs(interrupted, meter) == {"cpu_seconds": 5, "wall_seconds": 3}


def test_a_training_that_diverges_is_stopped(run):
    config = config_of(run)
    task = load_task(config)
    model = make_model(config, task)
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="scores are not numbers: its training diverged"):
        train._validation(model, task, config, torch.device("cpu"))()


def interrupted(config, monkeypatch):
    """Train until the first checkpoint is written."""
    original = loop.store

    def stop(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "store", stop)
        with pytest.raises(KeyboardInterrupt):
            train_lego(config)


def test_a_finished_training_is_current_and_resumes_to_the_same_weights(run, tmp_path, monkeypatch):
    short = {"epochs": 3, "dropout": 0.1}
    folders = [tmp_path / name for name in ("whole", "broken")]
    for folder in folders:
        save(planted("genre", users=40, unseen=True), folder)
    whole, broken = (config_of(folder, **short) for folder in folders)
    train_lego(whole)
    interrupted(broken, monkeypatch)
    partial = tmp_path / "broken/lego/pairs/pooling-additive-dot.partial"
    assert (partial / CHECKPOINTS / "state.safetensors").is_file()
    train_lego(broken)
    ours, theirs = (folder / "lego/pairs/pooling-additive-dot" for folder in folders)
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (ours, theirs)]
    courses = [[(entry["loss"], entry["valid GAUC"]) for entry in log] for log in logs]
    assert courses[0] == courses[1] and len(courses[0]) == 3
    assert not train_lego(whole)[1]
    with pytest.raises(ConfigError, match=r"lego.epochs: 3 there, 2 now"):
        train_lego(config_of(folders[0], **{**short, "epochs": 2}))


def test_adapters_of_a_language_model_resume_and_are_scored_with_their_own_learning_rate(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "cache"))
    plm = LegoPlmConfig(path=str(save_models(tmp_path / "plm") / "bert"), tune_from=-1, lora_rank=2)
    folders = [tmp_path / name for name in ("whole", "broken")]
    for folder in folders:
        save(planted("genre", users=40), folder)
    whole, broken = (config_of(folder, item="plm", plm=plm, epochs=2, item_lr=1e-3) for folder in folders)
    train_lego(whole)
    interrupted(broken, monkeypatch)
    train_lego(broken)
    ours, theirs = (load_file(folder / "lego/pairs/plm-additive-dot/model.safetensors") for folder in folders)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    fresh = make_model(whole, load_task(whole)).state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], ours[name])}
    upper = {name for name in changed if "layers_above" in name}
    assert upper and all("lora" in name for name in upper) and "item.linear.weight" in changed
    assert score_lego(whole, "plm-additive-dot")[0].metrics["rows"] == len(load_task(whole).examples.rows["test"])
    settings = Path(plm.path) / "config.json"
    settings.write_text(settings.read_text() + " ")
    with pytest.raises(ArtifactError, match="was trained on another language model than"):
        load_lego(whole, "plm-additive-dot")


def test_a_language_model_that_was_moved_asks_for_no_training_and_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "cache"))
    save(planted("genre", users=40), tmp_path / "run")
    before = save_models(tmp_path / "plm") / "bert"
    config = config_of(tmp_path / "run", item="plm", plm=LegoPlmConfig(path=str(before)), epochs=1)
    train_lego(config)
    before.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match=r"--lego.item plm .* --lego.plm.path FOLDER"):
        load_lego(config, "plm-additive-dot")
    # A command that does not name it has the default, minilm, which nobody asked for and need not be installed.
    monkeypatch.setattr("minionerec.sid.sentence_encoders.MINILM", "not-installed")
    with pytest.raises(ArtifactError, match=f"another language model than {before} is now"):
        load_lego(config_of(tmp_path / "run"), "plm-additive-dot")
    moved = replace(config, lego=replace(config.lego, plm=LegoPlmConfig(path=str(tmp_path / "moved"))))
    assert not train_lego(moved)[1]
    assert load_lego(moved, "plm-additive-dot").lego == moved.lego


def test_a_trained_recipe_keeps_its_word_pieces(run, monkeypatch):
    monkeypatch.setattr(catalog_fields, "_tokenizer", lambda *arguments: pytest.fail("learnt again"))
    model, task, _ = load_lego(config_of(run), "pooling-additive-dot")
    monkeypatch.undo()
    assert torch.equal(model.item.words.ids, make_model(config_of(run), task).item.words.ids)


def test_the_benchmark_of_caches_compares_three_ways_to_the_same_scores(run, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    benchmark = importlib.import_module("lego_cache")
    options = argparse.Namespace(run=str(run), recipe="pooling-additive-dot", batch=7, runs=1)
    (_, cached), (_, batches), (_, plain) = (benchmark.measure(side, options) for side in benchmark.SIDES)
    for other in (batches, plain):
        assert benchmark.check(cached["scores"], other["scores"]) <= 1e-5
    plain["scores"][0] += 1
    with pytest.raises(SystemExit, match="The scores differ"):
        benchmark.check(cached["scores"], plain["scores"])


def test_matching_with_all_negatives_is_the_full_softmax(run):
    task = load_task(config_of(run))
    config = config_of(run, scheme="matching", negatives=int(60 - np.diff(task.examples.had.starts).max()))
    model, examples = make_model(config, task).eval(), task.examples
    rows = examples.rows["train"].take(np.flatnonzero(examples.labels["train"] == 1)[:5])
    scores = CachedScores(model, examples.items, torch.device("cpu")).catalog(rows)[:, 1:]
    for row, user in enumerate(rows.user.tolist()):
        free = examples.items - len(examples.had[user])
        drawn = draw_negatives(examples, np.array([user]), free, np.random.default_rng(0))
        candidates = torch.from_numpy(np.concatenate([rows.target[row : row + 1].astype(np.int64) - 1, drawn[0]]))[None]
        ours = train._loss(model(histories(rows.take(np.array([row]))), candidates), np.ones(1), config.lego)
        others = np.setdiff1d(examples.had[user], [rows.target[row] - 1])  # no softmax counts what the user had, too
        full = scores[row].clone()
        full[torch.from_numpy(others)] = -torch.inf
        expected = functional.cross_entropy(full[None], torch.tensor([int(rows.target[row]) - 1]))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_ranking_learns_from_labels_and_from_drawn_items(run):
    logits = torch.tensor([[2.0], [-1.0]])
    on_pairs = train._loss(logits, np.array([1, 0]), config_of(run).lego)
    torch.testing.assert_close(on_pairs, functional.binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([1.0, 0.0])))
    drawn = torch.tensor([[2.0, 0.5, -1.0]])
    on_lists = train._loss(drawn, np.array([1]), config_of(run, task="lists").lego)
    torch.testing.assert_close(on_lists, functional.binary_cross_entropy_with_logits(drawn, torch.tensor([[1.0, 0.0, 0.0]])))


def test_a_damaged_or_foreign_model_is_not_scored(run, tmp_path, caplog):
    folder = tmp_path / "run"
    save(planted("genre", users=40, seed=1), folder)
    with pytest.raises(ArtifactError, match=r"Make it first: minionerec lego --lego.task pairs"):
        score_lego(config_of(folder), "naml")
    train_lego(config_of(folder, epochs=1))
    assert load_lego(config_of(folder), "pooling-additive-dot").lego.width == 32
    assert trained_on_pairs(config_of(folder)) == ["pooling-additive-dot"] and not caplog.text
    save(planted("genre", users=40, seed=2), folder)
    with pytest.raises(ArtifactError, match="was made from another pairs than the one in this run"):
        score_lego(config_of(folder), "pooling-additive-dot")
    assert trained_on_pairs(config_of(folder)) == [] and "was trained on other pairs" in caplog.text


def test_what_cannot_be_learnt_is_refused_and_nothing_is_left(tmp_path):
    pairs = planted("genre", users=40)
    save(replace(pairs, valid=pairs.valid.filter(label=1)), tmp_path / "one-sided")
    save(pairs, tmp_path / "run")
    for config, error, message in (
        (config_of(tmp_path / "one-sided"), DataError, "no user of the valid split has both labels"),
        (
            config_of(tmp_path / "run", fields=["brand"]),
            DataError,
            "names brand, which no train item of .*pairs has; .*: title",
        ),
        (config_of(tmp_path / "run", scheme="matching", negatives=59), DataError, "lego.negatives is 59, but user"),
        (config_of(tmp_path / "nothing"), ArtifactError, "minionerec pairs prepare"),
        (config_of(tmp_path / "run", task="lists"), ArtifactError, "minionerec data prepare"),
    ):
        with pytest.raises(error, match=message):
            train_lego(config)
    assert not [*tmp_path.glob("*/lego/**/*.partial"), *tmp_path.glob("*/lego/*/*/")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "pairs", "scheme": "ranking", "negatives": 2}, "ranking on pairs learns from their labels"),
        ({"task": "pairs", "top": 10}, "lego.task is pairs: there are no lists"),
        ({"item_lr": 1e-4}, "no layer of a language model trains"),
        ({"item": "id", "user": "pooling", "vocabulary": 500}, "lego.vocabulary is 500, but none of the parts"),
    ],
)
def test_options_that_nothing_would_read_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LegoConfig(**fields)


def test_a_name_for_every_cell():
    assert LegoConfig(recipe="nrms").title == "nrms" and LegoConfig(recipe="nrms", item="attention").title == "nrms"
    assert LegoConfig(recipe="nrms", item="cnn").title == "cnn-attention-dot"
    assert small("pooling", "pooling", "pnn").loss == "ranking" and LegoConfig(recipe="miner").loss == "matching"


def test_the_command_ranks_the_catalog_beside_the_other_recommenders(tmp_path, capsys):
    path = str(write_config(tmp_path, lego={"recipe": "bst", "heads": 2, "layers": 1, "width": 16, "history": 6, "epochs": 2}))
    assert main(["lego", "--config", path, "--green.watts", "40", "--green.grams_per_kwh", "400"]) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "run"
    lists = pl.read_parquet(run / "lego/lists/bst/test.parquet")
    metrics, manifest = read_json(run / "eval/lego-bst/metrics.json"), Manifest.load(run / "lego/lists/bst")
    for metric in ("HR@10", "NDCG@10"):  # by the ranks of the stage, and by the lists through the metric code of evaluation
        assert metrics["item"][metric]["value"] == pytest.approx(manifest.metrics[f"test {metric}"], abs=1e-12)
    assert manifest.metrics["test AUC"] == pytest.approx(1 - (lists["rank"] + (lists["ties"] - 1) / 2).mean() / 47)
    assert (
        "lego-bst" in printed
        and "Emissions assumed: 40 W, 400 g CO2e per kWh" in printed
        and "pooling/transformer/dot" in printed
    )
    assert load_file(run / "lego/lists/bst/model.safetensors") and manifest.metrics["grams_co2e"] > 0
    assert main(["lego", "--config", str(run)]) == 0 and "up to date" in capsys.readouterr().out
    assert main(["baseline", "table", str(run)]) == 0 and "BST" in capsys.readouterr().out
    assert main(["lego", "--config", str(run), "--eval.exclude_history", "true"]) == 2  # its epoch is chosen anew
    assert "lego.chosen_by: not recorded there" in " ".join(capsys.readouterr().err.split())
    assert main(["lego", "--config", str(run), "--eval.exclude_history", "true", "--replace"]) == 0
    assert "pooling/transformer/dot" in capsys.readouterr().out
