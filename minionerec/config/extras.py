"""Packages that only some commands need, and the extra of the installation that brings each.

Recommending, serving and exporting need none of them.
"""

from importlib.util import find_spec

from minionerec.errors import ConfigError

# By the name that Python imports. `train` brings what the stages need, `report` what pages and plots of finished runs need.
_EXTRA_OF = {
    "codecarbon": "green",
    "datasets": "train",
    "deepspeed": "deepspeed",
    "faiss": "train",
    "fastapi": "serve",
    "gguf": "gguf",
    "matplotlib": "report",
    "peft": "lora",
    "plotly": "report",
    "prometheus_client": "serve",
    "ray": "ray",
    "scipy": "report",
    "sentence_transformers": "train",
    "sklearn": "train",
    "starlette": "serve",
    "threadpoolctl": "train",
    "trl": "train",
    "uvicorn": "serve",
}
_NEEDED = {  # by stage; a training draws its curves at the end
    "sid": ("scipy", "sklearn", "threadpoolctl"),
    "sft": ("plotly", "scipy"),
    "rl": ("datasets", "plotly", "scipy", "trl"),
    "mixture": ("scipy",),
    "d3": ("scipy",),
    "eval": ("scipy",),
    "baseline": ("scipy",),
    "lego": ("scipy",),
    "report": ("plotly", "scipy"),
}


def check_packages(stage: str) -> None:
    """Refuse a stage whose packages are not installed.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in _NEEDED.get(stage, ()) if find_spec(name) is None]
    if missing:
        raise _not_installed(f"the stage {stage}", ", ".join(missing), "report" if stage == "report" else "train")


def require_package(name: str, what: str) -> None:
    """Refuse what needs a package of an extra that is not installed.

    Args:
        what: needs it, for the message.

    Raises:
        ConfigError: it is missing.
    """
    if find_spec(name) is None:
        raise _not_installed(what, name, _EXTRA_OF[name])


def missing_package(error: ModuleNotFoundError) -> ConfigError | None:
    """The error to show if an import failed because an extra is not installed; None if it failed otherwise."""
    name = (error.name or "").partition(".")[0]
    return _not_installed("this command", name, _EXTRA_OF[name]) if name in _EXTRA_OF else None


def _not_installed(what: str, packages: str, extra: str) -> ConfigError:
    return ConfigError(
        f"{what} needs {packages}, not installed here. Install the extra {extra}: pip install 'minionerec[{extra}]'."
    )
