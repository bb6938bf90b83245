"""A cache mixed into the lists of a model, against the mixture computed the slow and obvious way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.config import EvalConfig
from minionerec.errors import ConfigError
from minionerec.eval import search_error
from minionerec.model.base import base_model
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.recommend.assistant import BaselineAssistant
from minionerec.recommend.cache import MODEL, Buckets, HistoryScorer, Interactions, Mixture, MixtureWeights, make_components
from minionerec.recommend.cache.mixture import made_from
from minionerec.recommend.mixing import cache_prior, component_columns, component_leaves, fitted, model_column
from minionerec.recommend.recommender import Recommender
from minionerec.tree import SearchGraphs, score_catalog
from minionerec.tree.capture import CallRecorder
from tests.recommend.conftest import SIZES

HISTORY = [0, 5, 7]
NAMES = ("popularity", "markov", "text", "sequential")


def cache_of(dataset, share=None, seed=0):
    """A mixture with random weights; `share` is the weight of all components together, None for a random one."""
    rng = np.random.default_rng(seed)
    interactions = Interactions.of_dataset(dataset)
    vectors, table = (rng.standard_normal((len(dataset.catalog), 8)).astype(np.float32) for _ in range(2))
    scorer = HistoryScorer("sasrec", "", lambda histories: np.array([table[some].mean(0) @ table.T for some in histories]))
    components = make_components(NAMES, interactions, vectors, scorer)
    values = rng.random((21, 1 + len(NAMES)))
    if share is not None:
        values[:, 1:] *= share / values[:, 1:].sum(1, keepdims=True)
        values[:, 0] = 1 - share
    values /= values.sum(axis=1, keepdims=True)
    return Mixture(components, Buckets(interactions), MixtureWeights((MODEL, *NAMES), values, made_from(components)))


@pytest.fixture
def mixed(make):
    recommender = make(normalise_over="catalog")
    recommender.mix(cache_of(recommender.prompts.dataset))
    return recommender


def parts_by_hand(recommender, history, passing):
    """What the model and each component add to each SID's probability among the items that pass, (1 + components, SIDs)."""
    cache, trie = recommender.mixture, recommender.trie
    hidden = [item for item in range(len(recommender.items.ids)) if item not in passing]
    view = trie.without([hidden])
    tokens, mask = recommender.encode([history])
    model = score_catalog(recommender.model, tokens, mask, trie=view, normalise_over="catalog")[0].double().exp().numpy()
    leaf = trie.leaf_of_item.numpy()
    legal = np.isin(np.arange(len(trie)), leaf[sorted(passing)])
    row = cache.weights.values[cache.buckets.of([history])[0]]
    parts, alive = [model], 0.0
    for weight, component in zip(row[1:], cache.components.values(), strict=True):
        leaves = np.bincount(leaf, component.probabilities([history])[0], minlength=len(trie)) * legal
        parts.append(weight * leaves / (leaves.sum() or 1))
        alive += weight * (leaves.sum() > 0)
    scale = (1 - row[0]) / alive if alive else 0.0
    return np.array([model * (row[0] if alive else 1.0), *(part * scale for part in parts[1:])])


FILTERS = [
    ({}, set(range(20))),
    ({"exclude_history": True}, set(range(20)) - set(HISTORY)),
    ({"allow": ["i3", "i4", "i9", "i11"]}, {3, 4, 9, 11}),
    ({"deny": ["i1", "i2"], "category": "Lamps"}, {item for item in range(20) if item % 3} - {1, 2}),
]


@pytest.mark.parametrize(("filters", "passing"), FILTERS)
def test_lists_and_their_shares_are_those_of_the_mixture(mixed, filters, passing):
    parts = parts_by_hand(mixed, HISTORY, passing)
    expected = parts.sum(0)
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    explanation = mixed.explain(HISTORY, k=20, num_beams=20, **filters)
    [recommendation] = mixed.recommend([HISTORY], k=20, num_beams=20, **filters)
    assert recommendation == explanation.recommendation and recommendation.exact
    assert {item.index for item in recommendation.items} == passing
    leaves = [int(mixed.trie.leaf_of_item[item.index]) for item in recommendation.items]
    np.testing.assert_allclose([item.score for item in recommendation.items], np.log(expected[leaves]), atol=1e-4)
    assert [item.score for item in recommendation.items] == sorted((item.score for item in recommendation.items), reverse=True)
    for leaf, shares in zip(leaves, explanation.shares, strict=True):
        assert list(shares) == [MODEL, *NAMES] and sum(shares.values()) == pytest.approx(1)
        np.testing.assert_allclose([*shares.values()], parts[:, leaf] / expected[leaf], atol=1e-5)
    for path in explanation.root.walk():
        assert path[-1].score == pytest.approx(sum(node.logprob for node in path), abs=1e-4)


class RandomAssistant(BaselineAssistant):
    """Random log-probabilities of the items, equal for equal histories."""

    def logprobs(self, histories):
        scores = np.array([np.random.default_rng(sum(history)).standard_normal(20) for history in histories])
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))


@pytest.mark.parametrize("kind", ["cache", "cache and texts", "assistant"])
def test_recorded_searches_make_the_same_lists(kind, make, mixed, with_texts, monkeypatch):
    """As on a GPU, with a stand-in for its graphs; only the first search of a list is recorded."""
    recommender = {"cache": mixed, "cache and texts": with_texts, "assistant": make(normalise_over="catalog")}[kind]
    if kind == "assistant":
        recommender.assist(RandomAssistant("sasrec", None, "test", {}, 0.6))
    graphs = SearchGraphs(recommender.model, CallRecorder())
    histories = [HISTORY, [3], [1, 2, 3, 4, 5, 6]]
    filters = [*(some for some, _ in FILTERS), {"deny": ["i9"], "widest": 16}]
    for some in filters:
        expected, ours = [], []
        for lists, searched in ((expected, None), (ours, graphs)):
            monkeypatch.setattr(recommender, "graphs", searched)
            lists += recommender.recommend(histories, k=5, num_beams=6, **some)
        for one, other in zip(ours, expected, strict=True):
            assert (one.exact, one.beams) == (other.exact, other.beams)
            assert [item.index for item in one.items] == [item.index for item in other.items]
            np.testing.assert_allclose([item.score for item in one.items], [item.score for item in other.items], atol=1e-5)
    assert (graphs.recorded, graphs.replayed) == (2, len(filters))  # without filters, and with any


@pytest.fixture(scope="module")
def with_texts(make):
    """A model with a second distribution, of its items' texts, and a cache mixed in."""
    prompts = make().prompts
    vectors = np.random.default_rng(1).normal(size=(20, 12)).astype(np.float32)
    config = replace(SIZES, text_input=True, text_output=True)
    model, tokenizer = base_model(config, prompts.index, tokenizer_corpus(prompts.dataset), 0, vectors=lambda: vectors)
    with torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    prompts = replace(prompts, tokenizer=tokenizer)
    recommender = Recommender(model.eval(), prompts, config=EvalConfig(batch_size=5, normalise_over="catalog"))
    recommender.mix(cache_of(prompts.dataset))
    return recommender


@torch.no_grad()
def texts_and_codes_by_hand(recommender, history, passing):
    """(1 - g) p_codes + g p_text of every SID among the items that pass, from plain texts: (SIDs,)."""
    model, trie, prompt = recommender.model, recommender.trie, recommender.prompts.ask(history)
    legal = sorted({int(trie.leaf_of_item[item]) for item in passing})
    sids = trie.sids[legal]
    written = []
    for sid in sids:
        states = model.model(input_ids=torch.tensor([[*prompt, *sid.tolist()]])).last_hidden_state[0, len(prompt) - 1 :]
        total = 0.0
        for level, token in enumerate(sid):
            tokens = sids[(sids[:, :level] == sid[:level]).all(1), level].unique()
            logprobs = model.lm_head(states[level])[tokens].double().log_softmax(0)
            total = total + logprobs[(tokens == token).nonzero()[0, 0]]
        written.append(total)
    dense, gate = model.leaf_component(states[:1])
    g, text = gate[0].double().sigmoid(), dense[0, legal].double().softmax(0)
    probabilities = np.zeros(len(trie))
    probabilities[legal] = ((1 - g) * torch.stack(written).exp() + g * text).numpy()
    return probabilities


@pytest.mark.parametrize(("filters", "passing"), FILTERS)
def test_lists_of_a_model_with_texts_and_a_cache_in_a_view(with_texts, filters, passing):
    """Three distributions, each over what the filter leaves, then weighed."""
    trie = with_texts.trie
    model = texts_and_codes_by_hand(with_texts, HISTORY, passing)
    assert model.sum() == pytest.approx(1, abs=1e-5)
    parts = parts_by_hand(with_texts, HISTORY, passing)
    parts[0] = model * (1 - parts[1:].sum())
    expected = parts.sum(0)
    explanation = with_texts.explain(HISTORY, k=20, num_beams=20, **filters)
    recommendation = explanation.recommendation
    assert recommendation.exact and {item.index for item in recommendation.items} == passing
    leaves = [int(trie.leaf_of_item[item.index]) for item in recommendation.items]
    np.testing.assert_allclose([item.score for item in recommendation.items], np.log(expected[leaves]), atol=1e-4)
    for leaf, shares in zip(leaves, explanation.shares, strict=True):
        np.testing.assert_allclose([*shares.values()], parts[:, leaf] / expected[leaf], atol=1e-4)
    for beams in (2, 5):  # what is proven is the top
        [narrow] = with_texts.recommend([HISTORY], k=beams, num_beams=beams, **filters)
        if narrow.exact:
            best = np.sort(expected[sorted({int(trie.leaf_of_item[item]) for item in passing})])[::-1]
            assert narrow.items[0].score == pytest.approx(np.log(best[0]), abs=1e-4)
    [wider] = with_texts.recommend([HISTORY], k=2, num_beams=2, widest=20, **filters)
    assert [item.index for item in wider.items] == [item.index for item in recommendation.items[:2]]


def test_narrow_beams_prove_nothing_false(mixed):
    expected = np.sort(parts_by_hand(mixed, HISTORY, set(range(20))).sum(0))[::-1]
    for beams in range(1, 15):
        result = mixed.search([HISTORY, HISTORY[::-1]], num_beams=beams)
        if result.exact[0]:
            np.testing.assert_allclose(result.scores[0].exp(), expected[:beams], atol=1e-5)
    assert result.exact.all()
    wide = mixed.recommend([HISTORY], k=2, num_beams=2, widest=20)[0]
    assert wide.exact


def test_a_cache_without_anything_left_hands_its_share_to_the_model(mixed):
    counted = mixed.mixture.components["markov"]
    counted.scores([[0]])  # it answers
    hidden = np.flatnonzero(counted.probabilities([HISTORY])[0] > 0).tolist()
    view = mixed.trie.without([[item for leaf in mixed.trie.leaf_of_item[hidden].tolist() for item in mixed.trie.items(leaf)]])
    assert not component_leaves(counted, [HISTORY], view).any()
    prior = cache_prior(mixed.mixture, [HISTORY], view)
    assert float(prior.leaves.sum()) == pytest.approx(1) and float(prior.share) == pytest.approx(
        float(mixed.mixture.share([HISTORY])[0])
    )


def test_the_share_nothing_gives_the_models_bytes(make):
    plain, mixed = make(normalise_over="catalog"), make(normalise_over="catalog")
    mixed.mix(cache_of(mixed.prompts.dataset, share=0.0))
    histories = [HISTORY, [3], [19, 2]]
    for filters in ({}, {"exclude_history": True}):
        assert plain.recommend(histories, k=20, **filters) == mixed.recommend(histories, k=20, **filters)
    mixed.mix(None)
    assert plain.recommend(histories) == mixed.recommend(histories)
    assert plain.explain(HISTORY).shares is None


@pytest.mark.parametrize("exclude_history", [False, True])
def test_columns_are_probabilities_of_the_targets_sids(make, exclude_history):
    recommender = make(normalise_over="catalog", exclude_history=exclude_history)
    recommender.mix(cache_of(recommender.prompts.dataset))
    valid = recommender.prompts.dataset.valid
    histories, targets = valid["history"].to_list(), valid["target"].to_list()
    components = recommender.mixture.components
    model = model_column(recommender, histories, targets)
    columns = component_columns(recommender, components, histories, targets)
    assert model.shape == (len(valid),) and columns.shape == (len(valid), len(NAMES))
    for row in range(0, len(valid), 3):
        passing = set(range(20)) - (set(histories[row]) if exclude_history else set())
        leaf = int(recommender.trie.leaf_of_item[targets[row]])
        parts = parts_by_hand(recommender, histories[row], passing)
        weights = recommender.mixture.weights.values[recommender.mixture.buckets.of([histories[row]])[0]]
        np.testing.assert_allclose(model[row] * weights[0], parts[0, leaf], atol=1e-6)
        np.testing.assert_allclose(columns[row] * weights[1:], parts[1:, leaf], atol=1e-6)


def test_fitted_weights_keep_the_model(make):
    recommender = make(normalise_over="catalog")
    cache = cache_of(recommender.prompts.dataset)
    histories = [[item] for item in range(20)]
    columns = np.column_stack([np.full(20, 1e-300), np.random.default_rng(0).random((20, len(NAMES)))])
    overall = fitted(columns, cache.buckets, cache.components, histories, per_bucket=False, pseudo_counts=5.0)
    assert (overall.weights.values == overall.weights.values[0]).all() and overall.weights.names == (MODEL, *NAMES)
    each = fitted(columns, cache.buckets, cache.components, histories, per_bucket=True, pseudo_counts=0.0)
    assert not (each.weights.values == each.weights.values[0]).all()
    for mixture in (overall, each):
        np.testing.assert_allclose(mixture.weights.values.sum(1), 1)
        assert (mixture.weights.values[:, 0] >= 0.99e-9).all() and (mixture.share(histories) < 1).all()


def test_a_traced_search_is_that_of_the_mixture(mixed):
    """Replayed on exact prefix scores, as wide as it is, the search makes the list that it makes."""
    histories = [HISTORY, [3, 4]]
    for width in (2, 4):
        result = mixed.search(histories, num_beams=width)
        items = [mixed.trie.items(int(leaf))[0] for leaf in result.leaves[:, 0]]
        traces = search_error.trace(mixed, [0, 1], histories, items, [width, 20], "catalog")
        for trace in traces:
            assert trace.widths[str(width)] == 0 and trace.rank <= trace.widths["20"]
    exact = mixed.search(histories, num_beams=20)
    items = [mixed.trie.items(int(leaf))[0] for leaf in exact.leaves[:, 3]]
    assert [trace.rank for trace in search_error.trace(mixed, [0, 1], histories, items, [20], "catalog")] == [3, 3]


def test_a_mixture_and_an_assistant_are_not_both_taken(mixed):
    """One of them would be ignored."""
    assistant, mixture = BaselineAssistant("sasrec", None, "test", {}, 0.5), mixed.mixture
    with pytest.raises(ConfigError, match="a mixture or an assistant, not both"):
        mixed.assist(assistant)
    mixed.mix(None)
    mixed.assist(assistant)
    with pytest.raises(ConfigError, match="a mixture or an assistant, not both"):
        mixed.mix(mixture)
    assert mixed.mixture is None and mixed.assistant is assistant


def test_over_the_vocabulary_nothing_is_mixed(make):
    recommender = make()
    with pytest.raises(ConfigError, match=r"needs eval.normalise_over catalog; found vocabulary"):
        recommender.mix(cache_of(recommender.prompts.dataset))
    assert recommender.mixture is None
    assert torch.is_tensor(recommender.search([HISTORY], num_beams=2).scores)
