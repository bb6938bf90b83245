"""The grid of parts: every possible cell computes, padding and batches change nothing."""

import contextlib
import itertools
from typing import get_args

import pytest
import torch

from minionerec.config.lego import RECIPES, InteractionPart, ItemPart, UserPart
from minionerec.errors import ConfigError, DataError
from minionerec.legommenders.fields import ItemFields
from minionerec.legommenders.model import Legommender, fewest_parameters
from minionerec.training.machine import check_lego_memory
from tests.legommenders.parts import GENRES, ITEMS, WORDS, item_fields, lego

HISTORIES = torch.tensor([[0, 3, 1, -1], [2, -1, -1, -1], [5, 4, 2, 0]])
CANDIDATES = torch.tensor([[1, 2], [0, 5], [3, 3]])
ITEM_PARTS = [part for part in get_args(ItemPart) if part != "plm"]  # tests/legommenders/test_plm.py has it
USERS = {"dot": "pooling", "max": "poly", "din": "none", "din-reference": "none"}


def cells():
    """Every cell of the grid that a configuration takes."""
    for parts in itertools.product(ITEM_PARTS, get_args(UserPart), get_args(InteractionPart)):
        with contextlib.suppress(ConfigError):
            yield lego(*parts)


def model_of(config, fields=None):
    torch.manual_seed(0)
    return Legommender(config, fields or item_fields())


def test_every_possible_cell_gives_finite_scores_and_gradients_in_every_parameter():
    configs = list(cells())
    # Seven item encoders: six user encoders with seven interactions of one vector, poly with max, none with din's two. Flatten:
    # seven.
    assert len(configs) == 7 * (6 * 7 + 1 + 2) + 7
    for config in configs:
        if config.parts.interaction not in USERS and config.parts.item not in ("cnn-cat", "flatten"):
            continue  # an interaction knows of an item encoder no more than its width
        model = model_of(config)
        scores = model(HISTORIES, CANDIDATES)
        assert scores.shape == CANDIDATES.shape and scores.isfinite().all(), config.parts
        (scores * torch.randn(scores.shape)).sum().backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), (config.parts, name)
        assert not model.state_dict().keys() & {"item.words.ids"}  # what is not learnt is not stored


def one_of_each():
    """Cells that have every part once at least."""
    yield from (lego(item, "none" if item == "flatten" else "additive") for item in ITEM_PARTS)
    yield from (lego("pooling", user) for user in get_args(UserPart) if user not in ("poly", "none"))
    yield from (lego("id", USERS.get(name, "gru"), name) for name in get_args(InteractionPart))


@pytest.mark.parametrize("config", one_of_each(), ids=lambda config: str(config.parts))
def test_padding_and_the_rest_of_the_batch_never_change_a_score(config):
    model = model_of(config).eval()
    with torch.no_grad():
        scores = model(HISTORIES, CANDIDATES)
        wide = torch.full((3, 6), -1)
        wide[:, [1, 2, 4, 5]] = HISTORIES  # padding in front and in between
        torch.testing.assert_close(model(wide, CANDIDATES), scores, atol=1e-6, rtol=1e-5)
        alone = [model(HISTORIES[row : row + 1], CANDIDATES[row : row + 1]) for row in range(3)]  # batches of one
        torch.testing.assert_close(torch.cat(alone), scores, atol=1e-6, rtol=1e-5)
        if config.parts.item not in ("transformer", "fastformer", "id"):  # positions are a table as long as the columns
            padded = model_of(config, item_fields(padding=2)).eval()
            padded.load_state_dict(model.state_dict())
            torch.testing.assert_close(padded(HISTORIES, CANDIDATES), scores, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("part", ["transformer", "fastformer"])
def test_columns_of_padding_change_no_item_vector(part):
    """Their tables of positions are longer with more columns, but only the first places are read."""
    model, padded = model_of(lego(part)).eval(), model_of(lego(part), item_fields(padding=2)).eval()
    weights = padded.state_dict()
    for name, weight in model.state_dict().items():
        weights[name][: len(weight)] = weight
    padded.load_state_dict(weights)
    items = torch.arange(ITEMS)
    torch.testing.assert_close(padded.item_vectors(items), model.item_vectors(items), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", one_of_each(), ids=lambda config: str(config.parts))
def test_a_batch_of_one_trains(config):
    model = model_of(config).train()
    model(torch.tensor([[2]]), torch.tensor([[1]])).sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_forward_is_its_steps_one_by_one():
    model = model_of(lego("cnn", "additive", "dcnv2")).eval()
    table, mask = model.item_vectors(torch.arange(ITEMS)), HISTORIES >= 0
    users = model.users(HISTORIES, table[HISTORIES.clamp(min=0)])
    torch.testing.assert_close(model(HISTORIES, CANDIDATES), model.scores(users, table[CANDIDATES], mask))


def test_pooling_is_the_mean_of_the_means_of_the_fields_that_an_item_has():
    model, fields = model_of(lego()).eval(), item_fields()
    weight = model.item.words.table.weight
    for item in range(ITEMS):
        genres = fields.categories["genres"][item]
        rows = [ids[item][ids[item] > 0] for ids in fields.texts.values()] + [genres[genres > 0] + WORDS - 1]
        means = [weight[ids].mean(0) for ids in rows if len(ids)]
        torch.testing.assert_close(model.item_vectors(torch.tensor([item]))[0], torch.stack(means).mean(0))


def test_cnn_filters_read_neighbours_in_a_text_only():
    model, fields = model_of(lego("cnn")).eval(), item_fields()
    filters, table = model.item.filters, model.item.filters.words.table.weight
    title = fields.texts["title"][0]
    conv = filters.layers[0]
    padded = torch.nn.functional.pad(table[title], (0, 0, 1, 1))
    expected = [sum(conv.weight[:, :, j] @ padded[i + j] for j in range(3)) + conv.bias for i in range(4)]
    torch.testing.assert_close(filters(torch.tensor([0]))[0][0][0], torch.stack(expected).relu())
    genres = filters.layers[2](table[fields.categories["genres"][0] + WORDS - 1])
    torch.testing.assert_close(filters(torch.tensor([0]))[2][0][0], genres)


def test_lstur_s_vectors_hold_one_part_for_each_field():
    model = model_of(lego("cnn-cat", "gru"))
    assert model.item_vectors(torch.arange(3)).shape == (3, 3 * 8)
    one = model_of(lego("cnn-cat", "gru")).eval().item_vectors(torch.tensor([0, 3]))
    assert one[:, 8:16].eq(0).all()  # items 0 and 3 have no text


def test_flatten_reads_the_newest_tokens_of_a_history_in_order():
    model = model_of(lego("flatten", "none", flat_tokens=9)).eval()
    words, separator = model.item.words.ids, model.item.words.separator
    tokens = []
    for item in (3, 0, 2):
        tokens += [*words[item][words[item] > 0].tolist(), separator]
    newest = torch.tensor([tokens[-9:]])
    expected = model.item.reader(*model.item.words.look_up(newest))
    torch.testing.assert_close(model.users(torch.tensor([[3, 0, -1, 2]]), None), expected)
    one = torch.tensor([2])
    torch.testing.assert_close(model.item_vectors(one), model.users(one[None], None))  # a candidate is read alike


def test_recipes_of_the_table_build():
    for name, parts in RECIPES.items():
        if parts.item != "plm":
            assert model_of(lego(*parts))(HISTORIES, CANDIDATES).isfinite().all(), name


def test_parameters_are_counted_without_memory_for_them():
    for name, parts in RECIPES.items():
        if parts.item != "plm":
            exact = sum(weight.numel() for weight in model_of(lego(*parts)).parameters())
            assert 0 < fewest_parameters(lego(*parts), item_fields()) <= exact, name
    huge = lego("cnn", width=65_536)
    with pytest.raises(ConfigError, match=r"The content recommender has at least .* this machine has .*lower lego\.width"):
        check_lego_memory(100 * fewest_parameters(huge, item_fields()))


def test_what_caches_may_hold():
    assert model_of(lego("pooling")).users_cacheable and not model_of(lego("id", "none", "din")).users_cacheable
    assert model_of(lego("flatten", "none")).reads_texts and not list(model_of(lego()).slow_parameters())


def test_fields_that_are_no_use_are_refused():
    ids = torch.tensor([[1], [0]])
    with pytest.raises(DataError, match=r"names brand, but no item of the catalog has it\. Leave it out"):
        ItemFields({"title": ids, "brand": ids * 0}, {}, 2, {}, 2)
    with pytest.raises(DataError, match="Field title: ids from 0 to 1; expected 0 to 0"):
        ItemFields({"title": ids}, {}, 1, {}, 2)
    with pytest.raises(DataError, match="a row for each of the 3 items"):
        ItemFields({"title": ids}, {}, 2, {}, 3)
    with pytest.raises(DataError, match="title is both"):
        ItemFields({"title": ids}, {"title": ids}, 2, {"title": 2}, 2)
    with pytest.raises(DataError, match="1 sentences for 2 items"):
        ItemFields({"title": ids}, {}, 2, {}, 2, ("a",))
    with pytest.raises(DataError, match="pooling reads fields, but there is none"):
        Legommender(lego(), ItemFields({}, {}, 0, {}, 2))
    with pytest.raises(DataError, match="plm reads texts"):
        Legommender(lego("plm"), ItemFields({}, {"genres": ids}, 0, {"genres": 2}, 2))


def test_widths_that_do_not_split_into_heads_are_refused():
    with pytest.raises(ConfigError, match=r"lego\.width 8 does not split into the 3 heads of attention"):
        lego("attention", heads=3)
    assert lego("cnn-cat", "transformer", heads=8).heads_of("transformer") == 8
    ids = torch.ones(ITEMS, 1).long()
    odd = ItemFields({"title": ids}, {"genres": ids}, 2, {"genres": GENRES}, ITEMS)
    with pytest.raises(ConfigError, match="which does not split into 3 heads"):
        config = lego("cnn-cat", "fastformer", heads=4)
        config.heads = 3
        Legommender(config, odd)
