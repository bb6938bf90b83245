"""The shared data that lies next to a checkout: released files, published tables and weights. It is not part of the project."""

import os
from pathlib import Path

import pytest

from tests.launch import ROOT


def shared(path: str) -> Path:
    """A file or folder of the shared data; skips the test if it is not there.

    It is looked for in the folder that MINIONEREC_SHARED names, otherwise in `shared` next to the checkout or further up.
    """
    folder = os.environ.get("MINIONEREC_SHARED")
    folders = [Path(folder)] if folder else [parent / "shared" for parent in ROOT.parents]
    match = next((folder / path for folder in folders if (folder / path).exists()), None)
    if match is None:
        pytest.skip(f"shared/{path} is neither next to this checkout nor above it, nor in the folder of MINIONEREC_SHARED")
    return match
