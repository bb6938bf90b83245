"""Constrained beam search over a CatalogTrie, by tree attention; `run_search` also serves sampling.

The prompt is computed once. Beams are further tokens of the same row: each attends to the prompt and to its own ancestors
through a mask, and its position is its depth. So no cache is repeated for each beam, and none is reordered.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.hashed_gumbel import gumbel
from minionerec.tree.prompt_cache import Normalise, PrefixModel, PromptCache
from minionerec.tree.trie import CatalogTrie


@dataclass(frozen=True)
class BeamResult:
    """Ranked SIDs. A list may have fewer SIDs than beams; its last places are then empty.

    Attributes:
        tokens: (batch, beams, levels) int64 token ids; `NO_TOKEN` behind the end of a short SID and in empty places.
        scores: (batch, beams) sums of log-probabilities in nats, descending; -inf in empty places. Of a mixed trie, the
            log-probability of each SID in the mixture with a prior, or D3's score with an assistant.
        leaves: (batch, beams) int64, the number of each SID in the trie, for `CatalogTrie.items`; -1 in empty places.
        exact: (batch,) bool, the certificate: True proves that the list is the exact top of the whole catalog.
        best_pruned: (batch,) the highest score of any prefix that was pruned, -inf if none was; of a mixed trie, the highest
            bound of what is below it. The part of a list whose scores are no lower is exact, even if the whole list is not
            proven to be.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    leaves: torch.Tensor
    exact: torch.Tensor
    best_pruned: torch.Tensor


class SearchResult(NamedTuple):
    """What one search ends with, best first, in at most `width` places.

    Attributes:
        leaves: (batch, places) numbers of the leaves; -1 in empty places.
        scores: (batch, places) sums of log-probabilities in nats; of a mixed trie as in `BeamResult`; -inf in empty places.
        keys: (batch, places) what the leaves are ordered by: their scores, or with seeds their perturbed scores.
        best_pruned: (batch,) the highest key of any prefix that was pruned; -inf if none was.
    """

    leaves: torch.Tensor
    scores: torch.Tensor
    keys: torch.Tensor
    best_pruned: torch.Tensor


@dataclass(frozen=True)
class SearchLevel:
    """What a search kept at one level of the trie, and what it pruned.

    Attributes:
        nodes: (batch, beams) numbers of the nodes that were kept, best first; -1 in empty places.
        parents: (batch, beams) the beam of the level above that each is below.
        logprobs: (batch, beams) log-probability of each node's token after those above it, in nats; of a mixed trie, that in
            the mixture, or D3's score of the step.
        scores: (batch, beams) sums of these.
        pruned: (batch, beams above) how many legal children of each beam of the level above were pruned.
        best_pruned: (batch, beams above) the highest score of these, of a mixed trie the highest bound; -inf if there are none.
    """

    nodes: torch.Tensor
    parents: torch.Tensor
    logprobs: torch.Tensor
    scores: torch.Tensor
    pruned: torch.Tensor
    best_pruned: torch.Tensor


def run_search(
    prompts: PrefixModel,
    width: int,
    seeds: torch.Tensor | None = None,
    temperature: float = 1.0,
    levels: list[SearchLevel] | None = None,
    look: bool = True,
) -> SearchResult:
    """The `width` best leaves by score or, given a seed per prompt, by perturbed score.

    Args:
        prompts: computed.
        width: of the search.
        seeds: (batch,), of the perturbations; None for none.
        temperature: divides the logits.
        levels: takes what each level kept.
        look: the host may look at what is mixed in, and leave it out where it weighs nothing.
    """
    trie, device = prompts.trie, prompts.visible.device
    batch = len(prompts.visible)
    guide = trie.prefixes(look)

    # 1. Begin with one beam, the trie's root. Its states are what the prompt's last token gives.
    nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)  # (batch, beams), -1 where a beam is missing
    scores = torch.zeros(batch, 1, device=device)  # the model's
    masses = scores  # log-probabilities of the prefixes: the model's scores or those of what guides it, too
    keys = scores if seeds is None else gumbel(seeds, 0, nodes)
    states = prompts.last  # (batch, beams, hidden or vocabulary)
    ancestors = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)  # (batch, beams, tree tokens so far)
    best_pruned = torch.full((batch,), -torch.inf, device=device)

    for level in range(trie.depth):
        # 2. Score every legal child of every beam, and order them: by score; or, with seeds, by score with Gumbel noise.
        child_nodes, child_tokens, steps = prompts.child_logprobs(level, nodes, states, temperature)  # (batch, beams, children)
        child_scores = scores[..., None] + steps
        child_masses = child_scores
        if guide is not None and (seeds is not None or levels is not None):
            child_masses = guide.masses(level, child_scores, child_nodes)
        if seeds is not None:
            # The leaves with the highest keys are a sample without replacement. The noise is drawn given the parent's key,
            # which is the maximum of its children's: pruning a prefix never loses one of the `width` best leaves.
            child_keys = _perturb(child_masses, keys, gumbel(seeds, level + 1, child_nodes))
        elif guide is not None:
            # A bound of all that is below ranks better than the mass, and proves more: it is lower, and equal at a leaf.
            # Rounding may leave it a hair above its parent's; the certificate needs keys that only fall.
            child_keys = torch.minimum(guide.bounds(level, child_scores, child_nodes), keys[..., None])
        else:
            child_keys = child_scores

        # 3. Keep the best children of all beams together. Ask for one more than is kept: it has the highest key of those that
        #    are pruned here, which the certificate needs. On the last level nothing needs remembering: a pruned leaf cannot
        #    grow any more, and it ranks below the list already.
        candidates = child_keys.flatten(1)
        beams = min(width, candidates.shape[1])
        keys, places = candidates.topk(min(beams + 1, candidates.shape[1]), dim=1)
        if keys.shape[1] > beams and level < trie.depth - 1:
            best_pruned = torch.maximum(best_pruned, keys[:, beams])
        keys, places = keys[:, :beams], places[:, :beams]
        scores = child_scores.flatten(1).gather(1, places)

        # 4. A prompt with fewer legal children than others fills its beams with illegal ones, of key -inf. They become node
        #    -1, which has no children.
        nodes = child_nodes.flatten(1).gather(1, places).masked_fill(keys == -torch.inf, -1)
        if levels is not None:
            child_logprobs = steps if guide is None else child_masses - masses[..., None]
            levels.append(_level(nodes, places, child_logprobs, child_masses, child_keys))
        masses = child_masses.flatten(1).gather(1, places)
        if level == trie.depth - 1:
            break  # nothing follows a leaf, so its token is never computed

        # 5. Append the kept children to the row as tree tokens. Each sees what its parent sees, and itself. The tokens of
        #    pruned beams stay in the cache: no mask lets anything see them, and removing them would copy the cache.
        parents = places // child_nodes.shape[-1]
        inherited = ancestors.gather(1, parents[..., None].expand(-1, -1, ancestors.shape[-1]))
        itself = torch.eye(beams, dtype=torch.bool, device=device).expand(batch, -1, -1)
        ancestors = torch.cat([inherited, itself], dim=-1)
        states = prompts.extend(child_tokens.flatten(1).gather(1, places), level, ancestors)
    return SearchResult(nodes, masses if guide is None or seeds is not None else keys, keys, best_pruned)


def _level(
    nodes: torch.Tensor,
    places: torch.Tensor,
    child_logprobs: torch.Tensor,
    child_masses: torch.Tensor,
    child_keys: torch.Tensor,
) -> SearchLevel:
    """What is kept and pruned at a level.

    Args:
        nodes: (batch, beams) that are kept.
        places: (batch, beams) their places among the children of all beams above.
        child_logprobs: (batch, beams above, children) log-probabilities of the tokens.
        child_masses: of the same shape, log-probabilities of the prefixes.
        child_keys: of the same shape, what prefixes are ordered by.
    """
    rest = child_keys.flatten(1).scatter(1, places, -torch.inf).view(child_keys.shape)
    return SearchLevel(
        nodes,
        places // child_keys.shape[-1],
        child_logprobs.flatten(1).gather(1, places),
        child_masses.flatten(1).gather(1, places),
        (rest > -torch.inf).sum(-1),
        rest.amax(-1),
    )


def _perturb(child_scores: torch.Tensor, parent_keys: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Gumbel noise for children, given that their maximum is their parent's key: (batch, beams, children).

    Kool et al. 2019, section 3.2 and appendix B.3 (the form that does not overflow).
    """
    # 1. Perturb freely. The maximum of the children is then some Z, not yet the parent's key T.
    perturbed = child_scores + noise
    highest = perturbed.amax(-1, keepdim=True)
    # 2. Move Z to T and all others with it, monotonically: -log(exp(-T) - exp(-Z) + exp(-perturbed)), which appendix B.3 writes
    #    with v = T - perturbed + log1p(-exp(perturbed - Z)) as T - max(0, v) - log1p(exp(-|v|)).
    parents = parent_keys[..., None]
    gap = parents - perturbed + torch.log1p(-torch.exp(perturbed - highest))
    moved = parents - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    # 3. The highest child gets the key itself: there the formula takes the logarithm of 0. Illegal children stay at -inf.
    moved = torch.where(perturbed == highest, parents, moved)
    return moved.masked_fill(child_scores == -torch.inf, -torch.inf)


def fill(tensor: torch.Tensor, width: int, value: float) -> torch.Tensor:
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

    Scores are sums of log-probabilities; the checkpoint's `generation_config` plays no part. A log-probability is at most 0, so
    a score only falls as a SID grows. A list is therefore proven exact if its last score is no lower than the best prefix that
    was ever pruned: no SID below that prefix can enter the list. Over a mixed trie, a prefix counts for the highest score that
    a SID below it can have, and the same holds. (In bfloat16 the scores are those of this computation, which rounds; another
    batch rounds otherwise.) The lists of a model whose numbers are NaN are given as they are, with NaN scores: `Recommender`
    refuses them, and trainings notice that they diverged and say what is left to go on from.

    >>> from transformers import Qwen2Config, Qwen2ForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = Qwen2ForCausalLM(Qwen2Config(vocab_size=20, num_hidden_layers=1, **sizes)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> result = beam_search(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), trie=trie, num_beams=4)
    >>> result.tokens.shape, result.scores.shape  # 2 prompts, 4 beams, 2 levels
    (torch.Size([2, 4, 2]), torch.Size([2, 4]))
    >>> sorted(result.leaves[0].tolist())  # 3 SIDs and an empty place
    [-1, 0, 1, 2]
    >>> result.exact.tolist()  # no prefix was pruned, so nothing can be missing
    [True, True]

    Args:
        model: a transformers causal LM or T5 in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None if nothing is padded.
        trie: the valid SIDs, on the model's device; a view narrowed to one filter, or to one per prompt; mixed with a prior
            or an assistant, or not. SIDs that a mixture gives the probability 0 are not listed.
        num_beams: length of each list.
        normalise_over: `vocabulary` normalises each step over the full vocabulary, as transformers' beam search does; `catalog`
            over the legal next tokens, so that the whole catalog's probabilities add up to 1.
        widest: searches again, with twice the beams, for each prompt whose list is not proven exact, until it is or this many
            beams were searched; the list keeps its length. None searches once, with `num_beams`.

    Raises:
        ConstraintError: `num_beams` is below 1, `widest` is below `num_beams`, or model, prompts and trie do not fit together
            (`PromptCache.compute` lists the cases).
    """
    check_widths(num_beams, widest)
    return search_prompts(PromptCache.compute(model, input_ids, attention_mask, trie, normalise_over), num_beams, widest)


@torch.no_grad()
def search_prompts(prompts: PrefixModel, num_beams: int, widest: int | None = None) -> BeamResult:
    """`beam_search` on prompts that are already computed, of any model that offers what a `PromptCache` does."""
    result = ranked(prompts.trie, run_search(prompts, num_beams), num_beams)
    return result if widest is None else widen(result, prompts.select, prompts.trie, widest)


def check_widths(num_beams: int, widest: int | None) -> None:
    """Refuse numbers of beams that `beam_search` cannot take; it lists the cases."""
    if num_beams < 1:
        raise ConstraintError(f"num_beams is {num_beams}; at least 1 is needed.")
    if widest is not None and widest < num_beams:
        raise ConstraintError(f"widest is {widest}, below num_beams, which is {num_beams}.")


def ranked(trie: CatalogTrie, searched: SearchResult, length: int) -> BeamResult:
    """The lists of a search by score, with their certificates.

    Args:
        trie: that was searched.
        searched: without seeds.
        length: of the lists.
    """
    leaves, scores = fill(searched.leaves, length, -1), fill(searched.scores, length, -torch.inf)
    return BeamResult(trie.sid(leaves), scores, leaves, scores[:, -1] >= searched.best_pruned, searched.best_pruned)


def widen(result: BeamResult, prompts_of: Callable[[torch.Tensor], PrefixModel], trie: CatalogTrie, widest: int) -> BeamResult:
    """Search again with twice the beams, and again, for each list that is not proven exact; its tensors are written to.

    Args:
        result: of a first search.
        prompts_of: the computed prompts of some of its rows, (rows,) int64.
        trie: that was searched.
        widest: the most beams of a search.
    """
    length = width = result.leaves.shape[1]
    rows = (~result.exact).nonzero().squeeze(-1)
    unproven = rows
    while len(unproven) and width < widest:
        prompts, width = prompts_of(unproven), min(2 * width, widest)
        again = ranked(trie, run_search(prompts, width), length)
        for field in fields(BeamResult):
            getattr(result, field.name)[rows] = getattr(again, field.name)
        unproven = (~again.exact).nonzero().squeeze(-1)
        rows, prompts_of = rows[unproven], prompts.select
    return result


@torch.no_grad()
def search_levels(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    num_beams: int,
    normalise_over: Normalise = "vocabulary",
) -> list[SearchLevel]:
    """What `beam_search` with these arguments keeps and prunes at each level of the trie; at the last one, its list.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> first, second = search_levels(model, torch.tensor([[1, 2, 3]]), trie=trie, num_beams=1)
    >>> first.pruned.tolist(), first.nodes.shape  # one of two first tokens was pruned
    ([[1]], torch.Size([1, 1]))
    >>> bool(second.scores[0, 0] == first.scores[0, 0] + second.logprobs[0, 0])
    True

    Raises:
        ConstraintError: `num_beams` is below 1, or model, prompts and trie do not fit together (`PromptCache.compute` lists the
            cases).
    """
    if num_beams < 1:
        raise ConstraintError(f"num_beams is {num_beams}; at least 1 is needed.")
    levels: list[SearchLevel] = []
    run_search(PromptCache.compute(model, input_ids, attention_mask, trie, normalise_over), num_beams, levels=levels)
    return levels
