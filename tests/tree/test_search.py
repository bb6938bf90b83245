import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from minionerec.errors import ConstraintError
from minionerec.tree import (
    NO_TOKEN,
    CatalogTrie,
    beam_search,
    left_pad,
    sample_with_replacement,
    sample_without_replacement,
    score_catalog,
)
from minionerec.tree.catalog_logprobs import catalog_logprobs
from tests.examples import examples
from tests.tree.conftest import VOCABULARY, brute_force, catalogs, paths, random_codes, tiny

prompt_lengths = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def random_prompts(rng, lengths):
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]
    return prompts, *left_pad(prompts, 0)


def assert_is_ranking_of(tokens, scores, expected, sids, tolerance):
    """A list is the catalog ranked by `expected`, where scores closer than the tolerance may swap."""
    listed = [tuple(sid) for sid in tokens.tolist() if sid[0] != NO_TOKEN]
    assert sorted(listed) == sids
    exact = torch.tensor([expected[sids.index(sid)] for sid in listed])
    torch.testing.assert_close(scores[: len(sids)], exact, atol=tolerance, rtol=0)
    assert scores[: len(sids)].diff().le(0).all()
    assert (tokens[len(sids) :] == NO_TOKEN).all()
    assert (scores[len(sids) :] == -torch.inf).all()


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("levels", [1, 3])
def test_covering_beam_equals_brute_force(model, attention, levels, normalise_over):
    rng = np.random.default_rng(levels)
    codes = random_codes(rng, 25, levels, 3, ragged=levels > 1)
    prompts, ids, mask = random_prompts(rng, (1, 5, 9))
    model.set_attn_implementation(attention)
    result = beam_search(model, ids, mask, trie=CatalogTrie.from_codes(codes), num_beams=40, normalise_over=normalise_over)
    model.set_attn_implementation("sdpa")
    assert result.exact.all()
    for row, prompt in enumerate(prompts):
        expected = brute_force(model, prompt, codes, normalise_over)
        assert_is_ranking_of(result.tokens[row], result.scores[row], expected, paths(codes)[0], 1e-4)


@examples(40)
@given(
    catalogs(most=20),
    prompt_lengths,
    st.sampled_from(["vocabulary", "catalog"]),
    st.sampled_from([(), (38,), (38, 39)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_covering_beam_equals_brute_force_on_random_tries(qwen2, codes, lengths, normalise_over, trailing, dtype):
    prompts, ids, mask = random_prompts(np.random.default_rng(len(codes)), lengths)
    trie = CatalogTrie.from_codes(codes, trailing=trailing)
    qwen2.to(dtype)
    result = beam_search(qwen2, ids, mask, trie=trie, num_beams=21, normalise_over=normalise_over)
    expected = [brute_force(qwen2, prompt, codes, normalise_over, trailing) for prompt in prompts]
    qwen2.to(torch.float32)
    # Logits of about 10 carry an error of 0.03 in bfloat16, at every token.
    tolerance = 1e-4 if dtype == torch.float32 else 0.15 * trie.depth
    for row in range(len(prompts)):
        assert_is_ranking_of(result.tokens[row], result.scores[row], expected[row], paths(codes)[0], tolerance)


@examples(60)
@given(
    catalogs(),
    prompt_lengths,
    st.integers(1, 12),
    st.sampled_from(["vocabulary", "catalog"]),
    st.sampled_from([None, 4, 16, 64]),
    st.integers(0, 2**20),
)
def test_certificate_never_lies_and_beams_are_valid(qwen2, codes, lengths, beams, normalise_over, factor, seed):
    rng = np.random.default_rng(seed)
    prompts, ids, mask = random_prompts(rng, lengths)
    allowed = rng.random((len(prompts), len(codes))) < 0.7
    allowed[:, rng.integers(len(codes))] = True
    trie = CatalogTrie.from_codes(codes).narrow(allowed)
    widest = None if factor is None else beams * factor
    result = beam_search(qwen2, ids, mask, trie=trie, num_beams=beams, normalise_over=normalise_over, widest=widest)
    oracle = score_catalog(
        qwen2, ids, mask, trie=trie, normalise_over=normalise_over, memory=int(rng.integers(200_000, 3_000_000))
    )
    for row, prompt in enumerate(prompts):
        valid, _ = paths(codes[allowed[row]])
        expected = brute_force(qwen2, prompt, codes[allowed[row]], normalise_over)
        legal = oracle[row] > -torch.inf
        assert [tuple(sid) for sid in trie.sids[legal].tolist()] == valid
        torch.testing.assert_close(oracle[row, legal], expected, atol=1e-4, rtol=0)
        listed = [tuple(sid) for sid in result.tokens[row].tolist() if sid[0] != NO_TOKEN]
        assert len(listed) == len(set(listed)) <= min(beams, len(valid))
        assert set(listed) <= set(valid)
        assert trie.sid(result.leaves[row]).tolist() == result.tokens[row].tolist()
        leaves = [leaf for leaf in result.leaves[row].tolist() if leaf >= 0]
        assert [tuple(codes[trie.items(leaf)[0]].tolist()) for leaf in leaves] == listed
        assert result.scores[row].diff().nan_to_num(0).le(0).all()
        best = expected.sort(descending=True).values[: len(listed)]
        if result.exact[row]:
            assert len(listed) == min(beams, len(valid))
            torch.testing.assert_close(result.scores[row, : len(listed)], best, atol=1e-4, rtol=0)
        if widest is not None and widest >= len(codes):
            assert result.exact[row]


def test_widening_helps_only_the_lists_that_need_it():
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 400, 3, 8)
    trie = CatalogTrie.from_codes(codes)
    model = tiny(seed=3)
    _, ids, mask = random_prompts(rng, [5] * 12)
    plain = beam_search(model, ids, mask, trie=trie, num_beams=5, normalise_over="catalog")
    wide = beam_search(model, ids, mask, trie=trie, num_beams=5, normalise_over="catalog", widest=512)
    assert 0 < plain.exact.sum() < 12
    assert wide.exact.all()
    assert torch.equal(plain.tokens[plain.exact], wide.tokens[plain.exact])
    assert torch.equal(plain.scores[plain.exact], wide.scores[plain.exact])
    best = score_catalog(model, ids, mask, trie=trie, normalise_over="catalog").topk(5).values
    torch.testing.assert_close(wide.scores, best, atol=1e-4, rtol=0)
    assert (plain.scores[:, -1] < best[:, -1] - 1e-3).any()


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


def generate(model, prompt, sids, beams, eos):
    steps = sids.shape[1]
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=0.0,
        max_new_tokens=steps,
        pad_token_id=0,
        eos_token_id=eos,
        logits_processor=[TrieProcessor(sids, prompt.shape[1])],
        return_dict_in_generate=True,
        output_scores=True,
    )


@pytest.mark.parametrize("trailing", [(), (38, 39)])
def test_equals_transformers_generate(model, trailing):
    """With a newline and the end token after every SID the scores are the reference's."""
    rng = np.random.default_rng(3)
    codes = random_codes(rng, 200, 3, 8)
    trie = CatalogTrie.from_codes(codes, trailing=trailing)
    prompt = torch.tensor([rng.integers(0, VOCABULARY, 12).tolist()])
    ours = beam_search(model, prompt, trie=trie, num_beams=10)
    sids = torch.tensor(paths(codes, trailing)[1])
    theirs = generate(model, prompt, sids, 10, trailing[-1] if trailing else VOCABULARY - 1)
    assert ours.tokens[0].tolist() == theirs.sequences[:, 12 : 12 + trie.levels].tolist()
    torch.testing.assert_close(ours.scores[0], theirs.sequences_scores, atol=1e-4, rtol=0)


def test_equals_generate_and_the_oracle_on_the_industrial_catalog(industrial):
    trie, codes, model = industrial
    rng = np.random.default_rng(0)
    prompts = [codes[rng.integers(0, len(codes), items)].reshape(-1).tolist() for items in (10, 3)]
    ids, mask = left_pad(prompts, 0)
    ours = beam_search(model, ids, mask, trie=trie, num_beams=50)
    oracle = score_catalog(model, ids, mask, trie=trie)
    every = {tuple(sid) for sid in trie.sids.tolist()}
    assert len(every) == len(trie) == 3670
    for row, prompt in enumerate(prompts):
        theirs = generate(model, torch.tensor([prompt]), trie.sids, 50, 0)
        assert ours.tokens[row].tolist() == theirs.sequences[:, len(prompt) :].tolist()
        torch.testing.assert_close(ours.scores[row], theirs.sequences_scores, atol=1e-4, rtol=0)
        place = rng.integers(0, len(trie), 20)
        alone = brute_force_some(model, prompt, trie.sids[place])
        torch.testing.assert_close(oracle[row, place], alone, atol=1e-4, rtol=0)
    wide = beam_search(model, ids, mask, trie=trie, num_beams=50, widest=4096)
    assert wide.exact.all()
    torch.testing.assert_close(wide.scores, oracle.topk(50).values, atol=1e-4, rtol=0)


def brute_force_some(model, prompt, sids):
    rows = torch.cat([torch.tensor(prompt).expand(len(sids), -1), sids], dim=1)
    with torch.no_grad():
        logprobs = model(rows).logits.float().log_softmax(-1)
    return logprobs[:, len(prompt) - 1 : -1].gather(-1, sids[..., None]).sum((1, 2))


def test_left_padded_batch_equals_single_runs(model):
    rng = np.random.default_rng(5)
    trie = CatalogTrie.from_codes(random_codes(rng, 100, 3))
    prompts, ids, mask = random_prompts(rng, (2, 11, 6))
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


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_samples_without_replacement_are_unbiased(qwen2, temperature):
    """Inclusion, order and importance weights against the exact distribution, 4,000 draws of 4 out of 18."""
    codes = random_codes(np.random.default_rng(2), 18, 3, 3, ragged=True)
    trie = CatalogTrie.from_codes(codes)
    prompt = torch.tensor([[3, 1, 4]])
    draws, number = 4000, 4
    result = sample_without_replacement(
        qwen2,
        prompt.expand(draws, -1),
        trie=trie,
        num_samples=number,
        seeds=torch.arange(draws),
        temperature=temperature,
    )
    leaf = result.leaves
    assert torch.equal(trie.walk(result.tokens.flatten(0, 1))[:, -1].view(draws, number), leaf)
    assert (leaf >= 0).all()
    assert all(len(set(row)) == number for row in leaf.tolist())
    with torch.no_grad():
        chance = catalog_logprobs(qwen2, [[3, 1, 4]], trie=trie, temperature=temperature)[0].exp()
    torch.testing.assert_close(result.logprobs.exp(), chance[leaf], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(chance.sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    if temperature == 1.0:
        torch.testing.assert_close(chance.log(), brute_force(qwen2, [3, 1, 4], codes, "catalog"), atol=1e-4, rtol=0)
    first = torch.bincount(leaf[:, 0], minlength=len(trie)) / draws
    error = (chance * (1 - chance) / draws).sqrt()
    assert ((first - chance).abs() <= 4.5 * error + 1e-9).all()  # the first of them is a plain draw
    second = torch.bincount(leaf[:, 1], minlength=len(trie)) / draws
    expected = (chance[:, None] * chance / (1 - chance[:, None])).fill_diagonal_(0).sum(0)
    assert ((second - expected).abs() <= 4.5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()
    # The weights estimate expectations over the whole catalog.
    value = torch.arange(len(trie)).float()
    estimates = (result.log_weights().exp() * value[leaf]).sum(1)
    deviation = estimates.std() / math.sqrt(draws)
    assert abs(estimates.mean() - (chance * value).sum()) <= 4.5 * deviation


def test_sampling_more_than_there_is_gives_everything(qwen2):
    codes = random_codes(np.random.default_rng(2), 12, 2, 3)
    trie = CatalogTrie.from_codes(codes)
    result = sample_without_replacement(qwen2, torch.tensor([[1], [2]]), trie=trie, num_samples=20, seeds=torch.tensor([1, 2]))
    for row in range(2):
        listed = sorted(tuple(sid) for sid in result.tokens[row].tolist() if sid[0] != NO_TOKEN)
        assert listed == paths(codes)[0]
    assert torch.equal(result.leaves >= 0, torch.arange(20).expand(2, -1) < len(trie))
    assert (result.threshold == -torch.inf).all()
    torch.testing.assert_close(result.log_weights().exp().sum(1), torch.ones(2), atol=1e-4, rtol=0)


def test_same_seed_same_samples(qwen2):
    trie = CatalogTrie.from_codes(random_codes(np.random.default_rng(2), 50, 3))
    drawn = [
        sample_without_replacement(qwen2, torch.tensor([[1, 2]]), trie=trie, num_samples=5, seeds=torch.tensor([seed])).tokens
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("sample", [sample_with_replacement, sample_without_replacement])
def test_a_prompts_samples_do_not_depend_on_the_rest_of_the_batch(qwen2, sample):
    trie = CatalogTrie.from_codes(random_codes(np.random.default_rng(2), 50, 3, ragged=True))
    ids, mask = left_pad([[1, 2], [4, 1, 2, 5], [3, 2, 2]], 0)
    seeds = torch.tensor([5, -7, 2**60])
    both = sample(qwen2, ids, mask, trie=trie, num_samples=6, seeds=seeds)
    for row, prompt in enumerate(([1, 2], [4, 1, 2, 5], [3, 2, 2])):
        alone = sample(qwen2, torch.tensor([prompt]), trie=trie, num_samples=6, seeds=seeds[row : row + 1])
        assert torch.equal(both.tokens[row], alone.tokens[0])


def test_samples_with_replacement_follow_the_distribution(qwen2):
    codes = random_codes(np.random.default_rng(2), 18, 3, 3, ragged=True)
    trie = CatalogTrie.from_codes(codes)
    prompts, number = 500, 8
    drawn = sample_with_replacement(
        qwen2, torch.tensor([[3, 1, 4]]).expand(prompts, -1), trie=trie, num_samples=number, seeds=torch.arange(prompts)
    )
    leaf = trie.walk(drawn.tokens.flatten(0, 1))[:, -1]
    assert torch.equal(drawn.leaves.flatten(), leaf)
    exact = brute_force(qwen2, [3, 1, 4], codes, "catalog")
    torch.testing.assert_close(drawn.logprobs.flatten(), exact[leaf], atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn.log_weights().exp().sum(1), torch.ones(prompts))
    chance, draws = exact.exp(), prompts * number
    share = torch.bincount(leaf, minlength=len(trie)) / draws
    assert ((share - chance).abs() <= 4.5 * (chance * (1 - chance) / draws).sqrt() + 1e-9).all()
    pairs = leaf.view(prompts, number)
    same = (pairs[:, 0] == pairs[:, 1]).float().mean()  # two samples of a prompt are independent
    expected = chance.square().sum()
    assert abs(same - expected) <= 4.5 * (expected * (1 - expected) / prompts).sqrt()


def test_bad_calls(qwen2):
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3]]))
    prompt = torch.tensor([[1, 2]])
    with pytest.raises(ConstraintError, match="token id 99, but the model's vocabulary has 40"):
        beam_search(qwen2, prompt, trie=CatalogTrie.from_codes(np.array([[1, 99]])), num_beams=2)
    with pytest.raises(ConstraintError, match="padded on the left"):
        beam_search(qwen2, prompt, torch.tensor([[1, 0]]), trie=trie, num_beams=2)
    with pytest.raises(ConstraintError, match="padded on the left"):
        beam_search(qwen2, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 0, 1]]), trie=trie, num_beams=2)
    with pytest.raises(ConstraintError, match="must not be empty"):
        beam_search(qwen2, prompt[:, :0], trie=trie, num_beams=2)
    with pytest.raises(ConstraintError, match="num_beams is 0"):
        beam_search(qwen2, prompt, trie=trie, num_beams=0)
    with pytest.raises(ConstraintError, match="widest is 1, below num_beams, which is 2"):
        beam_search(qwen2, prompt, trie=trie, num_beams=2, widest=1)
    with pytest.raises(ConstraintError, match="must be 'vocabulary' or 'catalog'"):
        beam_search(qwen2, prompt, trie=trie, num_beams=2, normalise_over="children")
    with pytest.raises(ConstraintError, match="view of 3 requests, but there are 1 prompts"):
        beam_search(qwen2, prompt, trie=trie.narrow(np.ones((3, 2), dtype=bool)), num_beams=2)
    open_ended = CatalogTrie.from_codes(np.array([[1, NO_TOKEN], [1, 3]]))
    assert beam_search(qwen2, prompt, trie=open_ended, num_beams=2).tokens[0].tolist() == [[1, NO_TOKEN], [1, 3]]
    with pytest.raises(ConstraintError, match="beginning of another"):
        beam_search(qwen2, prompt, trie=open_ended, num_beams=2, normalise_over="catalog")
    seeds = torch.tensor([0])
    with pytest.raises(ConstraintError, match="num_samples is 0"):
        sample_without_replacement(qwen2, prompt, trie=trie, num_samples=0, seeds=seeds)
    with pytest.raises(ConstraintError, match="temperature is 0"):
        sample_without_replacement(qwen2, prompt, trie=trie, num_samples=1, seeds=seeds, temperature=0)
    with pytest.raises(ConstraintError, match=r"int64 seed per prompt, of shape \(1,\)"):
        sample_without_replacement(qwen2, prompt, trie=trie, num_samples=1, seeds=torch.tensor([0, 1]))
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 2}
    layers = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}
    windowed = Qwen2ForCausalLM(Qwen2Config(**sizes, **layers)).eval()
    with pytest.raises(ConstraintError, match="A path of 3 tokens is longer than the model's attention window of 2"):
        beam_search(windowed, prompt, trie=trie, num_beams=2)
    with pytest.raises(ConstraintError, match="no prompt in the batch"):
        beam_search(qwen2, prompt[:0], trie=trie, num_beams=2)
    with pytest.raises(ConstraintError, match=r"call model\.eval\(\)"):
        beam_search(tiny().train(), prompt, trie=trie, num_beams=2)


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_windows_that_hold_every_path(kind):
    """A window that is shorter than the prompt and all beams together, but holds each of them."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 48, "initializer_range": 0.3, "sliding_window": 16}
    torch.manual_seed(0)
    if kind == "qwen2":
        layers = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}
        windowed = Qwen2ForCausalLM(Qwen2Config(**sizes, **layers)).eval()
    else:
        windowed = MistralForCausalLM(MistralConfig(**sizes, head_dim=8)).eval()
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 40, 3)
    prompt = rng.integers(0, VOCABULARY, 10).tolist()
    result = beam_search(windowed, torch.tensor([prompt]), trie=CatalogTrie.from_codes(codes), num_beams=40)
    assert_is_ranking_of(result.tokens[0], result.scores[0], brute_force(windowed, prompt, codes), paths(codes)[0], 1e-4)
    with pytest.raises(ConstraintError, match="A path of 17 tokens is longer than the model's attention window of 16"):
        beam_search(windowed, torch.tensor([prompt + prompt[:5]]), trie=CatalogTrie.from_codes(codes), num_beams=2)


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
def test_adapters_are_part_of_the_model(normalise_over):
    """LoRA in the layers and in the head: the same list as the merged model's."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)).eval()
    trie = CatalogTrie.from_codes(random_codes(np.random.default_rng(1), 40, 3))
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    before = beam_search(adapted, prompt, trie=trie, num_beams=10, normalise_over=normalise_over)
    merged = beam_search(adapted.merge_and_unload(), prompt, trie=trie, num_beams=10, normalise_over=normalise_over)
    assert torch.equal(before.tokens, merged.tokens)
    torch.testing.assert_close(before.scores, merged.scores, atol=1e-4, rtol=0)
