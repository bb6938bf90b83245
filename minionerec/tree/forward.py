"""Calling a causal LM on trees: prompts of several lengths in one batch, and masks by which a token sees its ancestors only."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.architecture import check_length, check_model
from minionerec.tree.fewer_kernels import GROUPED, grouped_mask


def left_pad(
    prompts: Sequence[Sequence[int]], pad_token: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of several lengths as one batch, padded on the left.

    >>> ids, mask = left_pad([[5, 6, 7], [8]], pad_token=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])

    Returns:
        token ids and attention mask, both (prompts, longest).
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def attention_bias(model: PreTrainedModel, allowed: torch.Tensor, longest: int) -> torch.Tensor:
    """The mask in the form that the model's attention implementation reads correctly.

    Args:
        allowed: (batch, 1, queries, keys) bool, True where a query may attend.
        longest: tokens of the longest path in the tree that are computed, its prompt included.

    Raises:
        ConstraintError: the model's layers or its attention implementation cannot take a tree mask, or a path is longer than
            trees are exact (`tree/architecture.py`).
    """
    check_model(model)
    check_length(model, longest, allowed.shape[-1])
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation == "sdpa":
        return allowed
    if implementation == GROUPED:
        return grouped_mask(model, allowed)
    if implementation == "eager":  # eager adds the mask to the scores: a boolean would be silently wrong
        dtype = next(model.parameters()).dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
    raise ConstraintError(
        f"The model was loaded with attention {implementation!r}, which cannot take a tree mask. "
        "Load it with attn_implementation='sdpa' or 'eager'."
    )
