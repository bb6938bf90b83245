"""Artefacts: what a stage leaves on disk, written whole or not at all.

A stage describes its artefact by a `Recipe`. It writes into `<folder>.partial`; `manifest.json` is written last, and then the
folder is renamed, so that a folder with its final name is always complete. A training stage keeps its partial folder after an
interruption (`resumable=True`); the next run with the same key resumes from its checkpoints.
"""

import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from minionerec import __version__
from minionerec.config.checks import checked_path
from minionerec.config.differences import leaves, recipe_changes
from minionerec.distributed import is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError, ConfigError

MANIFEST = "manifest.json"
ITEM_STAGES = {"data": "minionerec data prepare", "sid": "minionerec sid"}  # inputs of all later stages, and their commands
# A change of the code that changes a stage's result raises the stage's number here (`eval`: of all stages in `eval/`; 0 if not
# named), so that older artefacts are made anew.
REVISIONS = {"data": 1, "sid": 1, "eval": 1, "report": 1, "sid-inspect": 1}
UNSEEDED = 0  # the seed of a stage that makes no random choice: no seed makes its artefact stale
CHECKPOINTS = "checkpoints"  # of a resumable stage; removed when the artefact is complete
_KEY, _RECIPE = "key.txt", "recipe.json"  # in a partial folder: which artefact it will be, and what that is made from
# Cheap to make from the artefacts of other stages: replaced without a question. No other stage is.
_DERIVED = ("eval", "report", "sid-inspect")
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "polars", "scikit-learn", "numpy")


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of dictionary order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write UTF-8 JSON through a temporary name, so that the file is never seen half-written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read UTF-8 JSON.

    Raises:
        ArtifactError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: not found.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}). Delete the folder and run the stage again.") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, and the machine's kind."""
    versions_of = {
        "minionerec": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for package in _PACKAGES:
        try:
            versions_of[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions_of[package] = "not installed"
    return versions_of


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

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a folder's manifest and check that each file it names is there with its size.

        Raises:
            ArtifactError: no manifest, not a manifest, or a file is missing or has another size.
        """
        values = read_json(folder / MANIFEST)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ArtifactError(f"{folder / MANIFEST}: not a manifest of this version. Delete {folder} and run again.")
        manifest = cls(**values)
        for name, entry in manifest.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry["bytes"]:
                actual = "missing" if size is None else f"{size} bytes"
                raise ArtifactError(
                    f"{path}: {actual}, the manifest says {entry['bytes']} bytes. Delete {folder} and run the stage again."
                )
        return manifest


def require(folder: Path, command: str, made_from: Mapping[str, str] | None = None) -> Manifest:
    """The manifest of an artefact that a stage needs as input.

    Args:
        command: makes the artefact; for the message.
        made_from: digests by name of an input; an input of the artefact with one of these names must have this digest.

    Raises:
        ArtifactError: it is not there, it is damaged, or it was made from other inputs.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder}: no finished artefact here. Make it first: {command} (same --config and options).")
    manifest = Manifest.load(folder)
    for name, digest in (made_from or {}).items():
        if manifest.inputs.get(name, digest) != digest:
            raise ArtifactError(f"{folder}: was made from another {name} than the one in this run. Make it again: {command}")
    return manifest


def folder_digest(folder: Path) -> str:
    """Identifies the content of a folder that is not an artefact: SHA-256 over the names and bytes of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return content_hash({path.relative_to(folder).as_posix(): file_hash(path) for path in files})


@dataclasses.dataclass
class Draft:
    """An artefact being written: put files below `path`, figures into `metrics`."""

    path: Path
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an artefact is made from. Equal recipes make equal artefacts, so a stage is skipped if its recipe is unchanged.

    Attributes:
        stage: the artefact's name: its folder's path in the run, such as `data` or `eval/sft`.
        folder: where the artefact lies, or will.
        config: the settings, by section; the manifest keeps them.
        inputs: name of each input to its digest.
        seed: of all random choices; `UNSEEDED` for a stage that makes none.
        key_fields: the settings that decide what is made, by section; None if all of `config` does.
        replace: whether a finished artefact of another recipe may be replaced.
    """

    stage: str
    folder: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int
    key_fields: Mapping[str, Any] | None = None
    replace: bool = False

    @property
    def key(self) -> str:
        """Identifies settings, seed, inputs and the stage's revision."""
        settings = self.config if self.key_fields is None else self.key_fields
        content = content_hash({"config": settings, "seed": self.seed, "inputs": dict(self.inputs)})
        revision = REVISIONS.get(self.stage.partition("/")[0], 0)
        return f"{content}-{revision}" if revision else content

    def finished(self) -> Manifest | None:
        """The finished, undamaged artefact of this recipe; None if it must be made.

        Raises:
            ConfigError: making it would replace what was made from another recipe, and `replace` is not set. A change of the
                stage's revision alone is no other recipe.
        """
        with suppress(ArtifactError):  # a damaged artefact is made anew
            manifest = Manifest.load(self.folder)
            if manifest.key == self.key:
                if is_main_process():
                    _remove(_discarded(self.folder))  # which a killed process may have left of an older artefact
                return manifest
        if not self.replace:
            self._refuse_to_replace()
        return None

    def _refuse_to_replace(self) -> None:
        advice = "pass --replace to {} it, or keep both: choose another --name or --out."
        holds_files = any(self.folder.glob("*")) and not self.folder.is_symlink()
        if holds_files and not (self.folder / MANIFEST).is_file():
            raise ConfigError(
                f"{self.folder}: expected nothing or a finished artefact (with {MANIFEST}), found other files. Stage "
                f"{self.stage} would delete them. Nothing was changed. Choose another --name or --out, or pass --replace."
            )
        if self.stage.partition("/")[0] in _DERIVED:
            return
        if changes := self._changes(_manifest_values(self.folder)):
            raise ConfigError(
                f"{self.folder} is finished, but was made from something else than this command says:\n{changes}\n"
                "Nothing was changed. To keep it, give its values (--config RUN_FOLDER reads the run's own); otherwise "
                + advice.format("replace")
            )
        partial = _partial(self.folder)
        resumable = _has_key(partial, self.key) or not any((partial / CHECKPOINTS).glob("*"))
        if not resumable and (changes := self._changes(_recorded_recipe(partial))):
            raise ConfigError(
                f"{partial} holds checkpoints of an interrupted training with other settings than this command's:\n{changes}\n"
                "Nothing was changed. To resume it, give its values; otherwise " + advice.format("discard")
            )

    def _changes(self, before: Mapping[str, Any] | None) -> str:
        """What differs from an earlier recipe, one line each; empty if nothing does, or if there is no earlier one."""
        if before is None:
            return ""
        # A field outside the key decides nothing; but a baseline's key leaves out fields that are not set, which may have been.
        settings, deciding = leaves(self.config), leaves(self.config if self.key_fields is None else self.key_fields)
        indifferent = {name for name, value in settings.items() if name not in deciding and value is not None}
        now = {"config": self.config, "seed": self.seed, "inputs": self.inputs}
        return "\n".join(f"  {line}" for line in recipe_changes(before, now, indifferent))

    @contextmanager
    def write(self, *, resumable: bool = False, collective: bool = False) -> Iterator[Draft]:
        """Write the artefact whole or not at all; an older one in its place is replaced at the end.

        Args:
            resumable: keep the partial folder when interrupted, for the next run with the same key. What it keeps below
                `CHECKPOINTS` for that purpose is not part of the artefact.
            collective: every process enters; the main process makes the folder, writes the manifest and renames. Otherwise
                only one process enters.

        Raises:
            ArtifactError: the disk is full; nothing is left at `folder` (an older artefact there stays).
        """
        partial, started = _partial(self.folder), time.monotonic()
        main, wait = is_main_process() or not collective, wait_for_everyone if collective else (lambda: None)
        record: dict[str, Any] = {"config": dict(self.config), "seed": self.seed, "inputs": dict(self.inputs)}
        try:
            if main:
                _open_partial(partial, self.key, record, resumable)
            wait()
            draft = Draft(partial)
            yield draft
            wait()
            if main:
                record |= {
                    "stage": self.stage,
                    "key": self.key,
                    "versions": versions(),
                    "metrics": draft.metrics,
                    "seconds": round(time.monotonic() - started, 3),
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                _seal(self.folder, partial, record)
            wait()
        except BaseException as error:
            if main and not resumable and partial.exists():
                shutil.rmtree(partial, ignore_errors=True)
            if _disk_full(error):
                raise ArtifactError(
                    f"{self.folder}: no space left on the disk. Nothing unfinished was kept in place of a finished artefact. "
                    "Free some space or choose another place with --out DIR, then run the same command again."
                ) from error
            raise


def _manifest_values(folder: Path) -> dict[str, Any] | None:
    """A finished artefact's manifest; None if there is none, or if the artefact is damaged and must be made anew anyway."""
    try:
        return dataclasses.asdict(Manifest.load(folder))
    except ArtifactError:
        return None


def _recorded_recipe(partial: Path) -> dict[str, Any]:
    """What the artefact in a partial folder was to be made from; empty fields if that is not recorded."""
    try:
        values = read_json(partial / _RECIPE)
        return {name: values[name] for name in ("config", "seed", "inputs")}
    except (ArtifactError, KeyError, TypeError):
        return {"config": {}, "seed": None, "inputs": {}}


def check_disk_space(folder: Path, needed: int) -> None:
    """Refuse to start when the disk cannot hold what a stage will write.

    Args:
        folder: where it will be written; it, or its nearest existing parent, tells the free space.
        needed: bytes.

    Raises:
        ArtifactError: fewer bytes are free.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ArtifactError(
            f"{folder}: needs about {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free on that disk. "
            "Free some space or choose another place with --out DIR."
        )


def _disk_full(error: BaseException) -> bool:
    # Libraries with a native core (safetensors, polars) wrap the system's error and keep only its text.
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def _partial(folder: Path) -> Path:
    """Where an artefact lies while it is written."""
    return folder.with_name(folder.name + ".partial")


def _has_key(partial: Path, key: str) -> bool:
    return (partial / _KEY).is_file() and (partial / _KEY).read_bytes() == key.encode()


def _open_partial(partial: Path, key: str, recipe: Mapping[str, Any], resumable: bool) -> None:
    try:
        if resumable and _has_key(partial, key):
            for path in partial.iterdir():  # outputs may be half-written
                if path.name not in (_KEY, _RECIPE, CHECKPOINTS):
                    _remove(path)
        else:
            _remove(partial)
        partial.mkdir(parents=True, exist_ok=True)
        write_json(partial / _RECIPE, recipe)
        (partial / _KEY).write_text(key)
    except OSError as error:
        raise ArtifactError(f"{partial}: cannot be written ({error}). Choose another folder with --out DIR.") from None


def _discarded(folder: Path) -> Path:
    """Where an older artefact lies while its successor takes its place."""
    return folder.with_name(folder.name + ".old")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _seal(folder: Path, partial: Path, manifest: dict[str, Any]) -> None:
    # Checkpoints and key stay until all else is done: hashing a large model takes long, and may be interrupted.
    scratch = partial / CHECKPOINTS
    files = {
        path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file() and scratch not in path.parents and path not in (partial / _KEY, partial / _RECIPE)
    }
    digest = content_hash({name: entry["sha256"] for name, entry in files.items()})
    write_json(partial / MANIFEST, dataclasses.asdict(Manifest(digest=digest, files=files, **manifest)))
    _remove(scratch)
    (partial / _RECIPE).unlink()
    (partial / _KEY).unlink()
    discarded = _discarded(folder)
    _remove(discarded)
    if folder.exists():
        folder.rename(discarded)
    partial.rename(folder)
    _remove(discarded)


def cache_folder() -> Path:
    """Where downloads and text embeddings are kept between runs: `$MINIONEREC_CACHE`, else the user's cache folder.

    Raises:
        ConfigError: there is no home folder and neither variable is set, or one of them is no path.
    """
    folder = os.environ.get("MINIONEREC_CACHE")
    if folder:
        return Path(checked_path("MINIONEREC_CACHE", folder))
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return Path(checked_path("the cache folder (set MINIONEREC_CACHE to another)", base or "~/.cache")) / "minionerec"
