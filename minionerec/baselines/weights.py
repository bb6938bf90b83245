"""Weights of neural baselines: our own files, and those of the published code."""

import re
from collections.abc import Container
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minionerec.artifacts import file_hash
from minionerec.baselines.models.sequential_model import Renames, SequentialModel
from minionerec.errors import ArtifactError

# Names that the checkpoints of RecBole and WEARec share, and ours. A model's own (`SequentialModel.renames`) are tried first.
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
_WRAPPED = r"^(module|model)\."  # a wrapper for training puts this before every name


def save(model: SequentialModel, path: Path) -> None:
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


def load(model: SequentialModel, path: Path) -> dict[str, str]:
    """Fill a model with the weights of a safetensors file of ours or of the published code.

    Names are translated. A parameter that is still missing is matched by shape if exactly one tensor of its module fits;
    dimensions of size 1 do not count.

    Returns:
        the parameters that were matched by shape: our name to the file's.

    Raises:
        ArtifactError: the file cannot be read, or does not fit the model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error}).") from None
    parameters = model.state_dict()
    # 1. By name.
    source: dict[str, str] = {}  # our name to the file's
    unmatched: dict[str, str] = {}  # a translated name that is none of ours, or is taken, to the file's
    for file_name in tensors:
        name = _translated(file_name, model.renames, parameters)
        if name in parameters and name not in source:
            source[name] = file_name
        elif name:
            unmatched[file_name if name in source else name] = file_name
    # 2. By shape within the module, if that leaves no choice.
    matched = {}
    for name in parameters.keys() - source.keys():
        module, shape = name.rpartition(".")[0], parameters[name].squeeze().shape
        fitting = [
            other
            for other in unmatched
            if other.rpartition(".")[0] == module and tensors[unmatched[other]].squeeze().shape == shape
        ]
        if len(fitting) == 1:
            matched[name] = source[name] = unmatched.pop(fitting[0])
    missing, surplus = sorted(parameters.keys() - source.keys()), sorted(unmatched.values())
    if missing or surplus:
        raise ArtifactError(
            f"{path}: not weights of {type(model).__name__}: missing {', '.join(missing) or 'nothing'}; unknown "
            f"{', '.join(surplus) or 'nothing'}."
        )
    # 3. All shapes must agree.
    values_by_name: dict[str, Tensor] = {}
    for name, file_name in source.items():
        values, shape = tensors[file_name], parameters[name].shape
        if values.squeeze().shape != parameters[name].squeeze().shape:
            raise ArtifactError(
                f"{path}: {file_name} is {tuple(values.shape)}, the model has {tuple(shape)}. Another number of items, "
                "width or length?"
            )
        values_by_name[name] = values.reshape(shape)
    model.load_state_dict(values_by_name)
    return matched


def _translated(name: str, renames: Renames, parameters: Container[str]) -> str:
    """Our name of a file's tensor: patterns are replaced one after the other until the name is one of our parameters.

    Empty for a tensor that the model computes itself.
    """
    for pattern, replacement in ((_WRAPPED, ""), *renames, *_SHARED):
        if name in parameters:
            break
        name = re.sub(pattern, replacement, name)
    return name
