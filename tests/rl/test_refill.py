import copy

import pytest
import torch

from minionerec.rl.monitor import with_signal
from minionerec.rl.refill import candidates
from tests.rl.toy import G, completions_of, figures, micro_batches, one_step, rows_of, scored_rollouts, trainer_of

STEP = 6  # one at which two prompts of six have signal, and two of the others
FIELDS = {"rollouts": "stochastic", "beta": 0.05, "prompts_per_step": 6, "micro_batch_prompts": 6}


def signals(trainer, rows):
    """By the obvious way: which of the rows' groups hold their target, and not only it."""
    groups = trainer.rollout_func.groups(rows, trainer)
    return [row["target_leaf"] in group for row, group in zip(rows, groups.leaves.tolist(), strict=True)]


def test_candidates_are_all_others_in_an_order_of_their_own_for_each_step():
    orders = [candidates(20, [3, 5], seed=0, step=step) for step in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == [number for number in range(20) if number not in (3, 5)] for order in orders)


@pytest.mark.parametrize("rounds", [1, 3])
def test_prompts_without_signal_are_replaced_by_the_first_candidates_with_one(policy, tmp_path, rounds):
    trainer = trainer_of(policy, tmp_path, dynamic_sampling="refill", refill_rounds=rounds, **FIELDS)
    trainer.state.global_step = STEP
    data = [dict(row) for row in trainer.train_dataset]
    own = signals(trainer, data[:6])
    waiting = candidates(len(data), list(range(6)), 0, STEP)[: 6 * rounds]
    spare = [number for number, good in zip(waiting, signals(trainer, [data[n] for n in waiting]), strict=True) if good]
    assert 0 < sum(own) < 6 and spare  # there is something to replace, and something to replace it with
    expected = [number if good or not spare else spare.pop(0) for number, good in enumerate(own)]

    scored = scored_rollouts(trainer, rows_of(trainer, 6))
    assert [row["rollout_id"] for row in trainer.step.rows[::G]] == expected
    groups = trainer.rollout_func.groups([data[number] for number in expected], trainer)
    assert completions_of(scored) == trainer.rollout_func.completions(groups)
    logged = figures(trainer)
    assert logged["groups_with_signal_at_first"] == [pytest.approx(sum(own) / 6)]
    assert logged["groups_with_signal"][0] >= sum(own) / 6
    assert 6 < logged["prompts_tried"][0] <= 6 * (1 + rounds)
    assert with_signal(trainer.step.rewards, G).float().mean() == pytest.approx(logged["groups_with_signal"][0])


def test_a_micro_batch_without_signal_counts_in_no_mean(policy, tmp_path):
    """Six groups in micro-batches of one: most of them keep nothing, and log no KL or entropy of 0."""
    trainer = trainer_of(policy, tmp_path, dynamic_sampling="filter", **{**FIELDS, "micro_batch_prompts": 1})
    trainer.state.global_step = STEP
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 6
    counted = 0
    for part in micro_batches(trainer, rows_of(trainer, 6)):
        trainer.compute_loss(trainer.model, part)
        counted += bool(part["tool_mask"].any())
    logged = figures(trainer)
    assert 0 < counted < 6 and len(logged["entropy"]) == len(logged["kl"]) == counted
    assert min(logged["entropy"]) > 0.1


def test_a_refilled_step_is_the_step_of_the_prompts_that_it_chose(policy, tmp_path):
    trainer = trainer_of(policy, tmp_path, dynamic_sampling="refill", **FIELDS)
    trainer.state.global_step = STEP
    value, gradient, scored = one_step(trainer, rows_of(trainer, 6))
    refilled = copy.deepcopy(trainer.step.rows)
    assert [row["rollout_id"] for row in refilled[::G]] != list(range(6))
    plain = trainer_of(policy, tmp_path, dynamic_sampling="filter", **FIELDS)
    expected, wanted, _ = one_step(plain, refilled, completions_of(scored))
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()
