import copy
import math

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from minionerec.config import RlConfig
from minionerec.errors import ConfigError
from minionerec.rl.monitor import with_signal
from minionerec.rl.objectives import KeepReference, listwise_loss, sdpo_loss, sibling_advantages
from tests.rl.toy import G, completions_of, figures, gradients, one_step, rows_of, scored_rollouts, trainer_of, trie_of

UNBIASED = {"importance_weights": True, "rollouts": "stochastic", "normalise_over": "catalog", "loss": "dr_grpo"}
EXACT = {"objective": "exact", "normalise_over": "catalog", "rewards": {"rule": 1.0}}


@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo"])
def test_one_step_is_stock_trls_on_the_same_rollouts(policy, tmp_path, loss, beta):
    fields = {"loss": loss, "beta": beta, "rollouts": "stochastic", "add_target": True}
    ours = trainer_of(policy, tmp_path, **fields)
    rows = rows_of(ours)
    value, gradient, scored = one_step(ours, copy.deepcopy(rows))
    theirs = trainer_of(policy, tmp_path, kind=GRPOTrainer, **fields)
    expected, wanted, _ = one_step(theirs, rows, completions_of(scored))
    assert scored["advantages"].abs().max() > 0.1
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()


def test_losses_differ_where_they_should(policy, tmp_path):
    trainer = trainer_of(policy, tmp_path, loss="dr_grpo", rollouts="stochastic", add_target=True, beta=0.0)
    _, _, scored = one_step(trainer, rows_of(trainer))
    hits = scored["advantages"].view(-1, G).amax(1)  # 1 hit of 4 without a scale: 1 - 1/4
    torch.testing.assert_close(hits, torch.full_like(hits, 0.75))
    assert trainer_of(policy, tmp_path, loss="gspo").importance_sampling_level == "sequence"


def test_sibling_advantages_by_hand():
    """Four candidates of two levels: AX (hit), AY, AZ and BX; the second group has no signal."""
    completions = torch.tensor([[1, 7], [1, 8], [1, 9], [2, 7], [1, 7], [1, 8], [2, 8], [2, 9]])
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5])
    found = sibling_advantages(rewards, completions, torch.ones(8, 2), 4)
    first, second = math.sqrt(0.25) + 1e-4, math.sqrt(1 / 3) + 1e-4  # unbiased deviations of (1, 0, 0, 0) and (1, 0, 0)
    expected = [
        [0.75 / first, (2 / 3) / second],
        [-0.25 / first, -(1 / 3) / second],
        [-0.25 / first, -(1 / 3) / second],
        [-0.25 / first, 0.0],  # nothing else begins with B
    ]
    torch.testing.assert_close(found[:4], torch.tensor(expected))
    assert (found[4:] == 0).all()
    unscaled = sibling_advantages(rewards, completions, torch.ones(8, 2), 4, scale=False)
    torch.testing.assert_close(unscaled[0], torch.tensor([0.75, 2 / 3]))
    # A shorter SID has no second token, and none that it could share.
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]] * 2)
    short = sibling_advantages(rewards, completions, mask, 4)
    assert short[2, 1] == 0
    torch.testing.assert_close(short[0, 1], torch.tensor((2 / 3) / second))


def test_sibling_advantages_reach_the_loss(policy, tmp_path):
    fields = {"rollouts": "stochastic", "add_target": True, "advantages": "sibling"}
    trainer = trainer_of(policy, tmp_path, **fields)
    _, _, scored = one_step(trainer, rows_of(trainer))
    assert scored["advantages"].shape == scored["completion_ids"].shape
    plain = trainer_of(policy, tmp_path, **{**fields, "advantages": "group"})
    _, _, grouped = one_step(plain, rows_of(plain), completions_of(scored))
    torch.testing.assert_close(scored["advantages"][:, 0], grouped["advantages"])  # the first token has the whole group


def test_groups_with_signal():
    rewards = torch.tensor([0.0, 0, 0, 1, 0.3, 0.3, 0.3, 0.3, 0, 0, 0, 0])
    assert with_signal(rewards, 4).tolist() == [True] * 4 + [False] * 8


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo"])
def test_a_filtered_step_is_the_step_of_the_groups_that_are_kept(policy, tmp_path, loss):
    """Six groups, three of them with signal, unevenly spread over micro-batches of one, two or three groups."""
    fields = {"loss": loss, "beta": 0.05, "prompts_per_step": 6}
    plain = trainer_of(policy, tmp_path, **{**fields, "micro_batch_prompts": 3, "prompts_per_step": 3})
    rows = rows_of(plain, 6)
    distinct = [list(sid) for sid in dict.fromkeys(tuple(row["target"]) for row in rows_of(plain, 12)[::G])]
    misses = [[sid for sid in distinct if sid != row["target"]][:G] for row in rows[::G]]
    hits = {0: 0, 1: 2, 5: 3}  # group to the place of its hit; the others have none
    groups = [list(some) for some in misses]
    for group, place in hits.items():
        groups[group][place] = rows[group * G]["target"]
    kept = [row for group in hits for row in rows[group * G : (group + 1) * G]]
    expected, wanted, _ = one_step(plain, copy.deepcopy(kept), [sid for group in hits for sid in groups[group]])

    completions = [sid for group in groups for sid in group]
    for micro in (1, 2, 3):
        trainer = trainer_of(policy, tmp_path, dynamic_sampling="filter", **{**fields, "micro_batch_prompts": micro})
        value, gradient, _ = one_step(trainer, copy.deepcopy(rows), completions, micro_batches=6 // micro)
        assert figures(trainer)["groups_with_signal"] == pytest.approx([1 / 2])
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm(), micro


def test_advantages_in_a_step_by_hand(policy, tmp_path):
    """The ranking reward with the hit at each rank of a group of four, and no hit, through TRL's own scoring."""
    trainer = trainer_of(policy, tmp_path, rewards={"ranking": 1.0}, beta=0.0, prompts_per_step=5, micro_batch_prompts=5)
    rows = rows_of(trainer, 5)
    distinct = [list(sid) for sid in dict.fromkeys(tuple(row["target"]) for row in rows_of(trainer, 12)[::G])]
    groups = [[sid for sid in distinct if sid != row["target"]][:G] for row in rows[::G]]
    for place in range(4):
        groups[place][place] = rows[place * G]["target"]
    _, _, scored = one_step(trainer, rows, [sid for group in groups for sid in group])
    # 1 / log2(rank + 2) over their sum: .3904, .2463, .1952, .1681. Rewards less their mean, over their deviation + 1e-4.
    expected = [
        [1.4976, -0.5707, -0.4859, -0.4410],
        [-0.7134, 1.4813, -0.4053, -0.3626],
        [-0.6853, -0.4605, 1.4842, -0.3385],
        [-0.6714, -0.4477, -0.3683, 1.4874],
        [0, 0, 0, 0],
    ]
    assert scored["advantages"].view(5, 4).tolist() == [pytest.approx(row, abs=1e-4) for row in expected]


def test_sft_weight_adds_the_targets_loss_in_the_same_pass(policy, tmp_path):
    fields = {"beta": 0.05, "rollouts": "stochastic"}
    trainer = trainer_of(policy, tmp_path, sft_weight=0.3, **fields)
    rows = rows_of(trainer)
    value, gradient, scored = one_step(trainer, copy.deepcopy(rows))
    plain = trainer_of(policy, tmp_path, **fields)
    policy_loss, policy_gradient, _ = one_step(plain, copy.deepcopy(rows), completions_of(scored))
    plain.model.zero_grad()
    losses = []
    for row in rows[::G]:  # each alone, by the model's own forward
        ids = torch.tensor([[*row["prompt"], *row["target"]]])
        labels = ids.clone()
        labels[:, : len(row["prompt"])] = -100
        losses.append(torch.nn.functional.cross_entropy(plain.model(ids).logits[0, :-1], labels[0, 1:]))
    sft_loss = torch.stack(losses).mean()
    sft_loss.backward()
    torch.testing.assert_close(value, policy_loss + 0.3 * sft_loss.detach(), atol=1e-6, rtol=1e-5)
    wanted = policy_gradient + 0.3 * gradients(plain)
    assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()
    assert figures(trainer)["sft_loss"] == [pytest.approx(sft_loss.item(), rel=1e-5)]


def test_with_the_whole_catalog_drawn_importance_weights_give_the_exact_gradient(policy, tmp_path):
    """Nothing is left undrawn, so there is no chance in it: weights are probabilities."""
    fields = {"rewards": {"rule": 1.0, "prefix": 0.5}, "beta": 0.0, "prompts_per_step": 3}
    exact = trainer_of(policy, tmp_path, **fields, objective="exact", normalise_over="catalog")
    size = len(trie_of(exact))
    rows = rows_of(exact)
    torch.manual_seed(0)
    exact.model.train()
    exact.current_gradient_accumulation_steps = 1
    exact.compute_loss(exact.model, {"rows": rows[::G]}).backward()
    ours = trainer_of(policy, tmp_path, **fields, **UNBIASED, num_generations=size)
    scored = scored_rollouts(ours, [dict(row) for row in rows[::G] for _ in range(size)])
    ours.model.train()
    ours.current_gradient_accumulation_steps = 1
    ours.compute_loss(ours.model, scored).backward()
    wanted = gradients(exact) / ours.args.max_completion_length  # dr_grpo averages over the tokens of the longest SID
    assert wanted.norm() > 1e-3
    assert (gradients(ours) - wanted).norm() <= 1e-4 * wanted.norm()


def test_listwise_losses_by_hand():
    scores, target = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[False, True, False]])
    total = math.exp(-1) + math.exp(-2) + math.exp(-3)
    assert listwise_loss(scores, target).item() == pytest.approx(2 + math.log(total), rel=1e-6)
    # -log sigmoid(-log(e^(2*(0.5 - 0.2)) + e^(2*(-0.1 - 0.2)))), written out
    ratios = torch.tensor([[0.5, 0.2, -0.1]])
    expected = math.log1p(math.exp(0.6) + math.exp(-0.6))
    assert sdpo_loss(ratios, target, 2.0).item() == pytest.approx(expected, rel=1e-6)
    pair = sdpo_loss(torch.tensor([[0.7, -0.4]]), torch.tensor([[True, False]]), 0.1).item()
    assert pair == pytest.approx(math.log1p(math.exp(-0.1 * 1.1)), rel=1e-6)  # DPO


@pytest.mark.parametrize("objective", ["listwise", "sdpo"])
def test_listwise_objectives_raise_the_target_in_its_group(policy, tmp_path, objective):
    fields = {"objective": objective, "add_target": True, "sft_weight": 0.1, "learning_rate": 3e-4, "epochs": 6.0}
    trainer = trainer_of(policy, tmp_path, **fields)
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    losses = [row["loss"] for row in log]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])  # an epoch has four steps
    assert {"sft_loss", "kl", "entropy", "reward"} <= log[0].keys()


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_resumed_run_goes_on_as_if_never_stopped(policy, tmp_path):
    """Stochastic rollouts and a reference that moves, stopped after two steps of four."""
    fields = {"rollouts": "stochastic", "add_target": True, "beta": 0.05, "sync_reference": 1, "sft_weight": 0.1}
    logs = []
    for stop in (None, 2):
        out = tmp_path / str(stop)
        for resume in (False, True) if stop else (False,):
            trainer = trainer_of(policy, out, **fields)
            reference = KeepReference(trainer)
            trainer.add_callback(reference)
            if resume:
                reference.restore(str(out / "checkpoint-2"))
            elif stop:
                trainer.add_callback(StopAt(stop))
            trainer.train(resume_from_checkpoint=str(out / "checkpoint-2") if resume else None)
        logs.append([row for row in trainer.state.log_history if "loss" in row])
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]] == [1, 2, 3, 4]
    for whole, parted in zip(*logs, strict=True):
        for name in ("loss", "reward", "kl", "entropy", "sft_loss", "grad_norm"):
            assert parted[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "listwise"}, "set rl.add_target: true"),
        ({"objective": "sdpo", "add_target": True, "rollouts": "sampling"}, "may draw one twice"),
        ({**EXACT, "rollouts": "stochastic"}, "draws no rollouts"),
        ({**EXACT, "rollouts": "uniform"}, "draws no rollouts"),
        ({"rollouts": "uniform", "rewards": {"rule": 1.0}}, "Choose listwise or sdpo"),
        ({"objective": "sdpo", "add_target": True, "rollouts": "uniform"}, "which rl.rollouts uniform does not have"),
        ({"objective": "exact", "normalise_over": "catalog"}, "rl.rewards ranking depends on the ranks"),
        ({"objective": "exact", "rewards": {"rule": 1.0}}, "set rl.normalise_over: catalog"),
        ({**EXACT, "loss": "dapo"}, "belong to rl.objective grpo, not to exact"),
        ({"advantages": "sibling", "loss": "gspo"}, "choose another"),
        ({"importance_weights": True, "rewards": {"rule": 1.0}}, "set rl.objective: grpo, rl.rollouts: stochastic, "),
        ({**UNBIASED, "rewards": {"rule": 1.0}, "dynamic_sampling": "refill"}, "rl.dynamic_sampling: none"),
        (UNBIASED, "rl.rewards ranking depends on the ranks .* no expectation"),
        ({"refill_rounds": 0}, "it must be from 1 to"),
        ({"sync_reference": 5, "beta": 0.0}, "but rl.beta is 0"),
        ({"sync_reference": 5, "sync_mix": 1.5}, "at most 1"),
        ({"sync_reference": 0}, "it must be from 1 to"),
        ({"sft_weight": -1.0}, "it must be from 0 to"),
        ({"refill_rounds": 5}, "rl.refill_rounds is set, but it has an effect with rl.dynamic_sampling: refill only"),
        ({"sync_mix": 0.5}, "with rl.sync_reference only"),
        ({"sdpo_beta": 0.5}, "with rl.objective: sdpo only"),
        ({"collaborative_model": "gru4rec"}, "with the reward collaborative in rl.rewards only"),
        ({"task_shares": {"title_to_sid": 0.5}}, "rl.task_shares names title_to_sid, which is not among rl.tasks"),
        ({"task_shares": {"history_sid_to_sid": 1.5}}, "is a share above 0"),
    ],
)
def test_options_that_do_not_fit_together(fields, message):
    with pytest.raises(ConfigError, match=message):
        RlConfig(**fields)
