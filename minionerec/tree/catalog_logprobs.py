"""Log-probabilities of the whole catalog with gradients: every prefix of every SID is a token of one tree."""

from typing import cast

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.exact_scores import node_ancestors
from minionerec.tree.forward import attention_bias, left_pad
from minionerec.tree.trie import NO_TOKEN, CatalogTrie

MOST_PREFIXES = 20_000  # inner nodes of the trie: the mask alone then takes 20,000**2 bytes, 400 MB, a prompt


def catalog_logprobs(
    model: torch.nn.Module, prompts: list[list[int]], *, trie: CatalogTrie, temperature: float = 1.0
) -> torch.Tensor:
    """Each SID's log-probability after each prompt, normalised over the catalog: each row's probabilities add up to 1.

    Gives the numbers of `score_catalog` with `normalise_over="catalog"`, but with gradients, in one forward of the prompts and
    of all inner nodes of the trie. Meant for small catalogs.

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

    Returns:
        (prompts, SIDs) float32 in nats, in the order of `trie.sids`.

    Raises:
        ConstraintError: the trie is a view or mixed, has more than `MOST_PREFIXES` inner nodes, or holds a SID that is the
            beginning of another; a prompt is empty or longer than the model's attention window; or its attention cannot take a
            tree mask.
    """
    trie.check_normalisable()
    trie.check_whole()
    sizes = [len(level) for level in trie.tokens[:-1]]
    if sum(sizes) > MOST_PREFIXES:
        raise ConstraintError(
            f"The catalog has {sum(sizes)} prefixes, more than the {MOST_PREFIXES} that are computed as one tree; use "
            "rollouts (rl.objective: grpo)."
        )
    if not all(prompts):
        raise ConstraintError("Prompts must not be empty.")
    device, count = trie.device, len(prompts)
    ids, seen = left_pad(prompts, 0, device)
    length = ids.shape[1]

    # 1. One row per prompt: its tokens, then all inner nodes of the trie, level by level. Leaves are left out, as nothing
    #    follows them. An ended SID's node gets some token; its only child, the same end, is given log-probability 0 below.
    inner = [tokens.long().clamp(min=0) for tokens in trie.tokens[:-1]]
    input_ids = torch.cat([ids, *(tokens.expand(count, -1) for tokens in inner)], dim=1)
    depths = torch.cat([torch.full((size,), level, device=device) for level, size in enumerate(sizes)] or [ids.new_empty(0)])
    lengths = seen.sum(1, keepdim=True)
    positions = torch.cat([(seen.cumsum(1) - 1).clamp(min=0), lengths + depths], dim=1)

    # 2. The mask: the prompt is causal, and its padding sees itself alone; a node sees the prompt and its ancestors.
    allowed = torch.zeros(count, 1, *[input_ids.shape[1]] * 2, dtype=torch.bool, device=device)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    allowed[:, 0, :length, :length] = (causal & seen.bool()[:, None]) | torch.eye(length, dtype=torch.bool, device=device)
    allowed[:, 0, length:, :length] = seen.bool()[:, None]
    if sizes:
        allowed[:, 0, length:, length:] = node_ancestors(trie, [(0, size) for size in sizes])
    unwrapped = cast(PreTrainedModel, extract_model_from_parallel(model))
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_bias(unwrapped, allowed, int(lengths.max()) + trie.depth - 1),
        position_ids=positions,
        logits_to_keep=sum(sizes) + 1,  # the last prompt token, which is the root, and the inner nodes
        use_cache=False,
    ).logits

    # 3. From the top level down: a node's log-probability is its parent's plus its own among its siblings.
    scores, begin = torch.zeros(count, 1, device=device), 0
    for level, tokens in enumerate(trie.tokens):
        parents = trie.parent(level, torch.arange(len(tokens), device=device))
        parent_places = begin + parents  # among the logits, which hold the root and then the levels
        begin += scores.shape[1]
        legal = logits[:, parent_places, tokens.long().clamp(min=0)].float() / temperature
        steps = _sibling_log_softmax(legal, parents, scores.shape[1]).masked_fill(tokens == NO_TOKEN, 0.0)
        scores = scores.gather(1, parents.expand(count, -1)) + steps
    return scores


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
