"""Calling a causal LM on trees: prompts of several lengths in one batch, and masks that say which token is an ancestor."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError


def left_pad(
    prompts: Sequence[Sequence[int]], pad_token: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of several lengths as one batch, padded on the left.

    Returns:
        token ids and attention mask, both (prompts, longest).
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def attention_bias(model: PreTrainedModel, allowed: torch.Tensor, longest: int) -> torch.Tensor:
    """The mask in the form that the model's attention reads correctly.

    Args:
        allowed: (batch, 1, queries, keys) bool, True where a query may attend.
        longest: tokens of the longest path in the tree, its prompt included.

    Raises:
        ConstraintError: the attention implementation cannot take a tree mask, or a path is longer than the window of a
            layer with sliding attention.
    """
    config = model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) and longest > config.sliding_window:
        raise ConstraintError(
            f"A path of {longest} tokens is longer than the model's attention window of {config.sliding_window}, which a tree "
            "mask does not reproduce. Shorten the prompt (data.max_history)."
        )
    implementation = config._attn_implementation
    if implementation == "sdpa":
        return allowed
    if implementation == "eager":  # eager adds the mask to the scores: a boolean would be silently wrong
        dtype = next(model.parameters()).dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
    raise ConstraintError(
        f"The model was loaded with attention {implementation!r}, which cannot take a tree mask. "
        "Load it with attn_implementation='sdpa'."
    )
