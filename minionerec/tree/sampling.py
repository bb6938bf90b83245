"""SIDs drawn at random from a model's distribution over the catalog, with and without replacement."""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.assistant import Assistant
from minionerec.tree.hashed_gumbel import combine, gumbel
from minionerec.tree.length_penalty import LengthPenalty
from minionerec.tree.prompt_cache import PromptCache
from minionerec.tree.search import fill, run_search
from minionerec.tree.trie import CatalogTrie


@dataclass(frozen=True)
class SampleResult:
    """SIDs drawn at random, in the order of drawing. Without replacement a small catalog leaves the last places empty.

    Attributes:
        tokens: (batch, samples, levels) int64 token ids; `NO_TOKEN` behind the end of a short SID and in empty places.
        logprobs: (batch, samples) log-probability of each SID under the distribution drawn from, in nats; -inf in empty places.
        leaves: (batch, samples) int64, the number of each SID in the trie, for `CatalogTrie.items`; -1 in empty places.
        threshold: (batch,) the perturbed log-probability of the first SID that was not drawn, -inf if all were; None for
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

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 20}
    >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> prompt, seeds = torch.tensor([[1, 2, 3]]), torch.tensor([7])
    >>> sample = sample_without_replacement(model, prompt, trie=trie, num_samples=3, seeds=seeds)
    >>> sorted(sample.leaves[0].tolist())  # each SID once, in random order
    [0, 1, 2]

    Args:
        model: a transformers causal LM or T5 in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None if nothing is padded.
        trie: the valid SIDs, on the model's device; a view narrowed to one filter, or to one per prompt; mixed with a prior or
            not.
        num_samples: SIDs per prompt; a smaller catalog gives all that it has.
        seeds: (batch,) int64, one per prompt: what is drawn for a prompt depends on its seed alone, not on the rest of the
            batch.
        temperature: divides the model's logits; above 0.

    Raises:
        ConstraintError: `num_samples` is below 1, the temperature is not above 0, there is not one seed per prompt, the trie
            has an assistant, or model, prompts and trie do not fit together (`PromptCache.compute` lists the cases).
    """
    _check_sampling(input_ids, trie, num_samples, seeds, temperature)
    prompts = PromptCache.compute(model, input_ids, attention_mask, trie, "catalog")
    # One leaf more than is drawn: its key is the threshold of the importance weights.
    searched = run_search(prompts, num_samples + 1, seeds.to(input_ids.device), temperature)
    threshold = fill(searched.keys, num_samples + 1, -torch.inf)[:, -1]
    leaves = fill(searched.leaves, num_samples, -1)
    return SampleResult(trie.sid(leaves), fill(searched.scores, num_samples, -torch.inf), leaves, threshold)


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

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13]]))
    >>> sample = sample_with_replacement(model, torch.tensor([[1, 2]]), trie=trie, num_samples=3, seeds=torch.tensor([7]))
    >>> sample.tokens.tolist()  # the only SID, again and again
    [[[10, 13], [10, 13], [10, 13]]]

    Args:
        model: a transformers causal LM or T5 in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None if nothing is padded.
        trie: the valid SIDs, on the model's device; a view narrowed to one filter, or to one per prompt; mixed with a prior or
            not.
        num_samples: SIDs per prompt; may exceed the size of the catalog.
        seeds: (batch,) int64, one per prompt, as in `sample_without_replacement`.
        temperature: divides the model's logits; above 0.

    Raises:
        ConstraintError: `num_samples` is below 1, the temperature is not above 0, there is not one seed per prompt, the trie
            has an assistant, or model, prompts and trie do not fit together (`PromptCache.compute` lists the cases).
    """
    _check_sampling(input_ids, trie, num_samples, seeds, temperature)
    prompts = PromptCache.compute(model, input_ids, attention_mask, trie, "catalog")
    batch, device = len(input_ids), input_ids.device
    sample_seeds = combine(seeds.to(device)[:, None], torch.arange(num_samples, device=device))
    nodes = torch.zeros(batch, num_samples, dtype=torch.long, device=device)
    scores = logprobs = torch.zeros(batch, num_samples, device=device)  # the model's, and those of the distribution drawn from
    prior = prompts.trie.prefixes()
    states = prompts.last.expand(-1, num_samples, -1)
    ancestors = torch.zeros(batch, num_samples, 0, dtype=torch.bool, device=device)
    itself = torch.eye(num_samples, dtype=torch.bool, device=device).expand(batch, -1, -1)
    for level in range(trie.depth):
        child_nodes, child_tokens, steps = prompts.child_logprobs(level, nodes, states, temperature)
        child_scores = scores[..., None] + steps
        # With a prior a child is as probable as its mass; what the masses of all siblings add up to plays no part in a draw.
        weights = steps if prior is None else prior.masses(level, child_scores, child_nodes)
        # The highest of log-probabilities with Gumbel noise is a draw from their distribution (Gumbel-max).
        drawn = (weights + gumbel(sample_seeds, level + 1, child_nodes)).argmax(-1, keepdim=True)
        scores = child_scores.gather(-1, drawn).squeeze(-1)
        logprobs = scores if prior is None else weights.gather(-1, drawn).squeeze(-1)
        nodes = child_nodes.gather(-1, drawn).squeeze(-1)
        if level < trie.depth - 1:
            ancestors = torch.cat([ancestors, itself], dim=-1)  # sample i goes below sample i of the level before
            states = prompts.extend(child_tokens.gather(-1, drawn).squeeze(-1), level, ancestors)
    return SampleResult(trie.sid(nodes), logprobs, nodes)


def _check_sampling(
    input_ids: torch.Tensor, trie: CatalogTrie, num_samples: int, seeds: torch.Tensor, temperature: float
) -> None:
    if isinstance(trie.guide, Assistant | LengthPenalty):
        raise ConstraintError(
            "What a model scores with an assistant, or over lengths, is no distribution over the catalog, so nothing can be "
            "drawn from it. Search for beams, or draw from the model alone."
        )
    if num_samples < 1:
        raise ConstraintError(f"num_samples is {num_samples}; at least 1 is needed.")
    if not temperature > 0:
        raise ConstraintError(f"temperature is {temperature}; it must be greater than 0.")
    if seeds.dtype != torch.int64 or seeds.shape != input_ids.shape[:1]:
        raise ConstraintError(
            f"Sampling needs an int64 seed per prompt, of shape ({len(input_ids)},); found {seeds.dtype} of shape "
            f"{tuple(seeds.shape)}."
        )
