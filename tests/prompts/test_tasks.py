from dataclasses import replace

import polars as pl
import pytest

from minionerec.config import ModelConfig
from minionerec.errors import ConfigError
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import build_examples, sample_examples, tokenizer_corpus
from minionerec.prompts.tasks import TASKS
from minionerec.sft.train import build_trees
from tests.small import random_dataset


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), ModelConfig(hidden_size=16, heads=2, vocabulary=400), 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return dataset, index, tokenizer


def shifted(dataset, split):
    """The same dataset with every target of a split replaced by another item."""
    items = len(dataset.catalog)
    frame = dataset.split(split).with_columns(((pl.col("target") + 1) % items).cast(pl.Int32))
    return replace(dataset, **{split: frame})


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("stride", [1, 3, 6])
def test_a_history_prompt_does_not_depend_on_its_answer(parts, split, stride):
    dataset, index, tokenizer = parts
    prompts = [
        [e.prompt for e in build_examples("history_sid_to_sid", d, index, tokenizer, split=split, stride=stride)]
        for d in (dataset, shifted(dataset, split))
    ]
    assert prompts[0] == prompts[1]


def test_an_item_prompt_does_not_hold_its_answer(parts):
    dataset, index, _ = parts
    for task in ("title_to_sid", "sid_to_title"):
        for example in TASKS[task](dataset, index, "train", 1):
            assert example.completion.strip() not in example.prompt
            assert not (task == "title_to_sid" and "<a_" in example.prompt)


@pytest.mark.parametrize("task", list(TASKS))
def test_tokens_are_those_of_the_text(parts, task):
    dataset, index, tokenizer = parts
    texts = list(TASKS[task](dataset, index, "train", 1))
    for example, text in zip(build_examples(task, dataset, index, tokenizer, split="train"), texts, strict=True):
        assert tokenizer.decode(example.prompt) == text.prompt
        assert tokenizer.decode(example.completion, skip_special_tokens=True) == text.completion
        assert (example.completion[-1] == tokenizer.eos_token_id) == (task == "sid_to_title")
        whole = tokenizer(text.prompt + text.completion)["input_ids"]
        assert whole == [*example.prompt, *example.completion][: len(whole)]  # no token spans the two


def test_history_holds_the_sids_of_the_row_oldest_first(parts):
    dataset, index, tokenizer = parts
    rows = dataset.test.iter_rows(named=True)
    for example, row in zip(build_examples("history_sid_to_sid", dataset, index, tokenizer, split="test"), rows, strict=True):
        text = tokenizer.decode(example.prompt)
        assert text.endswith(":" + "".join(index.text(item) for item in row["history"]))
        assert example.target == row["target"]
        assert tokenizer.decode(example.completion) == index.text(row["target"])


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_stride_leaves_out_less_than_a_stride_of_the_oldest_items_and_groups_share_a_prompt(parts, stride):
    dataset, index, tokenizer = parts
    whole = build_examples("history_sid_to_sid", dataset, index, tokenizer, split="train")
    cut = build_examples("history_sid_to_sid", dataset, index, tokenizer, split="train", stride=stride)
    header = len(tokenizer(TASK_HEADER)["input_ids"])
    groups = {}
    for long, short in zip(whole, cut, strict=True):
        left_out = (len(long.prompt) - len(short.prompt)) // index.levels
        assert 0 <= left_out < stride
        assert long.prompt[header + left_out * index.levels :] == short.prompt[header:]
        assert long.completion == short.completion
        groups.setdefault(short.group, []).append(short)
    for members in groups.values():
        assert len(members) <= stride + 5  # histories of at most 6 items
        longest = max(members, key=lambda example: len(example.prompt)).prompt
        assert all(longest[: len(example.prompt)] == example.prompt for example in members)


@pytest.mark.parametrize("task", ["history_sid_to_sid", "title_to_sid"])
def test_sft_rl_and_evaluation_use_the_same_prompts(parts, task):
    dataset, index, tokenizer = parts
    evaluation = [tuple(e.prompt) for e in build_examples(task, dataset, index, tokenizer, split="train")]
    trees = build_trees([task], dataset, index, tokenizer, split="train", stride=1, context=None)
    rl = sample_examples([task], dataset, index, tokenizer, split="train", count=None, seed=3)
    assert [tuple(branch.prompt) for tree in trees for branch in tree] == evaluation
    assert sorted(tuple(e.prompt) for e in rl) == sorted(evaluation)


TASK_HEADER = "The user's items, oldest first:"


def test_too_long_for_the_model(parts):
    dataset, index, tokenizer = parts
    with pytest.raises(ConfigError, match=r"tokens, the model reads 10.*data.max_history"):
        build_examples("history_sid_to_sid", dataset, index, tokenizer, split="train", context=10)
