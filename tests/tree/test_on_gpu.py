"""A GPU gives the numbers of the CPU: searches, exact scores, draws, and log-probabilities with their gradients."""

import numpy as np
import pytest
import torch

from minionerec.tree import (
    Branch,
    CatalogTrie,
    beam_search,
    left_pad,
    pack,
    sample_without_replacement,
    score_catalog,
    tree_logprobs,
)
from tests.tree.conftest import VOCABULARY, random_codes, tiny

pytestmark = pytest.mark.cuda
TRIE = CatalogTrie.from_codes(random_codes(np.random.default_rng(3), 200, 3, 8))


@pytest.fixture(autouse=True)
def no_tf32():
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = allowed


def random_prompts(lengths=(5, 12, 3)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gemma", "granite", "gpt2"])
def test_searches_and_exact_scores(kind, over, attention):
    here, there = tiny(kind, attention=attention), tiny(kind, attention=attention).cuda()
    ids, mask = left_pad(random_prompts(), 0)
    hidden = TRIE.without([[0, 5], [], [7]])
    for trie in (TRIE, hidden):
        options = {"num_beams": 10, "normalise_over": over, "widest": 80}
        ours = beam_search(there, ids.cuda(), mask.cuda(), trie=trie.to("cuda"), **options)
        theirs = beam_search(here, ids, mask, trie=trie, **options)
        assert torch.equal(ours.tokens.cpu(), theirs.tokens) and torch.equal(ours.exact.cpu(), theirs.exact)
        torch.testing.assert_close(ours.scores.cpu(), theirs.scores, atol=1e-4, rtol=0)
        ours = score_catalog(there, ids.cuda(), mask.cuda(), trie=trie.to("cuda"), normalise_over=over)
        theirs = score_catalog(here, ids, mask, trie=trie, normalise_over=over)
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=0)


def test_draws_are_the_same_on_any_device():
    ids, mask = left_pad(random_prompts(), 0)
    seeds = torch.tensor([5, -7, 2**60])
    drawn = sample_without_replacement(tiny(), ids, mask, trie=TRIE, num_samples=6, seeds=seeds)
    there = {"trie": TRIE.to("cuda"), "num_samples": 6, "seeds": seeds.cuda()}
    assert torch.equal(sample_without_replacement(tiny().cuda(), ids.cuda(), mask.cuda(), **there).leaves.cpu(), drawn.leaves)


@pytest.mark.parametrize("trie", [None, TRIE], ids=["vocabulary", "catalog"])
def test_log_probabilities_and_gradients_of_trees(trie):
    branches = [
        Branch(prompt, sid, is_sid=True)
        for prompt in random_prompts((5, 12, 3, 9))
        for sid in TRIE.sids[torch.arange(0, 100, 7)].tolist()
    ]
    batch = pack(branches, row_tokens=64, trie=trie)
    gradients, logprobs = [], []
    for device in ("cpu", "cuda"):
        model = tiny().to(device)
        result = tree_logprobs(model, batch.to(device), trie=None if trie is None else trie.to(device)).logprobs
        result.sum().backward()
        logprobs.append(result.detach().cpu())
        gradients.append(torch.cat([parameter.grad.flatten().cpu() for parameter in model.parameters()]))
    torch.testing.assert_close(*logprobs, atol=1e-4, rtol=0)
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[0].norm()


def test_bfloat16_lists_are_near_those_of_float32():
    model, (ids, mask) = tiny().cuda(), left_pad(random_prompts((5, 12, 3, 9, 16, 2)), 0)
    options = {"trie": TRIE.to("cuda"), "num_beams": 20}
    whole = beam_search(model, ids.cuda(), mask.cuda(), **options)
    rounded = beam_search(model.bfloat16(), ids.cuda(), mask.cuda(), **options)
    shared = [len({*one} & {*other}) for one, other in zip(whole.leaves.tolist(), rounded.leaves.tolist(), strict=True)]
    assert min(shared) >= 14 and sum(shared) >= 0.85 * whole.leaves.numel()
    assert rounded.scores.dtype == torch.float32
