import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minionerec.errors import ConstraintError
from minionerec.tree import Branch, pack, tree_logprobs
from tests.tree.conftest import VOCABULARY


def one_by_one(model, branches):
    """Log-probability of every completion token, each branch alone: the slow and obvious way."""
    found = []
    for branch in branches:
        ids = torch.tensor([[*branch.prompt, *branch.completion]])
        logprobs = model(ids).logits.float().log_softmax(-1)
        start = len(branch.prompt)
        found.append(logprobs[0, start - 1 : -1].gather(-1, ids[0, start:, None]).squeeze(-1))
    return torch.cat(found)


def in_trees(model, trees, row_tokens):
    batch = pack([branch for tree in trees for branch in tree], row_tokens=row_tokens)
    return tree_logprobs(model, batch).logprobs


def random_trees(rng, trees):
    """Users' histories that grow: branch i's prompt holds the first tokens of a common trunk, then a question."""
    made = []
    for _ in range(trees):
        trunk = rng.integers(0, VOCABULARY, 20).tolist()
        cuts = rng.integers(1, 20, rng.integers(1, 6))
        made.append([Branch([*trunk[:cut], 7], rng.integers(0, 12, rng.integers(1, 5)).tolist()) for cut in cuts])
    return made


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 90))
def test_logprobs_equal_one_by_one(qwen2, seed, trees, row_tokens):
    made = random_trees(np.random.default_rng(seed), trees)
    with torch.no_grad():
        expected = one_by_one(qwen2, [branch for tree in made for branch in tree])
        torch.testing.assert_close(in_trees(qwen2, made, row_tokens), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_equal_one_by_one(model, attention):
    made = random_trees(np.random.default_rng(0), 5)
    model.set_attn_implementation(attention)
    in_trees(model, made, 64).mean().backward()
    model.set_attn_implementation("sdpa")
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    one_by_one(model, [branch for tree in made for branch in tree]).mean().backward()
    for ours_, parameter in zip(ours, model.parameters(), strict=True):
        assert (ours_ - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-9
    model.zero_grad()


def test_shared_tokens_are_computed_once():
    trunk = list(range(1, 21))
    branches = [Branch(trunk[:length], [30, 31]) for length in range(2, 21)]
    batch = pack(branches[::-1], row_tokens=64)
    # The trunk's 20 tokens and, per branch, the first completion token; the last one is only a label.
    assert batch.input_ids.shape == (1, 20 + 19)
    assert len(batch.labels) == 2 * 19
    assert batch.predicting.sum() == 19 + 19


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
    """Two groups of 30 tokens fit three to a row only if one is torn apart; whole groups repeat nothing."""
    groups = [[Branch([group] * 20, [30, 31 + branch % 2, branch]) for branch in range(9)] for group in range(4)]
    batch = pack([branch for group in groups for branch in group], row_tokens=70)
    rows = [set(row[row > -1].tolist()) & set(range(4)) for row in batch.input_ids]
    assert batch.input_ids.shape[0] == 2
    assert not rows[0] & rows[1] - {0}


def test_identical_branches_count_twice(qwen2):
    branch = Branch([1, 2, 3], [4, 5])
    with torch.no_grad():
        logprobs = in_trees(qwen2, [[branch, branch]], 16)
    assert len(logprobs) == 4
    assert torch.equal(logprobs[:2], logprobs[2:])


def test_bad_branches():
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
