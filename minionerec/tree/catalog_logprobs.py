"""Log-probabilities of the whole catalog with gradients: every prefix of every SID is a token behind its prompt.

All tokens of a row are compared with one another, though each sees only its prompt and those above it. So the prefixes are cut
into several rows, each with the prompt before it: what attention costs then grows with their number and not with its square.
"""

from typing import NamedTuple, cast

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.exact_scores import inner_chunks, node_ancestors
from minionerec.tree.forward import attention_bias, left_pad
from minionerec.tree.trie import NO_TOKEN, CatalogTrie

MOST_PREFIXES = 20_000  # inner nodes of the trie: with a vocabulary of 2,000 the logits alone then take 160 MB a prompt
# About as many inner nodes stand in a row: `ROW_PREFIXES`, or `PER_PROMPT_TOKEN` for each token of the longest prompt if these
# are more. Every row repeats the prompt, which so adds a quarter to what is computed, or less. Measured on a CPU
# (`benchmarks/catalog_logprobs.py`), on a GPU not.
ROW_PREFIXES = 256
PER_PROMPT_TOKEN = 4


def catalog_logprobs(
    model: torch.nn.Module,
    prompts: list[list[int]],
    *,
    trie: CatalogTrie,
    temperature: float = 1.0,
    cut: "dict[int, PrefixRows] | None" = None,
) -> torch.Tensor:
    """Each SID's log-probability after each prompt, normalised over the catalog: each row's probabilities add up to 1.

    Gives the numbers of `score_catalog` with `normalise_over="catalog"`, but with gradients, in one forward of the prompts and
    of all inner nodes of the trie (`PrefixRows`). Meant for small catalogs.

    >>> from transformers import Qwen2Config, Qwen2ForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = Qwen2ForCausalLM(Qwen2Config(vocab_size=20, num_hidden_layers=1, **sizes))
    >>> trie = CatalogTrie.from_codes(torch.tensor([[10, 13], [11, 13], [11, 14]]))
    >>> logprobs = catalog_logprobs(model, [[1, 2, 3], [4, 5]], trie=trie)
    >>> logprobs.shape, logprobs.requires_grad  # 2 prompts, 3 SIDs
    (torch.Size([2, 3]), True)

    Args:
        model: the causal LM, possibly wrapped by DDP or DeepSpeed, whose forward is called.
        prompts: token ids.
        trie: the valid SIDs, on the model's device.
        temperature: divides the logits.
        cut: the rows that earlier calls have cut this trie into, by their number; this call adds its own. None cuts anew.

    Returns:
        (prompts, SIDs) float32 in nats, in the order of `trie.sids`.

    Raises:
        ConstraintError: the trie is a view or mixed, has more than `MOST_PREFIXES` inner nodes, or holds a SID that is the
            beginning of another; a prompt is empty or longer than the model's attention window; or its attention cannot take a
            tree mask.
    """
    trie.check_normalisable()
    trie.check_whole()
    inner_nodes = sum(len(level) for level in trie.tokens[:-1])
    if inner_nodes > MOST_PREFIXES:
        raise ConstraintError(
            f"The catalog has {inner_nodes} prefixes, more than the {MOST_PREFIXES} that are computed after each prompt; use "
            "rollouts (rl.objective: grpo)."
        )
    if not all(prompts):
        raise ConstraintError("Prompts must not be empty.")
    device, count = trie.device, len(prompts)
    ids, seen = left_pad(prompts, 0, device)
    number = number_of_rows(trie, ids.shape[1])
    cut = {} if cut is None else cut
    if number not in cut:
        cut[number] = PrefixRows.of(trie, number)
    rows = cut[number]
    logits = _logits(model, ids, seen, rows, trie.depth)
    # From the top level down: a node's log-probability is its parent's plus its own among its siblings.
    scores = torch.zeros(count, 1, device=device)
    for level, tokens in enumerate(trie.tokens):
        parents = trie.parent(level, torch.arange(len(tokens), device=device))
        parent_places = rows.places[level][parents]
        legal = logits[:, parent_places, tokens.long().clamp(min=0)].float() / temperature
        steps = _sibling_log_softmax(legal, parents, scores.shape[1]).masked_fill(tokens == NO_TOKEN, 0.0)
        scores = scores.gather(1, parents.expand(count, -1)) + steps
    return scores


def number_of_rows(trie: CatalogTrie, length: int) -> int:
    """How many rows the inner nodes are cut into behind prompts of which the longest has `length` tokens."""
    return max(1, round(sum(map(len, trie.tokens[:-1])) / max(ROW_PREFIXES, PER_PROMPT_TOKEN * length)))


def _logits(model: torch.nn.Module, ids: torch.Tensor, seen: torch.Tensor, rows: "PrefixRows", depth: int) -> torch.Tensor:
    """Logits of the root and of the inner nodes after each prompt, (prompts, places, vocabulary).

    Args:
        ids, seen: (prompts, length) left-padded prompts and their mask.
        rows: of the trie.
        depth: levels of the trie.
    """
    (count, length), lengths, device = ids.shape, seen.sum(1), ids.device
    parts, nodes = rows.tokens.shape

    # 1. Rows of a prompt's tokens and then a part of the inner nodes, all parts of a prompt one after the other.
    def each_part(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(parts, dim=0)

    def each_prompt(values: torch.Tensor) -> torch.Tensor:
        return values.repeat(count, *[1] * (values.dim() - 1))

    input_ids = torch.cat([each_part(ids), each_prompt(rows.tokens)], dim=1)
    after = each_part(lengths)[:, None] + each_prompt(rows.depths)
    positions = torch.cat([each_part((seen.cumsum(1) - 1).clamp(min=0)), after], dim=1)

    # 2. The mask: the prompt is causal, and its padding sees itself alone; a node sees the prompt and its ancestors.
    allowed = torch.zeros(count * parts, 1, *[length + nodes] * 2, dtype=torch.bool, device=device)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=device)
    allowed[:, 0, :length, :length] = each_part((causal & seen.bool()[:, None]) | itself)
    allowed[:, 0, length:, :length] = each_part(seen.bool())[:, None]
    allowed[:, 0, length:, length:] = each_prompt(rows.ancestors)
    unwrapped = cast(PreTrainedModel, extract_model_from_parallel(model))
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_bias(unwrapped, allowed, int(lengths.max()) + depth - 1),
        position_ids=positions,
        logits_to_keep=nodes + 1,  # of each row the last prompt token, which is the root, and the inner nodes
        use_cache=False,
    ).logits
    return cast(torch.Tensor, logits.unflatten(0, (count, parts)).flatten(1, 2))


class PrefixRows(NamedTuple):
    """How the inner nodes of a trie are cut into rows of one length.

    A node stands behind all that are above it, so these may stand in several rows. Leaves are left out: nothing follows them.

    Attributes:
        tokens: (rows, nodes) the nodes' tokens; some token at an ended SID's node and in empty places.
        depths: (rows, nodes) their levels, from 0.
        ancestors: (rows, nodes, nodes) bool, True where a node sees a node: itself and those above it.
        places: per level of the trie, of each node above it its place among the logits, a row after the other, which begin with
            the root's; the root's alone for the first level.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    places: list[torch.Tensor]

    @classmethod
    def of(cls, trie: CatalogTrie, number: int) -> "PrefixRows":
        """Cut them into so many rows, or fewer."""
        sizes, device = [len(level) for level in trie.tokens[:-1]], trie.device
        # Of a row's nodes depth - 2 at most stand in the row before, too, and as many places at most stay empty.
        most = -(-sum(sizes) // number) + 2 * (trie.depth - 1) * (number > 1)
        chunks = list(inner_chunks(trie, most)) or [[]]
        nodes = max(sum(high - low for low, high in ranges) for ranges in chunks)
        tokens, depths = (torch.zeros(len(chunks), nodes, dtype=torch.long, device=device) for _ in range(2))
        ancestors = torch.eye(nodes, dtype=torch.bool, device=device).repeat(len(chunks), 1, 1)
        places = [torch.zeros(size, dtype=torch.long, device=device) for size in (1, *sizes)]
        for row, ranges in enumerate(chunks):
            begin = 0
            for level, (low, high) in enumerate(ranges):
                after = begin + high - low
                tokens[row, begin:after] = trie.tokens[level][low:high].clamp(min=0)
                depths[row, begin:after] = level
                places[level + 1][low:high] = torch.arange(begin, after, device=device) + row * (nodes + 1) + 1
                begin = after
            if ranges:
                ancestors[row, :begin, :begin] = node_ancestors(trie, ranges)
        return cls(tokens, depths, ancestors, places)


def _sibling_log_softmax(logits: torch.Tensor, parents: torch.Tensor, count: int) -> torch.Tensor:
    """Log-softmax over the nodes with the same parent: (prompts, nodes).

    Args:
        logits: (prompts, nodes) float32.
        parents: (nodes,) number of each node's parent.
        count: parents.
    """
    index = parents.expand(len(logits), -1)
    # The largest is taken off for safety; it cancels, so no gradient has to pass through it.
    highest = logits.new_full((len(logits), count), -torch.inf).scatter_reduce(1, index, logits.detach(), "amax")
    shifted = logits - highest.gather(1, index)
    totals = torch.zeros_like(highest).scatter_add(1, index, shifted.exp())
    return shifted - totals.log().gather(1, index)
