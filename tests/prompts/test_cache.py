import copy
import dataclasses

import numpy as np
import polars as pl
import pytest

from minionerec.config import PromptsConfig
from minionerec.errors import ConfigError
from minionerec.model import scratch
from minionerec.prompts import cache
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.encode import Encoder
from minionerec.prompts.wordings import PLAIN
from tests.small import listed_examples, random_dataset


@pytest.fixture(scope="module")
def prompts():
    dataset, index = random_dataset()
    described = dataset.catalog.with_columns(description=pl.lit("It is ") + pl.col("title"))
    dataset = dataclasses.replace(dataset, catalog=described)
    tokenizer = scratch.train_tokenizer(tokenizer_corpus(dataset), 400)
    tokenizer.add_tokens(index.token_strings())
    return Prompts(dataset, index, tokenizer, context=2048)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path))
    return tmp_path / "tokens"


def uncached(prompts, task, split="train", stride=1):
    """A task's examples without the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "tokenizer_digest", lambda tokenizer: None)
        return prompts.examples(task, split, stride)


@pytest.fixture
def built(monkeypatch):
    """How often examples are really made."""
    calls = []

    def examples(encoder, sources):
        calls.append(sources)
        return original(encoder, sources)

    original = Encoder.examples
    monkeypatch.setattr(Encoder, "examples", examples)
    return calls


@pytest.mark.parametrize("task", PLAIN)
@pytest.mark.parametrize("stride", [1, 4])
def test_the_same_examples_with_and_without_cache(prompts, folder, built, task, stride):
    expected = uncached(prompts, task, stride=stride)
    built.clear()
    for _ in range(2):
        assert listed_examples(prompts, task, stride=stride) == expected
        first = prompts.examples(task, "train", stride)[0]
        assert all(type(token) is int for token in first.prompt) and type(first.is_sid) is bool
    assert len(built) == 1 and len(list(folder.iterdir())) == 1


def test_whatever_decides_the_tokens_is_in_the_key(prompts, folder, built):
    dataset, index, tokenizer = prompts.dataset, prompts.index, prompts.tokenizer
    prompts.examples("history_sid_to_sid", "train")
    titles = dataset.catalog.with_columns(pl.col("title") + "!")
    other = dataclasses.replace(index, codes=np.roll(index.codes, 1, axis=0))
    words = scratch.train_tokenizer(tokenizer_corpus(dataset), 280)
    words.add_tokens(index.token_strings())
    templated = copy.deepcopy(tokenizer)
    templated.chat_template = "{{ messages }}"
    for fields, options in (
        ({"dataset": dataclasses.replace(dataset, catalog=titles)}, {}),
        ({"dataset": dataclasses.replace(dataset, train=dataset.train[1:])}, {}),
        ({"index": other}, {}),
        ({"tokenizer": words}, {}),
        ({}, {"split": "valid"}),
        ({}, {"stride": 2}),
        ({"context": 2047}, {}),
        ({"config": PromptsConfig(style="alpaca")}, {}),
        ({"config": PromptsConfig(max_tokens=2047)}, {}),
        ({"tokenizer": templated}, {}),
    ):
        changed = dataclasses.replace(prompts, **fields)
        before = len(built)
        examples = listed_examples(changed, "history_sid_to_sid", **options)
        assert len(built) == before + 1
        assert examples == uncached(changed, "history_sid_to_sid", **options)


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "facts.npy", "sha256.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_entry_is_made_anew(prompts, folder, built, name, damage):
    expected = listed_examples(prompts, "title_to_sid")
    path = next(folder.iterdir()) / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert listed_examples(prompts, "title_to_sid") == expected and len(built) == 2
    assert listed_examples(prompts, "title_to_sid") == expected and len(built) == 2


def test_examples_are_views_of_the_file_and_not_copies(prompts, folder):
    for _ in range(2):  # the first time as well
        for example in prompts.examples("history_sid_to_title", "train"):
            assert isinstance(example.prompt, memoryview) and isinstance(example.completion.obj, np.memmap)


def test_nothing_is_kept_of_what_fails(prompts, folder):
    with pytest.raises(ConfigError, match="the model reads 3"):
        dataclasses.replace(prompts, context=3).examples("title_to_sid", "train")
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_only_the_cache(prompts, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "file"))
    for _ in range(2):  # each stage of a process says it
        caplog.clear()
        assert prompts.examples("title_to_sid", "train") == uncached(prompts, "title_to_sid")
        assert "tokens are not cached" in caplog.text


def test_a_tables_digest_does_not_depend_on_its_chunks(monkeypatch):
    monkeypatch.setattr(cache, "_BLOCK", 7)
    frame = pl.DataFrame({"user": [f"u{number}" for number in range(40)], "history": [list(range(n % 5)) for n in range(40)]})
    parts = pl.concat([frame[:13], frame[13:]], rechunk=False)
    assert cache.frame_digest(parts) == cache.frame_digest(frame) != cache.frame_digest(frame[1:])
    assert len(cache.frame_digest(frame[:0])) == 64
