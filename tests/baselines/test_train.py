import json
import os

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from minionerec.artifacts import CHECKPOINTS, MILLISECONDS, Manifest, read_json
from minionerec.baselines import train
from minionerec.baselines.trivial import MarkovChain
from minionerec.cli import main, parse
from minionerec.config import NEURAL_BASELINES, Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.evaluate import evaluate
from minionerec.eval.predictions import read_predictions
from minionerec.report.runs import load_runs
from minionerec.training import epochs as loop
from minionerec.training import ranking as measuring
from minionerec.training.ranking import rank_split
from tests.launch import ROOT, forked, minionerec
from tests.small import write_config


@pytest.fixture
def sequences(tmp_path):
    """Users walk around a ring of 20 items."""
    rng = np.random.default_rng(0)
    lines = []
    for user in range(60):
        item = int(rng.integers(20))
        own = [str(1 + (item := (item + int(rng.integers(1, 3))) % 20)) for _ in range(int(rng.integers(4, 12)))]
        lines.append(f"{user} {' '.join(own)}")
    path = tmp_path / "ring.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(sequences, out, protocol="recbole", **fields) -> Config:
    options = {"model": "sasrec", "protocol": protocol, "sequences": sequences, "max_history": 10, "batch_size": 32}
    options |= {"hidden_size": 16, "inner_size": 32, "epochs": 4, "dropout": 0.1, "learning_rate": 0.01} | fields
    arguments = [word for name, value in options.items() if value is not None for word in (f"--baseline.{name}", str(value))]
    made = parse("baseline", ["--out", str(out), "--seed", "3", *arguments])
    assert made is not None
    return made


def result(out, model="sasrec"):
    folder = out / "baselines" / model
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [(entry["loss"], entry["valid NDCG@10"]) for entry in log]
    return load_file(folder / "model.safetensors"), losses, pl.read_parquet(folder / "test.parquet")


def same(first, second):
    assert first[0].keys() == second[0].keys() and all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1] == second[1] and first[2].equals(second[2])


@pytest.mark.parametrize(
    ("protocol", "name"),
    [("recbole", "sasrec"), ("wearec", "sasrec"), ("recbole", "fearec-published"), ("recbole", "sasrec-sampled")],
)
def test_one_seed_gives_one_result_and_an_interrupted_run_the_same(sequences, tmp_path, protocol, name, monkeypatch):
    fields = {"model": name, **{"sasrec-sampled": {"inner_size": None}, "fearec-published": {"layers": 1}}.get(name, {})}
    whole, broken = (config_of(sequences, tmp_path / out, protocol, **fields) for out in ("whole", "broken"))
    manifest, fresh = train.train_baseline(whole)
    assert fresh and manifest.metrics["epochs"] == 4 and manifest.metrics[MILLISECONDS] > 0
    with monkeypatch.context() as patched:
        original, stored = loop.store, []

        def stop(*arguments):
            original(*arguments)
            stored.append(arguments)
            if len(stored) == 2:
                raise KeyboardInterrupt

        patched.setattr(loop, "store", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train_baseline(broken)
    partial = tmp_path / f"broken/baselines/{name}.partial"
    assert (partial / CHECKPOINTS / "state.safetensors").is_file() and not (tmp_path / f"broken/baselines/{name}").exists()
    trained = []
    monkeypatch.setattr(train, "train_epoch", lambda *a, f=train.train_epoch: (trained.append(a[-1]), f(*a))[1])
    train.train_baseline(broken)
    assert trained == [2, 3]
    same(result(tmp_path / "whole", name), result(tmp_path / "broken", name))
    assert train.train_baseline(broken)[1] is False
    other = config_of(sequences, tmp_path / "other", protocol, **fields, epochs=1)
    other.seed = 4
    train.train_baseline(other)
    assert result(tmp_path / "other", name)[1] != result(tmp_path / "whole", name)[1][:1]


def test_a_damaged_checkpoint_is_named(sequences, tmp_path, monkeypatch):
    config = config_of(sequences, tmp_path / "run")
    with monkeypatch.context() as patched:

        def stop(path, *rest):
            path.parent.mkdir()
            path.write_bytes(b"cut")
            raise KeyboardInterrupt

        patched.setattr(loop, "store", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train_baseline(config)
    with pytest.raises(ArtifactError, match=r"state.safetensors: not a checkpoint of this model .* Delete .*sasrec.partial"):
        train.train_baseline(config)


@pytest.mark.parametrize(
    ("protocol", "values", "best", "epochs"),
    [
        # recbole: equal to four decimals counts as better; patience counts epochs without a better one
        ("recbole", [0.3, 0.1, 0.30004, 0.2, 0.2, 0.2], 2, 5),
        # wearec: strictly better only, unrounded
        ("wearec", [0.3, 0.1, 0.3, 0.2, 0.2, 0.2], 0, 3),
        ("wearec", [0.3, 0.1, 0.30004, 0.2, 0.2, 0.2], 2, 5),
    ],
)
def test_early_stopping_is_the_protocols(sequences, tmp_path, monkeypatch, protocol, values, best, epochs):
    config = config_of(sequences, tmp_path / "run", protocol, epochs=6, patience=2)
    measured, weights = iter(values), []
    monkeypatch.setattr(train, "ranking_metrics", lambda ranks, ties: {"NDCG@10": next(measured)})
    monkeypatch.setattr(loop, "store", lambda *a: weights.append({name: v.clone() for name, v in a[1].state_dict().items()}))
    data = train.load_ranking_data(config)
    model = train.make(config.baseline, data.items)
    course, _ = train.fit(model, data, config, tmp_path / "none")
    assert (course.best_epoch, course.epoch) == (best, epochs)
    assert all(torch.equal(values, weights[best][name]) for name, values in model.state_dict().items())


def test_it_learns_more_than_popularity(sequences, tmp_path):
    metrics = {}
    for model, fields in (
        ("sasrec", {"epochs": 25}),
        ("popularity", {"hidden_size": None, "inner_size": None, "dropout": None}),
    ):
        metrics[model] = train.train_baseline(config_of(sequences, tmp_path / model, model=model, **fields))[0].metrics
    assert metrics["sasrec"]["test NDCG@10"] > 1.5 * metrics["popularity"]["test NDCG@10"]


def test_on_a_run_of_our_own(tmp_path, capsys):
    path = str(write_config(tmp_path))
    for command in (["data", "prepare"], ["sid"], ["eval"]):
        assert main([*command, "--config", path]) == 0
    small = ["--baseline.epochs", "2", "--baseline.max_history", "6", "--baseline.hidden_size", "16"]
    assert main(["baseline", "--config", path, *small]) == 0
    assert main(["baseline", "--config", path, "--baseline.model", "markov", "--baseline.max_history", "6"]) == 0
    run = tmp_path / "run"
    dataset = Dataset.load(run / "data")
    for name in ("sasrec", "markov"):
        ranking = pl.read_parquet(run / f"baselines/{name}/test.parquet")
        assert ranking["user"].to_list() == dataset.test["user"].to_list()
        assert ranking["target"].to_list() == dataset.test["target"].to_list()
        metrics = read_json(run / f"eval/{name}/metrics.json")
        manifest = Manifest.load(run / f"baselines/{name}")
        # By the ranks of the evaluator, and by the lists through the metric code of the generative model.
        for metric in ("HR@10", "NDCG@10"):
            assert metrics["item"][metric]["value"] == pytest.approx(manifest.metrics[f"test {metric}"], abs=1e-12)
    vectors = load_file(run / "baselines/sasrec/vectors.safetensors")
    scores = vectors["test"] @ vectors["items"].T + vectors["bias"]
    target = torch.tensor(dataset.test["target"].to_list())
    ranks = (scores > scores.gather(1, target[:, None])).sum(1)
    assert ranks.tolist() == pl.read_parquet(run / "baselines/sasrec/test.parquet")["rank"].to_list()
    assert vectors["train"].shape == (len(dataset.train), 16)
    # The report on the gap to the paper reads the run, too.
    labels = [evaluated.label for evaluated in load_runs(run, "run", 100, 0)]
    floors = [
        "Popularity",
        "Repeat last",
        "Markov chain",
        "Skip transitions",
        "Text neighbours",
        "Mixture of counts (and text)",
    ]
    assert labels == [f"run, {label}" for label in (*floors, "SASRec")]
    capsys.readouterr()
    assert main(["baseline", "table", str(run)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("SASRec", "Markov chain", "Popularity", "Repeat last"))


def test_a_history_that_is_left_out_does_not_shorten_the_lists(tmp_path):
    path = str(write_config(tmp_path))
    for command in (["data", "prepare"], ["sid"]):
        assert main([*command, "--config", path]) == 0
    options = ["--config", path, "--baseline.top", "12", "--eval.num_beams", "10", "--baseline.model", "markov"]
    assert main(["baseline", *options]) == 0
    run, hiding = tmp_path / "run", parse("baseline", [*options, "--eval.exclude_history", "true", "--replace"])
    with pytest.raises(
        ArtifactError, match=r"markov: the lists have 12 items, but 16 are needed to .* keep 10\. Run minionerec base"
    ):
        evaluate(hiding, "markov")
    train.train_baseline(hiding)
    evaluate(hiding, "markov")
    data = train.load_ranking_data(hiding)
    whole = rank_split(MarkovChain(data), data, "test", data.items).lists
    histories = Dataset.load(run / "data").test["history"].to_list()
    assert max(map(len, histories)) == 6
    expected = [[item - 1 for item in ids if item - 1 not in own][:10] for ids, own in zip(whole, histories, strict=True)]
    assert [prediction.items for prediction in read_predictions(run / "eval/markov/predictions.jsonl")] == expected


def test_an_epoch_is_chosen_by_the_rule_for_the_history_that_the_lists_are_measured_with(tmp_path, monkeypatch):
    path = str(write_config(tmp_path))
    for command in (["data", "prepare"], ["sid"]):
        assert main([*command, "--config", path]) == 0
    options = ["--config", path, "--baseline.epochs", "1", "--baseline.max_history", "6", "--baseline.hidden_size", "16"]
    measured, chosen_by = [], []
    for module in (train, measuring):
        monkeypatch.setattr(module, "ranking_metrics", lambda ranks, ties: measured.append(ranks) or {"NDCG@10": 0.5})
    for exclude in ("false", "true"):
        config = parse("baseline", [*options, "--eval.exclude_history", exclude, "--replace"])
        measured.clear()
        manifest, _ = train.train_baseline(config)
        chosen_by.append(manifest.config["baseline"].get("chosen_by"))
        choosing, *_, kept, left_out = measured  # the last two are of valid, by the weights of the only epoch
        assert (kept != left_out).any()
        assert np.array_equal(choosing, left_out if exclude == "true" else kept)
    assert chosen_by == [None, "NDCG@10, history left out"]  # another choice is another baseline


def test_tables_print_published_and_own_rows(sequences, tmp_path, capsys):
    runs = tmp_path / "runs"
    train.train_baseline(config_of(sequences, runs / "lastfm-sasrec", "wearec"))
    assert main(["baseline", "table", "lastfm", "--runs", str(runs)]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    lines = {line.split("│")[1].strip(): line for line in printed}
    below = printed[printed.index(lines["WEARec Official"]) + 1]
    assert all("328,674" in line for line in (lines["WEARec Official"], below)) and "0.0440" in lines["WEARec Official"]
    assert "not run" in lines["WEARec Official"] and "not run" not in lines["SASRec"]
    trained = runs / "lastfm-sasrec/baselines/sasrec"
    value = Manifest.load(trained).metrics["test NDCG@10"]
    assert f"{value:.4f} [" in lines["SASRec"] and "given weights" not in lines["SASRec"]
    ranked = config_of(sequences, tmp_path / "given/lastfm-sasrec", "wearec", weights=trained / "model.safetensors")
    train.train_baseline(ranked)
    assert main(["baseline", "table", "lastfm", "--runs", str(tmp_path / "given")]) == 0
    printed = capsys.readouterr().out.splitlines()
    line = next(number for number, line in enumerate(printed) if line.startswith("│ SASRec"))
    assert f"{value:.4f} [" in printed[line] and "given weights" in printed[line + 1]


def test_a_table_of_a_run_without_evaluations_names_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/data").mkdir(parents=True)
    (tmp_path / "mine/run.yaml").write_text("name: a\n")
    assert main(["baseline", "table", "mine"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "mine: nothing is evaluated in this run. First minionerec eval --config mine" in printed
    (tmp_path / "mine/data").rmdir()  # as in a run of a published table's protocol, which `eval` refuses
    assert main(["baseline", "table", "mine"]) == 2
    assert "mine: no such table, and no run's folder with eval/ in it" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table"], "baseline table needs a name: beauty, lastfm, or the folders of runs"),
        (["table", "nothing"], "baseline table nothing: no such table"),
        (["table", "nothing", "never"], "baseline table nothing never: none of these is a run's folder with eval/ in it"),
        (["table", "beauty", "lastfm"], "beauty is a table of its own; ask for it alone"),
        (
            ["table", "beauty", "--reference", "rl", "--seed", "1", "--json", "x.json"],
            "baseline table beauty takes no --reference, --seed, --json: that is for folders of runs",
        ),
        (["table", "beauty", "--rums", "x"], "baseline table has no option --rums. Did you mean --runs?"),
        (["--baseline.protocol", "wearec"], "baseline.protocol 'wearec' needs baseline.sequences"),
        (["--baseline.sequences", "x.txt"], "baseline.protocol is dataset"),
        (["--baseline.model", "sasrek"], "baseline.model"),
        (
            ["--baseline.protocol", "recbole", "--baseline.sequences", "none.txt"],
            "none.txt: not found. Expected a file of sequences",
        ),
        (["--baseline.dropout", "1.5"], "baseline.dropout is 1.5"),
        (["--out", "nowhere"], "no finished artefact here. Make it first: minionerec data prepare"),
    ],
)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["baseline", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 0.1}, r"baseline\.gamma is set, but sasrec does not take it"),
        ({"heads": 3}, r"hidden_size 16 does not split into 3 heads"),
        ({"model": "pswrec-v12", "heads": 8}, r"heads is 8; each head takes a band"),
        ({"model": "markov"}, r"is set, but markov does not take it. It takes no option"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_anything_is_written(sequences, tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        train.train_baseline(config_of(sequences, tmp_path / "run", **fields))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NEURAL_BASELINES)
def test_every_model_trains_and_ranks_by_every_protocol(name, sequences, tmp_path):
    for protocol in ("recbole", "wearec"):
        plain = {"dropout": None, "inner_size": None, "max_history": 12, "epochs": 1}
        config = config_of(sequences, tmp_path / protocol, protocol, model=name, **plain)
        metrics = train.train_baseline(config)[0].metrics
        assert metrics["epochs"] == 1 and 0 <= metrics["test NDCG@10"] <= metrics["test HR@10"] <= 1


def test_given_weights_are_ranked_with_instead_of_training(sequences, tmp_path):
    trained = config_of(sequences, tmp_path / "trained")
    expected = train.train_baseline(trained)[0].metrics
    ranked = config_of(sequences, tmp_path / "given", weights=tmp_path / "trained/baselines/sasrec/model.safetensors")
    metrics = train.train_baseline(ranked)[0].metrics
    assert "epochs" not in metrics and metrics["test NDCG@10"] == expected["test NDCG@10"]
    with pytest.raises(ArtifactError, match=r"none: cannot be read"):
        train.train_baseline(config_of(sequences, tmp_path / "none", weights=tmp_path / "none"))
    plain = {"hidden_size": None, "inner_size": None, "dropout": None}
    with pytest.raises(ConfigError, match=r"baseline\.weights is set, but markov has no weights"):
        train.train_baseline(config_of(sequences, tmp_path / "floor", model="markov", weights=tmp_path / "x", **plain))


def arguments_of(sequences, out, *more):
    fields = {"protocol": "recbole", "sequences": sequences, "max_history": 10, "batch_size": 32, "epochs": 3, "dropout": 0}
    fields |= {"attention_dropout": 0, "hidden_size": 16, "learning_rate": 0.01}
    return ["baseline", "--out", str(out), *(word for n, v in fields.items() for word in (f"--baseline.{n}", str(v))), *more]


def test_two_processes_take_the_steps_of_one(sequences, tmp_path):
    assert main(arguments_of(sequences, tmp_path / "one")) == 0
    forked(2, "-m", "minionerec", *arguments_of(sequences, tmp_path / "two"))
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert Manifest.load(tmp_path / "two/baselines/sasrec").metrics["devices"] == 2
    np.testing.assert_allclose(one[1], two[1], atol=1e-4)
    assert one[2]["user"].to_list() == two[2]["user"].to_list()
    for name, values in one[0].items():
        torch.testing.assert_close(values, two[0][name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_bf16_trains_close_to_fp32(sequences, tmp_path):
    assert main(arguments_of(sequences, tmp_path / "full")) == 0
    minionerec(*arguments_of(sequences, tmp_path / "half", "--baseline.bf16", "true"))
    full, half = result(tmp_path / "full"), result(tmp_path / "half")
    assert full[1] != half[1]
    np.testing.assert_allclose([loss for loss, _ in full[1]], [loss for loss, _ in half[1]], rtol=0.02)


@pytest.mark.slow
def test_the_script_skips_what_is_finished(sequences, tmp_path):
    import subprocess
    import sys

    (tmp_path / "Beauty.txt").write_bytes(sequences.read_bytes())
    environment = {**os.environ, "SEQUENCES": str(tmp_path), "RUNS": str(tmp_path / "runs"), "RUN_PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts/baselines.sh"), "beauty-markov", "--", "--baseline.top", "5"]
    environment["PYTHONPATH"] = str(ROOT)
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2))
    assert "up to date" not in first.stdout and "up to date" in second.stdout
    wrong = subprocess.run([*command[:2], "ml-100k"], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "is not a beauty-* or lastfm-* preset" in wrong.stderr
