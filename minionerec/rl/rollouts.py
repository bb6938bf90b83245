"""Rollouts: a group of valid SIDs for each prompt, from the decoder that evaluation uses.

A group stands in the order of log-probability, the most likely first, so a reward that looks at ranks means the same for every
kind of rollout. Only a target that was added stands last, whatever its rank is. Uniform draws ask no policy and have no ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from trl.models import unwrap_model_for_generation

from minionerec.config import RlConfig
from minionerec.errors import ConstraintError
from minionerec.rl.step import Groups, Step
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.rounded_copy import RoundedCopy
from minionerec.tree import (
    BeamResult,
    CatalogTrie,
    Normalise,
    SearchGraphs,
    beam_search,
    left_pad,
    sample_with_replacement,
    sample_without_replacement,
    without_padding,
)
from minionerec.tree.hashed_gumbel import combine


@dataclass(frozen=True)
class Request:
    """What groups are drawn for.

    Attributes:
        ids, mask: prompts, (prompts, length), left-padded.
        trie: the valid SIDs, or a view with a row for each prompt.
        size: SIDs of a group.
        seeds: (prompts,) the seed of each prompt's draws.
        normalise_over: what the probabilities of plain beams add up over.
        graphs: of the model, by which its beams are searched; None to launch kernel by kernel.
    """

    model: PreTrainedModel
    ids: torch.Tensor
    mask: torch.Tensor
    trie: CatalogTrie
    size: int
    seeds: torch.Tensor
    normalise_over: Normalise
    graphs: SearchGraphs | None = None

    @property
    def prompts(self) -> tuple[PreTrainedModel, torch.Tensor, torch.Tensor]:
        """The positional arguments of the decoders."""
        return self.model, self.ids, self.mask

    def beams(self, number: int, normalise_over: Normalise) -> BeamResult:
        """The most likely SIDs."""
        search = partial(beam_search, self.model) if self.graphs is None else self.graphs.beam_search
        return search(self.ids, self.mask, trie=self.trie, num_beams=number, normalise_over=normalise_over)


def _beams(request: Request) -> Groups:
    """The most likely SIDs; no chance is involved."""
    beams = request.beams(request.size, request.normalise_over)
    return Groups(beams.leaves, beams.scores)


def _stochastic(request: Request) -> Groups:
    """Distinct SIDs drawn without replacement from the policy over the catalog."""
    drawn = sample_without_replacement(*request.prompts, trie=request.trie, num_samples=request.size, seeds=request.seeds)
    return _ranked(drawn.leaves, drawn.logprobs, drawn.log_weights())


def _sampling(request: Request) -> Groups:
    """Independent draws from the policy over the catalog; a SID may come several times."""
    drawn = sample_with_replacement(*request.prompts, trie=request.trie, num_samples=request.size, seeds=request.seeds)
    return _ranked(drawn.leaves, drawn.logprobs)


def _mixture(request: Request) -> Groups:
    """The best half of the beams, rounded up; the rest are the first draws that are not among these beams.

    Both are ranked together, so the beams' probabilities too add up over the catalog.
    """
    best = (request.size + 1) // 2
    top = request.beams(best, "catalog")
    drawn = sample_without_replacement(*request.prompts, trie=request.trie, num_samples=request.size, seeds=request.seeds)
    # At most `best` of the draws are beams, so enough remain; a stable sort keeps these in the order of drawing.
    repeats = (drawn.leaves[:, :, None] == top.leaves[:, None]).any(-1)
    fresh = repeats.to(torch.int8).argsort(dim=1, stable=True)[:, : request.size - best]
    leaves = torch.cat([top.leaves, drawn.leaves.take_along_dim(fresh, 1)], dim=1)
    return _ranked(leaves, torch.cat([top.scores, drawn.logprobs.take_along_dim(fresh, 1)], dim=1))


ROLLOUTS: dict[str, Callable[[Request], Groups]] = {
    "beams": _beams,
    "stochastic": _stochastic,
    "sampling": _sampling,
    "mixture": _mixture,
}


def _ranked(leaves: torch.Tensor, logprobs: torch.Tensor, log_weights: torch.Tensor | None = None) -> Groups:
    order = logprobs.argsort(dim=1, descending=True, stable=True)
    weights = None if log_weights is None else log_weights.take_along_dim(order, 1)
    return Groups(leaves.take_along_dim(order, 1), logprobs.take_along_dim(order, 1), weights)


def add_targets(leaves: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The groups with their targets: a target that is missing takes the place of its group's last SID.

    Args:
        leaves: (prompts, G).
        targets: (prompts,) the leaf of each target.
    """
    missing = (leaves != targets[:, None]).all(1)
    return torch.cat([leaves[:, :-1], torch.where(missing, targets, leaves[:, -1])[:, None]], dim=1)


def uniform_negatives(trie: CatalogTrie, barred: Sequence[Sequence[int]], size: int, seeds: torch.Tensor) -> torch.Tensor:
    """Distinct SIDs for each prompt, every set of them equally likely: the negatives of S-DPO.

    Chen et al., "On Softmax Direct Preference Optimization for Recommendation", NeurIPS 2024, section 4.1, draw items that the
    user does not have.

    Args:
        barred: per prompt the leaves that it does not get, in any order, repeats allowed.
        size: SIDs per prompt.
        seeds: (prompts,) a prompt's draws depend on its seed and on nothing else.

    Returns:
        (prompts, size) leaves, on the trie's device.
    """
    negatives = np.empty((len(barred), size), dtype=np.int64)
    for row, (leaves, seed) in enumerate(zip(barred, seeds.tolist(), strict=True)):
        gaps = sorted(set(leaves))
        # numpy's seeds are not negative. Numbers among the leaves that are left become leaves: each gap below shifts by one.
        drawn = np.random.default_rng(seed % 2**64).choice(len(trie) - len(gaps), size, replace=False)
        for leaf in gaps:
            drawn += drawn >= leaf
        negatives[row] = drawn
    return torch.from_numpy(negatives).to(trie.device)


class Rollouts:
    """A TRL `rollout_func`: for each prompt a group of `num_generations` SIDs.

    TRL hands over each prompt `num_generations` times in a row (its docstring says otherwise); one search serves them all.
    Chance depends on the seed, the optimiser step and the row's `rollout_id`, so it is the same after a resume, on any number
    of processes and in any micro-batch. Plain beams rank as `rl.normalise_over` says; all other kinds draw over the catalog.

    Args:
        trie: the valid SIDs, on the model's device.
        pad_token: fills prompts up on the left.
        filtered: no group holds an item of its row's column `hidden` (item indices), as `eval.exclude_history` asks for.
            Uniform groups hold none in any case.
        graphs: on a GPU beams are searched by CUDA graphs; the draws are not.
        evaluator: of the policy. Its rounded copy and its graphs serve rollouts, too, if they are of the same format.

    With `rl.bf16` a policy of float32 weights is asked through a copy in bfloat16; under ZeRO-2 the policy itself is bfloat16.

    Raises:
        ConstraintError: the catalog holds fewer SIDs than a group of distinct ones needs.
    """

    def __init__(
        self,
        trie: CatalogTrie,
        config: RlConfig,
        pad_token: int,
        seed: int,
        *,
        filtered: bool = False,
        graphs: bool = True,
        evaluator: RankingEvaluator | None = None,
    ) -> None:
        if config.rollouts != "sampling" and len(trie) < config.num_generations:
            raise ConstraintError(f"A group needs {config.num_generations} SIDs, but the catalog has only {len(trie)}.")
        self._trie, self._config, self._pad_token, self._seed = trie, config, pad_token, seed
        self._filtered, self._by_graphs = filtered, graphs
        self._graphs = None if evaluator is None else evaluator.graphs
        self._rounded = None if evaluator is None else evaluator.rounded

    def _asked(self, policy: PreTrainedModel) -> PreTrainedModel:
        """What is asked for groups: the policy, or its copy in bfloat16 with the weights of this step."""
        if not self._config.bf16 or policy.dtype == torch.bfloat16:
            return policy
        copy = self._rounded
        if copy is None or copy.followed is not policy or copy.model.dtype != torch.bfloat16:
            self._rounded = copy = RoundedCopy(policy, "bfloat16")
        else:
            copy.refresh()
        return copy.model

    def _graphs_of(self, model: PreTrainedModel) -> SearchGraphs | None:
        """The policy's searches as CUDA graphs, kept from step to step: its weights change where they are. None if left out."""
        if self._graphs is None or self._graphs.model is not model:
            self._graphs = SearchGraphs.on_gpu(model, self._by_graphs)
        return self._graphs

    def groups(self, rows: Sequence[Mapping[str, Any]], trainer: Any) -> Groups:
        """A group for each row of the dataset, by the policy as it is now."""
        device = trainer.accelerator.device
        if not rows:
            return Groups(torch.empty(0, self._config.num_generations, dtype=torch.long, device=device))
        ids, mask = left_pad([row["prompt"] for row in rows], self._pad_token, device)
        seeds = torch.zeros(len(ids), dtype=torch.long, device=device)
        if self._config.rollouts != "beams":
            step_seed = combine(torch.tensor(self._seed, device=device), trainer.state.global_step)
            seeds = combine(step_seed, torch.tensor([row["rollout_id"] for row in rows], device=device))
        if self._config.rollouts == "uniform":
            return self._uniform(rows, seeds)
        trie = self._trie.without([row["hidden"] for row in rows]) if self._filtered else self._trie
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
            training = model.training
            model.eval()  # dropout would falsify the scores
            try:
                size, over = self._config.num_generations, self._config.normalise_over
                asked = self._asked(model)
                request = Request(asked, ids, mask, trie, size, seeds, over, self._graphs_of(asked))
                groups = ROLLOUTS[self._config.rollouts](request)
            finally:
                model.train(training)
        if self._config.add_target:
            targets = torch.tensor([row["target_leaf"] for row in rows], device=device)
            groups = groups._replace(leaves=add_targets(groups.leaves, targets))
        return groups

    def _uniform(self, rows: Sequence[Mapping[str, Any]], seeds: torch.Tensor) -> Groups:
        """Negatives that are neither the target nor in the history, and then the target."""
        targets = torch.tensor([row["target_leaf"] for row in rows], device=self._trie.device)
        barred = [[row["target_leaf"], *self._trie.leaf_of_item[row["hidden"]].tolist()] for row in rows]
        negatives = uniform_negatives(self._trie, barred, self._config.num_generations - 1, seeds)
        return Groups(torch.cat([negatives, targets[:, None]], dim=1))

    def completions(self, groups: Groups) -> list[list[int]]:
        """Token ids of all SIDs, group by group, without padding."""
        return [without_padding(sid) for sid in self._trie.sid(groups.leaves.flatten()).tolist()]

    def __call__(self, prompts: list[list[int]], trainer: Any) -> dict[str, Any]:
        """What TRL calls. The prompts are those of the step's rows; `leaf` reaches the rewards as a column of its own."""
        # Stock TRL keeps no step. Its prompts alone suffice for plain beams, so that the two can be compared.
        step = getattr(trainer, "step", None) or Step([{"prompt": prompt} for prompt in prompts])
        if step.groups is None:
            step.groups = self.groups(step.rows[:: self._config.num_generations], trainer)
        return {
            "prompt_ids": prompts,
            "completion_ids": self.completions(step.groups),
            "logprobs": None,
            "leaf": step.groups.leaves.flatten().tolist(),
        }
