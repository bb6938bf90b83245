import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minionerec.errors import ConfigError
from minionerec.model import checkpoint, scratch
from minionerec.model.sid_rows import from_titles
from minionerec.sid.index import SidIndex
from tests.model.test_checkpoint import SIZES

WORDS = ("lamp", "chair", "table", "spoon")
TITLES = [f"{color} {word}" for word in WORDS for color in ("red", "blue", "green")]
# The first code is the thing, the second the colour; codes 4 and 3 are carried by no item.
INDEX = SidIndex(np.array([[item // 3, item % 3] for item in range(12)], dtype=np.int32), (5, 4), "digest")


def model_of(tokenizer, tied):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


@pytest.fixture(scope="module")
def tokenizer():
    return scratch.create(TITLES * 20, SIZES, 0)[1]


def filled(tokenizer, init, seed=1, tied=True, titles=TITLES):
    tokenizer, model = copy.deepcopy(tokenizer), model_of(tokenizer, tied)
    checkpoint.add_sid_tokens(model, tokenizer, INDEX, seed, init, titles)
    return model, tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["text", "mean", "random"])
def test_rows_are_seeded_apart_and_on_the_scale_of_the_old_ones(tokenizer, init, tied):
    model, _ = filled(tokenizer, init, tied=tied)
    same, _ = filled(tokenizer, init, tied=tied)
    other, _ = filled(tokenizer, init, seed=2, tied=tied)
    layers = [(one.get_input_embeddings(), one.get_output_embeddings()) for one in (model, same, other)]
    before = model_of(tokenizer, tied)
    for ours, again, differing, old in zip(
        *layers, (before.get_input_embeddings(), before.get_output_embeddings()), strict=True
    ):
        rows, known = ours.weight[len(tokenizer) :], ours.weight[: len(tokenizer)]
        assert torch.equal(known, old.weight) and torch.equal(rows, again.weight[len(tokenizer) :])
        assert not torch.equal(rows, differing.weight[len(tokenizer) :])
        assert torch.pdist(rows).min() > 0.3 * torch.pdist(known).median()
        assert 0.5 < rows.std() / known.std() < 2
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_the_default_draws_around_the_mean(tokenizer):
    model, _ = filled(tokenizer, "mean")
    known, rows = model.get_input_embeddings().weight.split([len(tokenizer), 9])
    noise = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rows, known.mean(0) + noise * known.std(0))


def test_rows_from_titles_point_to_the_words_of_their_items(tokenizer):
    """Of the first level's things, and of the second's colours, each is nearest to the word that its items share."""
    model, longer = filled(tokenizer, "text", tied=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = layer.weight.detach()
        centre = weight[: len(tokenizer)].mean(0)
        for level, words in enumerate([["lamp", "chair", "table", "spoon"], ["red", "blue", "green"]]):
            place = lambda word: " " + word if word in WORDS else word  # noqa: E731
            vectors = torch.stack([weight[longer(place(word))["input_ids"]].mean(0) - centre for word in words])
            rows = weight[longer.convert_tokens_to_ids([f"<{'ab'[level]}_{code}>" for code in range(len(words))])] - centre
            likeness = torch.nn.functional.cosine_similarity(rows[:, None], vectors[None], dim=-1)
            assert likeness.argmax(1).tolist() == list(range(len(words)))


def test_without_titles(tokenizer):
    with pytest.raises(ConfigError, match="no item has a title"):
        filled(tokenizer, "text", titles=[""] * 12)
    known = torch.randn(50, 8)
    same = from_titles(known, torch.randn(9, 8), [[1, 2]] * 12, INDEX)  # nothing tells items apart: as under mean
    assert torch.pdist(same).min() > 0.3 * torch.pdist(known).median()
