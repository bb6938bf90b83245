import numpy as np
import pytest
import torch

from minionerec.baselines import floors
from minionerec.config import Config, EvalConfig, ModelConfig
from minionerec.errors import ArtifactError, CatalogError
from minionerec.eval import predict
from minionerec.eval.predictions import read_predictions
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.prompts.builder import build_examples, tokenizer_corpus
from minionerec.sid.index import SidIndex
from tests import small

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)
DATASET, DISTINCT = small.random_dataset(users=12, items=20)


def shared_sids() -> SidIndex:
    """Every third item has the SID of the item before it."""
    codes = DISTINCT.codes.copy()
    codes[2::3] = codes[1::3][: len(codes[2::3])]
    return SidIndex(codes, DISTINCT.codebook_sizes, DATASET.digest)


INDICES = {"distinct": DISTINCT, "shared": shared_sids()}


@pytest.fixture(scope="module")
def made():
    model, tokenizer = scratch.create(tokenizer_corpus(DATASET), SIZES, 0)
    checkpoint.add_sid_tokens(model, tokenizer, DISTINCT, 0)
    with torch.no_grad():  # larger weights, so that scores differ by more than rounding
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval(), tokenizer


def decoded(made, index=DISTINCT, **fields):
    config = Config(eval=EvalConfig(**{"num_beams": 50, "batch_size": 5, **fields}))
    return list(predict.decode(*made, DATASET, index, config))


@torch.no_grad()
def one_by_one(model, tokenizer, index, split):
    """The slow way: for each user the score of each item's SID, from one ordinary forward per pair."""
    tokens = checkpoint.sid_token_ids(tokenizer, index).tolist()
    for example in build_examples("history_sid_to_sid", DATASET, index, tokenizer, split=split):
        start, scores = len(example.prompt), {}
        for item, sid in enumerate(tokens):
            logits = model(torch.tensor([[*example.prompt, *sid]])).logits[0, start - 1 : -1]
            scores[tuple(index.codes[item].tolist())] = logits.log_softmax(-1)[range(len(sid)), sid].sum().item()
        yield scores


@pytest.mark.parametrize(("kind", "split"), [("distinct", "test"), ("shared", "valid")])
def test_a_beam_as_wide_as_the_catalogue_sorts_every_items_score(made, kind, split):
    index = INDICES[kind]
    found = decoded(made, index, split=split)
    rows = DATASET.split(split)
    assert [p.user for p in found] == rows["user"].to_list() and len(found) == 12
    assert [p.target for p in found] == rows["target"].to_list()
    assert [p.history for p in found] == rows["history"].to_list()
    for prediction, scores in zip(found, one_by_one(*made, index, split), strict=True):
        assert prediction.target_sid == index.codes[prediction.target].tolist()
        assert prediction.exact and set(map(tuple, prediction.sids)) == set(scores)
        np.testing.assert_allclose([scores[tuple(sid)] for sid in prediction.sids], prediction.scores, atol=1e-4)
        assert prediction.scores == sorted(prediction.scores, reverse=True)


@pytest.mark.parametrize("width", [1, 3, 19])
def test_a_narrow_beam_lists_as_many_sids_as_asked_with_the_same_scores(made, width):
    for ours, whole in zip(decoded(made, num_beams=width), decoded(made), strict=True):
        known = {tuple(sid): score for sid, score in zip(whole.sids, whole.scores, strict=True)}
        assert len(ours.sids) == width and whole.exact
        np.testing.assert_allclose(ours.scores, [known[tuple(sid)] for sid in ours.sids], atol=1e-4)


def test_batch_size_does_not_matter(made):
    whole = decoded(made, num_beams=6, batch_size=100)
    for size in (1, 5):
        for ours, theirs in zip(decoded(made, num_beams=6, batch_size=size), whole, strict=True):
            assert (ours.user, ours.sids, ours.items) == (theirs.user, theirs.sids, theirs.items)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_a_shared_sid_is_listed_once_with_all_its_items(made):
    index = INDICES["shared"]
    assert index.collisions() == 12
    for prediction in decoded(made, index):
        assert len(prediction.sids) == len(prediction.scores) == len(np.unique(index.codes, axis=0)) == 14
        assert sorted(prediction.items) == list(range(20))
        assert prediction.items == [item for sid in prediction.sids for item in index.items(sid)]


def test_generation_settings_of_the_checkpoint_play_no_part(made):
    expected = decoded(made, num_beams=4)
    model = made[0]
    settings = model.generation_config.to_dict()
    model.generation_config.update(temperature=9.0, do_sample=True, length_penalty=5.0, repetition_penalty=3.0, num_beams=2)
    try:
        assert decoded(made, num_beams=4) == expected
    finally:
        model.generation_config.update(**settings)


def test_a_tokenizer_without_the_sid_tokens():
    model, tokenizer = scratch.create(tokenizer_corpus(DATASET), SIZES, 0)
    with pytest.raises(CatalogError, match=r"lacks 18 of the catalogue's 18 SID tokens, the first is <a_0>.*sft stage"):
        decoded((model, tokenizer))


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("kind", INDICES)
def test_floors_are_those_of_the_baselines(kind, split):
    config, index = Config(eval=EvalConfig(num_beams=5, split=split)), INDICES[kind]
    rows = DATASET.split(split)
    rankings = {
        "popularity": floors.popularity(DATASET, 5, split),
        "repeat": floors.repeat_last(rows, 5),
    }
    for name, expected in rankings.items():
        found = predict.RECOMMENDERS[name](config, DATASET, index)
        assert [p.items for p in found] == [ranking.tolist() for ranking in expected]
        assert [p.user for p in found] == rows["user"].to_list()
        for prediction in found:
            sids = [tuple(index.codes[item].tolist()) for item in prediction.items]
            assert prediction.sids == [list(sid) for sid in dict.fromkeys(sids)]


def test_the_stage_needs_its_inputs_and_is_skipped_when_current(tmp_path):
    config = small.config(tmp_path)
    with pytest.raises(ArtifactError, match="Make it first: minionerec data"):
        predict.run(config, "popularity")
    run(config, ("data", "sid"))
    with pytest.raises(ArtifactError, match="Make it first: minionerec sft"):
        predict.run(config, "sft")
    assert predict.stages(config.folder) == ["popularity", "repeat"]

    manifest, fresh = predict.run(config, "popularity")
    assert fresh and not predict.run(config, "popularity")[1]
    predictions = read_predictions(config.folder / "eval/popularity/predictions.jsonl")
    assert len(predictions) == 40
    hits = [p.target_sid in p.sids for p in predictions]
    assert manifest.metrics["HR@10"] == pytest.approx(np.mean(hits))
    assert manifest.inputs.keys() == {"data", "sid"} and manifest.stage == "eval/popularity"


def test_a_missing_shard_is_noticed(made, monkeypatch):
    whole = predict.RECOMMENDERS["popularity"](Config(), DATASET, DISTINCT)
    monkeypatch.setattr(predict.checkpoint, "load", lambda folder: made)
    monkeypatch.setattr(predict, "decode", lambda *_: iter(whole[1:]))
    with pytest.raises(ArtifactError, match="eval/rl: 11 predictions for 12 users; a shard is missing"):
        predict.RECOMMENDERS["rl"](Config(), DATASET, DISTINCT)
