import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from minionerec.artifacts import Manifest
from minionerec.baselines.train import train_baseline
from minionerec.cli import main
from minionerec.commands import result_table
from minionerec.config import NAMING, BaselineConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval import listed
from minionerec.eval.evaluate import evaluable, evaluate
from minionerec.eval.listed import floors
from minionerec.eval.predictions import read_predictions
from minionerec.pipeline import run
from minionerec.recommend.cache import BUCKETS, UNTRAINED
from minionerec.training.fit_assistant import assistant_inputs
from tests import small
from tests.launch import forked

PREDICTED = ("predictions.jsonl", "oracle.jsonl")


def test_the_stage_needs_its_inputs_and_is_skipped_when_current(tmp_path):
    config = small.config(tmp_path)
    with pytest.raises(ArtifactError, match="Make it first: minionerec data"):
        evaluate(config, "popularity")
    run(config, ("data", "sid"))
    with pytest.raises(ArtifactError, match="Make it first: minionerec sft"):
        evaluate(config, "sft")
    assert evaluable(config) == ["popularity", "repeat", "skip", "text", "mixture"]

    manifest, fresh = evaluate(config, "popularity")
    assert fresh and not evaluate(config, "popularity")[1]
    predictions = read_predictions(config.folder / "eval/popularity/predictions.jsonl")
    assert len(predictions) == 40
    hits = [p.target_sid in p.sids for p in predictions]
    assert manifest.metrics["HR@10"] == pytest.approx(np.mean(hits))
    assert manifest.inputs.keys() == {"data", "sid"} and manifest.stage == "eval/popularity"


def test_two_processes_one_process_and_a_resumed_run_write_the_same_files(tmp_path, capsys):
    tiger = {"model": "tiger", "epochs": 1, "hidden_size": 16, "inner_size": 16, "layers": 1, "heads": 2, "head_size": 8}
    config = small.config(tmp_path, eval={"shard_size": 8, "oracle_examples": 5}, sft={"epochs": 1}, baseline=tiger)
    run(config, ("data", "sid", "sft", "baseline", "eval"))
    folder = tmp_path / "run/eval/sft"
    files = [folder.parent / f"{name}/{file}" for name in ("tiger", "sft") for file in (*PREDICTED, "metrics.json")]
    written = {file: file.read_bytes() for file in files}
    shutil.rmtree(tmp_path / "run/eval")
    forked(2, "eval/predict.py", "--config", str(tmp_path / "small.yaml"))
    assert {file: file.read_bytes() for file in files} == written
    first = {name: written[folder / name] for name in (*PREDICTED, "metrics.json")}
    shutil.rmtree(folder)
    killed = forked(2, "tests/eval/killed.py", "--config", str(tmp_path / "small.yaml"), check=False)
    assert killed.returncode == 9, killed.stdout
    assert 1 <= len(list((tmp_path / "run/eval/sft.partial/checkpoints").glob("*.jsonl"))) <= 2  # of five shards
    assert evaluate(config, "sft")[1]  # by one process
    assert {name: (folder / name).read_bytes() for name in first} == first
    assert main(["levels", "--path", str(folder / "predictions.jsonl"), "--out", str(tmp_path)]) == 0
    search = json.loads(first["metrics.json"])["search"]
    assert (search["rows"], search["num_beams"]) == (5, 10)
    assert json.loads((tmp_path / "levels.json").read_text())["search"] == search
    assert "Beam width and search error, 5 examples" in capsys.readouterr().out


def test_a_baseline_of_other_data_is_named_and_left_out(tmp_path, caplog):
    config = small.config(tmp_path, baseline={"model": "popularity"}, eval={"resamples": 50})
    run(config, ("data", "sid", "baseline"))  # evaluation counts by itself, so it does not matter that this becomes stale
    config.baseline = BaselineConfig(model="markov")
    run(config, ("baseline",))
    config.data.max_history = 5
    run(config, ("data", "sid", "eval"))
    advice = "Make it again: minionerec baseline --baseline.model markov --replace (same --config and options)."
    assert f"markov is not evaluated. {config.folder / 'baselines/markov'}: was made from another data" in caplog.text
    assert advice in caplog.text
    table = result_table(config)
    assert [*table.columns[0].cells] == ["popularity", "repeat", "skip", "text", "mixture"]
    assert (
        "markov (made from another data than the run has; first minionerec baseline --baseline.model markov)" in table.caption
    )
    config.eval = replace(config.eval, assistant="markov")
    with pytest.raises(ArtifactError, match="baselines/markov: was made from another data"):  # asked for by name
        assistant_inputs(config, Manifest.load(config.folder / "data").digest)
    run(config, ("baseline",))
    assert "markov" in [*result_table(config).columns[0].cells]


def test_a_baseline_whose_lists_are_too_short_or_damaged_is_named_and_left_out(tmp_path, caplog, capsys):
    small.config(tmp_path, baseline={"model": "markov", "top": 12}, eval={"resamples": 50})
    options = ["--config", str(tmp_path / "small.yaml"), "--eval.num_beams", "10"]
    for command in (["data", "prepare"], ["sid"], ["baseline"]):
        assert main([*command, *options]) == 0
    folder = tmp_path / "run/baselines/markov"
    assert main(["eval", *options, "--eval.exclude_history", "true"]) == 0
    assert f"markov is not evaluated. {folder}: the lists have 12 items" in caplog.text
    assert "Run minionerec baseline --baseline.model markov --replace with eval.exclude_history set" in caplog.text
    capsys.readouterr()
    for name in ("test.parquet", "manifest.json"):
        caplog.clear()
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-9])
        assert main(["eval", *options]) == 0
        assert f"markov is not evaluated. {folder / name}: " in caplog.text
        assert "The command: minionerec baseline --baseline.model markov (same --config and options)" in caplog.text
        (folder / name).write_bytes(whole)
    # What was evaluated before the damage says so.
    printed = " ".join(capsys.readouterr().out.split())
    assert "markov (made from another baselines/markov than the run has; first minionerec baseline" in printed
    assert (tmp_path / "run/eval/mixture/metrics.json").is_file()


def test_settings_of_a_model_that_is_not_there_are_named(tmp_path, caplog):
    config = small.config(tmp_path, sft={"tasks": ["history_sid_to_sid", NAMING]}, eval={"resamples": 50})
    run(config, ("data", "sid", "eval"))
    assert "no effect" not in caplog.text
    config.eval = replace(config.eval, grounding="trained", title_assistant="popularity")
    run(config, ("eval",))
    named = "eval.title_assistant, eval.grounding have no effect. Train one first: minionerec sft"
    assert f"{config.folder}: no trained model here, so {named}" in caplog.text
    caplog.clear()
    config.eval = replace(config.eval, grounding="none", title_assistant=None, assistant="sasrec")
    run(config, ("eval",))
    assert "so eval.assistant has no effect" in caplog.text


def test_floors_are_computed_unless_the_run_has_them_stored(tmp_path, monkeypatch, caplog):
    config = small.config(tmp_path)
    assert floors(config) == ["popularity", "repeat"]  # no data yet
    run(config, ("data", "sid"))
    manifest, _ = evaluate(config, "mixture")
    assert manifest.inputs.keys() == {"data", "sid", "vectors"} and "weights.json" in manifest.files
    weights = json.loads((config.folder / "eval/mixture/weights.json").read_text())
    assert weights["components"] == list(UNTRAINED) and len(weights["weights"]) == BUCKETS
    assert evaluate(config, "skip")[0].inputs.keys() == {"data", "sid"}
    lists = [p.items for p in read_predictions(config.folder / "eval/mixture/predictions.jsonl")]

    config.baseline = BaselineConfig(model="mixture")
    train_baseline(config)  # the same options: the same lists
    assert (config.folder / "baselines/mixture/weights.json").read_bytes() == (
        config.folder / "eval/mixture/weights.json"
    ).read_bytes()
    assert evaluable(config) == ["popularity", "repeat", "skip", "text", "mixture"]
    manifest, fresh = evaluate(config, "mixture")
    assert fresh and manifest.inputs.keys() == {"data", "sid", "baselines/mixture"}
    assert [p.items for p in read_predictions(config.folder / "eval/mixture/predictions.jsonl")] == lists
    config.baseline = BaselineConfig(model="mixture", components=["popularity", "markov"])
    assert "vectors" not in train_baseline(config)[0].inputs
    evaluate(config, "mixture")
    assert [p.items for p in read_predictions(config.folder / "eval/mixture/predictions.jsonl")] != lists
    shutil.rmtree(config.folder / "baselines")

    with monkeypatch.context() as patched:
        patched.setattr(listed, "_MOST_CELLS", 80 * 48 - 1)
        assert floors(config) == ["popularity", "repeat"]  # the catalog is too large
    with monkeypatch.context() as patched:
        patched.setattr(listed, "vectors_of_run", lambda *_: (_ for _ in ()).throw(ConfigError("no encoder here")))
        assert floors(config) == ["popularity", "repeat", "skip"]
    assert "text and mixture are not evaluated: no encoder here" in caplog.text
    (config.folder / "sid").rename(config.folder / "other")
    config.sid.shipped = True  # no vectors, and none are made for it
    assert floors(config) == ["popularity", "repeat", "skip", "mixture"]
    (config.folder / "other").rename(config.folder / "sid")
    dataset = Dataset.load(config.folder / "data")
    dataset.valid.clear().write_parquet(config.folder / "data/valid.parquet")
    assert floors(config) == ["popularity", "repeat"]  # nothing to fit weights to
