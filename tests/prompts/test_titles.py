"""Titles that are too long, or missing, are said before anything is trained or written."""

import re
from dataclasses import replace

import polars as pl
import pytest

from minionerec.config import DEFAULT_TASKS, NAMING, ModelConfig, PromptsConfig
from minionerec.errors import ConfigError, DataError
from minionerec.prompts.builder import Prompts
from minionerec.prompts.titles import catalog_titles, check_trained, check_whole, check_written
from tests.small import random_dataset, untrained_model

LONG = "a very long title " * 8


@pytest.fixture(scope="module")
def prompts():
    dataset, index = random_dataset()
    tokenizer = untrained_model(dataset, index, ModelConfig(hidden_size=8, layers=1, heads=2))[1]
    return titled(Prompts(dataset, index, tokenizer), {4: LONG})


def titled(prompts, titles):
    changed = [titles.get(item, title) for item, title in enumerate(prompts.dataset.catalog["title"].to_list())]
    catalog = prompts.dataset.catalog.with_columns(title=pl.Series(changed))
    return replace(prompts, dataset=replace(prompts.dataset, catalog=catalog))


def test_titles_that_cannot_be_written_whole_are_counted(prompts, caplog):
    tokens = len(prompts.title_answers[4]) - 1
    assert check_written(prompts, tokens) == 0 and not caplog.text
    assert check_written(prompts, tokens - 1) == 1
    assert f"The titles of 1 of 30 items have more tokens than eval.title_tokens, {tokens - 1}" in caplog.text
    assert f"the first is item 4 ('i4') with {tokens}" in caplog.text
    assert f"can never be written whole. Raise eval.title_tokens to {tokens}." in caplog.text
    with pytest.raises(ConfigError, match=r"30 of 30 items have more tokens than eval.title_tokens, 1;.*No title is left"):
        check_written(prompts, 1)
    caplog.clear()
    assert check_written(replace(prompts, context=tokens - 1), 40) == 1
    assert f"have more tokens than the model reads, {tokens - 1}" in caplog.text


@pytest.mark.parametrize("style", ["plain", "alpaca"])
@pytest.mark.parametrize("bound", ["max_tokens", "context", "both"])
def test_advice_on_titles_that_are_too_long_works(prompts, caplog, style, bound):
    """Whoever follows it is not refused, and every prompt fits beside the title."""
    styled = replace(prompts, config=PromptsConfig(style=style))
    longest = len(styled.title_answers[4]) - 1
    shortest, histories = styled.shortest_title_prompt, [[item] * 5 for item in range(30)]

    def limited(limit):
        config = PromptsConfig(style=style, max_tokens=None if bound == "context" else limit)
        return replace(prompts, config=config, context=None if bound == "max_tokens" else limit)

    def follow(advice, limit):
        found = re.search(advice, caplog.text.splitlines()[-1])
        most = int(found[1])
        assert all(len(prompt.tokens) + most <= limit for prompt in limited(limit).title_prompts(histories, most))
        return most

    enough, less = shortest + longest, shortest + longest - 3
    check_written(limited(enough), longest - 1)
    assert follow(r"Raise eval\.title_tokens to (\d+)\.$", enough) == longest

    check_written(limited(less), longest - 5)
    takes = {
        "max_tokens": f"a training with prompts.max_tokens {enough}.",
        "context": f"a training of a model that reads {enough} tokens.",
        "both": f"a training of a model that reads {enough} tokens with prompts.max_tokens {enough}.",
    }[bound]
    assert caplog.text.endswith(f"For all titles it must be {longest}, which takes {takes}\n")
    most = follow(r"Raise eval\.title_tokens to (\d+), the most", less)
    caplog.clear()
    assert most == longest - 3 and check_written(limited(less), most) == 1
    assert "Raise" not in caplog.text and caplog.text.endswith(f"which takes {takes}\n")  # this is the most

    message = f"may have {less} tokens .* a prompt can be cut to {shortest} at best. Lower eval.title_tokens to {most}\\."
    with pytest.raises(ConfigError, match=message):
        check_written(limited(less), most + 1)
    with pytest.raises(ConfigError, match=f"Nothing fits beside it: that takes .* {shortest + 1}"):
        check_written(limited(shortest), 64)
    with pytest.raises(ConfigError, match=r"No title is left that could be right\. For all titles it must be"):
        check_written(limited(shortest + 1), 1)  # the shortest title has more than one token, too


def test_titles_that_training_may_cut_are_counted(prompts, caplog):
    tokens = len(prompts.title_answers[4])
    assert check_trained(prompts, [NAMING]) == 0  # nothing is cut without a limit
    limited = replace(prompts, config=PromptsConfig(max_tokens=2 * tokens))
    assert check_trained(limited, [NAMING]) == 0
    limited = replace(prompts, config=PromptsConfig(max_tokens=2 * tokens - 2))
    assert check_trained(limited, ["history_sid_to_sid", "title_to_sid"]) == 0  # no answer is a title
    assert not caplog.text and check_trained(limited, [NAMING]) == 1
    assert f"{tokens - 1}; the first is item 4 ('i4') with {tokens}. They lose their end" in caplog.text
    assert f"To learn all whole takes a training with prompts.max_tokens {2 * tokens}." in caplog.text
    assert check_trained(replace(prompts, context=2 * tokens - 1), [NAMING]) == 1
    assert f"To learn all whole takes a training of a model that reads {2 * tokens} tokens." in caplog.text
    none = replace(prompts, config=PromptsConfig(max_tokens=2))
    with pytest.raises(ConfigError, match="No title is left that could be right"):
        check_trained(none, [NAMING])
    assert check_trained(none, DEFAULT_TASKS) == 30  # SIDs are learnt all the same


def test_titles_that_leave_no_prompt_or_are_missing_are_refused(prompts):
    tokens, shortest = len(prompts.title_answers[4]), prompts.shortest_title_prompt
    needed = tokens + shortest
    check_whole(replace(prompts, context=needed), 64)
    with pytest.raises(
        DataError,
        match=rf"The title of item 4 \('i4'\) has {tokens} tokens with its end, .* cut to {shortest} .* reads {needed - 1}\.",
    ):
        check_whole(replace(prompts, context=needed - 1), 64)
    limited = replace(prompts, config=PromptsConfig(max_tokens=needed - 1))
    check_whole(limited, tokens - 1)  # nothing bounds what is read, so longer titles go beyond the limit of prompts
    for title_tokens in (tokens, 999):
        with pytest.raises(ConfigError, match=rf"title_tokens is {title_tokens}, .* Lower eval.title_tokens to {tokens - 1}\."):
            check_whole(limited, title_tokens)
    untitled = titled(prompts, {2: " ", 9: ""})
    message = r"2 of 30 items have no title, the first is item 2 \('i2'\)\. eval.title_trie ranks"
    with pytest.raises(DataError, match=message):
        check_whole(untitled, 64)
    with pytest.raises(DataError, match=r"eval\.grounding ranks"):
        check_written(untitled, 64)
    assert catalog_titles(titled(prompts, {4: " two\n lines "}), "eval.grounding")[4] == "two lines"
