"""A T5 on the tree against plain forwards and transformers' own beam search."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from minionerec.artifacts import read_json
from minionerec.errors import ConstraintError
from minionerec.tree import (
    NO_TOKEN,
    Branch,
    CatalogTrie,
    Prior,
    beam_search,
    left_pad,
    pack,
    sample_without_replacement,
    score_catalog,
    score_leaves,
    search_levels,
    tree_logprobs,
)
from minionerec.tree.architecture import Widths
from minionerec.tree.prompt_cache import PromptCache
from minionerec.tree.self_test import check_exact
from tests.examples import examples
from tests.shared import shared
from tests.tree.conftest import VOCABULARY, catalogs, paths, random_codes
from tests.tree.test_prior import random_prior, random_prompts, random_view

SIZES = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
HALVES = ("encoder", "decoder")
START = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}


def tiny_t5(attention="sdpa", **options):
    """A T5 whose scores, and whose biases of distances, differ by more than rounding."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**{**SIZES, **START, **options})).eval()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_(std=2)
    return model


def test_the_widths_by_which_memory_is_counted_are_those_of_its_layers():
    assert Widths.of(T5Config(**{**SIZES, "d_ff": 100})) == Widths(heads=2, attention=16, key_value=16, feed_forward=100)


@pytest.fixture(scope="module", params=["sdpa", "eager", "unscaled"])
def t5(request):
    return tiny_t5("sdpa", tie_word_embeddings=False) if request.param == "unscaled" else tiny_t5(request.param)


@pytest.fixture(scope="module")
def plain_t5():
    return tiny_t5()


@torch.no_grad()
def teacher_forced(model, prompt, codes, over="vocabulary", legal=None):
    """Score each SID by a plain forward of its own, (SIDs,) in the trie's order; -inf for those that are not legal."""
    sids, generated = paths(codes)
    kept = [path for sid, path in zip(sids, generated, strict=True) if legal is None or sid in legal]
    scores = []
    for sid, path in zip(sids, generated, strict=True):
        if legal is not None and sid not in legal:
            scores.append(-torch.inf)
            continue
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *path[:-1]]])).logits[0]
        score = 0.0
        for step, token in enumerate(path):
            row = logits[step]
            if over == "catalog":
                allowed = sorted({other[step] for other in kept if other[:step] == path[:step] and len(other) > step})
                row = torch.full_like(row, -torch.inf).index_copy(0, torch.tensor(allowed), row[allowed])
            score += float(row.log_softmax(-1)[token])
        scores.append(score)
    return torch.tensor(scores)


@examples(5)
@given(catalogs(15), st.integers(1, 8), st.sampled_from(["vocabulary", "catalog"]), st.integers(0, 999))
def test_beams_and_exact_scores_are_those_of_plain_forwards(t5, codes, beams, over, seed):
    """Prompts of several lengths, padded on the left, against one forward per prompt and SID."""
    prompts, ids, mask = random_prompts(np.random.default_rng(seed), 2)
    trie = CatalogTrie.from_codes(codes)
    options = {"trie": trie, "normalise_over": over}
    result = beam_search(t5, ids, mask, num_beams=beams, **options)
    oracle = score_catalog(t5, ids, mask, **options)
    everything = torch.arange(len(trie)).expand(2, -1)
    torch.testing.assert_close(score_leaves(t5, ids, mask, leaves=everything, **options), oracle, atol=1e-5, rtol=1e-5)
    for row, prompt in enumerate(prompts):
        expected = teacher_forced(t5, prompt, codes, over)
        torch.testing.assert_close(oracle[row], expected, atol=2e-5, rtol=1e-5)
        leaves = result.leaves[row][result.leaves[row] >= 0]
        listed = result.scores[row, : len(leaves)]
        torch.testing.assert_close(listed, expected[leaves], atol=2e-5, rtol=1e-5)
        if result.exact[row]:
            torch.testing.assert_close(listed, expected.sort(descending=True).values[: len(leaves)], atol=2e-5, rtol=1e-5)
            assert len(leaves) == min(beams, len(trie))
    widened = beam_search(t5, ids, mask, num_beams=beams, widest=max(beams, len(trie)), **options)
    assert widened.exact.all()


@examples(6)
@given(catalogs(20), st.sampled_from(["one mask", "masks", "hidden", "listed"]), st.integers(0, 999))
def test_views_are_respected(plain_t5, codes, kind, seed):
    rng = np.random.default_rng(seed)
    prompts, ids, mask = random_prompts(rng, 2)
    view, allowed = random_view(rng, CatalogTrie.from_codes(codes), codes, 2, kind)
    result = beam_search(plain_t5, ids, mask, trie=view, num_beams=30, normalise_over="catalog")
    for row, prompt in enumerate(prompts):
        legal = {tuple(sid) for sid in codes[np.flatnonzero(allowed[row])].tolist()}
        expected = teacher_forced(plain_t5, prompt, codes, "catalog", legal)
        assert result.exact[row] and int((result.leaves[row] >= 0).sum()) == len(legal)
        torch.testing.assert_close(
            result.scores[row, : len(legal)], expected.sort(descending=True).values[: len(legal)], atol=2e-5, rtol=1e-5
        )


def check_against_generate(model, codes, ids, mask, beams):
    """Our lists are those of transformers' beam search over the same trie, and the scores differ by 1e-5 at most."""
    continued = {}
    for sid in codes.tolist():
        for level, code in enumerate(sid):
            continued.setdefault((*sid[:level],), set()).add(code)
    output = model.generate(
        ids,
        attention_mask=mask,
        prefix_allowed_tokens_fn=lambda _, generated: sorted(continued[(*generated[1:].tolist(),)]),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=0.0,
        max_new_tokens=codes.shape[1],
        min_new_tokens=codes.shape[1],
        return_dict_in_generate=True,
        output_scores=True,
    )
    ours = beam_search(model, ids, mask, trie=CatalogTrie.from_codes(codes), num_beams=beams)
    torch.testing.assert_close(ours.scores, output.sequences_scores.view(len(ids), beams), atol=1e-5, rtol=0)
    assert torch.equal(ours.tokens, output.sequences[:, 1:].view(len(ids), beams, -1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_lists_are_those_of_transformers_generate(attention):
    """On six prompts of several lengths padded on the left."""
    rng = np.random.default_rng(0)
    codes = 2 + random_codes(rng, 60, 3, 6)  # 0 and 1 would begin and end what generate writes
    _, ids, mask = random_prompts(rng, 6)
    assert not mask.all()
    check_against_generate(tiny_t5(attention), codes, ids, mask, beams=20)


def test_lists_of_beauty_are_those_of_transformers_generate():
    """LETTER's catalog of 12,101 items in SIDs of four codes, its sizes for TIGER, random weights, histories of 16 users."""
    index, users = (read_json(shared(f"data/letter/Beauty.{name}.json")) for name in ("index", "inter"))
    numbers = {code: 2 + number for number, code in enumerate(sorted({code for sid in index.values() for code in sid}))}
    codes = np.array([[numbers[code] for code in index[str(item)]] for item in range(len(index))])
    chosen = range(100, 116)  # neighbours in their lists lie 1e-3 or more apart: no rounding orders them
    ids, mask = left_pad([codes[users[str(user)][-10:]].flatten().tolist() for user in chosen], 0, torch.device("cpu"))
    assert len(codes) == 12_101 and not mask.all()
    sizes = {"d_model": 128, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 6}
    check_against_generate(tiny_t5(**sizes, vocab_size=2 + len(numbers)), codes, ids, mask, beams=20)


def test_a_row_does_not_depend_on_its_batch(plain_t5):
    rng = np.random.default_rng(2)
    trie = CatalogTrie.from_codes(random_codes(rng, 40, 3))
    prompts, ids, mask = random_prompts(rng, 4)
    together = beam_search(plain_t5, ids, mask, trie=trie, num_beams=6, widest=40)
    for row, prompt in enumerate(prompts):
        alone = beam_search(plain_t5, torch.tensor([prompt]), trie=trie, num_beams=6, widest=40)
        assert torch.equal(alone.leaves[0], together.leaves[row])
        torch.testing.assert_close(alone.scores[0], together.scores[row], atol=1e-5, rtol=0)


def test_the_order_of_the_catalog_changes_nothing(plain_t5):
    rng = np.random.default_rng(3)
    codes = random_codes(rng, 40, 3)
    _, ids, mask = random_prompts(rng, 2)
    first, second = (
        beam_search(plain_t5, ids, mask, trie=CatalogTrie.from_codes(some), num_beams=6)
        for some in (codes, rng.permutation(codes))
    )
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.scores, second.scores)


def test_levels_samples_and_priors_take_a_t5_too(plain_t5):
    rng = np.random.default_rng(4)
    codes = random_codes(rng, 20, 3)
    trie = CatalogTrie.from_codes(codes)
    prompts, ids, mask = random_prompts(rng, 1)
    expected = teacher_forced(plain_t5, prompts[0], codes, "catalog")
    levels = search_levels(plain_t5, ids, mask, trie=trie, num_beams=4, normalise_over="catalog")
    torch.testing.assert_close(levels[-1].scores[0], expected[levels[-1].nodes[0]], atol=2e-5, rtol=1e-5)
    drawn = sample_without_replacement(plain_t5, ids, mask, trie=trie, num_samples=3, seeds=torch.tensor([5]))
    torch.testing.assert_close(drawn.logprobs[0], expected[drawn.leaves[0]], atol=2e-5, rtol=1e-5)
    prior = random_prior(rng, 1, len(trie))
    mixed = Prior(prior.leaves, torch.tensor([0.4]))
    scores = score_catalog(plain_t5, ids, mask, trie=trie.mixed(mixed), normalise_over="catalog")
    chances = 0.6 * expected.double().exp() + 0.4 * prior.leaves[0]
    torch.testing.assert_close(scores[0].double(), chances.log(), atol=2e-5, rtol=1e-5)


def test_short_sids(plain_t5):
    codes = np.array([[3, NO_TOKEN], [4, 5], [4, 6]])
    scores = score_catalog(plain_t5, torch.tensor([[7, 8]]), trie=CatalogTrie.from_codes(codes))
    torch.testing.assert_close(scores[0], teacher_forced(plain_t5, [7, 8], codes), atol=1e-5, rtol=1e-5)


def test_the_model_is_checked_on_its_own_weights(plain_t5, monkeypatch):
    check_exact(plain_t5)
    from minionerec.tree import encoder_decoder

    right = encoder_decoder._bias
    monkeypatch.setattr(encoder_decoder, "_bias", lambda attention, distances: torch.zeros_like(right(attention, distances)))
    with pytest.raises(ConstraintError, match="gives other numbers on a tree than in plain forwards"):
        check_exact(plain_t5)  # as if siblings in the row had the distances that T5 counts


def test_encoder_decoders_with_other_positions_and_training_on_trees_are_refused(plain_t5):
    prompt, trie = torch.tensor([[2, 3]]), CatalogTrie.from_codes(np.array([[4, 5]]))
    umt5 = UMT5ForConditionalGeneration(UMT5Config(**SIZES, **START)).eval()
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    ).eval()
    for model in (umt5, bart):
        with pytest.raises(ConstraintError, match="encoder-decoder whose positions a tree cannot set"):
            beam_search(model, prompt, trie=trie, num_beams=1)
    batch = pack([Branch([2, 3], [4, 5])], row_tokens=8)
    with pytest.raises(
        ConstraintError, match=r"Searches and exact scores take a T5; .* decoder-only .* --baseline\.model tiger"
    ):
        tree_logprobs(plain_t5, batch)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_tree_has_the_gradients_of_transformers_own_loss(attention):
    """Embeddings and both tables of distances, through the tree's mask, which holds the model's own bias."""
    model = tiny_t5(attention)
    ids, mask = left_pad([[5, 6, 7], [8, 9]], 0, torch.device("cpu"))
    codes = torch.tensor([[2, 4], [2, 5], [3, 4]])  # the second and the third are what the prompts are followed by
    names = ("shared.weight", *(f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for half in HALVES))
    tables = [model.get_parameter(name) for name in names]
    loss = model(input_ids=ids, attention_mask=mask, labels=codes[1:]).loss
    prompts = PromptCache.compute(model, ids, mask, CatalogTrie.from_codes(codes), "vocabulary")
    firsts = prompts.child_logprobs(0, torch.zeros(2, 1, dtype=torch.long), prompts.last)[2][:, 0]
    both = torch.tensor([[2, 3]]).expand(2, -1)  # siblings in one row, whose distances the mask corrects
    states = prompts.extend(both, 0, torch.eye(2).bool().expand(2, -1, -1))
    seconds = prompts.child_logprobs(1, both - 2, states)[2]
    logprobs = torch.stack([firsts[0, 0], seconds[0, 0, 1], firsts[1, 1], seconds[1, 1, 0]])
    torch.testing.assert_close(-logprobs.mean(), loss, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(-logprobs.mean(), tables), torch.autograd.grad(loss, tables), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
