"""The rows of a model that is searched over titles, in a run that nobody trained: BIGRec's second row, and D3 on titles."""

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from minionerec.artifacts import Manifest, read_json
from minionerec.config import NAMING, BaselineConfig, Config, EvalConfig, ModelConfig, SftConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, DataError
from minionerec.eval import evaluate as evaluation
from minionerec.eval.evaluate import evaluable, evaluate
from minionerec.eval.predictions import read_predictions
from minionerec.model import checkpoint
from minionerec.pipeline import run
from minionerec.recommend.recommender import Recommender
from minionerec.report.runs import read_run
from minionerec.sft.plan import plans
from minionerec.sft.train import train_sft
from minionerec.training import stage
from tests.recommend.conftest import make  # noqa: F401 (a fixture)
from tests.training.test_fit_mixture import untrained_run

TITLES = SftConfig(tasks=[NAMING], best_metric="loss")
TRIE = EvalConfig(num_beams=12, batch_size=5, resamples=40, title_trie=True)
TOO_LONG = r"has \d+ tokens with its end, and a prompt .* the model reads 20\."


@pytest.fixture(scope="module")
def settings(make, tmp_path_factory):  # noqa: F811
    """A run in which items 1 and 2 share a title, with rows of titles alone and of titles with an assistant."""

    def titled(**fields):
        recommender: Recommender = make(**fields)
        titles = recommender.prompts.dataset.catalog["title"].to_list()
        titles[2] = titles[1]
        dataset = recommender.prompts.dataset
        changed = replace(dataset, catalog=dataset.catalog.with_columns(title=pl.Series(titles)))
        recommender.prompts = replace(recommender.prompts, dataset=changed)
        return recommender

    baseline = BaselineConfig(model="gru4rec", epochs=1, hidden_size=8, inner_size=8, max_history=6)
    evaluation = replace(TRIE, assistant="gru4rec", assistant_examples=6)
    folder = untrained_run(tmp_path_factory.mktemp("titles"), titled)
    config = Config(out=str(folder), sft=TITLES, baseline=baseline, eval=evaluation)
    run(config, ("baseline", "eval"))
    return config


def test_both_rows_stand_in_the_table_and_the_weight_was_chosen_over_titles(settings):
    names = evaluable(settings)
    assert names[-2:] == ["sft-titles-d3", "sft-titles-trie"] and not {"sft", "sft-d3"} & {*names}
    chosen = read_json(settings.folder / "d3/sft-titles/weight.json")
    manifest = Manifest.load(settings.folder / "eval/sft-titles-d3")
    assert manifest.config["d3"] == {"assistant": "gru4rec", "weight": chosen["weight"]} and len(chosen["NDCG@10"]) == 11
    assert {"d3/sft-titles", "baselines/gru4rec", "sft"} <= manifest.inputs.keys()
    assert Manifest.load(settings.folder / "eval/sft-titles-trie").config["titles"] == {
        "length_penalty": 0.0,
        "title_tokens": 64,
    }
    rows = {row.name: row.label for row in read_run(settings.folder)}
    assert rows["sft-titles-trie"] == "SFT, titles of the catalog (BIGRec)"
    assert rows["sft-titles-d3"] == "SFT, titles of the catalog, assisted (D3)"
    assert not (settings.folder / "d3/sft").exists()


def test_items_of_one_title_are_tied_whatever_their_sids(settings):
    dataset = Dataset.load(settings.folder / "data")
    predictions = read_predictions(settings.folder / "eval/sft-titles-trie/predictions.jsonl")
    ties = 0
    for prediction, example in zip(predictions, dataset.test.rows(named=True), strict=True):
        places = [prediction.items.index(item) for item in (1, 2) if item in prediction.items]
        assert not places or places == [places[0], places[0] + 1]
        assert len(prediction.items) in (12, 13) and prediction.target == example["target"]
        if prediction.target in (1, 2) and 1 in prediction.items:
            ties += 1
            assert prediction.item_tie == [prediction.items.index(1), 2]
        else:
            assert prediction.item_tie is None
    assert ties or not np.isin(dataset.test["target"].to_numpy(), [1, 2]).any()


def test_another_penalty_makes_the_rows_anew_and_nothing_else_does(settings):
    for changes, name, expected in (
        ({"title_beams": 2, "grounding": "trained"}, "sft-titles-trie", False),
        ({"length_penalty": 1.0}, "sft-titles-trie", True),
        ({"length_penalty": 1.0, "assistant_weight": 0.5}, "sft-titles-d3", True),
        ({}, "popularity", False),
    ):
        changed = replace(settings, eval=replace(settings.eval, **{"assistant_examples": 512, **changes}))
        assert evaluate(changed, name)[1] is expected


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("eval", {"title_trie": True}, TOO_LONG),
        ("eval", {"grounding": "trained"}, r"eval.title_tokens is 64, but prompt and title together may have 20 tokens"),
        ("d3", {"title_trie": True, "assistant": "gru4rec"}, TOO_LONG),
    ],
)
def test_titles_that_leave_no_prompt_are_refused_before_anything_begins(settings, tmp_path, monkeypatch, name, asked, message):
    folder = tmp_path / "run"
    shutil.copytree(settings.folder, folder, ignore=shutil.ignore_patterns("eval", "d3"))
    monkeypatch.setattr(checkpoint, "context_of", lambda model: 20)
    changed = replace(settings, out=str(folder), eval=EvalConfig(num_beams=12, resamples=40, **asked))
    with pytest.raises((ConfigError, DataError), match=message):
        run(changed, (name,))
    assert not (folder / "eval").exists() and not (folder / "d3").exists()
    monkeypatch.undo()
    evaluation.check_titles(changed)


@pytest.mark.parametrize(
    ("asked", "message"), [({"title_trie": True}, TOO_LONG), ({"grounding": "trained"}, "together may have 20")]
)
def test_they_are_refused_before_a_training(settings, tmp_path, monkeypatch, asked, message):
    folder = tmp_path / "run"
    shutil.copytree(settings.folder, folder, ignore=shutil.ignore_patterns("eval", "d3", "sft", "baselines"))
    monkeypatch.setattr(stage, "context_of", lambda model: 20)
    changed = replace(settings, out=str(folder), eval=EvalConfig(num_beams=12, resamples=40, **asked))
    for begin in (train_sft, plans):
        with pytest.raises((ConfigError, DataError), match=message):
            begin(changed)
    assert not [*folder.glob("sft*")]


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ConfigError, match=r"eval.length_penalty is 1, but it has an effect with eval.title_trie only"):
        EvalConfig(length_penalty=1)
    for wrong, message in (
        ({"eval": TRIE}, f"eval.title_trie is true, but sft.tasks does not name {NAMING}"),
        ({"eval": TRIE, "sft": TITLES, "model": ModelConfig(text_input=True)}, "eval.title_trie searches titles word by word"),
        ({"eval": EvalConfig(assistant="sasrec"), "sft": TITLES}, "With eval.title_trie it helps to write titles"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config(**wrong)
    Config(eval=replace(TRIE, assistant="sasrec"), sft=TITLES)
