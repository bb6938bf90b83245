"""Log-probabilities of the whole catalog with gradients: every prefix of every SID is a token of one tree."""

from typing import cast

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.exact_scores import node_ancestors
from minionerec.tree.forward import attention_bias, left_pad
from minionerec.tree.trie import NO_TOKEN, CatalogTrie

MOST_PREFIXES = 20_000  # inner nodes of the trie: the mask alone then takes 400 MB a prompt


def catalog_logprobs(
    model: torch.nn.Module, prompts: list[list[int]], *, trie: CatalogTrie, temperature: float = 1.0
) -> torch.Tensor:
    """Each SID's log-probability after each prompt, normalised over the catalog: each row's probabilities add up to 1.

    The same numbers as `score_catalog` with `normalise_over="catalog"`, but with gradients, in one forward of the prompts and
    of all inner nodes of the trie; meant for small catalogs.

    Args:
        model: the causal LM, possibly wrapped by DDP or DeepSpeed, whose forward is called.
        prompts: token ids.
        trie: the valid SIDs, on the model's device.
        temperature: divides the logits.

    Returns:
        (prompts, SIDs) float32 in nats, in the order of `trie.sids`.

    Raises:
        ConstraintError: the trie is a view or has more than `MOST_PREFIXES` inner nodes, a prompt is empty, or see
            `CatalogTrie.check_normalisable` and `attention_bias`.
    """
    trie.check_normalisable()
    if trie.legal is not None:
        raise ConstraintError("Log-probabilities are taken over the whole catalog: give the trie that the view was made from.")
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
    inner = [tokens.long().clamp(min=0) for tokens in trie.tokens[:-1]]  # a SID that has ended: its token plays no part
    input_ids = torch.cat([ids, *(tokens.expand(count, -1) for tokens in inner)], dim=1)
    depths = torch.cat([torch.full((size,), level, device=device) for level, size in enumerate(sizes)] or [ids.new_empty(0)])
    lengths = seen.sum(1, keepdim=True)
    positions = torch.cat([(seen.cumsum(1) - 1).clamp(min=0), lengths + depths], dim=1)
    allowed = torch.zeros(count, 1, *[input_ids.shape[1]] * 2, dtype=torch.bool, device=device)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    allowed[:, 0, :length, :length] = (causal & seen.bool()[:, None]) | torch.eye(length, dtype=torch.bool, device=device)
    allowed[:, 0, length:, :length] = seen.bool()[:, None]
    if sizes:
        allowed[:, 0, length:, length:] = node_ancestors(trie, [(0, size) for size in sizes])
    config_of = cast(PreTrainedModel, extract_model_from_parallel(model))
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_bias(config_of, allowed, int(lengths.max()) + trie.depth),
        position_ids=positions,
        logits_to_keep=sum(sizes) + 1,  # the last prompt token and the inner nodes
        use_cache=False,
    ).logits
    scores, begin = torch.zeros(count, 1, device=device), 0
    for level, tokens in enumerate(trie.tokens):
        parents = trie.parent(level, torch.arange(len(tokens), device=device))
        given = begin + parents  # place of each node's parent among the logits
        begin += scores.shape[1]
        legal = logits[:, given, tokens.long().clamp(min=0)].float() / temperature
        # Logsumexp over siblings. The largest is taken off for safety; it cancels, so no gradient has to pass through it.
        index = parents.expand(count, -1)
        highest = legal.new_full(scores.shape, -torch.inf).scatter_reduce(1, index, legal.detach(), "amax")
        shifted = legal - highest.gather(1, index)
        totals = torch.zeros_like(scores).scatter_add(1, index, shifted.exp())
        steps = (shifted - totals.log().gather(1, index)).masked_fill(tokens == NO_TOKEN, 0.0)
        scores = scores.gather(1, index) + steps
    return scores
