"""Tries of long paths: searches that forget what nothing sees, and scores over a power of the length, against the slow way."""

import numpy as np
import pytest
import torch

from minionerec.errors import ConstraintError
from minionerec.tree import (
    NO_TOKEN,
    Assistant,
    CatalogTrie,
    LengthPenalty,
    SearchGraphs,
    beam_search,
    left_pad,
    sample_with_replacement,
    score_catalog,
    score_leaves,
)
from minionerec.tree import long_paths as module
from minionerec.tree.capture import CallRecorder
from minionerec.tree.long_paths import LONG, LongPathCache
from minionerec.tree.prompt_cache import PromptCache
from minionerec.tree.search import search_prompts
from tests.tree.conftest import brute_force, tiny

PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 1]]


def random_titles(rng, count, longest=LONG + 6):
    """Token ids of texts of 2 to `longest` tokens that share beginnings of all lengths; 0 ends each, two items share one."""
    texts = [[int(token) for token in rng.integers(1, 9, longest - 1)]]
    while len(texts) < count - 1:
        shared = texts[rng.integers(len(texts))]
        kept, more = rng.integers(len(shared)), rng.integers(1, longest)
        texts.append([*shared[:kept], *rng.integers(1, 9, more).tolist()][: longest - 1])
    codes = np.full((count, longest), NO_TOKEN)
    for row, text in zip(codes, [*texts, texts[0]], strict=True):
        row[: len(text) + 1] = [*text, 0]
    return codes


@pytest.fixture(scope="module", params=["qwen2", "granite", "gpt2"])  # granite's head gives no single rows
def searched(request):
    model = tiny(request.param)
    codes = random_titles(np.random.default_rng(0), 60)
    alone = torch.stack([brute_force(model, prompt, codes) for prompt in PROMPTS])
    return model, codes, CatalogTrie.from_codes(codes), alone


def top(scores, count):
    return scores.double().sort(dim=1, descending=True).values[:, :count]


@pytest.mark.parametrize("worthwhile", [0.0, 0.75, 1.0], ids=["never forgets", "as usual", "always forgets"])
def test_lists_are_those_of_a_cache_that_keeps_everything(searched, worthwhile, monkeypatch):
    model, _, trie, alone = searched
    monkeypatch.setattr(module, "_WORTHWHILE", worthwhile)
    ids, mask = left_pad(PROMPTS, 0)
    for over in ("vocabulary", "catalog"):
        results = []
        for longest in (LONG, trie.depth):  # the second takes a `PromptCache`
            monkeypatch.setattr(module, "LONG", longest)
            kind = LongPathCache if longest < trie.depth else PromptCache
            assert type(PromptCache.compute(model, ids, mask, trie, over)) is kind
            results.append(beam_search(model, ids, mask, trie=trie, num_beams=7, normalise_over=over, widest=14))
        new, old = results
        assert torch.equal(new.leaves, old.leaves) and torch.equal(new.exact, old.exact)
        torch.testing.assert_close(new.scores, old.scores, atol=1e-4, rtol=0)
        if over == "vocabulary":
            torch.testing.assert_close(new.scores.double(), alone.double().gather(1, new.leaves), atol=1e-4, rtol=0)
            torch.testing.assert_close(score_catalog(model, ids, mask, trie=trie), alone.float(), atol=1e-4, rtol=0)
            scored = score_leaves(model, ids, mask, trie=trie, leaves=new.leaves)
            torch.testing.assert_close(scored, new.scores, atol=1e-4, rtol=0)


def test_the_cache_holds_what_is_open(searched):
    model, _, trie, _ = searched
    ids, mask = left_pad(PROMPTS, 0)
    prompts = PromptCache.compute(model, ids, mask, trie, "vocabulary")
    held, added = [], []
    extend = prompts.extend
    prompts.extend = lambda tokens, *more: (
        added.append(tokens.shape[1]),
        extend(tokens, *more),
        held.append(prompts.cache.get_seq_length() - ids.shape[1]),
    )[1]
    search_prompts(prompts, 7)
    assert max(held) < 0.75 * sum(added) and len(held) == trie.depth - 1


@pytest.mark.parametrize("searched", ["qwen2"], indirect=True)
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("assisted", [False, True], ids=["alone", "assisted"])
def test_what_the_certificate_says_is_exact_is_the_top_of_the_formula(searched, power, assisted):
    model, codes, trie, alone = searched
    ids, mask = left_pad(PROMPTS, 0)
    lengths = np.full(len(trie), 0)
    lengths[trie.leaf_of_item.numpy()] = (codes >= 0).sum(1)
    whole, assistant = alone.double(), None
    if assisted:
        weights = torch.tensor([0.7, 0.3, 1.0])
        items = torch.tensor(3 * np.random.default_rng(1).standard_normal((3, len(codes)))).log_softmax(1)
        assistant = Assistant.of_items(trie, items, weights)
        of_leaves = torch.zeros(3, len(trie), dtype=torch.double).index_add_(1, trie.leaf_of_item.long(), items.exp()).log()
        whole = weights[:, None].double() * whole + (1 - weights[:, None].double()) * of_leaves
    expected = whole / torch.tensor(lengths) ** power
    options = {"trie": trie.mixed(LengthPenalty.of(trie, power).helped_by(assistant))}
    torch.testing.assert_close(score_catalog(model, ids, mask, **options).double(), expected, atol=1e-4, rtol=0)
    proven = 0
    for beams in (3, 25, len(trie)):
        found = beam_search(model, ids, mask, num_beams=beams, **options)
        there = found.leaves >= 0
        scores = found.scores.double()
        torch.testing.assert_close(scores[there], expected.gather(1, found.leaves.clamp(min=0))[there], atol=1e-4, rtol=0)
        proven += int(found.exact.sum())
        torch.testing.assert_close(scores[found.exact], top(expected, beams)[found.exact], atol=1e-4, rtol=0)
    assert found.exact.all() and proven >= 3
    wide = beam_search(model, ids, mask, num_beams=3, widest=len(trie), **options)
    assert wide.exact.all()
    torch.testing.assert_close(wide.scores.double(), top(expected, 3), atol=1e-4, rtol=0)
    if not power and not assisted:
        plain = beam_search(model, ids, mask, num_beams=10, trie=trie)
        divided = beam_search(model, ids, mask, num_beams=10, **options)
        assert torch.equal(plain.leaves, divided.leaves) and torch.equal(plain.exact, divided.exact)


@pytest.mark.parametrize("searched", ["qwen2"], indirect=True)
def test_what_cannot_be_recorded_or_drawn_from_is_searched_as_it_is_or_refused(searched):
    model, _, trie, _ = searched
    ids, mask = left_pad(PROMPTS, 0)
    short = CatalogTrie.from_codes(np.array([[1, 2], [3, NO_TOKEN], [4, 5]]))
    penalised = short.mixed(LengthPenalty.of(short, 1.0))
    graphs = SearchGraphs(model, CallRecorder())
    for asked in (trie, penalised):
        options = {"trie": asked, "num_beams": 3}
        assert torch.equal(graphs.beam_search(ids, mask, **options).leaves, beam_search(model, ids, mask, **options).leaves)
    assert not graphs.recorded
    with pytest.raises(ConstraintError, match="no distribution over the catalog"):
        sample_with_replacement(model, ids, mask, trie=penalised, num_samples=1, seeds=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("searched", ["qwen2"], indirect=True)
def test_a_penalty_ranks_within_a_view_and_moves_with_its_requests(searched):
    model, codes, trie, alone = searched
    ids, mask = left_pad(PROMPTS, 0)
    hidden = [[0, 3, 5], [], [7]]
    penalty = LengthPenalty.of(trie, 1.0).to("cpu")
    found = beam_search(model, ids, mask, num_beams=4, widest=len(trie), trie=trie.without(hidden).mixed(penalty))
    expected = alone.double() / penalty.lengths
    for row, items in enumerate(hidden):
        kept = set(trie.leaf_of_item[[item for item in range(len(codes)) if item not in items]].tolist())
        expected[row, [leaf for leaf in range(len(trie)) if leaf not in kept]] = -torch.inf
    assert found.exact.all()
    torch.testing.assert_close(found.scores.double(), top(expected, 4), atol=1e-4, rtol=0)
