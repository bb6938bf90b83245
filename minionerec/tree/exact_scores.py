"""The exact oracle: the score of every SID and every prefix of the catalog, in tree passes over the trie."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.prompt_cache import Normalise, PromptCache, plain_head
from minionerec.tree.trie import CatalogTrie


def _chunks(trie: CatalogTrie, most: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the inner nodes into chunks: a run of the lowest ones with all that is above them, at most `most` nodes together.

    Where a run ends inside a subtree, the nodes above it are in both chunks. Yields per inner level the range of node numbers.
    """
    lowest = trie.depth - 2
    above = [torch.arange(len(trie.tokens[lowest]), device=trie.device)]  # per level from below: the lowest nodes' ancestors
    for level in range(lowest, 0, -1):
        above.append(trie.parent(level, above[-1]))
    together = torch.stack(above).sum(0)  # grows by one with each new node of any level
    start, count = 0, len(above[0])
    while start < count:
        limit = together[start] + most - len(above)
        stop = max(start + 1, int(torch.searchsorted(together, limit, right=True)))
        yield [(int(level[start]), int(level[stop - 1]) + 1) for level in reversed(above)]
        start = stop


def chunk_size(prefix: PromptCache, memory: int) -> int:
    """How many tree tokens per prompt one pass may hold.

    Counts what grows with the tokens: keys and values, activations of one layer, mask and attention scores, logits of the
    children; an estimate from above for transformers' sdpa attention.

    Args:
        memory: budget of the pass, without the prompts' own cache; three quarters are for what is counted here, one for
            logits over the vocabulary (bytes).

    Raises:
        ConstraintError: not even one path of the trie fits.
    """
    config, trie = prefix.model.config, prefix.trie
    width = next(prefix.model.parameters()).element_size()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head * width
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    active = (8 * config.hidden_size + 4 * inner + 4 * heads * head) * width
    fan_out = max(int(offsets.diff().max()) for offsets in trie.offsets)
    each = kept + active + 40 * fan_out  # node numbers, tokens and float32 scores of the children
    if not plain_head(prefix.model):
        each += config.vocab_size * width
    elif prefix.normalise_over == "catalog":
        each += max(map(len, trie.alphabets)) * 8
    pair = 2 * 4 * heads + 8  # attention scores in float32 and the mask, per pair of tokens
    budget = memory * 3 / 4 / len(prefix.visible)
    linear = each + pair * prefix.visible.shape[1]
    most = int(((linear**2 + 4 * pair * budget) ** 0.5 - linear) / (2 * pair))
    if most < trie.depth - 1:
        least = -(-(trie.depth - 1) * (linear + pair * (trie.depth - 1)) * len(prefix.visible) * 4 // 3)
        raise ConstraintError(f"A memory budget of {memory} bytes is too small for the oracle; {least} are needed at least.")
    return most


def score_catalog(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    normalise_over: Normalise = "vocabulary",
    memory: int = 1 << 30,
) -> torch.Tensor:
    """The exact score of every SID of the catalog: the oracle that beam search is measured against.

    Args:
        all: as in `score_prefixes`.

    Returns:
        (batch, SIDs) scores in nats, in the order of `trie.sids`; -inf outside a view.

    Raises:
        ConstraintError: see `score_prefixes`.
    """
    return score_prefixes(model, input_ids, attention_mask, trie=trie, normalise_over=normalise_over, memory=memory)[-1]


@torch.no_grad()
def score_prefixes(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    normalise_over: Normalise = "vocabulary",
    memory: int = 1 << 30,
) -> list[torch.Tensor]:
    """The exact score of every prefix of every SID.

    Every inner node of the trie is one tree token, computed in chunks that fit the budget; costs one forward of all prefixes
    per prompt.

    Args:
        memory: what a pass may take beyond the model, the prompts and the result; a quarter is for logits over the vocabulary,
            at least one row of them, the rest for what `chunk_size` counts (bytes).
        others: as in `beam_search`.

    Returns:
        Per level of the trie, (batch, nodes) scores in nats, in the order of the nodes; -inf outside a view.

    Raises:
        ConstraintError: see `PromptCache.compute`; or the budget does not hold one path of the trie.
    """
    prefix = PromptCache.compute(model, input_ids, attention_mask, trie, normalise_over)
    prefix.head_elements = min(prefix.head_elements, memory // 4 // 12)  # 12 bytes: three float32 copies of the logits
    batch, device = len(input_ids), input_ids.device
    scores = [torch.empty(batch, len(tokens), device=device) for tokens in trie.tokens]
    root = torch.zeros(batch, 1, dtype=torch.long, device=device)
    scores[0][:] = prefix.child_logprobs(0, root, prefix.last)[2][:, 0]
    for ranges in _chunks(trie, chunk_size(prefix, memory)) if trie.depth > 1 else ():
        ancestors = node_ancestors(trie, ranges)
        tokens = torch.cat([trie.tokens[level][low:high] for level, (low, high) in enumerate(ranges)]).long()
        depth = torch.cat([torch.full((high - low,), level) for level, (low, high) in enumerate(ranges)]).to(device)
        given = prefix.extend(tokens.expand(batch, -1), depth, ancestors.expand(batch, -1, -1))
        prefix.drop_tree_tokens()
        begin = 0
        for level, (low, high) in enumerate(ranges):
            nodes = torch.arange(low, high, device=device).expand(batch, -1)
            steps = prefix.child_logprobs(level + 1, nodes, given[:, begin : begin + high - low])[2]
            begin += high - low
            counts = trie.offsets[level + 1][low : high + 1].diff()
            real = torch.arange(steps.shape[-1], device=device) < counts[:, None]  # (nodes, children): -inf outside a view
            below = slice(int(trie.offsets[level + 1][low]), int(trie.offsets[level + 1][high]))
            scores[level + 1][:, below] = (scores[level][:, low:high, None] + steps)[:, real]
    return scores


def node_ancestors(trie: CatalogTrie, ranges: list[tuple[int, int]]) -> torch.Tensor:
    """(nodes, nodes) bool: which nodes of a chunk are above each, itself included."""
    matrix = torch.eye(sum(high - low for low, high in ranges), dtype=torch.bool, device=trie.device)
    begin = 0
    for level, (low, high) in enumerate(ranges):
        if level:
            above = ranges[level - 1]
            parents = trie.parent(level, torch.arange(low, high, device=trie.device)) - above[0]
            matrix[begin : begin + high - low] |= matrix[begin - (above[1] - above[0]) + parents]
        begin += high - low
    return matrix
