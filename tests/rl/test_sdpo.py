"""S-DPO against its own formula, and the negatives that it is published with."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import RlConfig
from minionerec.errors import ConfigError
from minionerec.rl.early import check_group
from minionerec.rl.objectives import sdpo_loss
from minionerec.rl.rollouts import uniform_negatives
from minionerec.rl.step import Step
from minionerec.tree import CatalogTrie
from tests.examples import examples
from tests.rl.toy import G, rows_of, scored_rollouts, trainer_of, trie_of

UNIFORM = {"objective": "sdpo", "add_target": True, "rollouts": "uniform", "rewards": {"rule": 1.0}}


def trie_of_size(size):
    return CatalogTrie.from_codes(np.stack([np.arange(size) // 8, 100 + np.arange(size) % 8], axis=1))


@examples(60)
@given(st.integers(2, 8), st.floats(0.1, 3), st.floats(0.1, 49), st.integers(0, 2**20))
def test_the_loss_is_the_naive_sum_of_exponentials(group, beta, spread, seed):
    rng = np.random.default_rng(seed)
    ratios = torch.tensor(rng.uniform(-spread, spread, (3, group)))
    is_target = torch.zeros(3, group, dtype=torch.bool)
    is_target[torch.arange(3), torch.tensor(rng.integers(0, group, 3))] = True
    for row, found in enumerate(sdpo_loss(ratios, is_target, beta).tolist()):
        target = ratios[row][is_target[row]].item()
        total = sum(math.exp(beta * (ratio - target)) for ratio in ratios[row][~is_target[row]].tolist())
        sigmoid = 1 / (1 + math.exp(math.log(total)))  # of -log total
        assert found == pytest.approx(-math.log(sigmoid) if sigmoid > 1e-12 else math.log(total), rel=1e-6, abs=1e-12)


def test_ratios_of_hundreds_of_nats_do_not_overflow():
    is_target = torch.tensor([[True, False, False]])
    lost = torch.tensor([[0.0, 500.0, 499.0]], requires_grad=True)
    loss = sdpo_loss(lost, is_target, 1.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(500 + math.log(1 + math.exp(-1)), rel=1e-6)
    torch.testing.assert_close(lost.grad, torch.tensor([[-1, 1 / (1 + math.exp(-1)), 1 / (1 + math.e)]]), atol=1e-4, rtol=0)
    assert sdpo_loss(torch.tensor([[500.0, 0.0, -500.0]]), is_target, 1.0).item() == pytest.approx(0, abs=1e-30)


@examples(100)
@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0.1, 2))
def test_one_negative_is_dpo(target, negative, beta):
    """Rafailov et al. 2023, equation 7."""
    ratios = torch.tensor([[negative, target]], dtype=torch.float64)
    dpo = -torch.nn.functional.logsigmoid(torch.tensor(beta * (target - negative), dtype=torch.float64))
    assert sdpo_loss(ratios, torch.tensor([[False, True]]), beta).item() == pytest.approx(dpo.item(), rel=1e-9)


def test_a_negative_counts_by_its_share_of_the_sum():
    """Equation 11 of the paper: beta * sigmoid(log sum) * softmax of the negatives."""
    torch.manual_seed(0)
    ratios = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    is_target = torch.zeros(5, 6, dtype=torch.bool)
    is_target[:, 2] = True
    sdpo_loss(ratios, is_target, 0.7).sum().backward()
    margins = 0.7 * (ratios.detach() - ratios.detach()[:, 2:3])[:, [0, 1, 3, 4, 5]]
    weight = 0.7 * margins.logsumexp(1).sigmoid()
    torch.testing.assert_close(ratios.grad[:, [0, 1, 3, 4, 5]], weight[:, None] * margins.softmax(1))
    torch.testing.assert_close(ratios.grad[:, 2], -weight)


def test_every_set_of_negatives_is_equally_likely():
    """Pairs out of the 6 SIDs that are left of 8: all 15 come as often, by a chi-square test."""
    trie, draws = trie_of_size(8), 3000
    barred = [[5, 2, 5]] * draws
    negatives = uniform_negatives(trie, barred, 2, torch.arange(draws)).sort(1).values
    counts = torch.bincount(negatives[:, 0] * 8 + negatives[:, 1], minlength=64).view(8, 8)
    allowed = [0, 1, 3, 4, 6, 7]
    pairs = torch.tensor([counts[low, high] for low in allowed for high in allowed if low < high]).double()
    assert len(pairs) == 15 and pairs.sum() == draws
    expected = draws / 15
    assert ((pairs - expected).square() / expected).sum() < 36.1  # 14 degrees of freedom, p = .001


@examples(50)
@given(st.integers(3, 60), st.data())
def test_barred_sids_are_never_drawn_and_none_comes_twice(size, data):
    trie = trie_of_size(size)
    barred = data.draw(st.lists(st.lists(st.integers(0, size - 1), max_size=size - 2), min_size=1, max_size=4))
    least = min(size - len(set(leaves)) for leaves in barred)
    number = data.draw(st.integers(1, least))
    seeds = torch.tensor(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(barred), max_size=len(barred))))
    negatives = uniform_negatives(trie, barred, number, seeds)
    for leaves, drawn in zip(barred, negatives.tolist(), strict=True):
        assert len(set(drawn)) == number and not set(drawn) & set(leaves) and set(drawn) <= set(range(size))
        if number == size - len(set(leaves)):
            assert set(drawn) == set(range(size)) - set(leaves)


def groups_of(trainer, rows, step=0):
    trainer.step = Step(rows)
    trainer.state.global_step = step
    rollouts = trainer.rollout_func([row["prompt"] for row in rows], trainer)
    return torch.tensor(rollouts["leaf"]).view(-1, G)


@pytest.mark.parametrize("filtered", [False, True])
def test_a_group_is_the_target_behind_negatives_outside_the_history(policy, tmp_path, filtered):
    trainer = trainer_of(policy, tmp_path, filtered=filtered, **UNIFORM)
    trie, rows = trie_of(trainer), rows_of(trainer, 12)
    groups = groups_of(trainer, rows)
    for group, row in zip(groups.tolist(), rows[::G], strict=True):
        history = set(trie.leaf_of_item[row["hidden"]].tolist())
        assert history and group[-1] == row["target_leaf"] and row["target_leaf"] not in group[:-1]
        assert len(set(group)) == G and not history & set(group[:-1])
    assert len({tuple(group) for group in groups[:, :-1].tolist()}) > 6  # each row draws for itself
    # Two devices see halves of the batch; a resumed run makes the same step again, and another step draws anew.
    halves = torch.cat([groups_of(trainer, rows[: 6 * G]), groups_of(trainer, rows[6 * G :])])
    assert torch.equal(halves, groups)
    assert not torch.equal(groups_of(trainer, rows, step=1), groups)


def test_no_policy_is_asked(policy, tmp_path, monkeypatch):
    trainer = trainer_of(policy, tmp_path, **UNIFORM)
    monkeypatch.setattr(trainer.model, "forward", None)
    assert groups_of(trainer, rows_of(trainer)).shape == (3, G)


def test_the_first_step_has_the_loss_of_a_policy_that_is_its_own_reference(policy, tmp_path):
    """All ratios are 0, so the sum is G - 1 and the loss log G."""
    trainer = trainer_of(policy, tmp_path, **UNIFORM, sdpo_beta=0.5)
    scored = scored_rollouts(trainer, rows_of(trainer))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, scored)
    assert loss.item() == pytest.approx(math.log(G), abs=1e-5)


def test_training_prefers_the_target(policy, tmp_path):
    trainer = trainer_of(policy, tmp_path, **UNIFORM, learning_rate=1e-3, epochs=3.0)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(math.log(G), abs=1e-2) and sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_a_catalog_too_small_for_negatives_outside_the_history():
    config = replace(RlConfig(), **UNIFORM, num_generations=16)
    check_group(config, 26, 10)
    with pytest.raises(ConfigError, match=r"only 25 SIDs, and 10 items of a history are left out .*rl.rollouts"):
        check_group(config, 25, 10)
