import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from minionerec.errors import ConstraintError
from minionerec.tree import NO_TOKEN, CatalogTrie, beam_search, left_pad, score_catalog
from tests.tree.conftest import VOCABULARY, tiny


def brute_force(model, prompt, sids):
    """Score each SID on its own, the slow and obvious way."""
    rows = torch.tensor([[*prompt, *sid] for sid in sids])
    with torch.no_grad():
        logprobs = model(rows).logits.float().log_softmax(-1)
    steps = logprobs[:, len(prompt) - 1 : -1].gather(-1, rows[:, len(prompt) :, None])
    return steps.squeeze(-1).sum(-1)


def random_codes(rng, items, levels, fan_out=5):
    return np.stack([rng.integers(level * 8, level * 8 + fan_out, items) for level in range(levels)], axis=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_covering_beam_equals_brute_force(model, attention, levels):
    model.set_attn_implementation(attention)
    rng = np.random.default_rng(levels)
    trie = CatalogTrie.from_codes(random_codes(rng, 40, levels, 3))
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in (1, 5, 9)]
    ids, mask = left_pad(prompts, 0)
    result = beam_search(model, ids, mask, trie=trie, num_beams=100)
    model.set_attn_implementation("sdpa")
    assert result.exact.all()
    for row, prompt in enumerate(prompts):
        expected = brute_force(model, prompt, trie.sids.tolist())
        order = expected.argsort(descending=True, stable=True)
        assert result.tokens[row, : len(trie)].tolist() == trie.sids[order].tolist()
        torch.testing.assert_close(result.scores[row, : len(trie)], expected[order], atol=1e-4, rtol=0)
        assert (result.tokens[row, len(trie) :] == NO_TOKEN).all()
        assert (result.scores[row, len(trie) :] == -torch.inf).all()


@settings(max_examples=40, deadline=None)
@given(
    items=st.integers(1, 60),
    levels=st.integers(1, 4),
    beams=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_certificate_never_lies_and_beams_are_valid(qwen2, items, levels, beams, lengths, seed):
    rng = np.random.default_rng(seed)
    trie = CatalogTrie.from_codes(random_codes(rng, items, levels))
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]
    ids, mask = left_pad(prompts, 0)
    result = beam_search(qwen2, ids, mask, trie=trie, num_beams=beams)
    oracle = score_catalog(qwen2, ids, mask, trie=trie, memory=int(rng.integers(200_000, 3_000_000)))
    valid = set(map(tuple, trie.sids.tolist()))
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(oracle[row], brute_force(qwen2, prompt, trie.sids.tolist()), atol=1e-4, rtol=0)
        found = [tuple(sid) for sid in result.tokens[row].tolist() if sid[0] != NO_TOKEN]
        assert len(found) == len(set(found)) <= min(beams, len(trie))
        assert set(found) <= valid
        assert result.scores[row].diff().nan_to_num(0).le(0).all()
        best = oracle[row].sort(descending=True).values[: len(found)]
        if result.exact[row]:
            assert len(found) == min(beams, len(trie))
            torch.testing.assert_close(result.scores[row, : len(found)], best, atol=1e-4, rtol=0)


class TrieProcessor(LogitsProcessor):
    """Transformers' own beam search, constrained: the reference to agree with."""

    def __init__(self, sids, prompt_length):
        self.sids, self.prompt_length = sids, prompt_length

    def __call__(self, input_ids, scores):
        masked = torch.full_like(scores, -torch.inf)
        for row, generated in enumerate(input_ids[:, self.prompt_length :]):
            level = len(generated)
            fitting = self.sids[(self.sids[:, :level] == generated).all(-1)]
            allowed = fitting[:, level].unique()
            masked[row, allowed] = scores[row, allowed]
        return masked


def test_equals_transformers_generate(model):
    rng = np.random.default_rng(3)
    trie = CatalogTrie.from_codes(random_codes(rng, 200, 3, 8))
    prompt = torch.tensor([rng.integers(0, VOCABULARY, 12).tolist()])
    ours = beam_search(model, prompt, trie=trie, num_beams=10)
    theirs = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=10,
        num_return_sequences=10,
        do_sample=False,
        length_penalty=0.0,
        max_new_tokens=3,
        min_new_tokens=3,
        pad_token_id=0,
        eos_token_id=VOCABULARY - 1,
        logits_processor=[TrieProcessor(trie.sids, 12)],
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert ours.tokens[0].tolist() == theirs.sequences[:, 12:].tolist()
    torch.testing.assert_close(ours.scores[0], theirs.sequences_scores, atol=1e-4, rtol=0)


def test_left_padded_batch_equals_single_runs(model):
    rng = np.random.default_rng(5)
    trie = CatalogTrie.from_codes(random_codes(rng, 100, 3))
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in (2, 11, 6)]
    ids, mask = left_pad(prompts, 0)
    together = beam_search(model, ids, mask, trie=trie, num_beams=8)
    for row, prompt in enumerate(prompts):
        alone = beam_search(model, torch.tensor([prompt]), trie=trie, num_beams=8)
        assert together.tokens[row].tolist() == alone.tokens[0].tolist()
        torch.testing.assert_close(together.scores[row], alone.scores[0], atol=1e-4, rtol=0)


def test_generation_config_plays_no_part():
    trie = CatalogTrie.from_codes(random_codes(np.random.default_rng(1), 50, 3))
    prompt = torch.tensor([[1, 2, 3]])
    model = tiny(seed=4)
    plain = beam_search(model, prompt, trie=trie, num_beams=5)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.3
    model.generation_config.repetition_penalty = 2.0
    model.generation_config.top_k = 2
    changed = beam_search(model, prompt, trie=trie, num_beams=5)
    assert torch.equal(plain.tokens, changed.tokens)
    assert torch.equal(plain.scores, changed.scores)


def test_bad_calls(qwen2):
    trie = CatalogTrie.from_codes(np.array([[1, 2]]))
    prompt = torch.tensor([[1, 2]])
    with pytest.raises(ConstraintError, match="token id 99, but the model's vocabulary has 40"):
        beam_search(qwen2, prompt, trie=CatalogTrie.from_codes(np.array([[1, 99]])), num_beams=2)
    with pytest.raises(ConstraintError, match="padded on the left"):
        beam_search(qwen2, prompt, torch.tensor([[1, 0]]), trie=trie, num_beams=2)
    with pytest.raises(ConstraintError, match="must not be empty"):
        beam_search(qwen2, prompt[:, :0], trie=trie, num_beams=2)
    with pytest.raises(ConstraintError, match="num_beams is 0"):
        beam_search(qwen2, prompt, trie=trie, num_beams=0)
