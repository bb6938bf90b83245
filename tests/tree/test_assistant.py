"""D3 against its own step-by-step formula and its closed form, computed the slow and obvious way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.errors import ConstraintError
from minionerec.tree import (
    NO_TOKEN,
    Assistant,
    CatalogTrie,
    beam_search,
    sample_with_replacement,
    sample_without_replacement,
    score_catalog,
    score_leaves,
    score_prefixes,
    search_levels,
)
from tests.examples import examples
from tests.tree.conftest import brute_force, catalogs, paths, random_codes, tiny
from tests.tree.test_prior import random_prompts, random_view

KINDS = ["none", "one mask", "masks", "hidden", "listed"]
OVER = ["vocabulary", "catalog"]


@pytest.fixture(scope="module")
def model():
    """In float64, so that only the search's own float32 rounds."""
    return tiny().double()


def random_assistant(rng, trie, requests, spread=3.0):
    """Log-probabilities of items and of SIDs, and weights, of which some are 0 or 1."""
    items = torch.tensor(spread * rng.standard_normal((requests, len(trie.leaf_of_item)))).log_softmax(1)
    weights = torch.tensor(rng.choice([0.0, 0.3, 0.7, 1.0], requests))
    return items, Assistant.of_items(trie, items, weights)


def closed_form(model_scores, item_logprobs, weight, leaf_of_item, allowed):
    """a log P_model(leaf) + (1 - a) log of the assistant's share of the leaf among the items of the SIDs that are allowed."""
    leaf_of_item = np.asarray(leaf_of_item)
    chances = item_logprobs.exp().numpy()
    legal = np.isin(np.arange(len(model_scores)), leaf_of_item[np.flatnonzero(allowed)])
    leaves = np.bincount(leaf_of_item, chances, minlength=len(model_scores)) * legal
    with np.errstate(divide="ignore"):
        logs = np.log(leaves / leaves.sum())
    scores = np.full(len(model_scores), -np.inf)
    scores[legal] = float(weight) * model_scores.double().numpy()[legal] + (1 - float(weight)) * logs[legal]
    return torch.tensor(scores)


def model_alone(model, prompt, codes, over, allowed):
    """The model's scores of all SIDs over what is allowed, each on its own; over the vocabulary a view changes nothing."""
    if over == "vocabulary":
        return brute_force(model, prompt, codes, over)
    sids, _ = paths(codes)
    kept = {tuple(row) for row in codes[np.flatnonzero(allowed)].tolist()}
    scores = torch.full((len(sids),), -torch.inf)
    scores[[number for number, sid in enumerate(sids) if sid in kept]] = brute_force(
        model, prompt, np.array([sid for sid in sids if sid in kept]), over
    )
    return scores


@examples(30)
@given(
    catalogs(30), st.integers(1, 12), st.sampled_from(KINDS), st.sampled_from(["vocabulary", "catalog"]), st.integers(0, 999)
)
def test_lists_and_exact_scores_are_the_closed_form(model, codes, beams, kind, over, seed):
    rng = np.random.default_rng(seed)
    prompts, ids, mask = random_prompts(rng, 3)
    trie = CatalogTrie.from_codes(codes)
    items, assistant = random_assistant(rng, trie, 3)
    view, allowed = random_view(rng, trie, codes, 3, kind)
    options = {"trie": view.mixed(assistant), "normalise_over": over}
    result = beam_search(model, ids, mask, num_beams=beams, **options)
    oracle = score_catalog(model, ids, mask, **options)
    everything = torch.arange(len(trie)).expand(3, -1)
    torch.testing.assert_close(score_leaves(model, ids, mask, leaves=everything, **options), oracle, atol=1e-5, rtol=0)
    for row, prompt in enumerate(prompts):
        alone = model_alone(model, prompt, codes, over, allowed[row])
        expected = closed_form(alone, items[row], assistant.weight[row], trie.leaf_of_item, allowed[row])
        torch.testing.assert_close(oracle[row].double(), expected, atol=1e-5, rtol=0)
        possible = int((expected > -torch.inf).sum())
        leaves = result.leaves[row][result.leaves[row] >= 0]
        listed = result.scores[row, : len(leaves)].double()
        assert len(set(leaves.tolist())) == len(leaves) <= min(beams, possible)
        torch.testing.assert_close(listed, expected[leaves], atol=1e-5, rtol=0)
        assert listed.diff().le(0).all()
        if result.exact[row]:  # the certificate proves the top of the closed form
            torch.testing.assert_close(listed, expected.sort(descending=True).values[: len(leaves)], atol=1e-5, rtol=0)
            assert len(leaves) == min(beams, possible)
        if beams >= possible:
            assert result.exact[row]


@examples(10)
@given(catalogs(20), st.sampled_from(["none", "hidden"]), st.integers(0, 999))
def test_the_steps_are_d3s_and_telescope_to_the_closed_form(model, codes, kind, seed):
    """Step by step as published: a log p_model(t | prefix) + (1 - a) log (mass of prefix and t / mass of prefix)."""
    rng = np.random.default_rng(seed)
    _, ids, mask = random_prompts(rng, 1)
    trie = CatalogTrie.from_codes(codes)
    items, assistant = random_assistant(rng, trie, 1)
    view, allowed = random_view(rng, trie, codes, 1, kind)
    mixed = view.mixed(assistant)
    levels = search_levels(model, ids, mask, trie=mixed, num_beams=len(trie), normalise_over="catalog")
    of_model = score_prefixes(model, ids, mask, trie=view, normalise_over="catalog")
    weight = float(assistant.weight[0])
    kept = {tuple(row) for row in codes[np.flatnonzero(allowed[0])].tolist()}
    legal = np.array([tuple(row) in kept for row in codes.tolist()])
    chances = items[0].exp().numpy() * legal
    nodes_of_items = trie.walk(torch.as_tensor(codes)).numpy()  # per item the nodes of its SID
    above, above_model = {0: chances.sum()}, {0: 0.0}
    for number, level in enumerate(levels):
        mass = np.bincount(nodes_of_items[:, number], chances, minlength=len(trie.tokens[number]))
        for node, parent, logprob in zip(
            level.nodes[0].tolist(), level.parents[0].tolist(), level.logprobs[0].tolist(), strict=True
        ):
            if node < 0:
                continue
            parent_node = 0 if number == 0 else levels[number - 1].nodes[0, parent].item()
            model_step = float(of_model[number][0, node]) - above_model[parent_node]
            step = weight * model_step + (1 - weight) * np.log(mass[node] / above[parent_node])
            assert logprob == pytest.approx(step, abs=1e-5) and step <= 1e-9
        above = dict(enumerate(mass.tolist()))
        above_model = dict(enumerate(of_model[number][0].tolist()))
    leaves = levels[-1].nodes[0][levels[-1].nodes[0] >= 0]
    expected = closed_form(of_model[-1][0], items[0], weight, trie.leaf_of_item, allowed[0])
    torch.testing.assert_close(levels[-1].scores[0, : len(leaves)].double(), expected[leaves], atol=1e-5, rtol=0)


def test_the_root_has_the_whole_mass_and_duplicates_add_up(qwen2):
    codes = np.array([[4, 2], [1, 3], [4, 2], [4, 3]])
    trie = CatalogTrie.from_codes(codes)
    items = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log()
    assistant = Assistant.of_items(trie, items, torch.tensor([0.0]))
    torch.testing.assert_close(assistant.leaves.exp(), torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64))
    prefixes = trie.mixed(assistant).prefixes()
    torch.testing.assert_close(prefixes.mass[0].exp(), torch.tensor([[0.4, 0.6]], dtype=torch.float64))
    torch.testing.assert_close(prefixes.mass[0].logsumexp(1), torch.zeros(1, dtype=torch.float64))
    narrowed = trie.without([[1]]).mixed(assistant).prefixes()  # the rest adds up to 1 again
    torch.testing.assert_close(narrowed.mass[1].exp(), torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(narrowed.mass[0].exp(), torch.tensor([[0.0, 1.0]], dtype=torch.float64))


@examples(8)
@given(catalogs(), st.integers(1, 8), st.sampled_from(OVER), st.integers(0, 999))
def test_the_weight_1_is_the_model_and_0_the_assistant(qwen2, codes, beams, over, seed):
    rng = np.random.default_rng(seed)
    _, ids, mask = random_prompts(rng, 2)
    trie = CatalogTrie.from_codes(codes)
    items, _ = random_assistant(rng, trie, 2)
    options = {"num_beams": beams, "normalise_over": over}
    plain = beam_search(qwen2, ids, mask, trie=trie, **options)
    for weights in ([1.0, 1.0], [1.0, 0.4]):  # also next to a request that has an assistant
        mixed = trie.mixed(Assistant.of_items(trie, items, torch.tensor(weights)))
        found = beam_search(qwen2, ids, mask, trie=mixed, **options)
        rows = [row for row in range(2) if weights[row] == 1.0]
        for name in ("tokens", "scores", "leaves", "exact", "best_pruned"):
            assert torch.equal(getattr(found, name)[rows], getattr(plain, name)[rows])
    assistant = Assistant.of_items(trie, items, torch.zeros(2))
    found = beam_search(qwen2, ids, mask, trie=trie.mixed(assistant), **options)
    assert found.exact.all()  # the bound of a prefix is its best leaf, which the search follows
    best = assistant.leaves.sort(descending=True, stable=True)
    count = min(beams, len(trie))
    assert torch.equal(found.leaves[:, :count], best.indices[:, :count])
    torch.testing.assert_close(found.scores[:, :count].double(), best.values[:, :count], atol=1e-5, rtol=0)


def test_widening_proves_what_one_search_does_not(model):
    rng = np.random.default_rng(1)
    trie = CatalogTrie.from_codes(random_codes(rng, 400, 3, 8))
    _, ids, mask = random_prompts(rng, 12)
    items, _ = random_assistant(rng, trie, 12)
    options = {"trie": trie.mixed(Assistant.of_items(trie, items, torch.linspace(0.01, 0.9, 12))), "normalise_over": "catalog"}
    plain = beam_search(model, ids, mask, num_beams=5, **options)
    wide = beam_search(model, ids, mask, num_beams=5, widest=512, **options)
    assert 0 < plain.exact.sum() < 12 and wide.exact.all()
    assert torch.equal(plain.leaves[plain.exact], wide.leaves[plain.exact])
    torch.testing.assert_close(wide.scores, score_catalog(model, ids, mask, **options).topk(5).values, atol=1e-5, rtol=0)


def test_short_sids_end_with_the_mass_that_they_have(qwen2):
    codes = np.array([[1, NO_TOKEN], [2, 5], [2, 6]])
    trie = CatalogTrie.from_codes(codes)
    assistant = Assistant.of_items(trie, torch.tensor([[0.5, 0.2, 0.3]]).log(), torch.tensor([0.5]))
    scores = score_catalog(qwen2, torch.tensor([[3, 4]]), trie=trie.mixed(assistant))
    alone = score_catalog(qwen2, torch.tensor([[3, 4]]), trie=trie)
    torch.testing.assert_close(scores, 0.5 * alone + 0.5 * torch.tensor([[0.5, 0.2, 0.3]]).log(), atol=1e-5, rtol=0)


def test_an_assistant_that_does_not_fit_is_refused(qwen2):
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3]]))
    prompt, half, weight = torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0.5])
    for leaves, weights, message in (
        (half[:, :1], weight, r"leaves must be floating, of shape \(1, 2\)"),
        (half, torch.tensor([0.5, 0.5]), r"weight must be floating, of shape \(1,\)"),
        (half, torch.tensor([1.5]), "must be from 0 to 1; found"),
        (half, torch.tensor([float("nan")]), "must be from 0 to 1; found"),
        (torch.tensor([[0.5, 0.4]]).log(), weight, "request 0 add up to 0.9"),
        (torch.tensor([[1.0, 0.0]]).log(), weight, "must be finite"),
    ):
        with pytest.raises(ConstraintError, match=message):
            beam_search(qwen2, prompt, trie=trie.mixed(Assistant(leaves, weights)), num_beams=2)
    for sample in (sample_with_replacement, sample_without_replacement):
        with pytest.raises(ConstraintError, match="no distribution over the catalog"):
            sample(qwen2, prompt, trie=trie.mixed(Assistant(half, weight)), num_samples=1, seeds=torch.tensor([1]))
