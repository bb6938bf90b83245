"""The exact objective: expected reward and KL over the whole catalog, computed rather than sampled.

The policy is the model's distribution over the catalog, each step normalised over the legal tokens. For a prompt the loss is
- sum over SIDs of p(SID) * reward(SID) + beta * KL(p, reference). Sampled rollouts estimate the gradient of this.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch

from minionerec.rl.rewards import Context, Reward
from minionerec.rl.trainer import TreeGRPOTrainer
from minionerec.tree import NO_TOKEN, CatalogTrie
from minionerec.tree.catalog_logprobs import catalog_logprobs


def expected_reward(logprobs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Expected reward of each prompt, (prompts,).

    Args:
        logprobs, rewards: (prompts, SIDs), of the whole catalog.
    """
    return (logprobs.exp() * rewards).sum(-1)


def exact_kl(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(policy, reference) of each prompt over the whole catalog in nats, (prompts,); both (prompts, SIDs)."""
    return (logprobs.exp() * (logprobs - reference)).sum(-1)


def level_entropies(logprobs: torch.Tensor, trie: CatalogTrie) -> list[torch.Tensor]:
    """Entropy of each level's token given those before, in nats: (prompts,) per level; their sum is that of the SID.

    Args:
        logprobs: (prompts, SIDs), of the whole catalog.
        trie: the catalog.
    """
    probabilities, sums = logprobs.exp(), []
    for level in reversed(range(trie.depth)):
        sums.append(-torch.special.xlogy(probabilities, probabilities).sum(-1))  # of the prefixes that end here
        parents = trie.parent(level, torch.arange(probabilities.shape[1], device=probabilities.device))
        above = probabilities.new_zeros(len(probabilities), len(trie.tokens[level - 1]) if level else 1)
        probabilities = above.scatter_add(1, parents.expand_as(probabilities), probabilities)
    totals = sums[::-1]
    return [totals[0], *(below - above for above, below in pairwise(totals))]


class ExactTrainer(TreeGRPOTrainer):
    """TRL's trainer with the exact objective in place of rollouts and of TRL's loss.

    Args:
        trie: the valid SIDs, on the model's device.
        rewards: by name, functions of each SID alone, none of its rank; the catalog stands in for a group.
        weights: one per reward.
        sft_weight: weight of the mean negative log-probability of the target's tokens.
        arguments: see GRPOTrainer.
    """

    def __init__(
        self,
        *,
        trie: CatalogTrie,
        rewards: Mapping[str, Reward],
        weights: Sequence[float],
        sft_weight: float = 0.0,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.trie, self.rewards, self.weights, self.sft_weight = trie, rewards, weights, sft_weight
        self.sids = [[token for token in sid if token != NO_TOKEN] for sid in trie.sids.tolist()]
        self.leaf_of_sid = {tuple(sid): leaf for leaf, sid in enumerate(self.sids)}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The rows themselves, each once."""
        return {"rows": generation_batch[:: cast(int, self.args.num_generations)]}

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        rows = inputs["rows"]
        prompts = [list(row["prompt"]) for row in rows]
        with self.accelerator.autocast():
            logprobs = catalog_logprobs(model, prompts, trie=self.trie, temperature=self.temperature)
        figures: dict[str, torch.Tensor] = {}
        expected = torch.zeros(len(rows), device=logprobs.device)
        for (name, reward), weight in zip(self.rewards.items(), self.weights, strict=True):
            table = [reward(self.sids, row["target"], Context(row["row"])) for row in rows]
            value = expected_reward(logprobs, torch.tensor(table, device=logprobs.device))
            figures[f"rewards/{name}/mean"] = value
            expected = expected + weight * value
        loss = -expected
        entropies = level_entropies(logprobs.detach(), self.trie)
        figures |= {f"entropy/level_{level}": value for level, value in enumerate(entropies, 1)}
        figures |= {"reward": expected, "entropy": torch.stack(entropies).sum(0) / self.trie.depth}
        if self.beta:
            with torch.no_grad(), self.accelerator.autocast():
                reference = catalog_logprobs(
                    cast(torch.nn.Module, self.ref_model), prompts, trie=self.trie, temperature=self.temperature
                )
            divergence = exact_kl(logprobs, reference)
            figures["kl"] = divergence / self.trie.depth  # as the other objectives log it: a mean over tokens
            loss = loss + self.beta * divergence
        if self.sft_weight:
            leaves = torch.tensor([self.leaf_of_sid[tuple(row["target"])] for row in rows], device=logprobs.device)
            lengths = torch.tensor([len(row["target"]) for row in rows], device=logprobs.device)
            figures["sft_loss"] = -logprobs.gather(1, leaves[:, None]).squeeze(1) / lengths
            loss = loss + self.sft_weight * figures["sft_loss"]
        for name, values in figures.items():
            gathered = self.accelerator.gather(values.detach().contiguous())
            self._metrics["train" if model.training else "eval"][name].append(gathered.mean().item())
        return loss.mean() / (self.current_gradient_accumulation_steps if model.training else 1)
