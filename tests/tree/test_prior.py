import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.errors import CatalogError, ConstraintError
from minionerec.tree import (
    Branch,
    CatalogTrie,
    Prior,
    Selection,
    beam_search,
    left_pad,
    pack,
    sample_with_replacement,
    sample_without_replacement,
    score_catalog,
    score_leaves,
    score_prefixes,
    search_levels,
)
from minionerec.tree.catalog_logprobs import catalog_logprobs
from tests.examples import examples
from tests.tree.conftest import VOCABULARY, brute_force, catalogs, paths, random_codes


def random_prior(rng, requests, leaves, spread=2.0, zeros=0.0):
    """Probabilities from flat to spiky, some of them 0; and shares, of which some are 0 or 1."""
    weights = np.exp(spread * rng.standard_normal((requests, leaves))) * (rng.random((requests, leaves)) >= zeros)
    weights[:, rng.integers(leaves)] += 1e-3
    shares = rng.choice([0.0, 0.03, 0.5, 0.999, 1.0], requests)
    return Prior(torch.tensor(weights / weights.sum(1, keepdims=True)), torch.tensor(shares))


def mixture(model_scores, probabilities, share, legal):
    """The mixture, the slow and obvious way, in float64: (SIDs,) log-probabilities."""
    cache = probabilities.double() * legal
    share = float(share) if cache.sum() > 0 else 0.0
    cache = cache / cache.sum().clamp(min=1e-300)
    return ((1 - share) * model_scores.double().exp() + share * cache).log()


def random_prompts(rng, count):
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in rng.integers(1, 7, count)]
    return prompts, *left_pad(prompts, 0)


def random_view(rng, trie, codes, requests, kind):
    """The trie or a view of it, and which items each request may reach."""
    items = len(codes)
    allowed = np.ones((requests, items), dtype=bool)
    if kind == "none":
        return trie, allowed
    for row in allowed:
        row[rng.random(items) < 0.4] = False
        row[rng.integers(items)] = True
    if kind == "one mask":
        return trie.narrow(allowed[0]), np.broadcast_to(allowed[0], allowed.shape)
    if kind == "masks":
        return trie.narrow(allowed), allowed
    if kind == "hidden":
        return trie.without([np.flatnonzero(~row).tolist() for row in allowed]), allowed
    mask = allowed[0].copy()
    allowed[:, np.flatnonzero(mask)[0]] = True  # of each list something must pass the mask
    within = trie.narrow(mask)
    view = trie.select([Selection(np.flatnonzero(row), listed=True, within=within) for row in allowed])
    return view, allowed & mask


@examples(40)
@given(
    catalogs(),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from(["none", "one mask", "masks", "hidden", "listed"]),
    st.sampled_from([None, 4, 64]),
    st.sampled_from([0.0, 0.7]),
    st.sampled_from([0.0, 2.0, 8.0]),
    st.integers(0, 2**20),
)
def test_certificate_never_lies_and_scores_are_the_mixtures(qwen2, codes, requests, beams, kind, factor, zeros, spread, seed):
    rng = np.random.default_rng(seed)
    prompts, ids, mask = random_prompts(rng, requests)
    whole = CatalogTrie.from_codes(codes)
    trie, allowed = random_view(rng, whole, codes, requests, kind)
    prior = random_prior(rng, requests, len(trie), spread, zeros)
    options = {"trie": trie.mixed(prior), "normalise_over": "catalog"}
    widest = None if factor is None else beams * factor
    result = beam_search(qwen2, ids, mask, num_beams=beams, widest=widest, **options)
    oracle = score_catalog(qwen2, ids, mask, **options)
    for row, prompt in enumerate(prompts):
        legal = torch.zeros(len(trie), dtype=torch.bool)
        legal[whole.leaf_of_item[torch.tensor(allowed[row])].long()] = True
        model_scores = torch.full((len(trie),), -torch.inf)
        model_scores[legal] = brute_force(qwen2, prompt, codes[allowed[row]], "catalog")
        expected = mixture(model_scores, prior.leaves[row], prior.share[row], legal)
        torch.testing.assert_close(oracle[row].double(), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(expected.exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)
        possible = int((expected > -torch.inf).sum())
        leaves = result.leaves[row][result.leaves[row] >= 0]
        assert len(set(leaves.tolist())) == len(leaves) <= min(beams, possible)
        listed = result.scores[row, : len(leaves)]
        torch.testing.assert_close(listed.double(), expected[leaves], atol=1e-4, rtol=0)
        assert listed.diff().le(0).all()
        assert (result.scores[row, len(leaves) :] == -torch.inf).all()
        if result.exact[row]:
            best = expected.sort(descending=True).values[: len(leaves)]
            assert len(leaves) == min(beams, possible)
            torch.testing.assert_close(listed.double(), best, atol=1e-4, rtol=0)
        if widest is not None and widest >= len(codes):
            assert result.exact[row]


@examples(12)
@given(catalogs(), st.integers(1, 8), st.integers(0, 2**20))
def test_without_a_share_every_byte_is_the_models(qwen2, codes, beams, seed):
    rng = np.random.default_rng(seed)
    _, ids, mask = random_prompts(rng, 3)
    trie = CatalogTrie.from_codes(codes)
    prior = random_prior(rng, 3, len(trie))
    options = {"trie": trie, "normalise_over": "catalog"}
    plain = beam_search(qwen2, ids, mask, num_beams=beams, **options)
    for share in ([0.0, 0.0, 0.0], [0.0, 0.4, 1.0]):  # also next to requests that have one
        mixed = trie.mixed(Prior(prior.leaves, torch.tensor(share)))
        with_prior = beam_search(qwen2, ids, mask, num_beams=beams, trie=mixed, normalise_over="catalog")
        for row in (row for row in range(3) if share[row] == 0):
            for name in ("tokens", "scores", "leaves", "exact", "best_pruned"):
                assert torch.equal(getattr(with_prior, name)[row], getattr(plain, name)[row])
    nothing = Prior(prior.leaves, torch.zeros(3))
    scores = score_catalog(qwen2, ids, mask, **options)
    assert torch.equal(score_catalog(qwen2, ids, mask, trie=trie.mixed(nothing), normalise_over="catalog"), scores)
    for sample in (sample_with_replacement, sample_without_replacement):
        drawn = [
            sample(qwen2, ids, mask, trie=some, num_samples=4, seeds=torch.tensor([1, 2, 3]))
            for some in (trie, trie.mixed(nothing))
        ]
        assert torch.equal(drawn[0].leaves, drawn[1].leaves)
        assert torch.equal(drawn[0].logprobs, drawn[1].logprobs)


def test_with_the_whole_share_the_list_is_the_priors(qwen2):
    rng = np.random.default_rng(3)
    trie = CatalogTrie.from_codes(random_codes(rng, 60, 3))
    leaves = random_prior(rng, 2, len(trie), zeros=0.5).leaves
    result = beam_search(
        qwen2,
        torch.tensor([[1, 2], [3, 4]]),
        trie=trie.mixed(Prior(leaves, torch.ones(2))),
        num_beams=len(trie),
        normalise_over="catalog",
    )
    assert result.exact.all()
    for row in range(2):
        order = leaves[row].argsort(descending=True, stable=True)[: int((leaves[row] > 0).sum())]
        assert result.leaves[row][result.leaves[row] >= 0].tolist() == order.tolist()
        torch.testing.assert_close(result.scores[row, : len(order)].double(), leaves[row, order].log(), atol=1e-5, rtol=0)


def test_widening_proves_what_one_search_does_not(qwen2):
    rng = np.random.default_rng(0)
    trie = CatalogTrie.from_codes(random_codes(rng, 400, 3, 8))
    _, ids, mask = random_prompts(rng, 12)
    prior = random_prior(rng, 12, len(trie), spread=1.0)
    options = {"trie": trie.mixed(Prior(prior.leaves, torch.full((12,), 0.4))), "normalise_over": "catalog"}
    plain = beam_search(qwen2, ids, mask, num_beams=5, **options)
    wide = beam_search(qwen2, ids, mask, num_beams=5, widest=512, **options)
    assert 0 < plain.exact.sum() < 12
    assert wide.exact.all()
    assert torch.equal(plain.leaves[plain.exact], wide.leaves[plain.exact])
    torch.testing.assert_close(wide.scores, score_catalog(qwen2, ids, mask, **options).topk(5).values, atol=1e-4, rtol=0)


def test_levels_are_the_mixtures_prefixes(qwen2):
    rng = np.random.default_rng(5)
    trie = CatalogTrie.from_codes(random_codes(rng, 60, 3))
    prior = Prior(random_prior(rng, 1, len(trie)).leaves, torch.tensor([0.3]))
    options = {"trie": trie.mixed(prior), "normalise_over": "catalog"}
    prompt = torch.tensor([[3, 1, 4]])
    levels = search_levels(qwen2, prompt, num_beams=4, **options)
    masses = score_prefixes(qwen2, prompt, **options)
    model = score_prefixes(qwen2, prompt, trie=trie, normalise_over="catalog")
    prefixes = trie.mixed(prior).prefixes()
    above, kept = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long)
    for number, (level, mass) in enumerate(zip(levels, masses, strict=True)):
        torch.testing.assert_close(level.scores, mass.gather(1, level.nodes), atol=1e-5, rtol=0)
        torch.testing.assert_close(level.logprobs, level.scores - above.gather(1, level.parents), atol=1e-5, rtol=0)
        bounds = prefixes.bounds(number, model[number])
        children = trie.children(number, kept)
        pruned = [
            [node for node in nodes[valid].tolist() if node not in level.nodes[0].tolist()]
            for nodes, valid in zip(children[0][0], children[2][0], strict=True)
        ]
        assert level.pruned[0].tolist() == list(map(len, pruned))
        for nodes, best in zip(pruned, level.best_pruned[0], strict=True):
            expected = bounds[0, nodes].max() if nodes else torch.tensor(-torch.inf)
            torch.testing.assert_close(best, expected, atol=1e-5, rtol=0)
        above, kept = level.scores, level.nodes
    result = beam_search(qwen2, prompt, num_beams=4, **options)
    assert torch.equal(result.leaves, levels[-1].nodes)
    torch.testing.assert_close(result.scores, levels[-1].scores, atol=1e-5, rtol=0)


@examples(30)
@given(catalogs(), st.integers(1, 3), st.integers(0, 2**20))
def test_masses_and_bounds_are_those_of_the_leaves_below(codes, requests, seed):
    rng = np.random.default_rng(seed)
    trie = CatalogTrie.from_codes(codes)
    prior = random_prior(rng, requests, len(trie), spread=8.0, zeros=0.3)
    prior = Prior(prior.leaves, prior.share.clamp(min=0.1))
    prefixes = trie.mixed(prior).prefixes()
    weighted = prior.leaves * prior.share[:, None]
    low, high = torch.arange(len(trie)), torch.arange(len(trie)) + 1
    for level in reversed(range(trie.depth)):
        for node, (start, stop) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            below = weighted[:, start:stop]
            torch.testing.assert_close(prefixes.mass[level][:, node], below.sum(1).log().float(), atol=1e-5, rtol=0)
            assert torch.equal(prefixes.largest[level][:, node], below.amax(1).log().float())
        low, high = low[trie.offsets[level][:-1].long()], high[trie.offsets[level][1:].long() - 1]


def test_a_tiny_mass_keeps_its_digits():
    """A difference of running sums in float32 loses what is small next to what came before it; in float64 it is 1e-16."""
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3], [4, 5], [4, 6]]))
    leaves = torch.tensor([[0.7, 0.3 - 3e-20, 1e-20, 2e-20]], dtype=torch.float64)
    running = torch.nn.functional.pad(leaves, (1, 0)).cumsum(1)
    assert float(running[0, 4] - running[0, 2]) == 0
    prefixes = trie.mixed(Prior(leaves, torch.ones(1))).prefixes()
    torch.testing.assert_close(prefixes.mass[0][0, 1], torch.tensor(math.log(3e-20)), atol=1e-5, rtol=0)


def test_a_view_without_any_of_the_prior_leaves_the_model_alone(qwen2):
    trie = CatalogTrie.from_codes(random_codes(np.random.default_rng(1), 30, 3))
    leaves = torch.zeros(1, len(trie))
    leaves[0, 0] = 1.0
    view = trie.without([trie.items(0)])
    options = {"trie": view, "normalise_over": "catalog", "num_beams": 10}
    prompt = torch.tensor([[1, 2]])
    mixed = view.mixed(Prior(leaves, torch.tensor([0.9])))
    result = beam_search(qwen2, prompt, **{**options, "trie": mixed})
    assert torch.equal(result.scores, beam_search(qwen2, prompt, **options).scores)


def test_items_of_one_sid_add_up():
    codes = np.array([[4, 2], [1, 3], [4, 2]])
    trie = CatalogTrie.from_codes(codes)
    prior = Prior.of_items(trie, torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([0.1]))
    assert paths(codes)[0] == [(1, 3), (4, 2)]
    assert prior.leaves.tolist() == [[0.5, 0.5]]


@pytest.fixture(scope="module")
def drawn_from(qwen2):
    """A small catalog, a prior on it, and the mixture by brute force."""
    codes = random_codes(np.random.default_rng(2), 18, 3, 3, ragged=True)
    trie = CatalogTrie.from_codes(codes)
    leaves = random_prior(np.random.default_rng(0), 1, len(trie), zeros=0.3).leaves
    model_scores = brute_force(qwen2, [3, 1, 4], codes, "catalog")
    chance = mixture(model_scores, leaves[0], 0.6, torch.ones(len(trie))).exp()
    return trie, leaves, chance.float()


def test_samples_without_replacement_follow_the_mixture(qwen2, drawn_from):
    trie, leaves, chance = drawn_from
    draws, number = 4000, 4
    result = sample_without_replacement(
        qwen2,
        torch.tensor([[3, 1, 4]]).expand(draws, -1),
        trie=trie.mixed(Prior(leaves.expand(draws, -1), torch.full((draws,), 0.6))),
        num_samples=number,
        seeds=torch.arange(draws),
    )
    leaf = result.leaves
    assert all(len(set(row)) == number for row in leaf.tolist())
    torch.testing.assert_close(result.logprobs.exp(), chance[leaf], atol=1e-5, rtol=1e-4)
    first = torch.bincount(leaf[:, 0], minlength=len(trie)) / draws
    assert ((first - chance).abs() <= 4.5 * (chance * (1 - chance) / draws).sqrt() + 1e-9).all()
    second = torch.bincount(leaf[:, 1], minlength=len(trie)) / draws
    expected = (chance[:, None] * chance / (1 - chance[:, None])).fill_diagonal_(0).sum(0)
    assert ((second - expected).abs() <= 4.5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()
    value = torch.arange(len(trie)).float()
    estimates = (result.log_weights().exp() * value[leaf]).sum(1)
    assert abs(estimates.mean() - (chance * value).sum()) <= 4.5 * estimates.std() / math.sqrt(draws)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_samples_with_replacement_follow_the_mixture(qwen2, drawn_from, share):
    trie, leaves, chance = drawn_from
    chance = chance if share == 0.6 else leaves[0].float()
    prompts, number = 500, 8
    drawn = sample_with_replacement(
        qwen2,
        torch.tensor([[3, 1, 4]]).expand(prompts, -1),
        trie=trie.mixed(Prior(leaves.expand(prompts, -1), torch.full((prompts,), share))),
        num_samples=number,
        seeds=torch.arange(prompts),
    )
    leaf, draws = drawn.leaves.flatten(), prompts * number
    torch.testing.assert_close(drawn.logprobs.flatten(), chance[leaf].log(), atol=1e-4, rtol=0)
    frequency = torch.bincount(leaf, minlength=len(trie)) / draws
    assert ((frequency - chance).abs() <= 4.5 * (chance * (1 - chance) / draws).sqrt() + 1e-9).all()
    pairs = leaf.view(prompts, number)
    same, expected = (pairs[:, 0] == pairs[:, 1]).float().mean(), chance.square().sum()
    assert abs(same - expected) <= 4.5 * (expected * (1 - expected) / prompts).sqrt()


def test_a_prior_that_does_not_fit_is_refused(qwen2, tmp_path):
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3]]))
    prompt, half, share = torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.5]]), torch.tensor([0.5])

    def search(leaves, share, over="catalog"):
        beam_search(qwen2, prompt, trie=trie.mixed(Prior(leaves, share)), num_beams=2, normalise_over=over)

    with pytest.raises(ConstraintError, match="needs normalise_over 'catalog'; found 'vocabulary'"):
        search(half, share, "vocabulary")
    with pytest.raises(ConstraintError, match="needs normalise_over 'catalog'"):  # its weight is no excuse
        search(half, torch.zeros(1), "vocabulary")
    for score in (score_catalog, score_prefixes):
        with pytest.raises(ConstraintError, match="needs normalise_over 'catalog'"):
            score(qwen2, prompt, trie=trie.mixed(Prior(half, share)))
    with pytest.raises(ConstraintError, match=r"leaves must be floating, of shape \(1, 2\), on cpu; found .* \(1, 3\)"):
        search(torch.full((1, 3), 1 / 3), share)
    with pytest.raises(ConstraintError, match="leaves must be floating"):
        search(torch.tensor([[1, 0]]), share)
    with pytest.raises(ConstraintError, match=r"share must be floating, of shape \(1,\)"):
        search(half, torch.tensor([0.5, 0.5]))
    with pytest.raises(ConstraintError, match="share must be from 0 to 1"):
        search(half, torch.tensor([1.5]))
    with pytest.raises(ConstraintError, match="share must be from 0 to 1"):
        search(half, torch.tensor([math.nan]))
    for wrong in ([[0.5, 0.4]], [[1.5, -0.5]], [[math.nan, 0.5]]):
        with pytest.raises(ConstraintError, match="must not be negative and add up to 1; those of request 0"):
            search(torch.tensor(wrong), share)
    mixed = trie.mixed(Prior(half, share))
    with pytest.raises(ConstraintError, match="the model's alone: give the trie that is not mixed"):
        pack([Branch([1], [1, 2], is_sid=True)], row_tokens=8, trie=mixed)
    with pytest.raises(ConstraintError, match="the model's alone: give the trie that is not mixed"):
        catalog_logprobs(qwen2, [[1, 2]], trie=mixed)
    with pytest.raises(CatalogError, match=r"A mixed trie or .* cannot be saved"):
        mixed.save(tmp_path / "trie.safetensors")


@examples(12)
@given(catalogs(), st.integers(1, 3), st.integers(1, 4), st.sampled_from(["none", "masks", "hidden"]), st.integers(0, 2**20))
def test_scores_of_some_sids_are_those_of_the_oracle(qwen2, codes, requests, count, kind, seed):
    rng = np.random.default_rng(seed)
    _, ids, mask = random_prompts(rng, requests)
    trie, _ = random_view(rng, CatalogTrie.from_codes(codes), codes, requests, kind)
    leaves = torch.tensor(rng.integers(-1, len(trie), (requests, count)))
    prior = random_prior(rng, requests, len(trie), zeros=0.3)
    for some, over in ((trie, "catalog"), (trie.mixed(prior), "catalog"), (trie, "vocabulary")):
        scores = score_leaves(qwen2, ids, mask, trie=some, leaves=leaves, normalise_over=over)
        oracle = score_catalog(qwen2, ids, mask, trie=some, normalise_over=over)
        expected = oracle.gather(1, leaves.clamp(min=0)).masked_fill(leaves < 0, -torch.inf)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("leaves", [[[2]], [[-2]], [[0], [1]], [[]]])
def test_leaves_that_do_not_exist_are_refused(qwen2, leaves):
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3]]))
    with pytest.raises(ConstraintError, match="leaves must be numbers of SIDs from 0 to 1 or -1"):
        score_leaves(qwen2, torch.tensor([[1, 2]]), trie=trie, leaves=torch.tensor(leaves, dtype=torch.long))
