"""A model asked for titles, against one plain forward of every title."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from minionerec.config import EvalConfig, ModelConfig
from minionerec.prompts.builder import Prompts
from minionerec.recommend.assistant import BaselineAssistant
from minionerec.recommend.titles import TitleRecommender
from tests.small import random_dataset, untrained_model


class Vectors:
    """Scores of a baseline that nobody trained, a row's own in each row of the split."""

    def __init__(self, rows: int, items: int) -> None:
        self.table = 2 * np.random.default_rng(5).standard_normal((rows, items))

    def scores(self, split, rows):
        return self.table[list(rows)].copy()


@pytest.fixture(scope="module")
def parts():
    """A model with peaked scores, and prompts of a dataset of 30 items, of which two share a title."""
    dataset, index = random_dataset()
    titles = dataset.catalog["title"].to_list()
    titles[7] = titles[3]
    dataset = replace(dataset, catalog=dataset.catalog.with_columns(title=pl.Series(titles)))
    model, tokenizer = untrained_model(dataset, index, ModelConfig(hidden_size=16, intermediate_size=24, layers=1, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval(), Prompts(dataset, index, tokenizer)


def plain_scores(model, prompts, histories):
    """(histories, items): the log-probability of each item's title and the end token, each by a forward pass of its own."""
    room = 64
    scores = np.empty((len(histories), len(prompts.title_answers)))
    for row, prompt in enumerate(prompts.title_prompts(histories, room)):
        for item, answer in enumerate(prompts.title_answers):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt.tokens, *answer]])).logits[0].double().log_softmax(-1)
            steps = range(len(prompt.tokens) - 1, len(prompt.tokens) - 1 + len(answer))
            scores[row, item] = sum(float(logits[step, token]) for step, token in zip(steps, answer, strict=True))
    return scores


def test_every_title_is_written_as_training_has_it(parts):
    model, prompts = parts
    trie, end = TitleRecommender(model, prompts, EvalConfig()).trie, prompts.tokenizer.eos_token_id
    assert len(trie) == 29 and trie.items(int(trie.leaf_of_item[3])) == [3, 7]
    trained = {example.target: [*example.completion] for example in prompts.examples("sid_to_title", "train")}
    for item, answer in enumerate(prompts.title_answers):
        assert answer == trained[item] and answer[-1] == end
        assert [token for token in trie.sid(trie.leaf_of_item[item]).tolist() if token >= 0] == answer


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("weight", [None, 0.6], ids=["alone", "assisted"])
def test_lists_that_are_exact_are_the_formula_over_plain_forwards(parts, power, weight):
    model, prompts = parts
    split = prompts.dataset.test
    histories = split["history"].to_list()[:4]
    lengths = np.array([len(answer) for answer in prompts.title_answers])
    scores = plain_scores(model, prompts, histories)
    recommender = TitleRecommender(model, prompts, EvalConfig(num_beams=6, title_trie=True, length_penalty=power, batch_size=3))
    if weight is not None:
        vectors = Vectors(len(split), len(lengths))
        rows = {tuple(history): row for row, history in enumerate(split["history"].to_list())}
        recommender.assist(BaselineAssistant("sasrec", vectors, "test", rows, weight))
        chances = np.exp(vectors.scores("test", [rows[tuple(history)] for history in histories]))
        chances /= chances.sum(1, keepdims=True)
        chances[:, [3, 7]] = chances[:, [3, 7]].sum(1, keepdims=True)  # they share a title, and so a path
        scores = weight * scores + (1 - weight) * np.log(chances)
    scores /= lengths**power
    for exclude in (False, True):
        lists = recommender.recommend(histories, k=6, widest=29, exclude_history=exclude)
        for history, answer, row in zip(histories, lists, scores, strict=True):
            if exclude and weight is not None:
                continue  # what is left adds up to 1 again; tests/tree has it
            left_out = set(history) if exclude else set()
            order = sorted((item for item in range(30) if item not in left_out), key=lambda item: (-round(row[item], 4), item))
            listed = [item.index for item in answer.items]
            assert answer.exact and listed == order[:6]
            np.testing.assert_allclose([item.score for item in answer.items], row[listed], atol=1e-4)
            assert all(item.tied == (not left_out & {3, 7} and item.index in (3, 7)) for item in answer.items)


def test_no_prompt_knows_how_long_its_title_is(parts):
    model, prompts = parts
    histories = prompts.dataset.test["history"].to_list()
    longest = max(map(len, prompts.title_answers))
    for context, most, tokens, room in (
        (None, 48, 4, 4),  # the model reads on, so longer titles go beyond the limit of prompts
        (48, None, 4, longest),  # it does not
        (50, 48, 4, longest - 2),
        (None, 48, 64, longest),
    ):
        short = replace(prompts, context=context, config=replace(prompts.config, max_tokens=most))
        recommender = TitleRecommender(model, short, EvalConfig(title_trie=True, title_tokens=tokens))
        asked = recommender.ask(histories)
        assert max(len(prompt.tokens) for prompt in asked) in range(48 - room - 8, 48 - room + 1), (context, room)
        assert any(prompt.cut for prompt in asked)
        assert asked == short.title_prompts(histories, room)
