"""The exact objective: expected reward and KL over the whole catalog, computed rather than sampled.

The policy p is the model's distribution over the catalog, each step normalised over the legal tokens; q is the reference
model's. The loss of a prompt is

    - sum over SIDs s of p(s) * reward(s) + beta * sum over SIDs s of p(s) * (log p(s) - log q(s)).

Sampled rollouts estimate the gradient of this.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch

from minionerec.rl.rewards import Context, Reward
from minionerec.rl.step import Rows
from minionerec.rl.trainer import TreeGRPOTrainer
from minionerec.tree import CatalogTrie, without_padding
from minionerec.tree.catalog_logprobs import PrefixRows, catalog_logprobs


def expected_reward(logprobs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Expected reward of each prompt, (prompts,).

    Args:
        logprobs, rewards: (prompts, SIDs), of the whole catalog.
    """
    return (logprobs.exp() * rewards).sum(-1)


def exact_kl(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL divergence of the policy from the reference model, (prompts,), in nats.

    Args:
        logprobs, reference: (prompts, SIDs), of the whole catalog.
    """
    return (logprobs.exp() * (logprobs - reference)).sum(-1)


def level_entropies(logprobs: torch.Tensor, trie: CatalogTrie) -> list[torch.Tensor]:
    """Entropy of each level's token given the tokens before it, in nats: (prompts,) per level; their sum is the SID's entropy.

    Args:
        logprobs: (prompts, SIDs), of the whole catalog.
        trie: the catalog.
    """
    # H(token | prefix) = H(prefix and token) - H(prefix), the chain rule. So the entropies of all prefixes of a length are
    # enough; their probabilities come from the leaves upwards, a prefix having the sum of its children.
    probabilities, prefix_entropies = logprobs.exp(), []
    for level in reversed(range(trie.depth)):
        prefix_entropies.append(-torch.special.xlogy(probabilities, probabilities).sum(-1))  # xlogy: 0 log 0 is 0
        parents = trie.parent(level, torch.arange(probabilities.shape[1], device=probabilities.device))
        above = probabilities.new_zeros(len(probabilities), len(trie.tokens[level - 1]) if level else 1)
        probabilities = above.scatter_add(1, parents.expand_as(probabilities), probabilities)
    by_length = prefix_entropies[::-1]
    return [by_length[0], *(longer - shorter for shorter, longer in pairwise(by_length))]


class ExactTrainer(TreeGRPOTrainer):
    """TRL's trainer with the exact objective in place of rollouts and of TRL's loss.

    Args:
        trie: the valid SIDs, on the model's device.
        rewards: by name, functions of each SID alone, none of its rank; the catalog stands in for a group.
        weights: one per reward.
        sft_weight: weight of the mean negative log-probability of the target's tokens.
        entropy_bonus: weight of the policy's mean entropy per token, which is subtracted from the loss.
        arguments: of GRPOTrainer.
    """

    def __init__(
        self,
        *,
        trie: CatalogTrie,
        rewards: Mapping[str, Reward],
        weights: Sequence[float],
        sft_weight: float = 0.0,
        entropy_bonus: float = 0.0,
        **arguments: Any,
    ) -> None:
        super().__init__(trie=trie, **arguments)
        self.rewards, self.weights, self.sft_weight = rewards, weights, sft_weight
        self.entropy_bonus = entropy_bonus
        self._cut: dict[int, PrefixRows] = {}  # the trie in rows, which policy and reference read at every step
        self._sids = [without_padding(sid) for sid in trie.sids.tolist()]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The rows themselves, each once: nothing is rolled out."""
        return {"rows": generation_batch[:: cast(int, self.args.num_generations)]}

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        rows = inputs["rows"]
        prompts = [list(row["prompt"]) for row in rows]
        with self.accelerator.autocast():
            logprobs = catalog_logprobs(model, prompts, trie=self.trie, temperature=self.temperature, cut=self._cut)
        figures: dict[str, torch.Tensor] = {}  # by the name in the log, (prompts,)
        expected = torch.zeros(len(rows), device=logprobs.device)
        for (name, reward), weight in zip(self.rewards.items(), self.weights, strict=True):
            value = expected_reward(logprobs, self._reward_table(reward, rows).to(logprobs.device))
            figures[f"rewards/{name}/mean"] = value
            expected = expected + weight * value
        loss = -expected
        entropies = level_entropies(logprobs if self.entropy_bonus else logprobs.detach(), self.trie)
        figures |= {f"entropy/level_{level}": value for level, value in enumerate(entropies, 1)}
        figures |= {"reward": expected, "entropy": torch.stack(entropies).sum(0) / self.trie.depth}
        if self.entropy_bonus:
            loss = loss - self.entropy_bonus * figures["entropy"]
        if self.beta:
            reference_model = cast(torch.nn.Module, self.ref_model)
            with torch.no_grad(), self.accelerator.autocast():
                reference = catalog_logprobs(
                    reference_model, prompts, trie=self.trie, temperature=self.temperature, cut=self._cut
                )
            divergence = exact_kl(logprobs, reference)
            figures["kl"] = divergence / self.trie.depth  # the objectives over rollouts log a mean over tokens
            loss = loss + self.beta * divergence
        if self.sft_weight:
            leaves = torch.tensor([row["target_leaf"] for row in rows], device=logprobs.device)
            lengths = torch.tensor([len(row["target"]) for row in rows], device=logprobs.device)
            figures["sft_loss"] = -logprobs.gather(1, leaves[:, None]).squeeze(1) / lengths
            loss = loss + self.sft_weight * figures["sft_loss"]
        for name, values in figures.items():
            gathered = self.accelerator.gather(values.detach().contiguous())
            self._metrics["train" if model.training else "eval"][name].append(gathered.mean().item())
        # Gradients of micro-batches are added up, so each counts with its share of the step.
        return loss.mean() / (self.current_gradient_accumulation_steps if model.training else 1)

    def _reward_table(self, reward: Reward, rows: Rows) -> torch.Tensor:
        """The reward of every SID after each prompt, (prompts, SIDs), in the order of the trie's leaves."""
        leaves = range(len(self._sids))
        contexts = [Context(row["train_row"], leaves, row["target_leaf"]) for row in rows]
        return torch.tensor([reward(self._sids, row["target"], context) for row, context in zip(rows, contexts, strict=True)])
