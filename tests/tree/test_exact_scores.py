import numpy as np
import pytest
import torch

from minionerec.errors import ConstraintError
from minionerec.tree import CatalogTrie, exact_scores, left_pad, score_catalog
from tests.tree.conftest import VOCABULARY, brute_force, paths, random_codes


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("trailing", [(), (38, 39)])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_equals_one_by_one_scoring(model, levels, normalise_over, trailing):
    rng = np.random.default_rng(levels)
    codes = random_codes(rng, 30, levels, 4, ragged=levels > 1)
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in (4, 7)]
    ids, mask = left_pad(prompts, 0)
    trie = CatalogTrie.from_codes(codes, trailing=trailing)
    scores = score_catalog(model, ids, mask, trie=trie, normalise_over=normalise_over, memory=400_000)
    for row, prompt in enumerate(prompts):
        expected = brute_force(model, prompt, codes, normalise_over, trailing)
        torch.testing.assert_close(scores[row], expected, atol=1e-4, rtol=0)
    if normalise_over == "catalog" and not trailing:
        torch.testing.assert_close(scores.exp().sum(1), torch.ones(2), atol=1e-4, rtol=0)


@pytest.fixture
def passes_of(qwen2):
    """Gives the tree tokens of each pass of a function."""

    def measured(function):
        tokens = []
        hook = qwen2.base_model.register_forward_pre_hook(
            lambda module, args, arguments: tokens.append(arguments["input_ids"].shape[1]), with_kwargs=True
        )
        result = function()
        hook.remove()
        return result, tokens[1:]  # the first is the prompt

    return measured


def test_the_budget_bounds_every_pass_and_changes_nothing(qwen2, passes_of, monkeypatch):
    monkeypatch.setattr(exact_scores, "CPU_TOKENS", 10**6)
    codes = random_codes(np.random.default_rng(0), 400, 4, 6)
    trie = CatalogTrie.from_codes(codes)
    prompts = torch.arange(12).view(2, 6)
    scores, passes = {}, {}
    for memory in (200_000, 1_000_000, 1 << 30):
        scores[memory], passes[memory] = passes_of(
            lambda memory=memory: score_catalog(qwen2, prompts, trie=trie, memory=memory)
        )
        torch.testing.assert_close(scores[memory], scores[200_000], atol=1e-4, rtol=0)
    inner = sum(len(trie.tokens[level]) for level in range(3))
    assert passes[1 << 30] == [inner]
    assert max(passes[200_000]) < max(passes[1_000_000]) < inner
    assert sum(passes[200_000]) < 1.5 * inner  # little is computed twice
    with pytest.raises(ConstraintError, match=r"budget of 1000 bytes is too small for exact scores; \d+ are needed"):
        score_catalog(qwen2, prompts, trie=trie, memory=1000)


def test_passes_on_a_cpu_are_small_whatever_the_budget(qwen2, passes_of, monkeypatch):
    trie = CatalogTrie.from_codes(random_codes(np.random.default_rng(0), 500, 4, 8))
    prompts = torch.arange(12).view(2, 6)
    seen = {}
    for most in (1, 20, exact_scores.CPU_TOKENS, 10**6):
        monkeypatch.setattr(exact_scores, "CPU_TOKENS", most)
        scores, passes = passes_of(lambda: score_catalog(qwen2, prompts, trie=trie))
        assert max(passes) <= max(most, trie.depth - 1)  # one path at least, however small the number
        seen[most] = scores, len(passes)
        torch.testing.assert_close(scores, seen[1][0], atol=1e-5, rtol=0)
    counts = [passes for _, passes in seen.values()]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] == 1


def test_outside_a_view_nothing_has_a_score(qwen2):
    codes = random_codes(np.random.default_rng(1), 40, 3, 4)
    allowed = np.arange(40) % 3 == 0
    scores = score_catalog(qwen2, torch.tensor([[1, 2]]), trie=CatalogTrie.from_codes(codes).narrow(allowed))
    left = [paths(codes)[0].index(sid) for sid in paths(codes[allowed])[0]]
    assert (scores[0] > -torch.inf).nonzero().squeeze(-1).tolist() == left


def test_logits_over_the_vocabulary_are_made_in_parts(qwen2):
    trie = CatalogTrie.from_codes(random_codes(np.random.default_rng(0), 400, 3, 8))
    held = []
    hook = qwen2.get_output_embeddings().register_forward_hook(lambda module, args, output: held.append(output.numel() * 4))
    score_catalog(qwen2, torch.arange(6).view(1, 6), trie=trie, memory=120_000)
    hook.remove()
    assert 0 < max(held[1:]) <= 120_000 / 4 / 3  # three copies fit into a quarter of the budget; the first is the prompt's
