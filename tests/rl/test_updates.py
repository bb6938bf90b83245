"""Several updates from one rollout, and the entropy bonus."""

import pytest
import torch
from trl import GRPOTrainer

from minionerec.config import RlConfig
from minionerec.errors import ConfigError
from tests.rl.steps import _plain
from tests.rl.toy import completions_of, figures, one_step, rows_of, trainer_of

TWICE = {"updates_per_rollout": 2, "rewards": {"prefix": 1.0}, "beta": 0.05}


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_two_updates_of_one_rollout_are_stock_trls(policy, tmp_path, loss):
    """Two micro-batches a step. The second step has ratios other than 1, some of them clipped."""
    logs, rolled = [], []
    for kind in (None, GRPOTrainer):
        trainer = trainer_of(policy, tmp_path / str(kind), kind=kind, adjust=_plain, loss=loss, clip=0.01, **TWICE)
        original, calls = trainer.rollout_func, []
        trainer.rollout_func = lambda *given, original=original, calls=calls: calls.append(1) or original(*given)
        trainer.train()
        rolled.append(len(calls))
        logs.append([row for row in trainer.state.log_history if "grad_norm" in row])
    assert rolled == [1, 1] and [len(log) for log in logs] == [2, 2]
    for ours, theirs in zip(*logs, strict=True):
        for name in ("kl", "entropy", "grad_norm", "clip_ratio/region_mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert logs[0][1]["clip_ratio/region_mean"] > 0 == logs[0][0]["clip_ratio/region_mean"]


def test_a_run_with_several_updates_resumes_where_a_rollout_is_used_up(policy, tmp_path):
    weights = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        trainer = trainer_of(policy, tmp_path, **TWICE, dynamic_sampling="filter", checkpoints=5, epochs=2.0)
        assert (trainer.args.max_steps, trainer.args.save_steps) == (16, 4)  # 16 / 5 steps, rounded up to whole rollouts
        trainer.train(resume_from_checkpoint=resume)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("space", ["vocabulary", "catalog"])
def test_the_entropy_bonus_is_the_gradient_of_the_entropy(policy, tmp_path, space):
    fields = {"rollouts": "stochastic", "normalise_over": space, "beta": 0.0}
    plain = trainer_of(policy, tmp_path, **fields)
    rows = rows_of(plain)
    value, gradient, scored = one_step(plain, rows)
    entropy = figures(plain)["entropy"][-1]
    for micro_batches in (1, 3):
        trainer = trainer_of(policy, tmp_path, entropy_bonus=0.5, **fields)
        with_bonus, total, _ = one_step(trainer, rows, completions_of(scored), micro_batches)
        assert float(value - with_bonus) == pytest.approx(0.5 * entropy, rel=1e-4)
        climb = (gradient - total) / 0.5  # of the mean entropy
        parameters = [*trainer.model.parameters()]
        direction = (climb / climb.norm()).split([parameter.numel() for parameter in parameters])
        around = []
        for move in (5e-4, -1e-3):  # to one side, then to the other
            with torch.no_grad():
                for parameter, part in zip(parameters, direction, strict=True):
                    parameter.add_(part.view_as(parameter), alpha=move)
                trainer.compute_loss(trainer.model, scored)
            around.append(figures(trainer)["entropy"][-1])
        assert (around[0] - around[1]) / 1e-3 == pytest.approx(float(climb.norm()), rel=2e-2)


def test_the_exact_objective_has_the_bonus_too(policy, tmp_path):
    fields = {"objective": "exact", "normalise_over": "catalog"}
    losses = []
    for bonus in (0.0, 0.5):
        trainer = trainer_of(policy, tmp_path, entropy_bonus=bonus, **fields)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.compute_loss(trainer.model, {"rows": [dict(row) for row in trainer.train_dataset.select(range(3))]})
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] - losses[1] == pytest.approx(0.5 * figures(trainer)["entropy"][-1], rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": 0.1}, r"rl\.clip is set, but it has an effect with rl\.updates_per_rollout above 1 only"),
        (
            {"updates_per_rollout": 2, "objective": "listwise", "add_target": True},
            r"rl\.objective listwise has no ratio to the policy that rolled out",
        ),
        (
            {
                "updates_per_rollout": 2,
                "importance_weights": True,
                "rollouts": "stochastic",
                "normalise_over": "catalog",
                "loss": "dr_grpo",
                "rewards": {"rule": 1.0},
            },
            r"rl\.importance_weights has no ratio",
        ),
    ],
)
def test_what_has_no_ratio(fields, message):
    with pytest.raises(ConfigError, match=message):
        RlConfig(**fields)
