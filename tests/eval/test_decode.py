import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from minionerec.config import EvalConfig, ModelConfig
from minionerec.errors import ArtifactError, CatalogError, TrainingError
from minionerec.eval import decode
from minionerec.eval.predictions import read_predictions
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.recommend.recommender import Recommender
from tests.eval.samples import DATASET, DISTINCT, INDICES

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = scratch.create(tokenizer_corpus(DATASET), SIZES, 0)
    checkpoint.add_sid_tokens(model, tokenizer, DISTINCT, 0)
    with torch.no_grad():  # larger weights, so that scores differ by more than rounding
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval(), tokenizer


def decoder(tiny, index=DISTINCT, **fields):
    model, tokenizer = tiny
    config = EvalConfig(**{"num_beams": 50, "batch_size": 5, **fields})
    return decode.SplitDecoder(Recommender(model, Prompts(DATASET, index, tokenizer), config=config))


def decoded(tiny, index=DISTINCT, **fields):
    split_decoder = decoder(tiny, index, **fields)
    return list(split_decoder.predict(range(len(split_decoder))))


@torch.no_grad()
def one_by_one(model, tokenizer, index, split, normalise_over="vocabulary"):
    """The slow way: for each user the score of each item's SID, from one ordinary forward per pair."""
    tokens = checkpoint.sid_token_ids(tokenizer, index).tolist()
    for example in Prompts(DATASET, index, tokenizer).examples("history_sid_to_sid", split):
        start, scores = len(example.prompt), {}
        for item, sid in enumerate(tokens):
            logits = model(torch.tensor([[*example.prompt, *sid]])).logits[0, start - 1 : -1]
            if normalise_over == "catalog":
                for level, row in enumerate(logits):
                    legal = sorted({other[level] for other in tokens if other[:level] == sid[:level]})
                    row[[token for token in range(len(row)) if token not in legal]] = -torch.inf
            scores[tuple(index.codes[item].tolist())] = logits.log_softmax(-1)[range(len(sid)), sid].sum().item()
        yield scores


@pytest.mark.parametrize(
    ("kind", "split", "normalise_over"),
    [("distinct", "test", "vocabulary"), ("shared", "valid", "vocabulary"), ("shared", "test", "catalog")],
)
def test_a_beam_as_wide_as_the_catalog_sorts_every_items_score(tiny, kind, split, normalise_over):
    index = INDICES[kind]
    predictions = decoded(tiny, index, split=split, normalise_over=normalise_over)
    rows = DATASET.split(split)
    assert [p.user for p in predictions] == rows["user"].to_list() and len(predictions) == 12
    assert [p.target for p in predictions] == rows["target"].to_list()
    assert [p.history for p in predictions] == rows["history"].to_list()
    for prediction, scores in zip(predictions, one_by_one(*tiny, index, split, normalise_over), strict=True):
        total = np.exp(prediction.scores).sum()
        assert total == pytest.approx(1, abs=1e-4) if normalise_over == "catalog" else total < 0.9
        assert prediction.target_sid == index.codes[prediction.target].tolist()
        assert prediction.exact and set(map(tuple, prediction.sids)) == set(scores)
        np.testing.assert_allclose([scores[tuple(sid)] for sid in prediction.sids], prediction.scores, atol=1e-4)
        assert prediction.scores == sorted(prediction.scores, reverse=True)


@pytest.mark.parametrize("width", [1, 3, 19])
def test_a_narrow_beam_lists_as_many_sids_as_asked_with_the_same_scores(tiny, width):
    for ours, whole in zip(decoded(tiny, num_beams=width), decoded(tiny), strict=True):
        score_of = {tuple(sid): score for sid, score in zip(whole.sids, whole.scores, strict=True)}
        assert len(ours.sids) == width and whole.exact
        np.testing.assert_allclose(ours.scores, [score_of[tuple(sid)] for sid in ours.sids], atol=1e-4)


def test_batch_size_does_not_matter(tiny):
    whole = decoded(tiny, num_beams=6, batch_size=100)
    for size in (1, 5):
        for ours, theirs in zip(decoded(tiny, num_beams=6, batch_size=size), whole, strict=True):
            assert (ours.user, ours.sids, ours.items) == (theirs.user, theirs.sids, theirs.items)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_a_shared_sid_is_listed_once_with_all_its_items(tiny):
    index = INDICES["shared"]
    assert index.collisions() == 12
    for prediction in decoded(tiny, index):
        assert len(prediction.sids) == len(prediction.scores) == len(np.unique(index.codes, axis=0)) == 14
        assert sorted(prediction.items) == list(range(20))
        assert prediction.items == [item for sid in prediction.sids for item in index.items(sid)]


@pytest.mark.parametrize("kind", ["distinct", "shared"])
def test_an_excluded_history_leaves_the_other_items_in_their_order(tiny, kind):
    index = INDICES[kind]
    whole, rest = decoded(tiny, index), decoded(tiny, index, exclude_history=True)
    for before, after in zip(whole, rest, strict=True):
        remaining = [item for item in before.items if item not in before.history]
        assert after.items == remaining and len(remaining) < len(before.items)
        sids = [sid for sid in before.sids if not set(index.items(tuple(sid))) <= set(before.history)]
        assert after.sids == sids and after.exact
        assert after.sizes is None or sum(after.sizes) == len(remaining)
        scores = dict(zip(map(tuple, before.sids), before.scores, strict=True))
        np.testing.assert_allclose(after.scores, [scores[tuple(sid)] for sid in after.sids], atol=1e-5)


def test_generation_settings_of_the_checkpoint_play_no_part(tiny):
    expected = decoded(tiny, num_beams=4)
    model = tiny[0]
    settings = model.generation_config.to_dict()
    model.generation_config.update(temperature=9.0, do_sample=True, length_penalty=5.0, repetition_penalty=3.0, num_beams=2)
    try:
        assert decoded(tiny, num_beams=4) == expected
    finally:
        model.generation_config.update(**settings)


def test_a_tokenizer_without_the_sid_tokens():
    model, tokenizer = scratch.create(tokenizer_corpus(DATASET), SIZES, 0)
    with pytest.raises(CatalogError, match=r"lacks 18 of the catalog's 18 SID tokens, the first is <a_0>.*sft stage"):
        decoded((model, tokenizer))


def sharded(tiny, folder, **fields):
    """The two files of a model's evaluation in shards of 5 rows."""
    folder.mkdir(exist_ok=True)
    config = EvalConfig(**{"num_beams": 6, "batch_size": 2, "shard_size": 5, "oracle_examples": 4, **fields})
    decode.decode_split(decode.SplitDecoder(Recommender(tiny[0], Prompts(DATASET, DISTINCT, tiny[1]), config=config)), folder)
    return (folder / "predictions.jsonl").read_bytes(), (folder / "oracle.jsonl").read_bytes()


def test_shards_are_merged_in_order_and_not_decoded_twice(tiny, tmp_path, monkeypatch):
    whole = sharded(tiny, tmp_path / "whole")
    assert [p.user for p in read_predictions(tmp_path / "whole/predictions.jsonl")] == DATASET.test["user"].to_list()
    assert [json.loads(line)["row"] for line in whole[1].splitlines()] == [0, 3, 6, 9]

    stored = tmp_path / "whole/checkpoints"
    assert len(list(stored.glob("*.jsonl"))) == 3
    shutil.copytree(stored, tmp_path / "resumed/checkpoints")
    (tmp_path / "resumed/checkpoints/rows-000000005-000000010.jsonl").unlink()
    decoded_rows = []
    original = decode.SplitDecoder.predict
    monkeypatch.setattr(decode.SplitDecoder, "predict", lambda self, rows: decoded_rows.extend(rows) or original(self, rows))
    assert sharded(tiny, tmp_path / "resumed") == whole
    assert decoded_rows == [5, 6, 7, 8, 9]
    (tmp_path / "resumed/checkpoints/rows-000000010-000000012.trace").unlink()  # a shard is its two files
    assert sharded(tiny, tmp_path / "resumed") == whole
    assert decoded_rows == [5, 6, 7, 8, 9, 10, 11]


def test_a_short_shard_is_noticed(tiny, tmp_path):
    sharded(tiny, tmp_path)
    shards = {tmp_path / "checkpoints/rows-000000005-000000010.jsonl": range(5, 10)}
    for suffix, message in ((".trace", "1 traces for 2 rows"), (".jsonl", "1 predictions for 5 rows")):
        part = next(iter(shards)).with_suffix(suffix)
        part.write_text(part.read_text().splitlines(keepends=True)[0])
        with pytest.raises(ArtifactError, match=rf"00010\{suffix}: {message}. Delete it"):
            decode.merge(shards, tmp_path, {0, 3, 6, 9})


def test_what_writes_shards_travels_to_other_processes(tiny):
    recommender = Recommender(tiny[0], Prompts(DATASET, DISTINCT, tiny[1]), config=EvalConfig(num_beams=6))
    writer = pickle.loads(pickle.dumps(decode._Writer(decode.SplitDecoder(recommender), {1})))
    assert list(writer.decoder.predict(range(3))) == list(decode.SplitDecoder(recommender).predict(range(3)))


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
def test_the_replayed_beam_is_the_beam_search(tiny, normalise_over):
    for width in (1, 3, 6):
        split_decoder = decoder(tiny, num_beams=width, normalise_over=normalise_over)
        rows = list(range(len(split_decoder)))
        for prediction, traced in zip(split_decoder.predict(rows), split_decoder.trace(rows), strict=True):
            rank = prediction.sids.index(prediction.target_sid) if prediction.target_sid in prediction.sids else None
            assert traced.widths[str(width)] == rank
            assert (traced.pruned[str(width)] == (0, 0)) == (rank is not None)
            assert not prediction.exact or traced.overlap[str(width)] == 1
            assert traced.widths["50"] == traced.rank  # a beam as wide as the catalog


def test_memory_that_runs_out_says_what_helps(tmp_path, monkeypatch):
    def no_memory(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(decode.SplitDecoder, "predict", no_memory)
    monkeypatch.setattr(decode.SplitDecoder, "trace", lambda *_: iter(()))
    monkeypatch.setattr(decode.SplitDecoder, "__init__", lambda self, config: setattr(self, "config", config))
    monkeypatch.setattr(decode.SplitDecoder, "__len__", lambda self: 3)
    with pytest.raises(TrainingError, match=r"Out of memory while the split was decoded.*Lower eval.batch_size"):
        decode.decode_split(decode.SplitDecoder(EvalConfig()), tmp_path)
    assert not list(tmp_path.rglob("rows-*.jsonl"))


def test_the_clock_runs_while_lists_are_made_and_not_while_they_are_used(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(decode.time, "perf_counter", lambda: now[0])

    def made(count):
        for number in range(count):
            now[0] += 2.0
            yield number + 1

    clock = decode.Clock()
    for _ in decode.timed(made(3), clock):
        now[0] += 100.0
    assert (clock.lists, clock.seconds) == (3, 6.0)
