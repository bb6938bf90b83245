"""`eval.dtype`: a run is evaluated, asked, explained, served and exported in it, and its artefact's key knows it."""

import shutil
from dataclasses import replace

import pytest
import torch

from minionerec.cli import main
from minionerec.config import ServeConfig
from minionerec.errors import ConfigError
from minionerec.eval.evaluate import evaluate
from minionerec.eval.predictions import read_predictions
from minionerec.recommend import export
from minionerec.recommend.recommender import Recommender
from minionerec.serve.served import ServedModel

FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run; it gives the configuration of the copy with a number format."""
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    return lambda dtype: replace(finished, out=str(folder), eval=replace(finished.eval, dtype=dtype))


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_run_is_asked_explained_and_served_in_the_format_in_which_it_was_evaluated(run, dtype, capsys):
    config = run(dtype)
    before = read_predictions(config.folder / "eval/rl/predictions.jsonl")
    manifest, fresh = evaluate(config, "rl")
    assert fresh and manifest.config["eval"]["dtype"] == dtype and not evaluate(config, "rl")[1]
    rows = read_predictions(config.folder / "eval/rl/predictions.jsonl")
    assert [row.scores for row in rows] != [row.scores for row in before]

    recommender = Recommender.load(config.folder)
    assert recommender.model.dtype == FORMATS[dtype] and recommender.config.dtype == dtype
    batch = rows[: config.eval.batch_size]
    lists = recommender.recommend([row.history for row in batch], k=None)
    assert [[item.index for item in made.items] for made in lists] == [row.items for row in batch]
    assert [made.exact for made in lists] == [row.exact for row in batch]

    explanation = recommender.explain(rows[0].history)
    assert explanation.recommendation == recommender.recommend([rows[0].history])[0]
    leaves = {path[-1].places[0]: path[-1].score for path in explanation.root.walk() if len(path) == 4 and path[-1].places}
    assert {item.place: item.score for item in explanation.recommendation.items if item.place in leaves} == leaves != {}

    served = ServedModel.load(config.folder, ServeConfig())
    assert served.facts["dtype"] == dtype and len(served.golden) == 16
    served.check()
    exact = ServedModel.load(config.folder, ServeConfig(), dtype="float32")
    assert exact.facts["dtype"] == "float32" == exact.recommender.config.dtype
    exact.check()  # golden lists of a short format are compared within its rounding
    with torch.no_grad():
        exact.recommender.model.get_input_embeddings().weight.mul_(-1)
    with pytest.raises(Exception, match="does not make its golden lists"):
        exact.check()

    ids = ",".join(str(recommender.items.ids[item]) for item in rows[0].history)
    assert main(["recommend", "--run", str(config.folder), "--history", ids, "--json"]) == 0
    assert rows[0].scores[0] == pytest.approx(recommender.recommend([rows[0].history])[0].items[0].score, abs=0.1)
    assert f'"score": {explanation.recommendation.items[0].score}' in capsys.readouterr().out


def test_scores_of_a_short_format_are_float32_and_close(run):
    exact, rounded = (Recommender.load(run(dtype).folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    histories = [row.history for row in read_predictions(run("float32").folder / "eval/rl/predictions.jsonl")[:8]]
    ours, theirs = (
        recommender.search([list(history) for history in histories], num_beams=10) for recommender in (exact, rounded)
    )
    assert theirs.scores.dtype == torch.float32 and not torch.equal(ours.scores, theirs.scores)
    assert (ours.scores - theirs.scores).abs().max() < 0.2


def test_an_export_is_made_and_read_in_float32(run, tmp_path):
    config = run("bfloat16")
    evaluate(config, "rl")
    export.export(config.folder, tmp_path / "bundle")
    assert Recommender.load(tmp_path / "bundle").model.dtype == torch.float32
    ServedModel.load(tmp_path / "bundle", ServeConfig()).check()
    assert Recommender.load(tmp_path / "bundle", dtype="bfloat16").config.dtype == "bfloat16"


def test_the_table_names_a_short_format_and_the_stage_is_made_anew_for_it(run, capsys):
    config = run("bfloat16")
    command = ["eval", "--config", str(config.folder)]
    assert main([*command, "--eval.dtype", "bfloat16"]) == 0
    assert "kept, bfloat16, on items" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--eval.dtype", "float32"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "kept, on items" in printed and "(up to date)" not in printed
    assert main([*command, "--eval.dtype", "float64"]) == 2
    assert "eval.dtype" in capsys.readouterr().err


def test_other_formats_are_refused(run):
    for dtype in ("float64", "float8_e4m3fn", "int8", "half"):
        with pytest.raises(ConfigError, match=rf"dtype {dtype}: no such number format of weights; expected one of"):
            Recommender.load(run("float32").folder, dtype=dtype)
