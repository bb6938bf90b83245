"""Constrained beam search and the exact oracle over a CatalogTrie, both by tree attention.

The prompt is computed once. Beams are further tokens of the same row: each attends to the prompt and to its own ancestors
through a mask, at restarted positions, so no cache is copied, expanded or reordered.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from transformers import DynamicCache, PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.forward import attention_bias
from minionerec.tree.trie import CatalogTrie

NO_TOKEN = -1


@dataclass(frozen=True)
class BeamResult:
    """Ranked SIDs.

    Attributes:
        tokens: (batch, beams, levels) token ids; `NO_TOKEN` in the rows beyond the catalogue's size.
        scores: (batch, beams) sums of log-probabilities in nats, descending; -inf in those rows.
        exact: (batch,) bool: the list is proven to be the exact top of the whole catalogue.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    exact: torch.Tensor


@dataclass
class _Prefilled:
    """A model whose cache holds the prompts of a batch."""

    model: PreTrainedModel
    cache: DynamicCache
    visible: torch.Tensor  # (batch, prompt length) bool
    lengths: torch.Tensor  # (batch,) prompt tokens that are not padding

    def extend(self, tokens: torch.Tensor, depth: int | torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
        """Log-probabilities after further tree tokens.

        Args:
            tokens: (batch, nodes).
            depth: 0-based level of the nodes, one number or (nodes,).
            ancestors: (batch, nodes, tree tokens so far including these) bool.

        Returns:
            (batch, nodes, vocabulary) float32.
        """
        batch, nodes = tokens.shape
        prompt = self.visible[:, None, :].expand(batch, nodes, -1)
        allowed = torch.cat([prompt, ancestors], dim=-1)[:, None]  # (batch, 1, nodes, prompt + tree)
        positions = (self.lengths[:, None] + depth).expand(batch, nodes)
        output = self.model(
            input_ids=tokens,
            attention_mask=attention_bias(self.model, allowed),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return _log_softmax(output.logits)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    # Rounding may leave a log-probability a hair above 0, which would break the certificate's "scores only fall".
    return torch.log_softmax(logits.float(), dim=-1).clamp_(max=0.0)


def _prefill(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, trie: CatalogTrie
) -> tuple[_Prefilled, torch.Tensor]:
    """Compute the prompts once; returns the state and the log-probabilities of the next token, (batch, vocabulary)."""
    vocabulary = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    if int(trie.sids.max()) >= vocabulary:
        raise ConstraintError(
            f"The trie holds token id {int(trie.sids.max())}, but the model's vocabulary has {vocabulary} entries. "
            "The model lacks this catalogue's SID tokens: load the checkpoint that was trained with them."
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    visible = attention_mask.bool()
    if input_ids.shape[1] == 0 or not bool(visible[:, -1].all()):
        raise ConstraintError("Prompts must not be empty and must be padded on the left.")
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return _Prefilled(model, cache, visible, visible.sum(-1)), _log_softmax(output.logits[:, -1])


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    num_beams: int,
) -> BeamResult:
    """The `num_beams` most likely catalogue SIDs after each prompt.

    Scores are sums of log-probabilities normalised over the full vocabulary, as transformers' beam search has them. The
    checkpoint's `generation_config` plays no part. A result is proven exact where its last score is no lower than the best
    prefix that was ever pruned: log-probabilities are at most 0, so no completion of that prefix can come in.

    Args:
        model: a transformers causal LM in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None where nothing is padded.
        trie: the valid SIDs, on the model's device.
        num_beams: length of each list; the lists end early where the catalogue is smaller.

    Raises:
        ConstraintError: the trie's tokens are outside the model's vocabulary, a prompt is empty or right-padded, or
            `num_beams` is below 1.
    """
    if num_beams < 1:
        raise ConstraintError(f"num_beams is {num_beams}; at least 1 is needed.")
    state, logprobs = _prefill(model, input_ids, attention_mask, trie)
    batch, device = input_ids.shape[0], input_ids.device
    nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)  # (batch, beams), -1 where a beam is missing
    scores = torch.zeros(batch, 1, device=device)
    logprobs = logprobs[:, None]  # (batch, beams, vocabulary)
    ancestors = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)  # (batch, beams, tree tokens so far)
    pruned = torch.full((batch,), -torch.inf, device=device)
    for level in range(trie.levels):
        children, tokens, valid = trie.children(level, nodes)  # each (batch, beams, children)
        candidates = (scores[..., None] + logprobs.gather(-1, tokens)).masked_fill(~valid, -torch.inf).flatten(1)
        width = min(num_beams, candidates.shape[1])
        kept = min(width + 1, candidates.shape[1])  # one more than needed: the best of those pruned
        best, chosen = candidates.topk(kept, dim=1)
        if kept > width and level < trie.levels - 1:
            pruned = torch.maximum(pruned, best[:, width])
        scores, chosen = best[:, :width], chosen[:, :width]
        nodes = children.flatten(1).gather(1, chosen).masked_fill(scores == -torch.inf, -1)
        if level == trie.levels - 1:
            break
        parents = chosen // children.shape[-1]
        inherited = ancestors.gather(1, parents[..., None].expand(-1, -1, ancestors.shape[-1]))
        own = torch.eye(width, dtype=torch.bool, device=device).expand(batch, -1, -1)
        ancestors = torch.cat([inherited, own], dim=-1)
        logprobs = state.extend(tokens.flatten(1).gather(1, chosen), level, ancestors)
    found = torch.where((nodes >= 0)[..., None], trie.sids[nodes.clamp(min=0)], NO_TOKEN)
    if width < num_beams:
        found = torch.nn.functional.pad(found, (0, 0, 0, num_beams - width), value=NO_TOKEN)
        scores = torch.nn.functional.pad(scores, (0, num_beams - width), value=-torch.inf)
    return BeamResult(found, scores, scores[:, -1] >= pruned)


def _chunks(trie: CatalogTrie, most: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the inner nodes into runs of whole first-level subtrees of at most `most` nodes each (one subtree at least).

    Yields per chunk and inner level the range of node numbers.
    """
    bounds = [torch.arange(len(trie.tokens[0]) + 1, device=trie.device)]
    for level in range(1, trie.levels - 1):
        bounds.append(trie.offsets[level][bounds[-1]])
    limits = torch.stack(bounds).tolist() if trie.levels > 1 else []
    subtrees, start = len(trie.tokens[0]), 0
    while start < subtrees:
        stop = start + 1
        while stop < subtrees and sum(row[stop + 1] - row[start] for row in limits) <= most:
            stop += 1
        yield [(row[start], row[stop]) for row in limits]
        start = stop


@torch.no_grad()
def score_catalog(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    chunk_nodes: int = 1024,
) -> torch.Tensor:
    """The exact score of every SID of the catalogue: the oracle that beam search is measured against.

    Every inner node of the trie is one tree token, computed in chunks of whole subtrees; `chunk_nodes` bounds the tokens of
    one forward per prompt (tokens).

    Returns:
        (batch, SIDs) log-probabilities in nats, in the order of `trie.sids`.

    Raises:
        ConstraintError: as `beam_search`.
    """
    state, first = _prefill(model, input_ids, attention_mask, trie)
    scores = [first[:, trie.tokens[0]]]  # per level, (batch, nodes of the level)
    scores += [torch.empty(first.shape[0], len(tokens), device=first.device) for tokens in trie.tokens[1:]]
    parents = [trie.parent(level) for level in range(trie.levels)]
    for ranges in _chunks(trie, chunk_nodes) if trie.levels > 1 else ():
        tokens = torch.cat([trie.tokens[level][low:high] for level, (low, high) in enumerate(ranges)])
        depth = torch.cat([torch.full((high - low,), level) for level, (low, high) in enumerate(ranges)]).to(trie.device)
        ancestors = torch.eye(len(tokens), dtype=torch.bool, device=trie.device)
        begin = 0
        for level, (low, high) in enumerate(ranges):
            if level:
                above = begin - (ranges[level - 1][1] - ranges[level - 1][0])
                ancestors[begin : begin + high - low] |= ancestors[above + parents[level][low:high] - ranges[level - 1][0]]
            begin += high - low
        batch = input_ids.shape[0]
        logprobs = state.extend(tokens.expand(batch, -1), depth, ancestors.expand(batch, -1, -1))
        state.cache.crop(-len(tokens))
        begin = 0
        for level, (low, high) in enumerate(ranges):
            first_child, last_child = int(trie.offsets[level + 1][low]), int(trie.offsets[level + 1][high])
            below = slice(first_child, last_child)
            node = parents[level + 1][below]
            step = logprobs[:, begin + node - low, trie.tokens[level + 1][below]]
            scores[level + 1][:, below] = scores[level][:, node] + step
            begin += high - low
    return scores[-1]
