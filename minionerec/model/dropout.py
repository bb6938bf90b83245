"""Dropout in training for architectures that have none outside their attention; the saved model is not changed by it."""

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from minionerec.errors import ConfigError


def add_dropout(model: PreTrainedModel, share: float) -> list[RemovableHandle]:
    """Drop values of the embeddings, of what attention and feed-forward of every layer add, and of the last states.

    These are the places of the original Transformer (Vaswani et al., 2017, section 5.4) and of T5. It acts only while
    training. In a prefix tree all examples that share a token share what is dropped there.

    Args:
        share: fraction of the values that become 0; the rest is scaled to keep the mean.

    Returns:
        Handles that remove the dropout; none if `share` is 0.

    Raises:
        ConfigError: the model's decoder is not built of layers with `self_attn` and `mlp`.
    """
    if not share:
        return []
    model = getattr(model, "get_base_model", lambda: model)()  # inside of PEFT's wrapping
    decoder = model.get_decoder()
    try:
        parts = [model.get_input_embeddings(), decoder.norm]
        parts += [part for layer in decoder.layers for part in (layer.self_attn, layer.mlp)]
    except AttributeError as error:
        raise ConfigError(
            f"sft.dropout is {share}, but a {type(model).__name__} is not built of layers with self_attn and mlp ({error}); "
            "set it to 0."
        ) from None

    def drop(module: torch.nn.Module, _: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        if isinstance(output, tuple):
            return (torch.nn.functional.dropout(output[0], share, module.training), *output[1:])
        return torch.nn.functional.dropout(output, share, module.training)

    return [part.register_forward_hook(drop) for part in parts]
