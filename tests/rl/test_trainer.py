from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from trl import GRPOTrainer

from minionerec.config import RlConfig
from minionerec.errors import ConfigError, TrainingError
from minionerec.rl.arguments import grpo_arguments
from minionerec.rl.monitor import level_means
from minionerec.rl.rewards import ranking
from minionerec.rl.step import Step
from minionerec.rl.trainer import TreeGRPOTrainer, grouped, shuffle_groups
from minionerec.tree import beam_search
from tests.rl.toy import G, completion_logprobs, trainer_of, trie_of


def ranking_trainer(policy, folder, kind=TreeGRPOTrainer, **options):
    """A trainer without the options of ObjectiveTrainer, with the paper's reward."""
    return trainer_of(policy, folder, kind=kind, rewards={"ranking": 1.0}, **options)


@pytest.mark.parametrize("left_padding", [0, 3])
def test_logprobs_entropies_and_gradients_equal_trls(policy, tmp_path, left_padding):
    trainer = ranking_trainer(policy, tmp_path)
    torch.manual_seed(0)
    prompts = torch.randint(2, 300, (2, 9)).repeat_interleave(3, 0)
    mask = torch.ones(6, 12, dtype=torch.long)
    mask[:3, :left_padding] = 0
    ids = torch.cat([prompts, torch.randint(2, 300, (6, 3))], dim=1)[[4, 0, 2, 5, 1, 3]]  # groups scattered
    mask = mask[[4, 0, 2, 5, 1, 3]]
    results = []
    for kind in (TreeGRPOTrainer, GRPOTrainer):
        logps, entropies = completion_logprobs(trainer, ids, mask, 3, kind)
        trainer.model.zero_grad()
        logps.square().mean().backward()
        results.append((logps.detach(), entropies.detach(), [p.grad.clone() for p in trainer.model.parameters()]))
    (ours, our_entropies, our_gradients), (theirs, their_entropies, their_gradients) = results
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_entropies, their_entropies, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-7


def test_short_sids_have_the_logprobs_of_trl(policy, tmp_path):
    """Completions of two and three tokens, padded on the right as TRL pads them."""
    trainer = ranking_trainer(policy, tmp_path)
    torch.manual_seed(1)
    ids = torch.cat([torch.randint(2, 300, (2, 9)).repeat_interleave(3, 0), torch.randint(2, 300, (6, 3))], dim=1)
    mask = torch.ones(6, 12, dtype=torch.long)
    mask[[1, 3], -1] = 0
    with torch.no_grad():
        ours, theirs = (completion_logprobs(trainer, ids, mask, 3, kind) for kind in (TreeGRPOTrainer, GRPOTrainer))
    labelled = mask[:, -3:].bool()
    torch.testing.assert_close(ours[0][labelled], theirs[0][labelled], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1][labelled], theirs[1][labelled], atol=1e-4, rtol=1e-4)


def test_rows_are_not_searched_for_tensors_to_move(policy, tmp_path, monkeypatch):
    """Neither from the beginning nor from the middle of an epoch, where a resumed run begins."""

    def search(batch, *_, **__):
        raise AssertionError("accelerate looks at every token")

    monkeypatch.setattr("accelerate.data_loader.send_to_device", search)
    loader = ranking_trainer(policy, tmp_path).get_train_dataloader()
    for batches in (loader, skip_first_batches(loader, 1)):
        assert isinstance(next(iter(batches))[0]["prompt"], list)


def two_micro_batches_at_once(arguments):
    return replace(arguments, steps_per_generation=2, generation_batch_size=None)


def test_groups_stay_whole_when_one_rollout_serves_several_micro_batches(policy, tmp_path, monkeypatch):
    logs, prompts = [], {}
    for kind in (TreeGRPOTrainer, GRPOTrainer):
        seen = prompts[kind] = []
        folder = tmp_path / kind.__name__
        trainer = ranking_trainer(policy, folder, kind=kind, beta=0.01, adjust=two_micro_batches_at_once)
        original = kind._get_per_token_logps_and_entropies

        def spy(self, model, input_ids, *args, seen=seen, original=original, **arguments):
            if torch.is_grad_enabled():
                seen.append(len(input_ids[:, : -args[1]].unique(dim=0)))
            return original(self, model, input_ids, *args, **arguments)

        monkeypatch.setattr(kind, "_get_per_token_logps_and_entropies", spy)
        trainer.train()
        monkeypatch.undo()
        logs.append([row for row in trainer.state.log_history if "reward" in row])
    assert max(prompts[TreeGRPOTrainer]) <= 3  # micro_batch_prompts; stock TRL scatters six prompts over both halves
    assert max(prompts[GRPOTrainer]) > 3
    for name in ("reward", "kl", "entropy", "grad_norm"):
        assert logs[0][0][name] == pytest.approx(logs[1][0][name], rel=1e-4, abs=1e-5)


def test_shuffling_keeps_groups_and_columns_together():
    rows = {"ids": torch.arange(12).view(12, 1), "names": [str(row) for row in range(12)], "count": torch.tensor(5), "no": None}
    torch.manual_seed(0)
    shuffled = shuffle_groups(rows, 3)
    order = shuffled["ids"].flatten().tolist()
    assert order != sorted(order) == list(range(12))
    assert all(order[start : start + 3] == list(range(order[start], order[start] + 3)) for start in range(0, 12, 3))
    assert shuffled["names"] == [str(row) for row in order]
    assert (shuffled["count"], shuffled["no"]) == (5, None)


def rolled(trainer, prompts):
    """The rollouts of these prompts, as TRL asks for them."""
    repeated = [prompt for prompt in prompts for _ in range(G)]
    trainer.step = Step([{"prompt": prompt} for prompt in repeated])
    return trainer.rollout_func(repeated, trainer)


def test_rollouts_are_the_evaluations_beams(policy, tmp_path):
    trainer = ranking_trainer(policy, tmp_path)
    prompts = [row["prompt"] for row in trainer.train_dataset][:3]
    rollouts = rolled(trainer, prompts)
    for number, prompt in enumerate(prompts):
        beams = beam_search(trainer.model.eval(), torch.tensor([prompt]), trie=trie_of(trainer), num_beams=G)
        expected = beams.tokens[0].tolist()
        assert rollouts["completion_ids"][number * G : (number + 1) * G] == expected
        assert rollouts["leaf"][number * G : (number + 1) * G] == beams.leaves[0].tolist()
        assert len({tuple(sid) for sid in expected}) == G
        assert rollouts["prompt_ids"][number * G] == prompt


def test_rewards_use_each_rows_own_target_and_context():
    # One prompt twice with two targets: a dictionary keyed by prompt would give both the same (reference defect D3).
    completions = [[1, 2], [3, 4]] * 2
    targets = [[1, 2]] * 2 + [[3, 4]] * 2
    columns = {"target": targets, "target_leaf": [0, 0, 1, 1], "leaf": [0, 1] * 2}
    rewards = grouped("ranking", ranking, 2)(completions, train_row=[0, 0, 1, 1], **columns)
    assert rewards == [1, pytest.approx(-0.387, abs=1e-3), pytest.approx(-0.613, abs=1e-3), 1]
    contexts = []
    grouped("row", lambda group, target, context: contexts.append(context) or [0] * len(group), 2)(
        completions, train_row=[7, 7, None, None], **columns
    )
    assert [(context.train_row, context.leaves, context.target_leaf) for context in contexts] == [
        (7, [0, 1], 0),
        (None, [0, 1], 1),
    ]


def slow_catalog_logprobs(model, prompt, completion, sids):
    """Log-probabilities and entropies over the tokens with which a SID can go on, one forward pass a token."""
    of_tokens, entropies = [], []
    for level, token in enumerate(completion):
        legal = sorted({sid[level] for sid in sids if sid[:level] == completion[:level]})
        logits = model(torch.tensor([prompt + completion[:level]])).logits[0, -1, legal].double()
        logprobs = logits.log_softmax(-1)
        of_tokens.append(logprobs[legal.index(token)])
        entropies.append(-(logprobs.exp() * logprobs).sum())
    return torch.stack(of_tokens), torch.stack(entropies)


def test_catalog_logprobs_entropies_and_gradients_equal_a_slow_version(policy, tmp_path):
    trainer = ranking_trainer(policy, tmp_path, normalise_over="catalog")
    trie = trie_of(trainer)
    sids = trie.sid(trie.leaf_of_item.long()).tolist()  # in the order of the items
    torch.manual_seed(0)
    prompts = [torch.randint(2, 300, (length,)).tolist() for length in (5, 9)]
    rows = [(prompt, sids[item]) for prompt in prompts for item in (0, 7, 1, 29)]
    ids = torch.tensor([[0] * (9 - len(prompt)) + prompt + sid for prompt, sid in rows])
    mask = torch.tensor([[0] * (9 - len(prompt)) + [1] * (len(prompt) + 3) for prompt, _ in rows])
    logps, entropies = completion_logprobs(trainer, ids, mask, 3)
    slow = [slow_catalog_logprobs(trainer.model, prompt, sid, sids) for prompt, sid in rows]
    torch.testing.assert_close(logps.double(), torch.stack([logprobs for logprobs, _ in slow]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), torch.stack([entropy for _, entropy in slow]), atol=1e-5, rtol=1e-5)
    gradients = []
    for values in (logps, torch.stack([logprobs for logprobs, _ in slow])):
        trainer.model.zero_grad()
        values.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in trainer.model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-7


def test_rollouts_and_reference_model_use_the_catalog_too(policy, tmp_path):
    """Before the first step policy and reference model are one: the KL is 0 only if both are taken over the same tokens."""
    trainer = ranking_trainer(policy, tmp_path, normalise_over="catalog", beta=0.01)
    trie = trie_of(trainer)
    prompt = trainer.train_dataset[0]["prompt"]
    by_catalog, by_vocabulary = (
        beam_search(trainer.model.eval(), torch.tensor([prompt]), trie=trie, num_beams=G, normalise_over=space)
        .tokens[0]
        .tolist()
        for space in ("catalog", "vocabulary")
    )
    assert rolled(trainer, [prompt])["completion_ids"] == by_catalog != by_vocabulary
    trainer.train()
    first = next(row for row in trainer.state.log_history if "reward" in row)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["entropy"] <= torch.tensor(6.0).log()  # at most six codes a level
    assert sum(first[f"entropy/level_{level}"] for level in (1, 2, 3)) / 3 == pytest.approx(first["entropy"], rel=1e-5)
    assert first["groups_with_signal"] == pytest.approx(1 - first["frac_reward_zero_std"])
    assert 1 <= first["first_codes"] <= G and first["rewards/ranking/mean"] == pytest.approx(first["reward"], abs=1e-6)
    assert "hit_rank" not in first or 1 <= first["hit_rank"] <= G


def test_the_mean_of_a_level_counts_the_completions_that_have_it():
    values, mask = torch.tensor([[1.0, 2], [3, 50]]), torch.tensor([[1, 1], [1, 0]])
    assert level_means(values, mask, 3, Accelerator(cpu=True)) == [2, 2]


def test_stock_trl_takes_the_same_steps(policy, tmp_path):
    logs = []
    for kind in (TreeGRPOTrainer, GRPOTrainer):
        trainer = ranking_trainer(policy, tmp_path / kind.__name__, kind=kind, beta=0.01)
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "reward" in row])
    assert len(logs[0]) == len(logs[1]) == 4
    assert sum(row["reward_std"] for row in logs[0]) > 0
    for name in ("reward", "kl", "entropy", "grad_norm"):
        assert logs[0][0][name] == pytest.approx(logs[1][0][name], rel=1e-4, abs=1e-5)
    # Adam divides rounding noise by its own size, so later steps drift apart a little and near ties may swap places.
    for ours, theirs in zip(*logs, strict=True):
        assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=2e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts_per_step": 10, "micro_batch_prompts": 4}, "does not split into 1 device"),
        ({"prompts_per_step": 6, "report_to": ["abacus"]}, "rl.report_to names abacus, which transformers does not know"),
    ],
)
def test_batches_that_do_not_fit(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        grpo_arguments(RlConfig(**fields), 3, 0, tmp_path, 24)


def test_out_of_memory_names_the_settings(policy, tmp_path, monkeypatch):
    trainer = ranking_trainer(policy, tmp_path)

    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 17 bytes")

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", full)
    with pytest.raises(TrainingError, match=r"Out of memory at step 1 \(.*17 bytes\)\. Lower rl.micro_batch_prompts"):
        trainer.train()
