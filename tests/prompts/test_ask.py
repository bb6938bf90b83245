"""`Prompts.ask`: the prompt of a history that stands in no split."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import ModelConfig, PromptsConfig
from minionerec.errors import CatalogError, ConfigError, DataError
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.sid.index import SidIndex
from tests.examples import examples
from tests.small import random_dataset

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
STYLES = [
    *({"style": style, "wording": wording} for style in ("plain", "alpaca", "chat") for wording in ("plain", "released")),
    {"style": "alpaca", "wording": "released", "category": "lamp", "eval_style": "released"},
]


@pytest.fixture(scope="module")
def prompts():
    dataset, index = random_dataset()
    corpus = tokenizer_corpus(dataset, PromptsConfig(style="alpaca", wording="released"))
    model, tokenizer = scratch.create(corpus, ModelConfig(hidden_size=16, heads=2, vocabulary=500), 0)
    codes = index.codes.copy()
    codes[::2, -1] = -1  # every other SID is shorter
    index = SidIndex(codes, index.codebook_sizes, dataset.digest)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    tokenizer.chat_template = TEMPLATE
    return Prompts(dataset, index, tokenizer)


@examples(40)
@given(
    fields=st.sampled_from(STYLES),
    limit=st.none() | st.integers(20, 160),
    split=st.sampled_from(["train", "valid", "test"]),
    numbers=st.booleans(),
)
def test_a_history_is_asked_about_like_the_same_history_in_a_split(prompts, fields, limit, split, numbers):
    builder = replace(prompts, config=PromptsConfig(**fields, max_tokens=limit if numbers else None), context=limit)
    try:
        examples = builder.examples("history_sid_to_sid", split)
    except ConfigError as error:
        shortest = [history[-1:] for history in builder.dataset.split(split)["history"].to_list()]
        with pytest.raises(ConfigError, match=r"tokens with one item left of it, .* \d+\. Take a model that reads more"):
            [builder.ask(history) for history in shortest]
        assert "left of it" in str(error)
        return
    histories = builder.dataset.split(split)["history"].to_list()
    assert [builder.ask(history) for history in histories] == [[*example.prompt] for example in examples]


def test_some_of_them_are_cut_and_the_answers_length_does_not_show(prompts):
    short = replace(prompts, config=PromptsConfig(max_tokens=30))
    examples = short.examples("history_sid_to_sid", "train")
    assert 0 < sum(example.cut for example in examples) < len(examples)
    assert {len(example.completion) for example in examples if example.cut} == {2, 3}
    assert all(len(example.prompt) + 3 <= 30 for example in examples)
    assert any(len(short.ask([item] * 50)) < len(prompts.ask([item] * 50)) for item in range(30))


def test_numbers_of_any_integer_type(prompts):
    assert prompts.ask(np.array([3, 4])) == prompts.ask((3, 4)) == prompts.ask([np.int32(3), np.int64(4)])


@pytest.mark.parametrize("item", [30, -1])
def test_an_unknown_item_is_refused(prompts, item):
    with pytest.raises(CatalogError, match=rf"has item index {item}, but the catalog has the indices 0 to 29"):
        prompts.ask([3, item])


def test_a_sid_that_another_begins_with_is_refused(prompts):
    codes = prompts.index.codes.copy()
    codes[0], codes[1] = [0, 0, -1], [0, 0, 1]
    with pytest.raises(CatalogError, match=r"SID of item 0, <a_0><b_0>, is the beginning of that of item 1"):
        _ = replace(prompts, index=replace(prompts.index, codes=codes)).sid_tokens


def test_an_empty_history_is_refused(prompts):
    with pytest.raises(DataError, match=r"The history is empty\. Give at least one item index"):
        prompts.ask([])
