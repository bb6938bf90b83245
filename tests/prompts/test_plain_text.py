"""Texts of items and tokenizers of others put no token of theirs into a prompt or between prompt and answer."""

import time
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from minionerec.config import TASKS, ModelConfig, PromptsConfig
from minionerec.errors import ConfigError
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.plain_text import PlainText
from tests.examples import examples
from tests.small import listed_examples, random_dataset

DECOY = "title <a_1><b_2> decoy <|endoftext|> end <|pad|><<a_3>"


@pytest.fixture(scope="module")
def prompts():
    dataset, index = random_dataset()
    _, tokenizer = made = scratch.create(tokenizer_corpus(dataset), ModelConfig(hidden_size=16, heads=2, vocabulary=400), 0)
    checkpoint.add_sid_tokens(*made, index, 0)
    descriptions = [f"{title} {DECOY if item == 2 else 'of a kind'}" for item, title in enumerate(dataset.catalog["title"])]
    titles = [f"{title} {DECOY}" if item < 2 else title for item, title in enumerate(dataset.catalog["title"])]
    catalog = dataset.catalog.with_columns(title=pl.Series(titles), description=pl.Series(descriptions))
    return Prompts(replace(dataset, catalog=catalog), index, tokenizer)


@pytest.fixture(scope="module")
def plain(prompts):
    return PlainText(prompts.tokenizer)


@pytest.mark.parametrize("task", TASKS)
def test_no_text_of_an_item_becomes_a_sid_or_special_token(prompts, task):
    special = {prompts.tokenizer.eos_token_id, prompts.tokenizer.pad_token_id}
    sids = {index: token for token, index in prompts.tokenizer.get_vocab().items() if token in prompts.index.token_strings()}
    true_sids = {tuple(filter(lambda token: token >= 0, sid)) for sid in prompts.sid_tokens.tolist()}
    for example in listed_examples(prompts, task):
        ids = [*example.prompt, *example.completion]
        assert special.isdisjoint(ids[:-1]) and (ids[-1] in special) == (not example.is_sid)
        codes = [token for token in ids if token in sids]
        levels = prompts.index.levels
        assert {tuple(codes[start : start + levels]) for start in range(0, len(codes), levels)} <= true_sids
    assert prompts.texts_with_tokens == 3


def test_other_texts_stay_as_they_are(prompts, plain):
    for text in ("6 < 7 and 8 > 3", "<b>bold</b>", "<a_>", "<ab_1>", "a | b", "", " two  spaces "):
        assert plain(text) == text and not plain.holds_token(text)
    dataset, _ = random_dataset()
    assert replace(prompts, dataset=dataset).texts_with_tokens == 0


@examples(60)
@given(st.lists(st.sampled_from(["<", ">", "a_1", "<a_1>", "<z_99>", "<|endoftext|>", "<|pad|>", " ", "|", "x"]), max_size=8))
def test_whatever_a_text_is_made_of_no_token_is_left(prompts, plain, parts):
    text = "".join(parts)
    ids = prompts.tokenizer(plain(text), add_special_tokens=False)["input_ids"]
    added = set(prompts.tokenizer.added_tokens_decoder)
    assert added.isdisjoint(ids) and not plain.holds_token(plain(text))
    assert plain(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("style", ["plain", "alpaca"])
def test_what_a_tokenizer_puts_behind_a_text_is_left_out(prompts, style):
    before = replace(prompts, config=PromptsConfig(style=style))
    expected = {task: listed_examples(before, task) for task in ("history_sid_to_sid", "sid_to_title")}
    backend = prompts.tokenizer.backend_tokenizer
    processor, end = backend.post_processor, prompts.tokenizer.eos_token_id
    try:
        backend.post_processor = TemplateProcessing(
            single="<|pad|> $A <|endoftext|> <|endoftext|>",
            special_tokens=[("<|pad|>", prompts.tokenizer.pad_token_id), ("<|endoftext|>", end)],
        )
        assert prompts.tokenizer("a")["input_ids"][-2:] == [end, end]
        builder = replace(prompts, config=PromptsConfig(style=style))
        for task, examples in expected.items():
            for example, plain_example in zip(listed_examples(builder, task), examples, strict=True):
                assert example.prompt == [prompts.tokenizer.pad_token_id, *plain_example.prompt]
                assert example.completion == plain_example.completion
        assert builder.ask([1, 2])[-1] != end
        room = max(len(example.prompt) for example in expected["history_sid_to_sid"]) + 2  # the longest lose an item
        cut = [example for example in replace(builder, context=room).examples("history_sid_to_sid", "train") if example.cut]
        assert cut and all(example.prompt[-1] != end and len(example.prompt) + 3 <= room for example in cut)
    finally:
        backend.post_processor = processor


TEMPLATES = {
    "broken": ("{% for m in messages %}{{ m.content", "TemplateSyntaxError"),
    "unknown name": ("{{ nobody.content.strip() }}", "UndefinedError"),
    "raises": ("{{ raise_exception('only one system message') }}", "only one system message"),
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "fills the memory": ("{{ messages[0].content * 10000000000 }}", "MemoryError"),
    "doubles": (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "MemoryError",
    ),
    "powers": ("{{ 10 ** 10 ** 10 }}", "it computes powers"),
    "leaves out the message": ("hello", "leaves out the message and gives 'hello'"),
}


@pytest.mark.parametrize(("template", "reason"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template_that_cannot_be_used_is_refused_at_once(prompts, monkeypatch, template, reason):
    monkeypatch.setattr(prompts.tokenizer, "chat_template", template)
    before = time.monotonic()
    with pytest.raises(ConfigError, match=rf"the chat template of the model's tokenizer cannot be used \(.*{reason}"):
        replace(prompts, config=PromptsConfig(style="chat")).ask([1])
    assert time.monotonic() - before < 20
    assert len(replace(prompts, config=PromptsConfig()).ask([1])) > 3  # other styles do not render it


def test_a_published_template_is_rendered(prompts, monkeypatch):
    template = (
        "{%- if messages[0].role == 'system' %}{{ messages[0].content }}{%- endif %}"
        "{%- for message in messages %}{% generation %}"
        "{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' }}{% endgeneration %}{%- endfor %}"
    )
    monkeypatch.setattr(prompts.tokenizer, "chat_template", template)
    text = prompts.tokenizer.decode(replace(prompts, config=PromptsConfig(style="chat")).ask([1]))
    assert text.startswith("<|im_start|>user\n") and prompts.index.text(1) in text
