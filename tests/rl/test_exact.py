import math

import numpy as np
import pytest
import torch

from minionerec.errors import ConstraintError
from minionerec.rl.exact import exact_kl, expected_reward, level_entropies
from minionerec.rl.objectives import importance_advantages
from minionerec.tree import (
    CatalogTrie,
    left_pad,
    sample_with_replacement,
    sample_without_replacement,
    score_catalog,
)
from minionerec.tree import catalog_logprobs as catalog_logprobs_module
from minionerec.tree.catalog_logprobs import PrefixRows, catalog_logprobs, number_of_rows
from tests.rl.toy import trainer_of
from tests.tree.conftest import random_codes

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5]]


@pytest.fixture
def trainer(policy, tmp_path):
    trainer = trainer_of(policy, tmp_path, objective="exact", normalise_over="catalog")
    trainer.model.eval()
    return trainer


def test_logprobs_are_the_oracles(trainer):
    trie, model = trainer.trie, trainer.model
    found = catalog_logprobs(model, PROMPTS, trie=trie)
    ids, mask = left_pad(PROMPTS, 0)
    torch.testing.assert_close(
        found, score_catalog(model, ids, mask, trie=trie, normalise_over="catalog"), atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_prefixes_in_several_rows_give_what_one_row_gives(trainer, depth, monkeypatch):
    """The same log-probabilities and gradients; a node's ancestors stand in its row, and nothing else is seen."""
    model, codes = trainer.model, random_codes(np.random.default_rng(depth), 200, depth, {2: 90}.get(depth, 6), depth > 1)
    trie = CatalogTrie.from_codes(codes)
    found = {}
    weights = torch.randn(len(PROMPTS), len(trie), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(catalog_logprobs_module, "PER_PROMPT_TOKEN", 0)
    for most in (10, 40, 10**9):
        monkeypatch.setattr(catalog_logprobs_module, "ROW_PREFIXES", most)
        rows = PrefixRows.of(trie, number_of_rows(trie, 5))
        assert len(rows.tokens) <= number_of_rows(trie, 5)
        assert (rows.ancestors.sum(-1) <= depth).all()
        model.zero_grad()
        cut: dict = {}
        logprobs = catalog_logprobs(model, PROMPTS, trie=trie, cut=cut)
        assert [len(rows.tokens), *cut] == [len(cut[number_of_rows(trie, 5)].tokens), number_of_rows(trie, 5)]
        torch.testing.assert_close(catalog_logprobs(model, PROMPTS, trie=trie, cut=cut), logprobs, atol=0, rtol=0)
        (logprobs * weights).sum().backward()
        gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        found[most] = len(rows.tokens), logprobs.detach(), gradients
    assert [rows for rows, _, _ in found.values()] == {1: [1, 1, 1], 2: [7, 2, 1], 4: [10, 3, 1]}[depth]
    for _, logprobs, gradients in found.values():
        torch.testing.assert_close(logprobs, found[10**9][1], atol=2e-5, rtol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[10**9][2][name], atol=1e-4, rtol=1e-4)


def test_logprobs_of_short_sids_are_the_oracles(trainer):
    model = trainer.model
    trie = CatalogTrie.from_codes(
        torch.tensor([[300, -1, -1], [301, 302, -1], [301, 303, 304], [301, 303, 305], [306, 302, 300]])
    )
    ids, mask = left_pad(PROMPTS, 0)
    found = catalog_logprobs(model, PROMPTS, trie=trie, temperature=0.7)
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    plain = catalog_logprobs(model, PROMPTS, trie=trie)
    torch.testing.assert_close(
        plain, score_catalog(model, ids, mask, trie=trie, normalise_over="catalog"), atol=1e-4, rtol=1e-5
    )


def test_the_gradient_is_that_of_finite_differences(trainer):
    trie, model = trainer.trie, trainer.model
    model.double()
    torch.manual_seed(0)
    rewards = torch.rand(2, len(trie), dtype=torch.float64)
    reference = torch.randn(2, len(trie), dtype=torch.float64).log_softmax(1)

    def loss():
        logprobs = catalog_logprobs(model, PROMPTS, trie=trie)
        return (-expected_reward(logprobs, rewards) + 0.1 * exact_kl(logprobs, reference)).mean()

    # In float64 but for the log-probabilities, which are float32: long steps along random directions.
    loss().backward()
    checked = 0
    for parameter in model.parameters():
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        slope = float((parameter.grad * direction).sum()) if parameter.grad is not None else 0.0
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter += sign * 1e-3 * direction
                ends.append(float(loss()))
                parameter -= sign * 1e-3 * direction
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=2e-3, rel=2e-2)
        checked += abs(slope) > 1e-2
    assert checked > 3


@pytest.mark.parametrize("kind", ["sampling", "stochastic"])
def test_the_sampled_policy_gradient_is_unbiased(trainer, kind):
    """The gradient with respect to one number per SID, averaged over 4,000 groups of 4, against the exact one."""
    trie, model = trainer.trie, trainer.model
    groups, size = 4000, 4
    torch.manual_seed(0)
    rewards = torch.rand(len(trie))
    with torch.no_grad():
        logprobs = catalog_logprobs(model, PROMPTS[:1], trie=trie)[0]
    # d log p(SID) / d(logit of a SID) of the softmax over the catalog: the chain rule beyond is the same for all.
    chance = logprobs.exp()
    score = torch.eye(len(trie)) - chance
    exact = chance * (rewards - (chance * rewards).sum())
    ids, seeds = torch.tensor(PROMPTS[:1]).expand(groups, -1), torch.arange(groups)
    if kind == "sampling":
        leaves = sample_with_replacement(model, ids, trie=trie, num_samples=size, seeds=seeds).leaves
        gained = rewards[leaves]
        advantages = (gained - gained.mean(1, keepdim=True)) / (size - 1)  # dr_grpo; G / (G - 1) makes up for the own share
    else:
        drawn = sample_without_replacement(model, ids, trie=trie, num_samples=size, seeds=seeds)
        leaves = drawn.leaves
        plain = (drawn.log_weights().exp() * rewards[leaves])[..., None] * score[leaves]
        advantages = importance_advantages(rewards[leaves], drawn.logprobs, drawn.log_weights()) / size
    estimates = (advantages[..., None] * score[leaves]).sum(1)
    error = estimates.std(0) / groups**0.5
    common = chance * groups * size > 50  # the spread of what is hardly ever drawn cannot be told from its draws
    assert common.sum() > 8
    assert ((estimates.mean(0) - exact).abs() <= 4.5 * error + 1e-6)[common].all()
    assert exact.abs().max() > 20 * error.max()
    if kind == "stochastic":  # what the baseline is there for
        assert estimates.std(0)[common].mean() < 0.8 * plain.sum(1).std(0)[common].mean()


def test_entropies_by_level(trainer):
    """Against the definition: the entropy of each prefix's next token, weighted by the prefix's probability."""
    trie, model = trainer.trie, trainer.model
    with torch.no_grad():
        logprobs = catalog_logprobs(model, PROMPTS, trie=trie).double()
    wanted = torch.zeros(2, trie.depth, dtype=torch.float64)
    for prompt in range(2):
        for level in range(trie.depth):
            mass: dict = {}
            for sid, chance in zip(trie.sids.tolist(), logprobs[prompt].exp().tolist(), strict=True):
                after = mass.setdefault(tuple(sid[:level]), {})
                after[sid[level]] = after.get(sid[level], 0) + chance
            for after in mass.values():
                total = sum(after.values())
                wanted[prompt, level] -= sum(chance * math.log(chance / total) for chance in after.values())
    found = torch.stack(level_entropies(logprobs, trie), dim=1)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum(1), -(logprobs.exp() * logprobs).sum(1), atol=1e-6, rtol=1e-6)


def test_training_raises_the_expected_reward(policy, tmp_path):
    trainer = trainer_of(policy, tmp_path, objective="exact", normalise_over="catalog", beta=0.01, sft_weight=0.1, epochs=3.0)
    trainer.train()
    log = [row for row in trainer.state.log_history if "reward" in row]
    assert log[-1]["reward"] > 2 * log[0]["reward"] > 0
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[-1]["kl"] > 1e-3
    assert {"entropy", "entropy/level_1", "entropy/level_3", "rewards/rule/mean"} <= log[0].keys()
    assert log[0]["loss"] == pytest.approx(-log[0]["reward"] + 0.03 * log[0]["kl"] + 0.1 * log[0]["sft_loss"], abs=1e-3)


def test_a_catalog_that_is_too_large(trainer, monkeypatch):
    trie, model = trainer.trie, trainer.model
    monkeypatch.setattr("minionerec.tree.catalog_logprobs.MOST_PREFIXES", 10)
    with pytest.raises(ConstraintError, match=r"prefixes, more than the 10 .* use rollouts"):
        catalog_logprobs(model, PROMPTS, trie=trie)
    with pytest.raises(ConstraintError, match="must not be empty"):
        monkeypatch.undo()
        catalog_logprobs(model, [[]], trie=trie)
