"""The stage `d3` and the evaluation that reads it, on a run whose model nobody trained."""

import itertools
import json
import shutil
from dataclasses import replace
from operator import itemgetter

import numpy as np
import polars as pl
import pytest

from minionerec.artifacts import Manifest, read_json
from minionerec.baselines.train import train_baseline
from minionerec.cli import main
from minionerec.config import BaselineConfig, Config, EvalConfig
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import load_vectors
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.eval.evaluate import evaluate
from minionerec.eval.predictions import read_predictions
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts
from minionerec.recommend.assistant import BaselineAssistant
from minionerec.recommend.recommender import Recommender
from minionerec.tree import score_catalog
from tests.eval.samples import DATASET, INDICES
from tests.recommend.conftest import SIZES, make, write_run  # noqa: F401 (a fixture)
from tests.small import reseal, untrained_model
from tests.training.test_fit_mixture import untrained_run


def config_of(folder, **evaluation):
    options = {"num_beams": 14, "batch_size": 5, "resamples": 40, "oracle_examples": 2, "assistant": "gru4rec"}
    baseline = BaselineConfig(model="gru4rec", epochs=1, hidden_size=8, inner_size=8, max_history=6)
    return Config(out=str(folder), baseline=baseline, eval=EvalConfig(**{**options, **evaluation}))


@pytest.fixture(scope="module")
def evaluated(make, tmp_path_factory):  # noqa: F811
    """A run whose weight was chosen and whose lists were evaluated, with an assistant and without."""
    folder = untrained_run(tmp_path_factory.mktemp("d3"), make)
    run(config_of(folder), ("baseline", "eval"))
    return folder


@pytest.fixture
def copied(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "run")
    return tmp_path / "run"


def baseline_logprobs(folder, dataset, split):
    """(rows, items) of the baseline's softmax, written out."""
    vectors = load_vectors(folder, "gru4rec", dataset, "a test")
    scores = vectors.states[split].astype(float) @ vectors.items.T.astype(float) + vectors.bias
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def test_the_chosen_weight_is_the_best_of_valid_and_the_lists_have_it(evaluated):
    chosen = read_json(evaluated / "d3/sft/weight.json")
    assert len(chosen["NDCG@10"]) == 11
    best = max(chosen["NDCG@10"].values())
    assert chosen["weight"] == max(float(weight) for weight, value in chosen["NDCG@10"].items() if value == best)
    metrics, tried = Manifest.load(evaluated / "d3/sft").metrics, chosen["NDCG@10"]
    assert metrics["of the model alone"] == tried["1.0"] and metrics["of the assistant alone"] == tried["0.0"]
    manifest = Manifest.load(evaluated / "eval/sft-d3")
    assert manifest.config["d3"] == {"assistant": "gru4rec", "weight": chosen["weight"]}
    assert {"baselines/gru4rec", "d3/sft", "sft"} <= manifest.inputs.keys()
    alone = Manifest.load(evaluated / "eval/sft")
    assert "d3" not in alone.config and not {"baselines/gru4rec", "d3/sft"} & alone.inputs.keys()


def test_recommend_says_that_it_leaves_the_assistant_out(evaluated, caplog):
    Recommender.load(evaluated, "sft")
    assert "eval.assistant is gru4rec, which has vectors for the rows of the splits only" in caplog.text


def test_lists_are_the_closed_form_of_the_model_and_the_baseline(copied, capsys):
    config = config_of(copied, assistant_weight=0.7)
    run(config, ("eval",))
    dataset = Dataset.load(copied / "data")
    recommender = Recommender.load(copied, "sft")
    trie = recommender.trie
    logprobs = baseline_logprobs(copied, dataset, "test")
    predictions = read_predictions(copied / "eval/sft-d3/predictions.jsonl")
    leaf_of_sid = {
        tuple(sid): int(trie.leaf_of_item[item]) for item, sid in enumerate(recommender.prompts.index.codes.tolist())
    }
    for row, prediction in enumerate(predictions):
        model = score_catalog(recommender.model, *recommender.encode([prediction.history]), trie=trie)[0].double().numpy()
        shares = np.bincount(trie.leaf_of_item.numpy(), np.exp(logprobs[row]), minlength=len(trie))
        expected = 0.7 * model + 0.3 * np.log(shares)
        leaves = [leaf_of_sid[tuple(sid)] for sid in prediction.sids]
        np.testing.assert_allclose(prediction.scores, expected[leaves], atol=1e-5)
        np.testing.assert_allclose(prediction.scores, np.sort(expected)[::-1][: len(leaves)], atol=1e-5)
        assert prediction.exact
    of_d3, of_model = (read_json(copied / "eval" / name / "metrics.json") for name in ("sft-d3", "sft"))
    assert of_d3["calibration"] is None and of_model["calibration"]
    kinds = {"sft-d3": "weighed logarithm", "sft": "log-probability", "popularity": "minus rank"}
    for name, kind in kinds.items():
        path = copied / "eval" / name / "predictions.jsonl"
        assert {prediction.score_kind for prediction in read_predictions(path)} == {kind}
        capsys.readouterr()
        assert main(["levels", "--path", str(path), "--out", str(copied / "levels")]) == 0
        said = f"No calibration: scores are {kind}s, no log-probabilities." in capsys.readouterr().out
        assert said == (kind != "log-probability") == (read_json(copied / "levels/levels.json")["calibration"] is None)
    trace = json.loads((copied / "eval/sft-d3/oracle.jsonl").read_text().splitlines()[0])
    target = leaf_of_sid[tuple(predictions[0].target_sid)]
    listed = [leaf_of_sid[tuple(sid)] for sid in predictions[0].sids]
    assert trace["row"] == 0 and trace["rank"] == listed.index(target)


def test_the_weight_1_is_the_model_and_0_the_baseline(copied):
    run(config_of(copied, assistant_weight=1.0), ("eval",))
    names = ("predictions.jsonl", "oracle.jsonl")
    for name in names:
        assert (copied / "eval/sft-d3" / name).read_bytes() == (copied / "eval/sft" / name).read_bytes()
    run(config_of(copied, assistant_weight=0.0), ("eval",))
    logprobs = baseline_logprobs(copied, Dataset.load(copied / "data"), "test")
    index = Recommender.load(copied, "sft").prompts.index
    for row, prediction in enumerate(read_predictions(copied / "eval/sft-d3/predictions.jsonl")):
        shares = {}
        for item, sid in enumerate(map(tuple, index.codes.tolist())):
            shares[sid] = shares.get(sid, 0.0) + np.exp(logprobs[row, item])
        ranked = sorted(shares.values(), reverse=True)
        np.testing.assert_allclose([shares[tuple(sid)] for sid in prediction.sids], ranked, rtol=1e-5)


@pytest.mark.parametrize("exclude", [False, True], ids=["kept", "left out"])
def test_the_weight_0_lists_what_the_baseline_has_stored(tmp_path, exclude):
    """Where every item has a SID of its own. Stored ties stand by id (`training.ranking.ranked`), a search's in any order."""
    index = INDICES["distinct"]
    model, tokenizer = untrained_model(DATASET, index, SIZES)
    write_run(tmp_path, Recommender(model, Prompts(DATASET, index, tokenizer, Config().resolved_prompts)))
    config = config_of(tmp_path, assistant_weight=0.0, exclude_history=exclude, num_beams=20)
    train_baseline(config)
    evaluate(config, "sft-d3")
    stored = pl.read_parquet(tmp_path / "baselines/gru4rec/test.parquet")["items"].to_list()
    for items, prediction in zip(stored, read_predictions(tmp_path / "eval/sft-d3/predictions.jsonl"), strict=True):
        pairs = zip(prediction.scores, prediction.items, strict=True)
        tied = [sorted(item for _, item in group) for _, group in itertools.groupby(pairs, key=itemgetter(0))]
        assert [*itertools.chain(*tied)] == [item for item in items if not (exclude and item in prediction.history)]
        assert len(tied) > 10  # else nearly any order would do


def test_the_history_is_left_out_and_the_rest_adds_up_to_one(copied):
    run(config_of(copied, assistant_weight=0.0, exclude_history=True), ("eval",))
    for prediction in read_predictions(copied / "eval/sft-d3/predictions.jsonl"):
        assert not {*prediction.items} & {*prediction.history}
        assert np.exp(prediction.scores).sum() == pytest.approx(1, abs=1e-4)  # every SID that is left is listed


def test_another_assistant_needs_another_weight(copied, capsys):
    config = config_of(copied)
    shutil.copytree(copied / "baselines/gru4rec", copied / "baselines/sasrec")
    with pytest.raises(ArtifactError, match=r"for the assistant gru4rec.*minionerec d3 --eval\.assistant sasrec"):
        evaluate(replace(config, eval=replace(config.eval, assistant="sasrec")), "sft-d3")


@pytest.mark.parametrize(
    ("assistant", "message"),
    [
        ("sasrec", "baselines/sasrec: no finished artefact here, but eval.assistant needs this baseline"),
        ("markov", "eval.assistant is 'markov'. Expected one of gru4rec, "),  # it counts, and leaves no vectors
    ],
)
def test_an_assistant_that_cannot_help_is_refused_before_anything_is_computed(copied, assistant, message, capsys):
    assert main(["d3", "--out", str(copied), "--eval.assistant", assistant]) == 2
    assert message in " ".join(capsys.readouterr().err.split()).replace(f"{copied}/", "")


def test_an_assistant_of_another_catalog_is_refused(copied):
    manifest = Manifest.load(copied / "baselines/gru4rec")
    reseal(copied / "baselines/gru4rec", inputs={**manifest.inputs, "data": "another"})
    with pytest.raises(ArtifactError, match="was made from another data than the one in this run"):
        run(config_of(copied), ("d3",))


def test_histories_outside_the_split_are_refused(copied):
    dataset = Dataset.load(copied / "data")
    assistant = BaselineAssistant.load(copied, "gru4rec", dataset, "test", 0.5)
    with pytest.raises(DataError, match="knows the histories of the run's test split only; found one of 9 items"):
        assistant.logprobs([[1] * 9])


def test_settings_without_an_assistant_are_refused():
    with pytest.raises(ConfigError, match="assistant_weight is set, but"):
        EvalConfig(assistant_weight=0.5)
    with pytest.raises(ConfigError, match="assistant_examples is set, but"):
        EvalConfig(assistant_examples=None)
    with pytest.raises(ConfigError, match=r"eval\.assistant_examples is set, but nothing is chosen by them"):
        EvalConfig(assistant="sasrec", assistant_weight=0.5, assistant_examples=None)
    with pytest.raises(ConfigError, match=r"eval\.assistant_weight is 1.5; it must be from 0 to 1"):
        EvalConfig(assistant="sasrec", assistant_weight=1.5)
