"""A quantizer on disk: `quantizer.safetensors`, next to the codebooks that `SidIndex` saves."""

from pathlib import Path
from typing import cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minionerec.errors import ArtifactError
from minionerec.sid.codebooks import Quantizer, ResidualQuantizer
from minionerec.sid.neural import Layers, NeuralQuantizer

_FILE, _CODEBOOKS = "quantizer.safetensors", "codebooks.safetensors"
_NETWORKS = ("encoder", "decoder")


def save_quantizer(quantizer: Quantizer, folder: Path) -> None:
    """Write a quantizer, without its codebooks, into an existing folder."""
    residual = quantizer.latent if isinstance(quantizer, NeuralQuantizer) else cast(ResidualQuantizer, quantizer)
    arrays = {"beam": np.array([residual.beam])}
    if residual.router is not None:
        arrays["router"] = residual.router
    if isinstance(quantizer, NeuralQuantizer):
        arrays["skip"] = np.array([quantizer.skip])
        for name, layers in zip(_NETWORKS, (quantizer.encoder, quantizer.decoder), strict=True):
            for number, (weight, bias) in enumerate(layers):
                arrays |= {f"{name}.{number}.weight": weight, f"{name}.{number}.bias": bias}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _FILE)


def load_quantizer(folder: Path, codebooks: tuple[np.ndarray, ...]) -> Quantizer:
    """Read the quantizer of a folder.

    Args:
        codebooks: of the folder's `SidIndex`.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        with safe_open(folder / _FILE, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        residual = ResidualQuantizer(codebooks, arrays.get("router"), int(arrays["beam"][0]))
        if "skip" not in arrays:
            return residual
        encoder, decoder = (_layers(arrays, name) for name in _NETWORKS)
        return NeuralQuantizer(residual, encoder, decoder, bool(arrays["skip"][0]))
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{folder / _FILE}: not a complete quantizer ({error}). Run the sid stage again.") from None


def save_fit(quantizer: Quantizer, folder: Path) -> None:
    """Write a quantizer with its codebooks into an existing folder, for `load_fit`."""
    codebooks = {str(level): np.ascontiguousarray(codebook) for level, codebook in enumerate(quantizer.codebooks)}
    save_file(codebooks, folder / _CODEBOOKS)
    save_quantizer(quantizer, folder)


def load_fit(folder: Path) -> Quantizer:
    """Read what `save_fit` has written.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    try:
        with safe_open(folder / _CODEBOOKS, "numpy") as file:
            codebooks = tuple(file.get_tensor(str(level)) for level in range(len(file.keys())))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / _CODEBOOKS}: not complete ({error}). Delete it and run the sid stage again.") from None
    return load_quantizer(folder, codebooks)


def _layers(arrays: dict[str, np.ndarray], name: str) -> Layers:
    count = sum(key.startswith(f"{name}.") for key in arrays) // 2
    return tuple((arrays[f"{name}.{number}.weight"], arrays[f"{name}.{number}.bias"]) for number in range(count))
