"""The record of a finished artefact, and the check that the artefact is what its record says."""

import dataclasses
import platform
from collections.abc import Collection, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from minionerec import __version__
from minionerec.artifacts.files import content_hash, file_hash, read_json, write_json
from minionerec.errors import ArtifactError

MANIFEST = "manifest.json"
MILLISECONDS = "milliseconds_per_list"  # a figure of baselines and evaluations: what making one list took
# Made from the artefacts of other stages, without training a model: replaced without a question. No other stage is.
DERIVED = ("mixture", "d3", "eval", "titles", "report", "sid-inspect", "scoring")
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "polars", "scikit-learn", "numpy")
_CHECKSUM = "checksum"  # of all other fields, in the file only
_STAGES = (
    "data",
    "sid",
    "sft",
    "rl",
    "mixture",
    "d3",
    "baselines",
    "pairs",
    "yes-no",
    "lego",
)  # whose artefacts are inputs of others, by the folder's name


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, and the machine's kind."""
    versions_of = {
        "minionerec": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    return versions_of | {package: _version(package) for package in _PACKAGES}


@cache  # looking through all installed packages takes milliseconds for each
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The record of a finished artefact, `manifest.json` in its folder.

    `key` identifies settings, seed, inputs and the stage's revision: a stage with an unchanged key is skipped. `digest`
    identifies the files' content: a later stage is stale only if it changed, not because equal files were written again.
    """

    stage: str
    key: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    versions: dict[str, str]
    metrics: dict[str, Any]
    files: dict[str, dict[str, Any]]
    seconds: float
    created: str

    def save(self, folder: Path) -> None:
        """Write the file, with a checksum of its own content."""
        values = dataclasses.asdict(self)
        write_json(folder / MANIFEST, values | {_CHECKSUM: content_hash(values)})

    @classmethod
    def load(cls, folder: Path, editable: Collection[str] | None = ()) -> "Manifest":
        """Read a folder's manifest and check that it is unchanged, and that each file it names has its size and SHA-256.

        Args:
            editable: files that may have been changed or removed; None looks at no file.

        Raises:
            ArtifactError: no manifest, not a manifest, or the manifest or a file was changed, cut off or removed.
        """
        path = folder / MANIFEST
        values = read_json(path)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) - {_CHECKSUM} != names:
            raise ArtifactError(f"{path}: not a manifest of this version. Run the stage again: it makes the artefact anew.")
        checksum = values.pop(_CHECKSUM, None)  # manifests of early runs have none
        if checksum is not None and checksum != content_hash(values):
            raise ArtifactError(
                f"{path}: its content does not match its checksum; it was changed or damaged after it was written. Run the "
                "stage again: it makes the artefact anew."
            )
        manifest = cls(**values)
        try:
            for name, entry in manifest.files.items():
                if editable is not None and name not in editable:
                    _check_file(folder / name, entry["bytes"], entry["sha256"])
        except (AttributeError, KeyError, TypeError):
            raise ArtifactError(
                f"{path}: the list of files is damaged. Run the stage again: it makes the artefact anew."
            ) from None
        return manifest


def _check_file(path: Path, size: int, sha256: str) -> None:
    try:
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            problem = f"{'missing' if actual is None else f'{actual} bytes'}, the manifest says {size} bytes"
        elif file_hash(path) != sha256:
            problem = "its content is not what the manifest says (other SHA-256)"
        else:
            return
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise ArtifactError(f"{path}: {problem}. Run the stage again: it makes the artefact anew.")


def changed_input(run: Path, manifest: Manifest) -> str | None:
    """The first artefact of a run that another one was made from and that is another by now or gone; None if none is.

    One whose manifest cannot be read counts as gone; other files are not looked at. Inputs that are no artefact of the
    run, such as a file of vectors, do not count.
    """
    for name, digest in manifest.inputs.items():
        if name.partition("/")[0] in _STAGES:
            path = run / name / MANIFEST
            if not path.is_file() or _digest(path) != digest:
                return name
    return None


def _digest(path: Path) -> str | None:
    """What a manifest says of its artefact's content; None if it is damaged, so that nothing counts as made from it."""
    try:
        return cast(str | None, read_json(path).get("digest"))
    except (ArtifactError, AttributeError):
        return None


def require(folder: Path, command: str, made_from: Mapping[str, str] | None = None) -> Manifest:
    """The manifest of an artefact that a stage needs as input, after a check of all its files.

    Args:
        command: makes the artefact; for the message.
        made_from: digests by name of an input; an input of the artefact with one of these names must have this digest.

    Raises:
        ArtifactError: it is not there, it is damaged, or it was made from other inputs.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder}: no finished artefact here. Make it first: {command} (same --config and options).")
    try:
        manifest = Manifest.load(folder)
    except ArtifactError as error:
        raise ArtifactError(f"{error} The command: {command} (same --config and options).") from None
    replacing = "" if manifest.stage.partition("/")[0] in DERIVED else " --replace"
    for name, digest in (made_from or {}).items():
        if manifest.inputs.get(name, digest) != digest:
            raise ArtifactError(
                f"{folder}: was made from another {name} than the one in this run. Make it again: "
                f"{command}{replacing} (same --config and options)."
            )
    return manifest
