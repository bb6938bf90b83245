"""Item texts: in a tree as in plain texts, saved with the model, refused where they cannot be computed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import Config, EvalConfig, ModelConfig, SftConfig
from minionerec.errors import ConfigError, ConstraintError
from minionerec.model import base, checkpoint
from minionerec.model.item_text import ItemTextForCausalLM, ItemTexts, item_text_model, tokens_before, unit_vectors
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.sft.trainer import TreeCollator, TreeTrainer
from minionerec.sft.trees import build_trees, examples_by_task
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
    tree_logprobs,
)
from minionerec.tree.leaf_component import branch_logprobs, check_leaves, mixed
from minionerec.tree.prompt_cache import PromptCache
from tests.examples import examples
from tests.small import random_dataset, untrained_model

SIZES = {"hidden_size": 16, "intermediate_size": 24, "layers": 2, "heads": 2, "vocabulary": 300}
DATASET, INDEX = random_dataset()
VECTORS = np.random.default_rng(1).normal(size=(30, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def model_and_prompts():
    config = ModelConfig(**SIZES, text_input=True, text_output=True)
    model, tokenizer = base.base_model(config, INDEX, tokenizer_corpus(DATASET), 0, vectors=lambda: VECTORS)
    with torch.no_grad():  # weights that matter
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), Prompts(DATASET, INDEX, tokenizer)


def completed_one_by_one(path, sids):
    """The leaf of the SID that a token sequence ends with, by comparison with every SID."""
    for leaf, sid in enumerate(sids):
        if path[-len(sid) :] == sid:
            return leaf
    return -1


@st.composite
def catalogs(draw):
    """SIDs that no other SID begins with, some short; tokens of a level are of that level alone."""
    rows = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(2, 4), st.integers(5, 7)), min_size=1, max_size=8))
    short = draw(st.sets(st.tuples(st.integers(0, 1), st.integers(2, 4)), max_size=2))
    rows = [(*row[:2], NO_TOKEN) if row[:2] in short else row for row in rows]
    return torch.tensor(rows)


@given(catalogs(), st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=4))
@examples(60)
def test_tokens_that_complete_a_sid_in_trees_and_in_plain_texts(sid_tokens, texts):
    table = ItemTexts(len(sid_tokens), 3, 2)
    table.sid_tokens.copy_(sid_tokens)
    trie = CatalogTrie.from_codes(sid_tokens)
    sids = [[token for token in row if token != NO_TOKEN] for row in trie.sids.tolist()]
    ids, mask = left_pad(texts, 9)
    found = table.paths.completed(ids, tokens_before(ids, mask, None)).tolist()
    for text, leaves in zip(texts, found, strict=True):
        expected = [completed_one_by_one(text[: end + 1], sids) for end in range(len(text))]
        assert leaves[len(leaves) - len(text) :] == expected
    # The same texts as one tree: every node has the leaf of its path.
    batch = pack([Branch(text, [8]) for text in texts], row_tokens=20)
    for attention in (batch.ancestors, torch.zeros(batch.ancestors.shape).masked_fill(~batch.ancestors, -1e30)):
        before = tokens_before(batch.input_ids, attention, batch.position_ids)
        in_tree = table.paths.completed(batch.input_ids, before)
        for row, column in batch.predicting.nonzero().tolist():
            path, place = [], column
            while place >= 0:
                path.insert(0, int(batch.input_ids[row, place]))
                place = int(before[row, place])
            assert path in texts and in_tree[row, column] == completed_one_by_one(path, sids)


def plain_logprob(model, trie, prompt, sid):
    """Log-probability of a SID in a plain text, over the children of its prefixes; by the second distribution; its logit."""
    hidden = model.model(input_ids=torch.tensor([[*prompt, *sid]])).last_hidden_state[0, len(prompt) - 1 :]
    nodes = [0, *trie.walk(torch.tensor([sid]))[0].tolist()]
    total = torch.zeros(())
    for level, token in enumerate(sid):
        _, tokens, _ = trie.children(level, torch.tensor([nodes[level]]))
        logits = model.lm_head(hidden[level])[tokens[0]]
        total = total + logits.log_softmax(0)[tokens[0].tolist().index(token)]
    dense, gate = model.leaf_component(hidden[:1])
    return total, dense[0, nodes[-1]], gate[0]


def test_the_loss_of_trees_is_that_of_plain_texts(model_and_prompts):
    model, prompts = model_and_prompts
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    examples = examples_by_task(prompts, ["history_sid_to_sid", "title_to_sid"], "train", 6)
    branches = [branch for tree in build_trees(examples, 6).trees for branch in tree][::9][:14]
    batch = pack(branches, row_tokens=64, trie=trie)
    result = tree_logprobs(model, batch, trie=trie)
    numbers, *parts = branch_logprobs(model, batch, result, result.logprobs, trie)
    assert numbers.tolist() == list(range(len(branches)))
    expected = [plain_logprob(model, trie, [*branch.prompt], [*branch.completion]) for branch in branches]
    for part, values in zip(parts, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(values), atol=2e-5, rtol=1e-4)
    loss = -mixed(*parts).sum()
    plain = -sum(mixed(*values) for values in expected)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_vectors_move_the_states_and_only_behind_complete_items(model_and_prompts):
    model, prompts = model_and_prompts
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    ids = torch.tensor([prompts.ask([3, 7])])
    leaves = model.model.texts.paths.completed(ids, tokens_before(ids, None, None))[0]
    assert leaves[leaves >= 0].tolist() == trie.leaf_of_item[[3, 7]].tolist()
    with_vectors = model.model(input_ids=ids).last_hidden_state
    without = model.model(inputs_embeds=model.model.embed_tokens(ids)).last_hidden_state
    first = int((leaves >= 0).nonzero()[0])
    assert torch.equal(with_vectors[:, :first], without[:, :first])
    assert (with_vectors - without)[0, first:].abs().amax(-1).min() > 1e-4


def test_a_cache_holds_what_a_plain_text_computes(model_and_prompts):
    model, prompts = model_and_prompts
    texts = [prompts.ask([3, 7, 1]), prompts.ask([2])]
    ids, mask = left_pad(texts, prompts.tokenizer.pad_token_id)
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    last = PromptCache.compute(model, ids, mask, trie, "catalog").last[:, 0]
    for text, state in zip(texts, last, strict=True):
        plain = model.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1]
        torch.testing.assert_close(state, plain, atol=1e-5, rtol=1e-4)


def test_saved_and_loaded(model_and_prompts, tmp_path):
    model, prompts = model_and_prompts
    checkpoint.save(model, prompts.tokenizer, tmp_path)
    loaded, tokenizer = checkpoint.load(tmp_path)  # runs the small tree too
    assert isinstance(loaded, ItemTextForCausalLM) and type(tokenizer) is type(prompts.tokenizer)
    assert item_text_model(loaded) is loaded
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    ids = torch.tensor([prompts.ask([3, 7, 1])])
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not (tmp_path / "modeling.py").exists()


def test_the_first_weights_are_those_of_the_model_without_texts():
    config = ModelConfig(**SIZES, text_input=True, text_output=True)
    model, _ = base.base_model(config, INDEX, tokenizer_corpus(DATASET), 0, vectors=lambda: VECTORS)
    plain, _ = untrained_model(DATASET, INDEX, ModelConfig(**SIZES))
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert {*state} - {*plain.state_dict()} == {
        "model.texts.vectors",
        "model.texts.sid_tokens",
        "model.text_in.weight",
        "text_out.weight",
        "text_gate.weight",
        "text_gate.bias",
    }
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_untrained_model_knows_what_the_last_item_s_text_is_like():
    dataset, index = DATASET, INDEX
    config = ModelConfig(**{**SIZES, "hidden_size": 64}, text_input=True, text_output=True)
    model, tokenizer = base.base_model(config, index, tokenizer_corpus(dataset), 0, vectors=lambda: VECTORS)
    prompts, table = Prompts(dataset, index, tokenizer), unit_vectors(VECTORS)
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    for item in range(30):
        state = model.model(input_ids=torch.tensor([prompts.ask([5, item])])).last_hidden_state[:, -1]
        dense = model.leaf_component(state)[0][0, trie.leaf_of_item.long()]
        similar = table @ table[item]
        assert torch.corrcoef(torch.stack([dense, similar]))[0, 1] > 0.6


def test_another_catalog_is_refused(model_and_prompts):
    model, prompts = model_and_prompts
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    check_leaves(model, trie)
    with pytest.raises(ConstraintError, match=r"text vectors of a catalog of \d+ SIDs, but the trie holds"):
        check_leaves(model, CatalogTrie.from_codes(prompts.sid_tokens[:-1]))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    others = state["model.texts.sid_tokens"].clone()
    others[:, 0] = others[:, 0].flip(0)
    model.load_state_dict(state | {"model.texts.sid_tokens": others})  # the trie that was found to fit does not fit any more
    with pytest.raises(ConstraintError, match="text vectors of a catalog"):
        check_leaves(model, trie)
    model.load_state_dict(state)
    check_leaves(model, trie)


def test_unit_vectors():
    table = unit_vectors(np.array([[1, 1], [3, 1], [2, 1], [2, 1]], dtype=np.float32))
    assert table.tolist() == [[-1, 0], [1, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, r"sft\.normalise_over is vocabulary.*Set sft\.normalise_over catalog"),
        ({"sft": SftConfig(normalise_over="catalog")}, r"eval\.normalise_over is vocabulary"),
        (
            {"sft": SftConfig(normalise_over="catalog"), "eval": EvalConfig(normalise_over="catalog")},
            r"eval\.oracle_examples is 128.*Set eval\.oracle_examples 0",
        ),
        (
            {
                "sft": SftConfig(normalise_over="catalog", level_weights=[1.0, 2.0, 1.0]),
                "eval": EvalConfig(normalise_over="catalog", oracle_examples=0),
            },
            r"sft\.level_weights is",
        ),
    ],
)
def test_settings_that_a_mixture_cannot_be_computed_with(sections, message):
    with pytest.raises(ConfigError, match=message):
        Config(model=ModelConfig(text_output=True), **sections)


def test_pretrained_models_are_refused():
    with pytest.raises(ConfigError, match=r"model\.text_input is true, but model\.init is from_pretrained"):
        ModelConfig(init="from_pretrained", path="some/model", text_input=True)


def test_trainer_s_loss_is_the_mixture_s(model_and_prompts, tmp_path):
    from transformers import TrainingArguments

    model, prompts = model_and_prompts
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    examples = examples_by_task(prompts, ["history_sid_to_sid", "sid_to_title"], "train", 6)
    trees = build_trees(examples, 6).trees
    trees = [*trees[:4], *trees[-4:]]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=8)
    trainer = TreeTrainer(model=model, args=arguments, trie=trie, normalise_over="catalog", train_dataset=trees)
    fields = TreeCollator(64, trie)(trees)
    loss, count = trainer._summed_loss(model, fields)
    branches = [branch for tree in trees for branch in tree]
    batch = pack(branches, row_tokens=64, trie=trie)
    result = tree_logprobs(model, batch, trie=trie)
    numbers, *parts = branch_logprobs(model, batch, result, result.logprobs, trie)
    assert 0 < len(numbers) < len(branches)
    text = sum(tree_logprobs(model, pack([branch], row_tokens=64)).logprobs.sum() for branch in branches if not branch.is_sid)
    torch.testing.assert_close(loss, -mixed(*parts).sum() - text, atol=1e-3, rtol=1e-5)
    assert count == sum(len(branch.completion) for branch in branches)


def mixture_of_all(model, trie, text):
    """Probabilities of all SIDs after a prompt, one plain text each."""
    sids = [[token for token in row if token != NO_TOKEN] for row in trie.sids.tolist()]
    parts = [plain_logprob(model, trie, text, sid) for sid in sids]
    return torch.stack([mixed(*part) for part in parts]).exp()


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
def test_search_and_exact_scores_are_those_of_the_mixture(model_and_prompts, cached):
    model, prompts = model_and_prompts
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    texts = [prompts.ask([3, 7, 1]), prompts.ask([2]), prompts.ask([9, 9])]
    ids, mask = left_pad(texts, prompts.tokenizer.pad_token_id)
    expected = torch.stack([mixture_of_all(model, trie, text) for text in texts])
    torch.testing.assert_close(expected.sum(1), torch.ones(3), atol=1e-4, rtol=0)
    if cached:
        cache = torch.rand(3, len(trie), generator=torch.Generator().manual_seed(0)).softmax(1)
        share = torch.tensor([0.0, 0.3, 0.9])
        expected = (1 - share)[:, None] * expected + share[:, None] * cache
        trie = trie.mixed(Prior(cache, share))
    options = {"trie": trie, "normalise_over": "catalog"}
    torch.testing.assert_close(score_catalog(model, ids, mask, **options).exp(), expected, atol=1e-5, rtol=1e-3)
    leaves = expected.argsort(descending=True)[:, :4]
    scores = score_leaves(model, ids, mask, leaves=leaves, **options)
    torch.testing.assert_close(scores.exp(), expected.gather(1, leaves), atol=1e-5, rtol=1e-3)
    for beams in (3, 8, len(trie)):
        found = beam_search(model, ids, mask, num_beams=beams, **options)
        torch.testing.assert_close(found.scores.exp(), expected.gather(1, found.leaves), atol=1e-5, rtol=1e-3)
        best = expected.topk(beams).values
        for row in found.exact.nonzero().flatten().tolist():  # a list that is proven is the exact top
            torch.testing.assert_close(found.scores[row].exp(), best[row], atol=1e-5, rtol=1e-3)
    assert found.exact.all()
    wider = beam_search(model, ids, mask, num_beams=3, widest=len(trie), **options)
    assert wider.exact.all()
    torch.testing.assert_close(wider.scores.exp(), expected.topk(3).values, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_samples_follow_the_mixture(model_and_prompts):
    model, prompts = model_and_prompts
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    text = prompts.ask([3, 7, 1])
    expected = mixture_of_all(model, trie, text)
    seeds = torch.arange(3000)
    prompt = torch.tensor([text]).expand(len(seeds), -1)
    drawn = sample_without_replacement(model, prompt, trie=trie, num_samples=1, seeds=seeds)
    torch.testing.assert_close(drawn.logprobs[:, 0].exp(), expected[drawn.leaves[:, 0]], atol=1e-5, rtol=1e-3)
    shares = torch.bincount(drawn.leaves[:, 0], minlength=len(trie)) / len(seeds)
    assert (shares - expected).abs().max() < 4 * (0.25 / len(seeds)) ** 0.5


def test_the_vocabulary_is_refused(model_and_prompts):
    model, prompts = model_and_prompts
    trie = CatalogTrie.from_codes(prompts.sid_tokens)
    with pytest.raises(ConstraintError, match="needs normalise_over 'catalog'"):
        beam_search(model, torch.tensor([prompts.ask([2])]), trie=trie, num_beams=2)
