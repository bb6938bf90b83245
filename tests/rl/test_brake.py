import json
import logging
from types import SimpleNamespace

import pytest
import torch

from minionerec.config import RlConfig
from minionerec.errors import ConfigError
from minionerec.rl.brake import KlBrake
from tests.rl.toy import trainer_of

STATE = SimpleNamespace(global_step=3, max_steps=9, is_world_process_zero=True)


@pytest.fixture
def brake():
    """A brake at 0.5 nats on an optimiser whose schedule halves the rate of 0.1 at each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    made = KlBrake(0.5)
    made.trainer = SimpleNamespace(lr_scheduler=schedule, _metrics={"train": {"kl_brake": []}})
    return made


def rate(brake):
    return brake.trainer.lr_scheduler.optimizer.param_groups[0]["lr"]


def end(brake):
    brake.on_step_end(None, STATE, None)
    brake.trainer.lr_scheduler.optimizer.step()
    brake.trainer.lr_scheduler.step()
    brake.on_step_begin(None, STATE, None)


def test_the_rate_falls_as_the_kl_of_the_whole_step_rises(brake, caplog):
    caplog.set_level(logging.WARNING)
    brake.watch([0.5])
    assert rate(brake) == 0.1 and not caplog.text  # at the limit nothing happens, to the last bit
    end(brake)
    assert rate(brake) == 0.05
    brake.watch([3.0])
    brake.watch([1.0])  # micro-batches of one step: their mean is 2
    brake.watch([])  # none of its groups counts
    assert rate(brake) == pytest.approx(0.05 * 0.5 / 2)
    end(brake)
    assert "KL divergence from the SFT model is 2, above rl.kl_brake 0.5" in caplog.text
    assert "If most steps are such, lower rl.learning_rate." in caplog.text
    caplog.clear()
    brake.watch([5.0])
    assert rate(brake) == pytest.approx(0.025 * 0.1)
    end(brake)
    assert not caplog.text  # it is said once, until it stops
    brake.watch([0.1])
    assert rate(brake) == 0.0125
    end(brake)
    assert brake.trainer._metrics["train"]["kl_brake"] == [1.0, 0.25, pytest.approx(0.1), 1.0]


def trained(policy, folder, steps=None, resume=None, **fields):
    """A toy run with rewards that everything can be moved by, its log, and its weights."""
    fields = {"epochs": 3.0, "rewards": {"prefix": 1.0}, "beta": 1e-3, "warmup": 0.3, **fields}

    def every_step(arguments):
        arguments.logging_steps, arguments.save_steps, arguments.max_steps = 1, 4, steps or arguments.max_steps
        return arguments

    trainer = trainer_of(policy, folder, adjust=every_step, **fields)
    trainer.train(resume_from_checkpoint=resume)
    rows = [row for row in trainer.state.log_history if "reward" in row]
    return rows, torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_a_rate_that_is_too_high_leaves_the_sft_model_and_with_the_brake_does_not(policy, tmp_path):
    without, _ = trained(policy, tmp_path / "without", learning_rate=5e-3)
    braked, weights = trained(policy, tmp_path / "with", learning_rate=5e-3, kl_brake=0.02)
    highest, held = (max(row["kl"] for row in rows) for rows in (without, braked))
    assert highest > 3 * held > 0.06
    scales = [row["kl_brake"] for row in braked]
    assert scales[0] == 1.0 and min(scales) < 0.5
    for row in braked:
        assert row["kl_brake"] == pytest.approx(min(1.0, 0.02 / row["kl"]) if row["kl"] else 1.0, rel=1e-6)
    assert "kl_brake" not in without[0]
    # The factor is the step's own, so a resumed run takes the same steps.
    resumed, same = trained(
        policy, tmp_path / "with", learning_rate=5e-3, kl_brake=0.02, resume=str(tmp_path / "with/checkpoint-8")
    )
    assert torch.equal(weights, same)
    assert json.dumps([row["kl"] for row in resumed]) == json.dumps([row["kl"] for row in braked])


def test_a_brake_that_never_acts_changes_no_bit(policy, tmp_path):
    results = [trained(policy, tmp_path / str(brake), steps=4, learning_rate=1e-3, kl_brake=brake)[1] for brake in (None, 90.0)]
    assert torch.equal(*results)


SDPO = {"objective": "sdpo", "rollouts": "uniform", "add_target": True, "rewards": {"rule": 1.0}}


@pytest.mark.parametrize(
    ("fields", "pretrained", "limit"),
    [
        ({}, True, 0.1),
        ({}, False, None),  # what RL of models from scratch gave stays as it was
        ({"beta": 0.0}, True, None),  # nobody measures the KL
        (SDPO, True, None),  # it is meant to move away
        ({"objective": "exact", "rewards": {"rule": 1.0}, "normalise_over": "catalog"}, True, 0.1),
        ({"kl_brake": None}, True, None),
        ({"kl_brake": 0.5}, False, 0.5),
    ],
)
def test_the_default_follows_the_model(fields, pretrained, limit):
    assert RlConfig(**fields).kl_limit(pretrained) == limit


def test_the_default_holds_a_pretrained_model_and_leaves_one_from_scratch_alone(policy, tmp_path):
    """At a rate that is far too high."""
    free, _ = trained(policy, tmp_path / "scratch", learning_rate=5e-3)
    held, _ = trained(policy, tmp_path / "pretrained", learning_rate=5e-3, pretrained=True)
    assert "kl_brake" not in free[0] and min(row["kl_brake"] for row in held) < 0.5
    assert max(row["kl"] for row in free) > 3 * max(row["kl"] for row in held)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl_brake": 1.0, "beta": 0.0}, r"rl\.kl_brake watches the KL, which is measured only with rl\.beta above 0"),
        ({"kl_brake": 100.0}, r"rl\.kl_brake is 100, but at rl\.max_kl 100 training stops"),
    ],
)
def test_a_brake_without_effect(fields, message):
    with pytest.raises(ConfigError, match=message):
        RlConfig(**fields)
