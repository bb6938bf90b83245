"""Calling a causal LM on trees: prompts of several lengths in one batch, and masks by which a token sees its ancestors only."""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from minionerec.errors import ConstraintError


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
        longest: tokens of the longest path in the tree, its prompt included.

    Raises:
        ConstraintError: the attention implementation cannot take a tree mask, or a path is longer than the window of a
            layer with sliding or chunked attention.
    """
    config = model.config
    window = _window(config)
    if window is not None and longest > window:
        raise ConstraintError(
            f"A path of {longest} tokens is longer than the model's attention window of {window}, which a tree "
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


def _window(config: PretrainedConfig) -> int | None:
    """The shortest attention window of the layers, None if all see everything."""
    layers = getattr(config, "layer_types", None)
    windows = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    if layers is None:  # one kind of layer: Mistral has a window without naming its layers
        sliding = windows["sliding_attention"]
        return sliding if sliding and getattr(config, "use_sliding_window", True) else None
    return min((size for kind, size in windows.items() if size and kind in layers), default=None)
