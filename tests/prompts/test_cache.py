import copy
import dataclasses

import numpy as np
import polars as pl
import pytest

from minionerec.config import PromptsConfig
from minionerec.errors import ConfigError
from minionerec.model import scratch
from minionerec.prompts import cache
from minionerec.prompts.builder import build_examples, tokenizer_corpus
from minionerec.prompts.cache import cached_examples
from minionerec.prompts.wordings import PLAIN
from tests.small import random_dataset


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    described = dataset.catalog.with_columns(description=pl.lit("It is ") + pl.col("title"))
    dataset = dataclasses.replace(dataset, catalog=described)
    tokenizer = scratch.train_tokenizer(tokenizer_corpus(dataset), 400)
    tokenizer.add_tokens(index.token_strings())
    return dataset, index, tokenizer


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path))
    return tmp_path / "tokens"


def plain(examples):
    """Views of a file as lists, which can be compared with examples that were not read."""
    return [dataclasses.replace(one, prompt=[*one.prompt], completion=[*one.completion]) for one in examples]


@pytest.fixture
def built(monkeypatch):
    """How often examples are really made."""
    calls = []

    def build(*arguments, **options):
        calls.append(options)
        return build_examples(*arguments, **options)

    monkeypatch.setattr(cache, "build_examples", build)
    return calls


@pytest.mark.parametrize("task", PLAIN)
@pytest.mark.parametrize("stride", [1, 4])
def test_the_same_examples_with_and_without_cache(parts, folder, built, task, stride):
    for _ in range(2):
        found = cached_examples(task, *parts, split="train", stride=stride, context=2048)
        assert plain(found) == build_examples(task, *parts, split="train", stride=stride, context=2048)
        assert all(type(token) is int for token in found[0].prompt) and type(found[0].is_sid) is bool
    assert len(built) == 1 and len(list(folder.iterdir())) == 1


def test_whatever_decides_the_tokens_is_in_the_key(parts, folder, built):
    dataset, index, tokenizer = parts
    options = {"split": "train", "stride": 1, "context": 2048}
    cached_examples("history_sid_to_sid", *parts, **options)
    titles = dataset.catalog.with_columns(pl.col("title") + "!")
    other = dataclasses.replace(index, codes=np.roll(index.codes, 1, axis=0))
    words = scratch.train_tokenizer(tokenizer_corpus(dataset), 280)
    words.add_tokens(index.token_strings())
    templated = copy.deepcopy(tokenizer)
    templated.chat_template = "{{ messages }}"
    for changed in (
        (dataclasses.replace(dataset, catalog=titles), index, tokenizer, options),
        (dataclasses.replace(dataset, train=dataset.train[1:]), index, tokenizer, options),
        (dataset, other, tokenizer, options),
        (dataset, index, words, options),
        (dataset, index, tokenizer, {**options, "split": "valid"}),
        (dataset, index, tokenizer, {**options, "stride": 2}),
        (dataset, index, tokenizer, {**options, "context": 2047}),
        (dataset, index, tokenizer, {**options, "prompts": PromptsConfig(style="alpaca")}),
        (dataset, index, tokenizer, {**options, "prompts": PromptsConfig(max_tokens=2047)}),
        (dataset, index, templated, options),
    ):
        *some, wanted = changed
        before = len(built)
        found = cached_examples("history_sid_to_sid", *some, **wanted)
        assert plain(found) == build_examples("history_sid_to_sid", *some, **wanted)
        assert len(built) == before + 1


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "facts.npy", "sha256.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_entry_is_made_anew(parts, folder, built, name, damage):
    wanted = plain(cached_examples("title_to_sid", *parts, split="train"))
    path = next(folder.iterdir()) / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert plain(cached_examples("title_to_sid", *parts, split="train")) == wanted and len(built) == 2
    assert plain(cached_examples("title_to_sid", *parts, split="train")) == wanted and len(built) == 2


def test_examples_are_views_of_the_file_and_not_copies(parts, folder):
    for _ in range(2):  # the first time as well
        for example in cached_examples("history_sid_to_title", *parts, split="train"):
            assert isinstance(example.prompt, memoryview) and isinstance(example.completion.obj, np.memmap)


def test_nothing_is_kept_of_what_fails(parts, folder):
    with pytest.raises(ConfigError, match="the model reads 3"):
        cached_examples("title_to_sid", *parts, split="train", context=3)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_only_the_cache(parts, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="tokens are not cached"):
        found = cached_examples("title_to_sid", *parts, split="train")
    assert found == build_examples("title_to_sid", *parts, split="train")
