"""Weights of neural baselines: our own files, and those of the published code."""

import json
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minionerec.artifacts import file_hash
from minionerec.errors import ArtifactError
from minionerec.model.sequential.sequential_model import Renames, SequentialModel

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
# How published code names settings that weights need not show; `hidden_size` means another width in GRU4Rec.
_PUBLISHED_SETTINGS = {
    "max_history": ("MAX_ITEM_LIST_LENGTH", "max_seq_length", "maxlen"),
    "heads": ("n_heads", "num_attention_heads", "num_heads"),
    "layers": ("n_layers", "num_hidden_layers", "num_blocks"),
    "inner_size": ("inner_size",),
    "alpha": ("alpha",),
}
SETTINGS = "settings"  # in the metadata of an imported safetensors file: those of the published code, as JSON
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


def load(model: SequentialModel, path: Path, settings: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """Fill a model with the weights of a safetensors file of ours or of the published code.

    Names are translated. A parameter that is still missing is matched by shape if exactly one tensor of its module fits;
    dimensions of size 1 do not count.

    Args:
        settings: the options that the model was made with, by field of section `baseline`: messages name the one that the file
            contradicts.

    Returns:
        the parameters that were matched by shape: our name to the file's.

    Raises:
        ArtifactError: the file cannot be read, does not fit the model, or says that it was trained with other settings.
    """
    tensors = _read(path, settings)
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
            f"{', '.join(surplus) or 'nothing'}.{_other_layers(missing, surplus, settings)}"
        )
    # 3. All shapes must agree.
    values_by_name: dict[str, Tensor] = {}
    for name, file_name in source.items():
        values, shape = tensors[file_name], parameters[name].shape
        if values.squeeze().shape != parameters[name].squeeze().shape:
            raise ArtifactError(
                f"{path}: {file_name} is {tuple(values.shape)}, the model has {tuple(shape)}. "
                + _contradicted(values.shape, shape, model, settings)
            )
        values_by_name[name] = values.reshape(shape)
    model.load_state_dict(values_by_name)
    return matched


def _read(path: Path, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file, after a look at the settings that an import has left in it."""
    try:
        with safe_open(path, "pt") as file:
            trained = json.loads((file.metadata() or {}).get(SETTINGS, "{}"))
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        pickled = path.suffix in (".pt", ".pth", ".bin", ".ckpt")
        advice = f" Import it first: minionerec baseline import {path}" if pickled else ""
        raise ArtifactError(f"{path}: not a readable safetensors file ({error}).{advice}") from None
    for field, names in _PUBLISHED_SETTINGS.items():
        for name in names:
            if settings.get(field) is not None and name in trained and trained[name] != settings[field]:
                raise ArtifactError(
                    f"{path}: was trained with {name} {trained[name]}, but baseline.{field} is {settings[field]} here. Set "
                    f"--baseline.{field} {trained[name]}."
                )
    return tensors


def _other_layers(missing: Sequence[str], surplus: Sequence[str], settings: Mapping[str, Any]) -> str:
    """A hint if what differs are whole layers."""
    numbers = {match[1] for name in (*missing, *surplus) if (match := re.search(r"\.(\d+)\.", name))}
    if not numbers or not all(re.search(r"\.\d+\.", name) for name in (*missing, *surplus)) or bool(missing) == bool(surplus):
        return ""
    more = "fewer" if missing else "more"
    return f" The file has {more} layers than baseline.layers {settings.get('layers', '')}".rstrip() + "."


def _contradicted(found: Sequence[int], expected: Sequence[int], model: SequentialModel, settings: Mapping[str, Any]) -> str:
    """Which setting stands behind the first size that differs, as far as sizes show it."""
    there, here = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), (0, 0))
    if here in (model.items + 1, model.items + 1 + model.extra_rows):  # a row is for padding
        return f"The data have {model.items} items, the file {model.items + there - here}: take the data of the weights."
    fields = [field for field in ("max_history", "inner_size", "hidden_size", "heads") if settings.get(field) == here]
    if fields:
        return f"baseline.{' or baseline.'.join(fields)} is {here} here, and {there} in the file."
    return "Another number of items, width or length?"


def _translated(name: str, renames: Renames, parameters: Container[str]) -> str:
    """Our name of a file's tensor: patterns are replaced one after the other until the name is one of our parameters.

    Empty for a tensor that the model computes itself.
    """
    for pattern, replacement in ((_WRAPPED, ""), *renames, *_SHARED):
        if name in parameters:
            break
        name = re.sub(pattern, replacement, name)
    return name
