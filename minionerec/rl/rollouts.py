"""Rollouts: a group of valid SIDs for each prompt, from the decoder that evaluation uses.

All are kept in the order of their log-probability, the most likely first, so that rewards of the rank mean the same for each
kind; only a target that was added stands last, wherever it would rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from trl.models import unwrap_model_for_generation

from minionerec.config import RlConfig
from minionerec.errors import ConstraintError
from minionerec.tree import (
    NO_TOKEN,
    CatalogTrie,
    Normalise,
    beam_search,
    left_pad,
    sample_with_replacement,
    sample_without_replacement,
)
from minionerec.tree.hashed_gumbel import combine


class Ranked(NamedTuple):
    """Groups, each in the order of log-probability, the most likely first.

    Attributes:
        tokens: (prompts, group, levels) token ids, `NO_TOKEN` behind a short SID.
        logprobs: (prompts, group) in nats.
        log_weights: (prompts, group) log importance weights (`SampleResult.log_weights`), of stochastic beams only.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    log_weights: torch.Tensor | None = None


Group = list[list[int]]  # one prompt's SIDs as token ids


@dataclass(frozen=True)
class Request:
    """What a group of rollouts is drawn for.

    Attributes:
        ids, mask: prompts, (prompts, length), left-padded.
        trie: the valid SIDs, or a view with a row for each prompt.
        size: SIDs of a group.
        seeds: (prompts,) where chance begins, for each prompt.
        beams: what the probabilities of plain beams add up over.
    """

    model: PreTrainedModel
    ids: torch.Tensor
    mask: torch.Tensor
    trie: CatalogTrie
    size: int
    seeds: torch.Tensor
    beams: Normalise

    @property
    def prompts(self) -> tuple[PreTrainedModel, torch.Tensor, torch.Tensor]:
        """The positional arguments of the decoders."""
        return self.model, self.ids, self.mask


def _beams(asked: Request) -> Ranked:
    """The most likely SIDs; no chance is involved."""
    found = beam_search(*asked.prompts, trie=asked.trie, num_beams=asked.size, normalise_over=asked.beams)
    return Ranked(found.tokens, found.scores)


def _stochastic(asked: Request) -> Ranked:
    """Distinct SIDs drawn without replacement from the policy over the catalog."""
    found = sample_without_replacement(*asked.prompts, trie=asked.trie, num_samples=asked.size, seeds=asked.seeds)
    return _ranked(found.tokens, found.logprobs, found.log_weights())


def _sampling(asked: Request) -> Ranked:
    """Independent draws from the policy over the catalog; a SID may come several times."""
    drawn = sample_with_replacement(*asked.prompts, trie=asked.trie, num_samples=asked.size, seeds=asked.seeds)
    return _ranked(drawn.tokens, drawn.logprobs)


def _mixture(asked: Request) -> Ranked:
    """The best half of the beams, rounded up, and for the rest what was drawn first without being among them.

    Both are ranked together, so the beams' probabilities too add up over the catalog.
    """
    best = (asked.size + 1) // 2
    top = beam_search(*asked.prompts, trie=asked.trie, num_beams=best, normalise_over="catalog")
    drawn = sample_without_replacement(*asked.prompts, trie=asked.trie, num_samples=asked.size, seeds=asked.seeds)
    # At most `best` of the drawn are beams, so enough are left; a stable sort keeps the order of drawing among these.
    repeats = (drawn.tokens[:, :, None] == top.tokens[:, None]).all(-1).any(-1)
    fresh = repeats.to(torch.int8).argsort(dim=1, stable=True)[:, : asked.size - best]
    tokens = torch.cat([top.tokens, drawn.tokens.take_along_dim(fresh[..., None], 1)], dim=1)
    return _ranked(tokens, torch.cat([top.scores, drawn.logprobs.take_along_dim(fresh, 1)], dim=1))


ROLLOUTS: dict[str, Callable[[Request], Ranked]] = {
    "beams": _beams,
    "stochastic": _stochastic,
    "sampling": _sampling,
    "mixture": _mixture,
}


def _ranked(tokens: torch.Tensor, logprobs: torch.Tensor, log_weights: torch.Tensor | None = None) -> Ranked:
    order = logprobs.argsort(dim=1, descending=True, stable=True)
    weights = None if log_weights is None else log_weights.take_along_dim(order, 1)
    return Ranked(tokens.take_along_dim(order[..., None], 1), logprobs.take_along_dim(order, 1), weights)


def with_target(group: list[list[int]], target: Sequence[int]) -> list[list[int]]:
    """The group with its target, in place of the last SID where it is not among them."""
    wanted = list(target)
    return group if wanted in group else [*group[:-1], wanted]


class Rollouts:
    """A TRL `rollout_func`: for each prompt a group of `num_generations` SIDs.

    TRL hands over each prompt `num_generations` times in a row (its docstring says otherwise); one search serves them all.
    Chance depends on the seed, the optimiser step and the row's number (column `number` of the dataset), so it is the same
    after a resume, on any number of devices and in any micro-batch. Plain beams rank as `rl.normalise_over` says; what is
    drawn is drawn over the catalog.

    Args:
        trie: the valid SIDs, on the model's device.
        pad_token: fills prompts up on the left.
        filtered: no group holds an item of its row's column `hidden` (item indices), as `eval.exclude_history` asks for.

    Attributes:
        drawn: what the last call of `groups` drew, before a target was added.
        ready: groups for TRL's next call, made before (see `refill`); None to make them then.

    Raises:
        ConstraintError: the catalog holds fewer SIDs than a group of distinct ones needs.
    """

    drawn: Ranked
    ready: list[Group] | None = None

    def __init__(self, trie: CatalogTrie, config: RlConfig, pad_token: int, seed: int, *, filtered: bool = False) -> None:
        if config.rollouts != "sampling" and len(trie) < config.num_generations:
            raise ConstraintError(f"A group needs {config.num_generations} SIDs, but the catalog has only {len(trie)}.")
        self._trie, self._config, self._pad_token, self._seed = trie, config, pad_token, seed
        self._filtered = filtered
        self._prompts_suffice = config.rollouts == "beams" and not config.add_target and not filtered

    def groups(self, rows: Sequence[Mapping[str, Any]], trainer: Any) -> list[Group]:
        """A group for each row of the dataset, by the policy as it is now."""
        if not rows:
            return []
        device = trainer.accelerator.device
        ids, mask = left_pad([row["prompt"] for row in rows], self._pad_token, device)
        seeds = torch.zeros(len(ids), dtype=torch.long, device=device)
        if self._config.rollouts != "beams":
            step = combine(torch.tensor(self._seed, device=device), trainer.state.global_step)
            seeds = combine(step, torch.tensor([row["number"] for row in rows], device=device))
        trie = self._trie.without([row["hidden"] for row in rows]) if self._filtered else self._trie
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
            training = model.training
            model.eval()
            try:
                asked = Request(model, ids, mask, trie, self._config.num_generations, seeds, self._config.normalise_over)
                self.drawn = ROLLOUTS[self._config.rollouts](asked)
            finally:
                model.train(training)
        groups = [[[token for token in sid if token != NO_TOKEN] for sid in group] for group in self.drawn.tokens.tolist()]
        if self._config.add_target:
            groups = [with_target(group, row["target"]) for group, row in zip(groups, rows, strict=True)]
        return groups

    def __call__(self, prompts: list[list[int]], trainer: Any) -> dict[str, Any]:
        """What TRL calls; where more than the prompts matters, the rows behind them are `trainer.generating`."""
        groups, self.ready = self.ready, None
        if groups is None:
            size = self._config.num_generations
            bare = [{"prompt": prompt} for prompt in prompts[::size]]
            rows = bare if self._prompts_suffice else trainer.generating[::size]
            groups = self.groups(rows, trainer)
        return {"prompt_ids": prompts, "completion_ids": [sid for group in groups for sid in group], "logprobs": None}
