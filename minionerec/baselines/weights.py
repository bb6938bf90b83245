"""Weights of neural baselines: our own files, and those of the published code."""

import re
from collections.abc import Container
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minionerec.artifacts import file_hash
from minionerec.baselines.models.recommender import Recommender, Renames
from minionerec.errors import ArtifactError

# Names that the checkpoints of RecBole and WEARec share, and ours; a model's own come before them (`Recommender.renames`).
_SHARED: Renames = (
    (r"^item_embedding\.", "item_embeddings."),
    (r"^position_embeddings?\.", "embedding.position_embeddings."),
    (r"^LayerNorm\.", "embedding.layer_norm."),
    (r"^(item_encoder\.blocks|trm_encoder\.layer)\.", "encoder.layers."),
    (r"\.(layer|multi_head_attention)\.", ".attn."),
    (r"\.feed_forward\.", ".ffn."),
    (r"\.attn\.dense\.", ".attn.out_proj."),
    (r"\.LayerNorm\.", ".layer_norm."),
)
_WRAPPED = r"^(module|model)\."  # what a wrapper for training puts before every name


def save(model: Recommender, path: Path) -> None:
    """Write a model's weights."""
    save_file({name: values.contiguous() for name, values in model.state_dict().items()}, path)


def digest(path: Path) -> str:
    """SHA-256 of a file of weights.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        return file_hash(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); expected a safetensors file of weights.") from None


def load(model: Recommender, path: Path) -> dict[str, str]:
    """Fill a model with the weights of a safetensors file, ours or one of the published code.

    Names are translated. What is left over in a module is matched by shape where that leaves no choice. Dimensions of size 1
    do not count in a shape.

    Returns:
        parameters that were matched by shape: ours to the file's.

    Raises:
        ArtifactError: the file cannot be read, or does not fit the model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error}).") from None
    wanted = model.state_dict()
    source: dict[str, str] = {}  # the file's name of each of ours
    unknown: dict[str, str] = {}  # the file's name by what became of it
    for name in tensors:
        ours = _translated(name, model.renames, wanted)
        if ours in wanted and ours not in source:
            source[ours] = name
        elif ours:
            unknown[name if ours in source else ours] = name
    matched = {}
    for name in wanted.keys() - source.keys():
        module, shape = name.rpartition(".")[0], wanted[name].squeeze().shape
        fitting = [
            other
            for other in unknown
            if other.rpartition(".")[0] == module and tensors[unknown[other]].squeeze().shape == shape
        ]
        if len(fitting) == 1:
            matched[name] = source[name] = unknown.pop(fitting[0])
    missing, surplus = sorted(wanted.keys() - source.keys()), sorted(unknown.values())
    if missing or surplus:
        raise ArtifactError(
            f"{path}: not weights of {type(model).__name__}: missing {', '.join(missing) or 'nothing'}; unknown "
            f"{', '.join(surplus) or 'nothing'}."
        )
    given: dict[str, Tensor] = {}
    for name, theirs in source.items():
        values, shape = tensors[theirs], wanted[name].shape
        if values.squeeze().shape != wanted[name].squeeze().shape:
            raise ArtifactError(
                f"{path}: {theirs} is {tuple(values.shape)}, the model has {tuple(shape)}. Another number of items, width or "
                "length?"
            )
        given[name] = values.reshape(shape)
    model.load_state_dict(given)
    return matched


def _translated(name: str, renames: Renames, wanted: Container[str]) -> str:
    """Our name of a file's tensor: patterns are replaced one after the other until it is a wanted one.

    Empty for a tensor that the model computes itself.
    """
    for pattern, replacement in ((_WRAPPED, ""), *renames, *_SHARED):
        if name in wanted:
            break
        name = re.sub(pattern, replacement, name)
    return name
