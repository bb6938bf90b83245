"""Calling a causal LM: prompts of several lengths in one batch, and trees, whose mask says which token is an ancestor."""

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


def attention_bias(model: PreTrainedModel, allowed: torch.Tensor) -> torch.Tensor:
    """The mask in the form that the model's attention reads correctly.

    Args:
        allowed: (batch, 1, queries, keys) bool, True where a query may attend.

    Raises:
        ConstraintError: the attention implementation cannot take a tree mask.
    """
    implementation = model.config._attn_implementation
    if implementation == "sdpa":
        return allowed
    if implementation == "eager":  # eager adds the mask to the scores: a boolean would be silently wrong
        dtype = next(model.parameters()).dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
    raise ConstraintError(
        f"The model was loaded with attention {implementation!r}, which cannot take a tree mask. "
        "Load it with attn_implementation='sdpa'."
    )
