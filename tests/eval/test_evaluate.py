import json
import shutil

import numpy as np
import pytest

from minionerec.cli import main
from minionerec.errors import ArtifactError
from minionerec.eval.evaluate import evaluable, evaluate
from minionerec.eval.predictions import read_predictions
from minionerec.pipeline import run
from tests import small
from tests.launch import forked


def test_the_stage_needs_its_inputs_and_is_skipped_when_current(tmp_path):
    config = small.config(tmp_path)
    with pytest.raises(ArtifactError, match="Make it first: minionerec data"):
        evaluate(config, "popularity")
    run(config, ("data", "sid"))
    with pytest.raises(ArtifactError, match="Make it first: minionerec sft"):
        evaluate(config, "sft")
    assert evaluable(config.folder) == ["popularity", "repeat"]

    manifest, fresh = evaluate(config, "popularity")
    assert fresh and not evaluate(config, "popularity")[1]
    predictions = read_predictions(config.folder / "eval/popularity/predictions.jsonl")
    assert len(predictions) == 40
    hits = [p.target_sid in p.sids for p in predictions]
    assert manifest.metrics["HR@10"] == pytest.approx(np.mean(hits))
    assert manifest.inputs.keys() == {"data", "sid"} and manifest.stage == "eval/popularity"


def test_two_processes_one_process_and_a_resumed_run_write_the_same_files(tmp_path, capsys):
    config = small.config(tmp_path, eval={"shard_size": 8, "oracle_examples": 5}, sft={"epochs": 1})
    run(config, ("data", "sid", "sft", "eval"))
    folder = tmp_path / "run/eval/sft"
    names = ("predictions.jsonl", "oracle.jsonl", "metrics.json")
    first = {name: (folder / name).read_bytes() for name in names}
    shutil.rmtree(tmp_path / "run/eval")
    forked(2, "eval/predict.py", "--config", str(tmp_path / "small.yaml"))
    assert {name: (folder / name).read_bytes() for name in names} == first
    shutil.rmtree(folder)
    killed = forked(2, "tests/eval/killed.py", "--config", str(tmp_path / "small.yaml"), check=False)
    assert killed.returncode == 9, killed.stdout
    assert 1 <= len(list((tmp_path / "run/eval/sft.partial/checkpoints").glob("*.jsonl"))) <= 2  # of five shards
    assert evaluate(config, "sft")[1]  # by one process
    assert {name: (folder / name).read_bytes() for name in names} == first
    assert main(["levels", "--path", str(folder / "predictions.jsonl"), "--out", str(tmp_path)]) == 0
    search = json.loads(first["metrics.json"])["search"]
    assert (search["rows"], search["num_beams"]) == (5, 10)
    assert json.loads((tmp_path / "levels.json").read_text())["search"] == search
    assert "Beam width and search error, 5 examples" in capsys.readouterr().out
