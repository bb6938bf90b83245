"""The configurations that ship with the package. The first line of each file is a comment that says what it is for."""

from importlib import resources
from pathlib import Path


def files() -> dict[str, Path]:
    """The file of every preset by its name."""
    folder = Path(str(resources.files("minionerec.presets")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def descriptions() -> tuple[dict[str, str], dict[str, str]]:
    """One line for every preset: presets of the pipeline, and presets of `minionerec baseline`."""
    pipeline: dict[str, str] = {}
    baselines: dict[str, str] = {}
    for name, path in files().items():
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        (baselines if "baseline:" in rest else pipeline)[name] = first.removeprefix("# ")
    return pipeline, baselines
