"""TRL's GRPOTrainer with ranked beams as rollouts and prefix-shared log-probabilities, through its two seams.

`rollout_func` gives each prompt its `num_generations` best distinct SIDs from the decoder that evaluation uses. The override
of the log-probability method computes a prompt once for its whole group.
"""

from collections.abc import Callable
from typing import Any

import torch
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from minionerec.tree import Branch, CatalogTrie, beam_search, left_pad, pack, tree_logits

RewardFunction = Callable[..., list[float | None]]


def beam_rollouts(trie: CatalogTrie, num_generations: int, pad_token: int) -> Callable[[list, GRPOTrainer], dict[str, Any]]:
    """A TRL `rollout_func`: ranked beams, best first.

    TRL hands over each prompt `num_generations` times in a row (its docstring says otherwise); one search serves them all.
    """

    def rollout(prompts: list[list[int]], trainer: GRPOTrainer) -> dict[str, Any]:
        distinct = prompts[::num_generations]
        ids, mask = left_pad(distinct, pad_token, trainer.accelerator.device)
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
            training = model.training
            model.eval()
            result = beam_search(model, ids, mask, trie=trie, num_beams=num_generations)
            model.train(training)
        return {"prompt_ids": prompts, "completion_ids": result.tokens.flatten(0, 1).tolist(), "logprobs": None}

    return rollout


def grouped(reward: Callable[[list, list], list[float]], num_generations: int) -> RewardFunction:
    """A TRL reward function from a function of one group; rows come in group order, best beam first.

    Also logs how often the target is among the beams: a group without it carries no signal.
    """

    def function(completion_ids: list, target: list, log_metric: Callable[[str, float], None], **_: Any) -> list[float | None]:
        rewards: list[float | None] = []
        hits = 0
        for start in range(0, len(completion_ids), num_generations):
            group = completion_ids[start : start + num_generations]
            hits += list(target[start]) in [list(completion) for completion in group]
            rewards += reward(group, target[start])
        log_metric(f"HR@{num_generations}", hits * num_generations / len(completion_ids))
        return rewards

    function.__name__ = reward.__name__
    return function


class TreeGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer that computes each prompt once for all its completions: same log-probabilities, far fewer tokens."""

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        split = input_ids.shape[1] - logits_to_keep
        lengths = attention_mask[:, :split].sum(1).tolist()
        rows = input_ids.tolist()
        trees: dict[tuple[int, ...], list[int]] = {}  # prompt -> its rows
        for row, length in enumerate(lengths):
            trees.setdefault(tuple(rows[row][split - length : split]), []).append(row)
        order = [row for members in trees.values() for row in members]
        branches = [[Branch(prompt, rows[row][split:]) for row in members] for prompt, members in trees.items()]
        batch = pack(branches, row_tokens=1).to(input_ids.device)
        with self.accelerator.autocast():
            logits = tree_logits(model, self.accelerator.unwrap_model(model), batch)
        logprobs = torch.log_softmax(logits / self.temperature, dim=-1)  # (rows * completion, vocabulary)
        back = torch.tensor(order, device=input_ids.device).argsort()
        chosen = logprobs.gather(-1, batch.labels[:, None]).view(len(rows), logits_to_keep)[back]
        entropies = None
        if compute_entropy:
            with torch.no_grad():
                entropies = -(logprobs.exp() * logprobs).sum(-1).view(len(rows), logits_to_keep)[back]
        return chosen, entropies, None
