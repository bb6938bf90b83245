"""Constrained beam search and sampling without replacement over a CatalogTrie, by tree attention.

The prompt is computed once. Beams are further tokens of the same row: each attends to the prompt and to its own ancestors
through a mask, at restarted positions, so no cache is repeated for each beam or reordered.
"""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.hashed_gumbel import combine, gumbel
from minionerec.tree.prompt_cache import Normalise, PromptCache
from minionerec.tree.trie import CatalogTrie


@dataclass(frozen=True)
class BeamResult:
    """Ranked SIDs.

    Attributes:
        tokens: (batch, beams, levels) token ids; `NO_TOKEN` behind the end of a short SID, and in the rows beyond the size of
            the catalog or of its view.
        scores: (batch, beams) sums of log-probabilities in nats, descending; -inf in those rows.
        leaves: (batch, beams) int64, the number of each SID in the trie; -1 in those rows.
        exact: (batch,) bool: the list is proven to be the exact top of the whole catalog.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    leaves: torch.Tensor
    exact: torch.Tensor


@dataclass(frozen=True)
class SampleResult:
    """SIDs drawn at random.

    Attributes:
        tokens: (batch, samples, levels) token ids, in the order of drawing; only `NO_TOKEN` where there are fewer SIDs.
        logprobs: (batch, samples) log-probability of each SID under the distribution drawn from; -inf where there is none.
        leaves: (batch, samples) int64, the number of each SID in the trie; -1 where there is none.
        threshold: (batch,) the perturbed log-probability of the first SID that was not drawn, -inf where all were; None for
            independent draws.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    leaves: torch.Tensor
    threshold: torch.Tensor | None = None

    def log_weights(self) -> torch.Tensor:
        """Log importance weights, (batch, samples): sums of exp(weight) * f(SID) estimate E[f] without bias.

        Independent draws weigh alike. Without replacement a SID's weight is its probability over the chance that it lies above
        the threshold: Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", ICML 2019, equation 10.
        """
        if self.threshold is None:
            return torch.full_like(self.logprobs, -math.log(self.logprobs.shape[1]))
        chance = -torch.expm1(-torch.exp(self.logprobs - self.threshold[:, None]))
        return torch.where(self.logprobs > -torch.inf, self.logprobs - chance.log(), -torch.inf)


def _search(
    prefix: PromptCache, width: int, seeds: torch.Tensor | None = None, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `width` best leaves by score, or, with a seed per prompt, by perturbed score.

    Returns:
        leaves (batch, found), -1 where missing; their scores and their keys (what they are ordered by), both (batch, found);
        the best key that was ever pruned above the leaves, (batch,).
    """
    trie, device = prefix.trie, prefix.visible.device
    batch = len(prefix.visible)
    nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)  # (batch, beams), -1 where a beam is missing
    scores = torch.zeros(batch, 1, device=device)
    keys = scores if seeds is None else gumbel(seeds, 0, nodes)
    given = prefix.last  # (batch, beams, hidden or vocabulary)
    ancestors = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)  # (batch, beams, tree tokens so far)
    pruned = torch.full((batch,), -torch.inf, device=device)
    for level in range(trie.depth):
        numbers, tokens, steps = prefix.child_logprobs(level, nodes, given, temperature)  # each (batch, beams, children)
        reached = scores[..., None] + steps
        candidates = (reached if seeds is None else _perturb(reached, keys, gumbel(seeds, level + 1, numbers))).flatten(1)
        found = min(width, candidates.shape[1])
        kept = min(found + 1, candidates.shape[1])  # one more than needed: the best of those pruned
        keys, chosen = candidates.topk(kept, dim=1)
        if kept > found and level < trie.depth - 1:
            pruned = torch.maximum(pruned, keys[:, found])
        keys, chosen = keys[:, :found], chosen[:, :found]
        scores = reached.flatten(1).gather(1, chosen)
        nodes = numbers.flatten(1).gather(1, chosen).masked_fill(scores == -torch.inf, -1)
        if level == trie.depth - 1:
            break
        parents = chosen // numbers.shape[-1]
        inherited = ancestors.gather(1, parents[..., None].expand(-1, -1, ancestors.shape[-1]))
        own = torch.eye(found, dtype=torch.bool, device=device).expand(batch, -1, -1)
        ancestors = torch.cat([inherited, own], dim=-1)
        given = prefix.extend(tokens.flatten(1).gather(1, chosen), level, ancestors)
    return nodes, scores, keys, pruned


def _perturb(reached: torch.Tensor, keys: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Gumbel noise for children, given that their maximum is their parent's: (batch, beams, children).

    Kool et al. 2019, section 3.2 and appendix B.3 (the form that does not overflow).
    """
    noisy = reached + noise
    highest = noisy.amax(-1, keepdim=True)
    gap = keys[..., None] - noisy + torch.log1p(-torch.exp(noisy - highest))
    moved = keys[..., None] - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    moved = torch.where(noisy == highest, keys[..., None], moved)
    return moved.masked_fill(reached == -torch.inf, -torch.inf)


def _fill(tensor: torch.Tensor, width: int, value: float) -> torch.Tensor:
    """Widen or cut the second dimension to `width`."""
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, missing), value=value)  # a negative amount cuts


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    num_beams: int,
    normalise_over: Normalise = "vocabulary",
    widest: int | None = None,
) -> BeamResult:
    """The `num_beams` most likely catalog SIDs after each prompt.

    Scores are sums of log-probabilities; the checkpoint's `generation_config` plays no part. A result is proven exact where
    its last score is no lower than the best prefix that was ever pruned: log-probabilities are at most 0, so no completion of
    that prefix can come in. (In bfloat16 the scores are those of this computation, which rounds; another batch rounds
    otherwise.)

    Args:
        model: a transformers causal LM in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None where nothing is padded.
        trie: the valid SIDs, on the model's device; a view narrowed to one filter, or to one per prompt.
        num_beams: length of each list; the lists end early where the catalog is smaller.
        normalise_over: `vocabulary` normalises each step over the full vocabulary, as transformers' beam search does; `catalog`
            over the legal next tokens, so that the whole catalog's probabilities add up to 1.
        widest: where a list is not proven exact, search again with twice the beams, until it is or this width has been
            searched; the list keeps its length. None searches once, with `num_beams`.

    Raises:
        ConstraintError: see `PromptCache.compute`; or `num_beams` is below 1, or `widest` below `num_beams`.
    """
    if num_beams < 1:
        raise ConstraintError(f"num_beams is {num_beams}; at least 1 is needed.")
    if widest is not None and widest < num_beams:
        raise ConstraintError(f"widest is {widest}, below num_beams, which is {num_beams}.")
    prefix = PromptCache.compute(model, input_ids, attention_mask, trie, normalise_over)
    leaves = torch.full((len(input_ids), num_beams), -1, device=input_ids.device)
    scores = torch.full((len(input_ids), num_beams), -torch.inf, device=input_ids.device)
    exact = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    rows, width = torch.arange(len(input_ids), device=input_ids.device), num_beams
    while True:
        found, reached, _, pruned = _search(prefix, width)
        leaves[rows] = _fill(found, num_beams, -1)
        scores[rows] = _fill(reached, num_beams, -torch.inf)
        exact[rows] = scores[rows, -1] >= pruned
        open_ = (~exact[rows]).nonzero().squeeze(-1)
        if widest is None or width >= widest or not len(open_):
            return BeamResult(trie.sid(leaves), scores, leaves, exact)
        rows, width = rows[open_], min(2 * width, widest)
        prefix = prefix.select(open_)


@torch.no_grad()
def sample_without_replacement(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    num_samples: int,
    seeds: torch.Tensor,
    temperature: float = 1.0,
) -> SampleResult:
    """Distinct SIDs drawn after each prompt by stochastic beam search (Gumbel top-k, Kool et al. 2019).

    The first SID is a draw from the model's distribution over the catalog (each step normalised over the legal tokens), the
    second a draw from what remains, and so on: as if one sampled and put nothing back, for the price of one beam search.

    Args:
        num_samples: SIDs per prompt; fewer where the catalog is smaller.
        seeds: (batch,) int64, one per prompt: what is drawn for a prompt depends on its seed alone, not on the rest of the
            batch.
        temperature: divides the logits; above 0.
        others: as in `beam_search`.

    Raises:
        ConstraintError: see `PromptCache.compute`; or `num_samples` is below 1, the temperature not above 0, or there is not
        one
            seed per prompt.
    """
    _check_sampling(input_ids, num_samples, seeds, temperature)
    prefix = PromptCache.compute(model, input_ids, attention_mask, trie, "catalog")
    leaves, scores, keys, _ = _search(prefix, num_samples + 1, seeds.to(input_ids.device), temperature)
    threshold = _fill(keys, num_samples + 1, -torch.inf)[:, -1]
    drawn = _fill(leaves, num_samples, -1)
    return SampleResult(trie.sid(drawn), _fill(scores, num_samples, -torch.inf), drawn, threshold)


@torch.no_grad()
def sample_with_replacement(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    num_samples: int,
    seeds: torch.Tensor,
    temperature: float = 1.0,
) -> SampleResult:
    """Independent SIDs drawn after each prompt from the model's distribution over the catalog; a SID may come twice.

    Args:
        all: as in `sample_without_replacement`; the catalog may be smaller than `num_samples`.

    Raises:
        ConstraintError: see `sample_without_replacement`.
    """
    _check_sampling(input_ids, num_samples, seeds, temperature)
    prefix = PromptCache.compute(model, input_ids, attention_mask, trie, "catalog")
    batch, device = len(input_ids), input_ids.device
    own_seeds = combine(seeds.to(device)[:, None], torch.arange(num_samples, device=device))
    nodes = torch.zeros(batch, num_samples, dtype=torch.long, device=device)
    logprobs = torch.zeros(batch, num_samples, device=device)
    given = prefix.last.expand(-1, num_samples, -1)
    ancestors = torch.zeros(batch, num_samples, 0, dtype=torch.bool, device=device)
    own = torch.eye(num_samples, dtype=torch.bool, device=device).expand(batch, -1, -1)
    for level in range(trie.depth):
        numbers, tokens, steps = prefix.child_logprobs(level, nodes, given, temperature)
        drawn = (steps + gumbel(own_seeds, level + 1, numbers)).argmax(-1, keepdim=True)
        logprobs += steps.gather(-1, drawn).squeeze(-1)
        nodes = numbers.gather(-1, drawn).squeeze(-1)
        if level < trie.depth - 1:
            ancestors = torch.cat([ancestors, own], dim=-1)
            given = prefix.extend(tokens.gather(-1, drawn).squeeze(-1), level, ancestors)
    return SampleResult(trie.sid(nodes), logprobs, nodes)


def _check_sampling(input_ids: torch.Tensor, num_samples: int, seeds: torch.Tensor, temperature: float) -> None:
    if num_samples < 1:
        raise ConstraintError(f"num_samples is {num_samples}; at least 1 is needed.")
    if not temperature > 0:
        raise ConstraintError(f"temperature is {temperature}; it must be greater than 0.")
    if seeds.dtype != torch.int64 or seeds.shape != input_ids.shape[:1]:
        raise ConstraintError(
            f"Sampling needs an int64 seed per prompt, of shape ({len(input_ids)},); found {seeds.dtype} of shape "
            f"{tuple(seeds.shape)}."
        )
