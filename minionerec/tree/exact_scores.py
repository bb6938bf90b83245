"""The exact score of every SID and of every prefix of the catalog, in tree passes over the trie."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.architecture import Widths
from minionerec.tree.prompt_cache import Normalise, PrefixModel, PromptCache, plain_head
from minionerec.tree.trie import CatalogTrie

PASS_BYTES = 1 << 30  # what a pass may take unless another number is given
# The most tree tokens per prompt of a pass on a CPU. Each sees only those above it, but all of a pass are compared with one
# another, so attention costs the square of their number; smaller passes compute few tokens twice (`benchmarks/oracle.py`).
CPU_TOKENS = 256


def inner_chunks(trie: CatalogTrie, most: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the inner nodes into chunks: a run of the lowest ones with all that is above them, at most `most` nodes together.

    If a run ends inside a subtree, the nodes above it are in both chunks. Yields per inner level the range of node numbers;
    nothing if no node is an inner one.
    """
    if trie.depth == 1:
        return
    lowest = trie.depth - 2
    above = [torch.arange(len(trie.tokens[lowest]), device=trie.device)]  # per level from below: the lowest nodes' ancestors
    for level in range(lowest, 0, -1):
        above.append(trie.parent(level, above[-1]))
    # From one lowest node to the next a level's node number stays or, with a new ancestor, rises by one. So the sum over the
    # levels counts distinct nodes: a run's size is a difference of two sums, and its end is found by bisection.
    nodes_so_far = torch.stack(above).sum(0)
    start, count = 0, len(above[0])
    while start < count:
        limit = nodes_so_far[start] + most - len(above)
        stop = max(start + 1, int(torch.searchsorted(nodes_so_far, limit, right=True)))
        yield [(int(level[start]), int(level[stop - 1]) + 1) for level in reversed(above)]
        start = stop


def chunk_size(prompts: PromptCache, memory: int) -> int:
    """How many tree tokens per prompt one pass of a transformers model may hold; arguments and errors of `tokens_of_a_pass`."""
    config = prompts.model.config.get_text_config(decoder=True)
    width = next(prompts.model.parameters()).element_size()
    logits = 0
    if not plain_head(prompts.model):
        logits = config.vocab_size * width  # `extend` returns logits over the vocabulary
    elif prompts.normalise_over == "catalog":
        logits = max(map(len, prompts.trie.alphabets)) * 8  # logits of a level's alphabet, at most float32, and a copy
    sizes = Layers(config.num_hidden_layers, config.hidden_size, Widths.of(config), width)
    return tokens_of_a_pass(prompts, sizes, logits, memory)


class Layers(NamedTuple):
    """Sizes of a stack of attention layers.

    Attributes:
        number: of layers.
        hidden: width of the residual.
        widths: of one layer.
        bytes: of a number.
    """

    number: int
    hidden: int
    widths: Widths
    bytes: int


def tokens_of_a_pass(prompts: PrefixModel, layers: Layers, logits: int, memory: int) -> int:
    """How many tree tokens per prompt one pass may hold, on a CPU `CPU_TOKENS` at most.

    Counts what grows with the tokens: keys and values, activations of one layer, mask and attention scores, logits of the
    children; an estimate from above for sdpa attention.

    Args:
        layers: of the model that computes the tokens.
        logits: what a token's logits take (bytes).
        memory: budget of the pass, without the prompts' own cache; three quarters are for what is counted here, one for
            logits over the vocabulary (bytes).

    Raises:
        ConstraintError: not even one path of the trie fits.
    """
    trie, sizes = prompts.trie, layers.widths
    # Bytes per tree token, however many there are:
    # Keys and values (2) of every layer; twice (2), as the cache is concatenated anew when tokens are added.
    cached = 2 * 2 * layers.number * sizes.key_value * layers.bytes
    # One layer's activations: at most 8 of the hidden width (residual, norms, inputs and outputs of both blocks), 4 of the
    # inner width (gate, its activation, up, product), 4 of all heads together (queries, rotated, output, contiguous copy).
    active = (8 * layers.hidden + 4 * sizes.feed_forward + 4 * sizes.attention) * layers.bytes
    # Of each child: node number, token and the token clamped (3 x 8), the float32 log-probability in up to 4 stages (4 x 4).
    each = cached + active + 40 * max(trie.fan_outs) + logits

    # Bytes per pair of a tree token and a token that it may see: float32 attention scores of every head before and after the
    # softmax (2 x 4), and the mask as ancestors, joined with the prompt, and in the form that attention takes (up to 8).
    pair = 2 * 4 * sizes.heads + 8

    # n tokens see `visible` prompt tokens and one another, so they take n * each + n * (visible + n) * pair bytes. The largest
    # n within the budget solves pair * n**2 + linear * n = budget.
    budget = memory * 3 / 4 / len(prompts.visible)
    linear = each + pair * prompts.visible.shape[1]
    most = int(((linear**2 + 4 * pair * budget) ** 0.5 - linear) / (2 * pair))
    path = trie.depth - 1  # tokens of the smallest possible chunk
    if most < path:
        least = -(-path * (linear + pair * path) * len(prompts.visible) * 4 // 3)
        raise ConstraintError(
            f"A memory budget of {memory} bytes is too small for exact scores; {least} are needed at least. "
            "Raise `memory` or score fewer prompts at once."
        )
    return max(path, min(most, CPU_TOKENS)) if prompts.visible.device.type == "cpu" else most


def score_catalog(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    normalise_over: Normalise = "vocabulary",
    memory: int = PASS_BYTES,
) -> torch.Tensor:
    """The exact score of every SID of the catalog, which beam search is measured against.

    >>> from transformers import Qwen3Config, Qwen3ForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    >>> model = Qwen3ForCausalLM(Qwen3Config(vocab_size=20, num_hidden_layers=1, **sizes)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> scores = score_catalog(model, torch.tensor([[1, 2, 3]]), trie=trie, normalise_over="catalog")
    >>> scores.shape  # 1 prompt, 3 SIDs
    torch.Size([1, 3])
    >>> round(scores.exp().sum().item(), 4)
    1.0

    Args:
        model: a transformers causal LM or T5 in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None if nothing is padded.
        trie: the valid SIDs, on the model's device; a view narrowed to one filter, or to one per prompt; mixed with a prior
            or an assistant, or not.
        normalise_over: `vocabulary` normalises each step over the full vocabulary, `catalog` over the legal next tokens.
        memory: what a pass may take beyond the model, the prompts and the result (bytes); on a CPU it has `CPU_TOKENS` tokens
            at most.

    Returns:
        (batch, SIDs) scores in nats, in the order of `trie.sids`; -inf outside a view. Of a trie mixed with a prior, the
        log-probability in the mixture; with an assistant, D3's score.

    Raises:
        ConstraintError: the budget does not hold one path of the trie, or model, prompts and trie do not fit together
            (`PromptCache.compute` lists the cases).
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
    memory: int = PASS_BYTES,
    written: bool = False,
) -> list[torch.Tensor]:
    """The exact score of every prefix of every SID.

    Every inner node of the trie is one tree token, computed in chunks that fit the budget; costs one forward of all prefixes
    per prompt.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> [scores.shape for scores in score_prefixes(model, torch.tensor([[1, 2, 3]]), trie=trie)]  # 2 first codes, 3 SIDs
    [torch.Size([1, 2]), torch.Size([1, 3])]

    Args:
        model: a transformers causal LM or T5 in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None if nothing is padded.
        trie: the valid SIDs, on the model's device; a view narrowed to one filter, or to one per prompt; mixed with a prior
            or an assistant, or not.
        normalise_over: `vocabulary` normalises each step over the full vocabulary, `catalog` over the legal next tokens.
        memory: what a pass may take beyond the model, the prompts and the result; a quarter is for logits over the vocabulary,
            at least one row of them, the rest for what `chunk_size` counts (bytes). On a CPU a pass has `CPU_TOKENS` tokens at
            most.
        written: what the model writes code by code, without a second distribution of its own (`tree/leaf_component.py`).

    Returns:
        Per level of the trie, (batch, nodes) scores in nats, in the order of the nodes; -inf outside a view. Of a trie mixed
        with a prior, the logarithm of the probability of all SIDs below a node together; with an assistant, D3's score of the
        prefix.

    Raises:
        ConstraintError: the budget does not hold one path of the trie, or model, prompts and trie do not fit together
            (`PromptCache.compute` lists the cases).
    """
    prompts = PromptCache.compute(model, input_ids, attention_mask, trie, normalise_over, written)
    prompts.head_elements = min(prompts.head_elements, memory // 4 // 12)  # 12 bytes: three float32 copies of the logits
    return prefix_scores(prompts, lambda: chunk_size(prompts, memory))


@torch.no_grad()
def prefix_scores(prompts: PrefixModel, most: Callable[[], int]) -> list[torch.Tensor]:
    """`score_prefixes` on prompts that are already computed, of any model that offers what a `PromptCache` does.

    Args:
        most: how many tree tokens per prompt one pass may hold; asked only if there are any.
    """
    # 1. From the prompts' last tokens the scores of the first level.
    trie = prompts.trie
    batch, device = len(prompts.visible), prompts.visible.device
    scores = [torch.empty(batch, len(tokens), device=device) for tokens in trie.tokens]
    root = torch.zeros(batch, 1, dtype=torch.long, device=device)
    scores[0][:] = prompts.child_logprobs(0, root, prompts.last)[2][:, 0]
    for ranges in inner_chunks(trie, most() if trie.depth > 1 else 0):
        # 2. Compute a chunk of inner nodes as tree tokens of one row, level by level. Nodes of other chunks are not needed: a
        #    chunk holds all ancestors of its nodes, so the cache is emptied after each.
        ancestors = node_ancestors(trie, ranges)
        tokens = torch.cat([trie.tokens[level][low:high] for level, (low, high) in enumerate(ranges)]).long()
        depth = torch.cat([torch.full((high - low,), level) for level, (low, high) in enumerate(ranges)]).to(device)
        states = prompts.extend(tokens.expand(batch, -1), depth, ancestors.expand(batch, -1, -1))
        prompts.drop_tree_tokens()
        # 3. Add each child's log-probability to its parent's score, from the top level down. Children of consecutive nodes are
        #    consecutive, so the valid places of the padded matrix, read row by row, are a slice of the level below.
        begin = 0
        for level, (low, high) in enumerate(ranges):
            nodes = torch.arange(low, high, device=device).expand(batch, -1)
            steps = prompts.child_logprobs(level + 1, nodes, states[:, begin : begin + high - low])[2]
            begin += high - low
            counts = trie.offsets[level + 1][low : high + 1].diff()
            is_child = (
                torch.arange(steps.shape[-1], device=device) < counts[:, None]
            )  # (nodes, children), those outside a view too
            below = slice(int(trie.offsets[level + 1][low]), int(trie.offsets[level + 1][high]))
            scores[level + 1][:, below] = (scores[level][:, low:high, None] + steps)[:, is_child]
    guide = trie.prefixes()
    return scores if guide is None else [guide.masses(level, model_scores) for level, model_scores in enumerate(scores)]


@torch.no_grad()
def score_leaves(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: CatalogTrie,
    leaves: torch.Tensor,
    normalise_over: Normalise = "vocabulary",
) -> torch.Tensor:
    """The exact score of some SIDs after each prompt: one forward of the prompts and of the SIDs' own tokens, no search.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).eval()
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    >>> scores = score_leaves(model, prompts, trie=trie, leaves=torch.tensor([[2], [0]]))  # the third SID, and the first
    >>> torch.allclose(scores, score_catalog(model, prompts, trie=trie).gather(1, torch.tensor([[2], [0]])), atol=1e-5)
    True

    Args:
        model: a transformers causal LM or T5 in evaluation mode, with sdpa or eager attention.
        input_ids: prompts, (batch, length), left-padded.
        attention_mask: of the same shape; None if nothing is padded.
        trie: the valid SIDs, on the model's device; a view narrowed to one filter, or to one per prompt; mixed with a prior
            or an assistant, or not.
        leaves: (batch, SIDs) int64 numbers of SIDs in the trie; -1 in empty places.
        normalise_over: `vocabulary` normalises each step over the full vocabulary, `catalog` over the legal next tokens.

    Returns:
        (batch, SIDs) scores in nats, of a mixed trie as in `score_catalog`; -inf outside a view and in empty places.

    Raises:
        ConstraintError: the leaves have another shape or are not in the trie, or model, prompts and trie do not fit together
            (`PromptCache.compute` lists the cases).
    """
    if (
        leaves.dim() != 2
        or not leaves.shape[1]
        or len(leaves) != len(input_ids)
        or not bool(((leaves >= -1) & (leaves < len(trie))).all())
    ):
        raise ConstraintError(
            f"leaves must be numbers of SIDs from 0 to {len(trie) - 1} or -1, of shape ({len(input_ids)}, SIDs); found "
            f"{tuple(leaves.shape)}, from {int(leaves.min()) if leaves.numel() else '-'} to "
            f"{int(leaves.max()) if leaves.numel() else '-'}."
        )
    prompts = PromptCache.compute(model, input_ids, attention_mask, trie, normalise_over)
    path = [leaves.clamp(min=0)]  # per level, (batch, SIDs) the node that each SID passes
    for level in reversed(range(1, trie.depth)):
        path.insert(0, trie.parent(level, path[0]))
    batch, count = leaves.shape
    above = torch.zeros_like(leaves)
    scores = torch.zeros(batch, count, device=leaves.device)
    states = prompts.last.expand(-1, count, -1)
    ancestors = torch.zeros(batch, count, 0, dtype=torch.bool, device=leaves.device)
    itself = torch.eye(count, dtype=torch.bool, device=leaves.device).expand(batch, -1, -1)
    for level, nodes in enumerate(path):
        steps = prompts.child_logprobs(level, above, states)[2]
        place = nodes - trie.offsets[level][above]  # the children of a node are consecutive
        scores = scores + steps.gather(-1, place[..., None]).squeeze(-1)
        if level < trie.depth - 1:
            ancestors = torch.cat([ancestors, itself], dim=-1)  # SID i goes below SID i of the level before
            states, above = prompts.extend(trie.tokens[level][nodes].long(), level, ancestors), nodes
    guide = prompts.trie.prefixes()
    if guide is not None:
        scores = guide.bounds(trie.depth - 1, scores, path[-1])
    return scores.masked_fill(leaves < 0, -torch.inf)


def node_ancestors(trie: CatalogTrie, ranges: list[tuple[int, int]]) -> torch.Tensor:
    """Which nodes of a chunk are above each, itself included: (nodes, nodes) bool.

    Args:
        trie: whose nodes they are.
        ranges: per level from the top, the first node number and the one after the last; no parent is left out.
    """
    matrix = torch.eye(sum(high - low for low, high in ranges), dtype=torch.bool, device=trie.device)
    begin = 0
    for level, (low, high) in enumerate(ranges):
        if level:
            # A node sees what its parent sees; the parents' rows stand right before this level's and are complete.
            above_low, above_high = ranges[level - 1]
            parents = trie.parent(level, torch.arange(low, high, device=trie.device)) - above_low
            matrix[begin : begin + high - low] |= matrix[begin - (above_high - above_low) + parents]
        begin += high - low
    return matrix
