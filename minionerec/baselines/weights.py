"""Weights of neural baselines: our own files, and those of the published code."""

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minionerec.artifacts import file_hash
from minionerec.baselines.recommender import Recommender
from minionerec.errors import ArtifactError

# Names in RecBole's and WEARec's checkpoints, and ours.
_RENAMED = (
    (r"^item_embedding\.", "item_embeddings."),
    (r"^position_embedding(s?)\.", "embedding.position_embeddings."),
    (r"^LayerNorm\.", "embedding.layer_norm."),
    (r"^(item_encoder\.blocks|trm_encoder\.layer)\.", "encoder.layers."),
    (r"\.(layer|multi_head_attention)\.", ".attn."),
    (r"\.feed_forward\.", ".ffn."),
    (r"\.attn\.dense\.", ".attn.out_proj."),
    (r"\.LayerNorm\.", ".layer_norm."),
)


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

    Names are translated. What is left over in a module is matched by shape where that leaves no choice.

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
    given: dict[str, Tensor] = {}
    for name, values in tensors.items():
        ours = name
        if ours not in wanted:
            for pattern, replacement in _RENAMED:
                ours = re.sub(pattern, replacement, ours)
        given[ours] = values
    matched = {}
    for name in [name for name in wanted if name not in given]:
        module = name.rpartition(".")[0]
        fitting = [
            other
            for other in given
            if other not in wanted and other.rpartition(".")[0] == module and given[other].shape == wanted[name].shape
        ]
        if len(fitting) == 1:
            matched[name] = fitting[0]
            given[name] = given.pop(fitting[0])
    missing, surplus = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or surplus:
        raise ArtifactError(
            f"{path}: not weights of {type(model).__name__}: missing {', '.join(missing) or 'nothing'}; unknown "
            f"{', '.join(surplus) or 'nothing'}."
        )
    for name, values in given.items():
        if values.shape != wanted[name].shape:
            raise ArtifactError(
                f"{path}: {name} is {tuple(values.shape)}, the model has {tuple(wanted[name].shape)}. Another number of items, "
                "width or length?"
            )
    model.load_state_dict(given)
    return matched
