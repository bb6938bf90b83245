"""Calling a causal LM on a tree: explicit positions and a mask that says which earlier token is an ancestor."""

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError


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
