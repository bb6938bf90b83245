import json
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from minionerec.config import RlConfig
from minionerec.errors import TrainingError
from minionerec.model import checkpoint
from minionerec.rl.monitor import Watch, best, group_figures, signal_share
from minionerec.rl.trainer import TreeGRPOTrainer
from minionerec.training.checkpoints import MarkComplete, last_checkpoint, write_log
from tests.rl.toy import trainer_of


def test_figures_of_a_group():
    group = [[1, 2], [1, 3], [4, 5]]
    assert group_figures(group, [1, 3]) == {"HR@3": 1, "hit_rank": 2, "first_codes": 2}
    assert group_figures(group, (4, 5)) == {"HR@3": 1, "hit_rank": 3, "first_codes": 2}
    assert group_figures(group, [1, 4]) == {"HR@3": 0, "first_codes": 2}


def test_groups_without_signal_are_those_whose_weighted_rewards_are_all_the_same():
    rewards = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [0, 1]])  # three groups of two
    assert signal_share(rewards, torch.tensor([1.0, 1]), 2) == pytest.approx(1 / 3)  # the last one's parts cancel out
    assert signal_share(rewards, torch.tensor([1.0, 0.5]), 2) == pytest.approx(2 / 3)
    assert signal_share(rewards, torch.tensor([0.0, 0]), 2) == 0


HISTORY = [
    {"step": 0, "valid_HR@1": 0.5, "valid_NDCG@10": 0.2},
    {"step": 2, "reward": 0.1},
    {"step": 2, "valid_HR@1": 0.1, "valid_NDCG@10": 0.3},
    {"step": 4, "valid_HR@1": 0.2, "valid_NDCG@10": 0.3},
]


def test_the_best_validation_is_the_earliest_of_equals_by_the_chosen_metric():
    assert best(HISTORY, "NDCG@10") == (2, 0.3)
    assert best(HISTORY, "HR@1") == (0, 0.5)
    assert best(HISTORY[1:2], "HR@1") is None


def watch_of(folder, measure=dict, **fields):
    return Watch(RlConfig(**fields), measure, None, folder / "checkpoints", folder / "sft")


def test_patience_counts_validations_in_vain(tmp_path):
    assert not watch_of(tmp_path, patience=2).is_over(HISTORY)
    assert watch_of(tmp_path, patience=1).is_over(HISTORY)
    assert watch_of(tmp_path, patience=2, best_metric="HR@1").is_over(HISTORY)
    assert not watch_of(tmp_path, patience=1).is_over([])


@pytest.mark.parametrize(
    ("loss", "kl", "message"),
    [
        (float("nan"), [], "the loss is nan"),
        (float("inf"), [0.1], "the loss is inf"),
        (0.1, [7.0], "KL divergence from the SFT model is 7, above rl.max_kl 5"),
        (0.1, [float("nan")], "KL divergence from the SFT model is nan"),
    ],
)
def test_a_step_gone_wrong_names_itself_and_the_last_good_checkpoint(tmp_path, loss, kl, message):
    watch = watch_of(tmp_path, max_kl=5)
    watch.trainer = SimpleNamespace(state=SimpleNamespace(global_step=6, max_steps=9, log_history=HISTORY))
    watch.check_step(0.1, [4.9])
    with pytest.raises(TrainingError, match=rf"step 7 of 9: (the )?{message}.*the model of step 2, \S+checkpoints/best-2"):
        watch.check_step(loss, kl)
    watch.trainer.state.log_history = HISTORY[:1]
    with pytest.raises(TrainingError, match=r"The last good checkpoint is the SFT model, \S+sft, which can be loaded"):
        watch.check_step(loss, kl)


def test_no_limit_for_the_kl(tmp_path):
    watch_of(tmp_path, max_kl=None).check_step(0.1, [1e9])


class At(TrainerCallback):
    """Calls a function before a step, counted from 1."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step + 1 == self.step:
            self.action(model)


def watched(policy, folder, measure, *callbacks, **fields):
    """A trainer of eight steps; `measure` gets the model."""
    settings = {"epochs": 2, "evaluations": 8, "patience": 3, "beta": 0.01, "max_kl": None, **fields}
    watch = Watch(RlConfig(**settings), lambda: measure(trainer.model), None, folder, policy)
    trainer = trainer_of(policy, folder, kind=TreeGRPOTrainer, watch=watch, rewards={"ranking": 1.0}, **settings)
    watch._tokenizer = trainer.processing_class
    for callback in (MarkComplete(watch.best_model), *callbacks):
        trainer.add_callback(callback)
    return trainer, watch


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_best_model_is_kept_and_training_stops_when_nothing_is_better(policy, tmp_path):
    values, seen = iter([0.2, 0.1, 0.3, 0.25, 0.3, 0.1, 0.9]), []

    def measure(model):
        assert not model.training
        seen.append(weights(model))
        return {"NDCG@10": next(values)}

    trainer, watch = watched(policy, tmp_path, measure)
    trainer.train()
    assert trainer.state.global_step == 5  # best at step 2, three in vain after it
    assert best(trainer.state.log_history, "NDCG@10") == (2, 0.3)
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-2"]
    kept, _ = checkpoint.load(watch.best_model(trainer.state.log_history))
    assert all(torch.equal(ours, then) for ours, then in zip(weights(kept), seen[2], strict=True))
    assert trainer.model.training
    assert [row["step"] for row in trainer.state.log_history if "reward" in row] == [1, 2, 3, 4, 5]


def test_an_interrupted_run_goes_on_with_the_same_curve(policy, tmp_path):
    def measure(model):  # every bit of the weights decides it
        return {"NDCG@10": float(sum(parameter.double().abs().sum() for parameter in model.parameters()))}

    def interrupt(model):
        raise KeyboardInterrupt

    settings = {"evaluations": 4, "checkpoints": 3, "patience": 9}
    whole, _ = watched(policy, tmp_path / "whole", measure, **settings)
    whole.train()
    broken, _ = watched(policy, tmp_path / "broken", measure, At(6, interrupt), **settings)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed, _ = watched(policy, tmp_path / "broken", measure, **settings)
    last = last_checkpoint(tmp_path / "broken")
    assert last.endswith("checkpoint-4")
    resumed.train(resume_from_checkpoint=last)
    for trainer, name in ((whole, "whole"), (resumed, "broken")):
        write_log(trainer.state, tmp_path / name / "log.jsonl")
    rows = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    for row, again in zip(*rows, strict=True):
        assert json.loads(row) == json.loads(again) and row == again
    assert sum("valid_" in row for row in rows[0]) == 5
    assert all(torch.equal(*pair) for pair in zip(weights(whole.model), weights(resumed.model), strict=True))
    step, _ = best(resumed.state.log_history, "NDCG@10")
    assert [path.name for path in (tmp_path / "broken").glob("best-*")] == ([f"best-{step}"] if step else [])


def test_weights_that_are_no_numbers_stop_the_run_and_are_not_saved(policy, tmp_path):
    def poison(model):
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)

    values = iter([0.1, 0.2, 0.1, 0.1])
    trainer, watch = watched(policy, tmp_path, lambda model: {"NDCG@10": next(values)}, At(3, poison))
    with pytest.raises(TrainingError, match=r"step 3 of 8: the loss is nan.*the model of step 1, \S+best-1, which can be"):
        trainer.train()
    kept, _ = checkpoint.load(watch.best_model(trainer.state.log_history))
    assert all(parameter.isfinite().all() for parameter in kept.parameters())
    state = SimpleNamespace(global_step=4, max_steps=8, log_history=trainer.state.log_history)
    with pytest.raises(TrainingError, match="step 4 of 8: its weights are no finite numbers"):
        watch.on_step_end(trainer.args, state, SimpleNamespace(should_save=True, should_log=False), model=trainer.model)


def test_a_policy_that_runs_away_is_stopped(policy, tmp_path):
    trainer, _ = watched(policy, tmp_path, lambda model: {"NDCG@10": 0.1}, max_kl=1e-9)
    with pytest.raises(TrainingError, match=r"step [2-8] of 8: the KL divergence .* above rl.max_kl 1e-09.* the SFT model,"):
        trainer.train()
