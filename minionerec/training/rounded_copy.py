"""A copy of a model in a shorter number format, for validations in the format of the evaluation and for rollouts of RL."""

import copy
from typing import Any, cast

import torch
from transformers import PreTrainedModel


class RoundedCopy:
    """A model as a shorter format stores it, brought up to date with the model that is trained whenever it is asked for.

    What a checkpoint holds, weights and stored buffers, is rounded, as `checkpoint.load` rounds it. Tensors that are computed
    at load, such as rotary frequencies, keep their precision there and here. Adapters are merged first, as they are for the
    checkpoint: a rounded sum is not a sum of rounded parts.

    Attributes:
        followed: the model that is trained.
        model: the copy, in evaluation mode and without gradients. Its tensors stay where they are in memory, so that searches
            that were recorded as CUDA graphs stay valid.
    """

    def __init__(self, followed: PreTrainedModel, dtype: str) -> None:
        """Copy a model.

        Args:
            followed: is trained further, not changed here.
            dtype: of the copy, such as `bfloat16`.
        """
        self.followed = followed
        self.model = _whole_copy(followed).requires_grad_(False).eval()
        stored, short = {id(tensor) for tensor in _stored(self.model)}, getattr(torch, dtype)
        # As a cast does it: a module that has computed something of its buffers forgets that (`ItemTexts`).
        self.model._apply(lambda tensor: tensor.to(short) if id(tensor) in stored else tensor)

    @classmethod
    def if_shorter(cls, followed: PreTrainedModel, dtype: str) -> "RoundedCopy | None":
        """A copy, or None if the model's own format takes no more bytes: a longer one would add memory and no precision."""
        return cls(followed, dtype) if copy_bytes(followed, dtype) else None

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights that the followed model has now; with adapters this holds a second whole copy for a moment."""
        now = _whole_copy(self.followed) if _has_adapters(self.followed) else self.followed
        for tensor, new in zip(_stored(self.model), _stored(now), strict=True):
            tensor.copy_(new)


def _has_adapters(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def _whole_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model, its adapters merged into its weights."""
    copied: Any = copy.deepcopy(model)
    if _has_adapters(model):
        copied = copied.merge_and_unload()
        copied.tie_weights()
    return cast(PreTrainedModel, copied)


def _stored(model: PreTrainedModel) -> list[torch.Tensor]:
    """The floating-point tensors of a checkpoint, those themselves and no views; a tied one once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return [tensor for tensor in tensors.values() if tensor.is_floating_point()]


def copy_bytes(followed: PreTrainedModel, dtype: str) -> int:
    """Bytes of the weights of `RoundedCopy.if_shorter`, 0 without one; the model may be on the meta device."""
    width: int = getattr(torch, dtype).itemsize
    return followed.num_parameters() * width if width < followed.dtype.itemsize else 0
