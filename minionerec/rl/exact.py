"""The exact objective: expected reward and KL over the whole catalogue, computed rather than sampled.

The policy is the model's distribution over the catalogue, each step normalised over the legal tokens. For a prompt the loss is
- sum over SIDs of p(SID) * reward(SID) + beta * KL(p, reference). Sampled rollouts estimate the gradient of this.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from minionerec.rl.rewards import Context, Reward
from minionerec.rl.trainer import TreeGRPOTrainer
from minionerec.tree import NO_TOKEN, CatalogTrie
from minionerec.tree.whole import catalog_logprobs


def expected_reward(logprobs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Expected reward of each prompt, (prompts,).

    Args:
        logprobs, rewards: (prompts, SIDs), of the whole catalogue.
    """
    return (logprobs.exp() * rewards).sum(-1)


def exact_kl(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(policy, reference) of each prompt over the whole catalogue in nats, (prompts,); both (prompts, SIDs)."""
    return (logprobs.exp() * (logprobs - reference)).sum(-1)


class ExactTrainer(TreeGRPOTrainer):
    """TRL's trainer with the exact objective in place of rollouts and of TRL's loss.

    Args:
        trie: the valid SIDs, on the model's device.
        rewards: by name, functions of each SID alone, none of its rank; the catalogue stands in for a group.
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
        figures, expected = {}, torch.zeros(len(rows), device=logprobs.device)
        for (name, reward), weight in zip(self.rewards.items(), self.weights, strict=True):
            table = [reward(self.sids, row["target"], Context(row["row"])) for row in rows]
            figures[f"rewards/{name}"] = expected_reward(logprobs, torch.tensor(table, device=logprobs.device))
            expected = expected + weight * figures[f"rewards/{name}"]
        loss = -expected
        figures |= {"reward": expected, "entropy": -(logprobs.exp() * logprobs).sum(-1)}
        if self.beta:
            with torch.no_grad(), self.accelerator.autocast():
                reference = catalog_logprobs(
                    cast(torch.nn.Module, self.ref_model), prompts, trie=self.trie, temperature=self.temperature
                )
            figures["kl"] = exact_kl(logprobs, reference)
            loss = loss + self.beta * figures["kl"]
        if self.sft_weight:
            leaves = torch.tensor([self.leaf_of_sid[tuple(row["target"])] for row in rows], device=logprobs.device)
            lengths = torch.tensor([len(row["target"]) for row in rows], device=logprobs.device)
            figures["sft_loss"] = -logprobs.gather(1, leaves[:, None]).squeeze(1) / lengths
            loss = loss + self.sft_weight * figures["sft_loss"]
        for name, values in figures.items():
            gathered = self.accelerator.gather(values.detach().contiguous())
            self._metrics["train" if model.training else "eval"][name].append(gathered.mean().item())
        return loss.mean() / (self.current_gradient_accumulation_steps if model.training else 1)
