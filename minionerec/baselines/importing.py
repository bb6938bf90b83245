"""Command `baseline import`: weights that torch has pickled, as other projects publish them, as a safetensors file.

`torch.load` reads the file with `weights_only`, which builds tensors and plain values and runs no code of the file. Settings
that projects save next to the weights (RecBole's `config`, `args`) are read as inert values and kept in the new file:
`weights.load` compares them with the configuration.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from minionerec.errors import ArtifactError
from minionerec.model.sequential.weights import SETTINGS

_INERT = ("recbole.", "argparse.Namespace", "numpy.")  # objects that hold settings and figures
_WEIGHTS = ("state_dict", "model_state_dict", "model_state", "model", "net")  # where a larger dictionary keeps them
_DEPTH = 4  # of nested settings


class _Values:
    """Stands for an object of another project: keeps its values and does nothing."""

    def __new__(cls, *values: Any, **named: Any) -> "_Values":
        return super().__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update({str(name): value for name, value in state.items()})


@dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Attributes:
        path: the safetensors file.
        tensors: how many tensors it holds.
        settings: what the file says of its model, by name.
    """

    path: Path
    tensors: int
    settings: dict[str, int | float | str | bool]


def import_weights(source: Path, target: Path) -> Imported:
    """Write a safetensors file with the tensors of a pickled state dict, under their own names.

    Args:
        target: the new file.

    Raises:
        ArtifactError: the source is missing, no file of torch, holds other objects, no weights or such as safetensors cannot
            hold; or the target exists.
    """
    if target.exists():
        raise ArtifactError(f"{target}: already there. Delete it, or name another file with --to.")
    content = _load(source)
    weights = _state_dict(content)
    if weights is None:
        raise ArtifactError(
            f"{source}: holds no state dict; expected tensors by name, at the top or under one of {', '.join(_WEIGHTS)}."
        )
    tensors = {name: values for name, values in weights.items() if torch.is_tensor(values)}
    for name, values in tensors.items():
        if not isinstance(name, str) or values.layout != torch.strided or values.is_quantized:
            raise ArtifactError(f"{source}: {name!r} is sparse or quantised, or its name is no text; expected plain weights.")
    tensors = {name: values.detach().clone().contiguous() for name, values in tensors.items()}
    settings = {} if content is weights else dict(_scalars(content, _DEPTH))
    save_file(tensors, target, {SETTINGS: json.dumps(settings)})
    return Imported(target, len(tensors), settings)


def _load(source: Path) -> Any:
    try:
        try:
            foreign = get_unsafe_globals_in_checkpoint(str(source))
        except ValueError:  # the format before torch 1.6, which cannot be looked into: only plain values are read
            foreign = []
        if others := sorted(name for name in foreign if not name.startswith(_INERT)):
            raise ArtifactError(
                f"{source}: holds objects of {', '.join(others[:3])}, which would have to be run. Save the state dict alone: "
                "torch.save(model.state_dict(), FILE)."
            )
        with safe_globals([(_Values, name) for name in foreign]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ArtifactError(f"{source}: not a readable file of torch.save ({reason}).") from None


def _state_dict(content: Any) -> Mapping[str, Any] | None:
    """The dictionary of tensors in what a file holds, at the top or one level below."""
    inside = [content.get(name) for name in _WEIGHTS] if isinstance(content, Mapping) else []
    for part in (content, *inside):
        if isinstance(part, Mapping) and any(torch.is_tensor(values) for values in part.values()):
            return part
    return None


def _scalars(content: Any, depth: int) -> Iterator[tuple[str, int | float | str | bool]]:
    """Named plain values, those of nested dictionaries and objects included."""
    values = content.__dict__ if isinstance(content, _Values) else content
    if depth == 0 or not isinstance(values, Mapping):
        return
    for name, value in values.items():
        if isinstance(value, bool | int | float | str) and isinstance(name, str):
            yield name, value
        else:
            yield from _scalars(value, depth - 1)
