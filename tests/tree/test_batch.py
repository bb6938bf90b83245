from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.errors import ConstraintError
from minionerec.tree import NO_TOKEN, Branch, CatalogTrie, pack, tree_logprobs
from tests.examples import examples
from tests.tree.conftest import VOCABULARY, paths, random_codes
from tests.tree.plain_pack import pack as plain_pack


def one_by_one(model, branches, legal=None, temperature=1.0):
    """Log-probability and entropy of every label, each branch alone: the slow and obvious way.

    `legal` gives the catalog's paths, for completions that are SIDs.
    """
    logprobs, entropies = [], []
    for branch in branches:
        ids = torch.tensor([[*branch.prompt, *branch.completion]])
        logits = model(ids).logits[0].float() / temperature
        for step, token in enumerate(branch.completion):
            if branch.weights is not None and branch.weights[step] == 0:
                continue
            row = logits[len(branch.prompt) - 1 + step]
            if legal is not None and branch.is_sid:
                before = tuple(branch.completion[:step])
                allowed = sorted({path[step] for path in legal if path[:step] == before and len(path) > step})
                row = torch.full_like(row, -1e9).index_copy(0, torch.tensor(allowed), row[allowed])
            distribution = row.log_softmax(-1)
            logprobs.append(distribution[token])
            entropies.append(-(distribution.exp() * distribution).sum())
    return torch.stack(logprobs), torch.stack(entropies)


def means(model, branches, legal, temperature):
    """Mean log-probability of the tokens that are legal in each label's place, over themselves and over the vocabulary."""
    within, without = [], []
    for branch in branches:
        logits = model(torch.tensor([[*branch.prompt, *branch.completion]])).logits[0].float() / temperature
        for step, token in enumerate(branch.completion):
            row = logits[len(branch.prompt) - 1 + step]
            before = tuple(branch.completion[:step])
            allowed = sorted({path[step] for path in legal if path[:step] == before and len(path) > step})
            within.append(row[allowed].log_softmax(-1).mean() if branch.is_sid else row.log_softmax(-1)[token])
            without.append(row.log_softmax(-1)[allowed if branch.is_sid else [token]].mean())
    return torch.stack(within), torch.stack(without)


def random_branches(rng, trees):
    """Users' histories that grow: a branch's prompt holds the first tokens of a common trunk, then a question."""
    branches = []
    for _ in range(trees):
        trunk = rng.integers(0, VOCABULARY, 20).tolist()
        for cut in rng.integers(1, 20, rng.integers(1, 6)):
            completion = rng.integers(0, 12, rng.integers(1, 5)).tolist()
            weights = rng.choice([0.0, 0.5, 2.0], len(completion)).tolist() if rng.random() < 0.5 else None
            branches.append(Branch([*trunk[:cut], 7], completion, weights))
    branches.append(Branch([1], [2]))
    return [branches[place] for place in rng.permutation(len(branches))]


def groups(rng, codes, prompts, size):
    """GRPO's groups: prompts with several SIDs each, as paths of the trie, and a title as well."""
    branches = []
    for _ in range(prompts):
        prompt = rng.integers(0, VOCABULARY, rng.integers(1, 15)).tolist()
        for sid in codes[rng.integers(0, len(codes), size)].tolist():
            branches.append(Branch(prompt, [token for token in sid if token != NO_TOKEN], is_sid=True))
    branches.append(Branch([5, 6], [1, 2, 3, 4, 5]))
    return branches


def assert_same_gradients(model, ours, theirs):
    ours.backward()
    computed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    theirs.backward()
    for gradient, parameter in zip(computed, model.parameters(), strict=True):
        assert (gradient - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-9
    model.zero_grad()


def assert_packed_as_plainly(branches, row_tokens, trie=None):
    """All tensors are those of packing branch by branch, to the last bit and in the same types."""
    batch, expected = pack(branches, row_tokens=row_tokens, trie=trie), plain_pack(branches, row_tokens=row_tokens, trie=trie)
    for name, value in expected.items():
        found = getattr(batch, name)
        if torch.is_tensor(value):
            assert found.dtype == value.dtype and torch.equal(found, value), name
        else:
            assert found == value and type(found) is type(value), name
    return batch


@examples(60)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 120))
def test_packing_equals_packing_branch_by_branch(seed, trees, row_tokens):
    rng = np.random.default_rng(seed)
    branches = random_branches(rng, trees)
    branches += [branches[place] for place in rng.integers(0, len(branches), rng.integers(0, 4))]  # the same ones again
    mixed = [replace(branch, prompt=np.array(branch.prompt, dtype=np.int32)) for branch in branches[::2]] + branches[1::2]
    plain = assert_packed_as_plainly(branches, row_tokens)
    assert torch.equal(pack(mixed, row_tokens=row_tokens).input_ids, plain.input_ids)
    codes = random_codes(rng, int(rng.integers(1, 30)), int(rng.integers(1, 5)), ragged=bool(seed % 2))
    assert_packed_as_plainly(groups(rng, codes, trees, 4), row_tokens, CatalogTrie.from_codes(codes))


@examples(30)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(26, 90))
def test_a_renumbered_batch_is_that_of_the_branches_in_their_new_order(seed, trees, row_tokens):
    rng = np.random.default_rng(seed)
    branches = random_branches(rng, trees)
    branches += branches[: int(rng.integers(0, 3))]
    order = rng.permutation(len(branches))
    numbers = torch.from_numpy(np.argsort(order))  # branch order[i] becomes the i-th
    found = pack(branches, row_tokens=row_tokens).renumbered(numbers)
    expected = pack([branches[place] for place in order], row_tokens=row_tokens)
    for name, value in expected.tensors().items():
        assert torch.equal(getattr(found, name), value) if torch.is_tensor(value) else getattr(found, name) == value, name


@examples(20)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 90))
def test_logprobs_equal_one_by_one(qwen2, seed, trees, row_tokens):
    branches = random_branches(np.random.default_rng(seed), trees)
    with torch.no_grad():
        expected, entropies = one_by_one(qwen2, branches)
        computed = tree_logprobs(qwen2, pack(branches, row_tokens=row_tokens), entropies=True)
    torch.testing.assert_close(computed.logprobs, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(computed.entropies, entropies, atol=2e-5, rtol=0)


@examples(20)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([1.0, 0.7]))
def test_logprobs_over_the_trie_equal_one_by_one(qwen2, seed, ragged, temperature):
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, int(rng.integers(1, 30)), int(rng.integers(1, 5)), ragged=ragged)
    branches = groups(rng, codes, 3, 4)
    trie = CatalogTrie.from_codes(codes)
    with torch.no_grad():
        expected, entropies = one_by_one(qwen2, branches, paths(codes)[1], temperature)
        batch = pack(branches, row_tokens=60, trie=trie)
        computed = tree_logprobs(qwen2, batch, trie=trie, temperature=temperature, entropies=True)
    torch.testing.assert_close(computed.logprobs, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(computed.entropies, entropies, atol=2e-5, rtol=0)
    with torch.no_grad():
        within = tree_logprobs(qwen2, batch, trie=trie, temperature=temperature, siblings=trie)
        without = tree_logprobs(qwen2, batch, temperature=temperature, siblings=trie)
    assert torch.equal(within.logprobs, computed.logprobs)
    expected_within, expected_without = means(qwen2, branches, paths(codes)[1], temperature)
    torch.testing.assert_close(within.siblings, expected_within, atol=5e-5, rtol=0)
    torch.testing.assert_close(without.siblings, expected_without, atol=5e-5, rtol=0)
    table = batch.by_branch(computed.logprobs, len(branches), 5)
    assert table.shape == (len(branches), 5)
    torch.testing.assert_close(table[-1], expected[-5:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_equal_one_by_one(model, attention):
    branches = random_branches(np.random.default_rng(0), 5)
    model.set_attn_implementation(attention)
    batch = pack(branches, row_tokens=64)
    ours = (tree_logprobs(model, batch).logprobs * batch.weights).sum() / batch.weights.sum()
    model.set_attn_implementation("sdpa")
    assert_same_gradients(model, ours, (one_by_one(model, branches)[0] * batch.weights).sum() / batch.weights.sum())


def test_gradients_over_the_trie_equal_one_by_one(model):
    rng = np.random.default_rng(1)
    codes = random_codes(rng, 30, 3, ragged=True)
    branches, trie = groups(rng, codes, 3, 6), CatalogTrie.from_codes(codes)
    ours = tree_logprobs(model, pack(branches, row_tokens=60, trie=trie), trie=trie).logprobs.mean()
    assert_same_gradients(model, ours, one_by_one(model, branches, paths(codes)[1])[0].mean())


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(qwen2):
    """Split into micro-batches, whichever way the parts share: the sum over all labels is the same."""
    branches = random_branches(np.random.default_rng(3), 6)
    for part in range(0, len(branches), 4):
        batch = pack(branches[part : part + 4], row_tokens=40)
        (tree_logprobs(qwen2, batch).logprobs * batch.weights).sum().backward()
    parts = [parameter.grad.clone() for parameter in qwen2.parameters()]
    qwen2.zero_grad()
    batch = pack(branches, row_tokens=100)
    (tree_logprobs(qwen2, batch).logprobs * batch.weights).sum().backward()
    for part, parameter in zip(parts, qwen2.parameters(), strict=True):
        assert (part - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-9
    qwen2.zero_grad()


def test_histories_of_the_industrial_catalog(industrial):
    """A user's history as it grows, and 16 completions of the longest prompt, against one by one."""
    trie, codes, model = industrial
    rng = np.random.default_rng(0)
    history = codes[rng.integers(0, len(codes), 8)]
    prompts = [[1, *history[:count].flatten().tolist()] for count in range(1, 8)]
    answers = [*history[1:].tolist(), *codes[rng.integers(0, len(codes), 16)].tolist()]
    branches = [Branch(prompts[min(place, 6)], answer, is_sid=True) for place, answer in enumerate(answers)]
    batch = pack(branches, row_tokens=256, trie=trie)
    assert batch.input_ids.shape[0] == 1
    legal = [tuple(sid) for sid in trie.sids.tolist()]
    for within, paths_ in ((None, None), (trie, legal)):
        expected, _ = one_by_one(model, branches, paths_)
        computed = tree_logprobs(model, batch, trie=within).logprobs
        torch.testing.assert_close(computed, expected, atol=1e-5, rtol=1e-5)
        assert_same_gradients(model, computed.mean(), expected.mean())


def test_older_transformers_give_the_same(qwen2, monkeypatch):
    """Those before 5.21 project the same positions of every row."""
    rows = pack(random_branches(np.random.default_rng(4), 6), row_tokens=60)
    assert len(rows.input_ids) > 1
    expected = tree_logprobs(qwen2, rows, entropies=True)
    monkeypatch.setattr("minionerec.tree.batch._PROJECTS_MASKS", False)
    older = tree_logprobs(qwen2, rows, entropies=True)
    torch.testing.assert_close(older.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(older.entropies, expected.entropies, atol=1e-5, rtol=0)


def test_shared_tokens_are_computed_once():
    trunk = list(range(1, 21))
    branches = [Branch(trunk[:length], [30, 31]) for length in range(2, 21)]
    batch = pack(branches[::-1], row_tokens=64)
    # The trunk's 20 tokens and, per branch, the first completion token; the last one is only a label.
    assert batch.input_ids.shape == (1, 20 + 19)
    assert len(batch.labels) == 2 * 19
    assert batch.predicting.sum() == 19 + 19


def test_tokens_without_weight_are_not_labels():
    batch = pack([Branch([1, 2], [3, 4, 5, 6], [0, 1, 0.5, 0])], row_tokens=16)
    assert batch.labels.tolist() == [4, 5]
    assert batch.weights.tolist() == [1, 0.5]
    assert batch.steps.tolist() == [1, 2]
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]  # neither the last label nor what follows it is computed


def test_rows_are_filled_and_never_overfull():
    rng = np.random.default_rng(0)
    branches = [Branch(rng.integers(0, 9, rng.integers(1, 40)).tolist(), [1, 2]) for _ in range(60)]
    batch = pack(branches, row_tokens=50)
    assert batch.input_ids.shape[1] <= 50
    distinct = {tuple([*branch.prompt, 1][:end]) for branch in branches for end in range(1, len(branch.prompt) + 2)}
    assert len(distinct) <= batch.input_ids.numel() <= 1.15 * len(distinct)


def test_a_long_branch_gets_a_row_of_its_own():
    branches = [Branch(list(range(length)), [39]) for length in (30, 10)] + [Branch([*range(5), *range(30, 39)] * 6, [1])]
    batch = pack(branches, row_tokens=40)
    assert batch.input_ids.shape == (2, 84)


def test_rows_are_cut_where_least_is_repeated():
    """Three groups of 29 tokens do not fit into two rows of 40 whole; none is torn apart."""
    branches = [Branch([group] * 20, [30, branch]) for group in range(3) for branch in (1,)]
    branches += [Branch([group] * 20, [31 + branch, branch]) for group in range(3) for branch in range(8)]
    batch = pack(branches, row_tokens=40)
    assert batch.input_ids.shape == (3, 29)
    assert [sorted(set(row[:20].tolist())) for row in batch.input_ids] == [[0], [1], [2]]


def test_identical_branches_count_twice(qwen2):
    branch = Branch([1, 2, 3], [4, 5])
    batch = pack([branch, branch], row_tokens=16)
    assert batch.input_ids.shape == (1, 4)
    with torch.no_grad():
        logprobs = tree_logprobs(qwen2, batch).logprobs
    assert len(logprobs) == 4
    assert torch.equal(logprobs[:2], logprobs[2:])


def test_the_order_of_branches_changes_nothing_but_the_order(qwen2):
    branches = random_branches(np.random.default_rng(9), 4)
    forward, backward = pack(branches, row_tokens=50), pack(branches[::-1], row_tokens=50)
    assert torch.equal(forward.input_ids, backward.input_ids)
    assert forward.branches.tolist() == sorted(forward.branches.tolist())
    with torch.no_grad():
        there, back = tree_logprobs(qwen2, forward).logprobs, tree_logprobs(qwen2, backward).logprobs
    assert torch.equal(forward.by_branch(there, len(branches), 5), backward.by_branch(back, len(branches), 5).flip(0))


def test_bad_branches(qwen2):
    with pytest.raises(ConstraintError, match="Branch 0 needs at least one prompt token"):
        pack([Branch([], [1])], row_tokens=8)
    with pytest.raises(ConstraintError, match="Branch 1 needs at least one prompt token"):
        pack([Branch([1], [1]), Branch([1], [])], row_tokens=8)
    with pytest.raises(ConstraintError, match="at least one branch"):
        pack([], row_tokens=8)
    with pytest.raises(ConstraintError, match="at least one branch with a label"):
        pack([Branch([1], [2, 3], [0, 0])], row_tokens=8)
    with pytest.raises(ConstraintError, match="Branch 0 has 1 weights for 2 completion tokens"):
        pack([Branch([1], [2, 3], [1])], row_tokens=8)
    with pytest.raises(ConstraintError, match="row_tokens is 0"):
        pack([Branch([1], [2])], row_tokens=0)
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3]]))
    plain, view = pack([Branch([1], [2])], row_tokens=8), trie.narrow(np.array([True, False]))
    with pytest.raises(ConstraintError, match="packed without this trie"):
        tree_logprobs(qwen2, plain, trie=trie)
    packed = pack([Branch([1], [2])], row_tokens=8, trie=trie)
    with pytest.raises(ConstraintError, match="packed without this trie"):
        tree_logprobs(qwen2, packed, trie=trie, siblings=CatalogTrie.from_codes(np.array([[1, 2]])))
    for call in (lambda: pack([Branch([1], [2])], row_tokens=8, trie=view), lambda: tree_logprobs(qwen2, plain, trie=view)):
        with pytest.raises(ConstraintError, match="give the trie that the view was made from"):
            call()
    with pytest.raises(ConstraintError, match="temperature is 0"):
        tree_logprobs(qwen2, plain, temperature=0)
    for wrong in ([1, 4], [1], [1, 2, 3]):
        with pytest.raises(ConstraintError, match=r"completion \[1.* of branch 1 is not a SID"):
            pack([Branch([1], [1, 2], is_sid=True), Branch([1], wrong, is_sid=True)], row_tokens=8, trie=trie)
    with pytest.raises(ConstraintError, match="beginning of another"):
        pack([Branch([1], [1], is_sid=True)], row_tokens=8, trie=CatalogTrie.from_codes(np.array([[1, -1], [1, 3]])))
