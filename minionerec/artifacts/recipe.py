"""What an artefact is made from, and how it is written: whole or not at all, by one process at a time.

A stage writes into `<folder>.partial`; the manifest is written last, and then the folder is renamed, so that a folder with its
final name is always complete. A training stage keeps its partial folder after an interruption (`resumable=True`); the next run
with the same key resumes from its checkpoints.
"""

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minionerec.artifacts import lock
from minionerec.artifacts.files import content_hash, disk_full, file_hash, no_space, read_json, remove, share, sync, write_json
from minionerec.artifacts.manifest import DERIVED, MANIFEST, Manifest, versions
from minionerec.config.differences import leaves, recipe_changes
from minionerec.distributed import decide_on_main, is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError, ConfigError, LockedError, MiniOneRecError

ITEM_STAGES = {"data": "minionerec data prepare", "sid": "minionerec sid"}  # inputs of all later stages, and their commands
# A change of the code that changes a stage's result raises the stage's number here, so that older artefacts are made anew.
# `eval` is the number of all in `eval/`, `baselines/sasrec` that of one of the baselines; both count. 0 if not named.
REVISIONS = {"data": 3, "pairs": 1, "sid": 1, "eval": 2, "report": 2, "sid-inspect": 1, "scoring/leaderboard": 1}
REVISIONS |= dict.fromkeys(("eval/popularity", "eval/skip", "eval/text", "eval/mixture", "eval/sft-titles"), 1)
REVISIONS |= dict.fromkeys(("eval/tiger", "eval/lazy", "eval/liger"), 1)
UNSEEDED = 0  # the seed of a stage that makes no random choice: no seed makes its artefact stale
CHECKPOINTS = "checkpoints"  # of a resumable stage; removed when the artefact is complete
_KEY, _RECIPE = "key.txt", "recipe.json"  # in a partial folder: which artefact it will be, and what that is made from
_SCRATCH = (CHECKPOINTS, _KEY, _RECIPE)  # no part of the artefact
_Look = Callable[[], Manifest | None]

log = logging.getLogger(__name__)


def _revision(stage: str) -> str:
    """The numbers in `REVISIONS` that count for an artefact, as its key ends; empty if there are none."""
    whole, _, part = stage.partition("/")
    revision, own = REVISIONS.get(whole, 0), REVISIONS.get(stage, 0) if part else 0
    return f"{revision}.{own}" if own else str(revision) if revision else ""


def of_another_revision(manifest: Manifest) -> bool:
    """Whether other code than this version's made an artefact, so that its stage would make it anew, with another result."""
    return manifest.key.partition("-")[2] != _revision(manifest.stage)


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
        wait: whether to wait for another process that makes the artefact, instead of refusing.
        reread: gives `inputs` again; an artefact whose inputs have changed while it was made is not kept.
    """

    stage: str
    folder: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int
    key_fields: Mapping[str, Any] | None = None
    replace: bool = False
    wait: bool = False
    reread: Callable[[], Mapping[str, str]] | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """Identifies settings, seed, inputs and the stage's revision."""
        settings = self.config if self.key_fields is None else self.key_fields
        content = content_hash({"config": settings, "seed": self.seed, "inputs": dict(self.inputs)})
        suffix = _revision(self.stage)
        return f"{content}-{suffix}" if suffix else content

    @property
    def lock(self) -> Path:
        """The file that says which process is making the artefact."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def was_interrupted(self) -> bool:
        """Whether checkpoints are there that an interrupted run has left, of this recipe or of another."""
        return any((_partial(self.folder) / CHECKPOINTS).glob("*"))

    def make(self, build: Callable[[], None], *, collective: bool = False) -> tuple[Manifest, bool]:
        """The artefact: the finished one if its recipe is unchanged, else the one that `build` writes.

        No other process makes it at the same time. With several processes the main process decides for all of them.

        Args:
            build: makes the artefact inside `write`.
            collective: every process of the launch calls this method, not the main process alone.

        Returns:
            the manifest, and whether the artefact was made now.

        Raises:
            ConfigError: making it would delete files that no stage has made; or it would replace what was made from another
                recipe, and `replace` is not set.
            LockedError: another process makes the artefact, and `wait` is not set.
            ArtifactError: the artefact cannot be written, or the run's folder was deleted meanwhile.
        """
        decide: Callable[[_Look], Manifest | None] = decide_on_main if collective else lambda look: look()
        with ExitStack() as stack:
            if (manifest := decide(self._ready)) is not None:
                return manifest, False
            if self.wait and collective and not is_main_process():
                lock.wait_for_other_launches(self.lock)
            if (manifest := decide(lambda: self._begin(stack))) is not None:
                return manifest, False
            try:
                build()
            except Exception as error:
                if isinstance(error, MiniOneRecError) or self.folder.parent.is_dir():
                    raise
                raise ArtifactError(_deleted(self.folder.parent, self.stage, error)) from error
            manifest = decide(lambda: Manifest.load(self.folder))
            assert manifest is not None
            return manifest, True

    def _ready(self) -> Manifest | None:
        """The finished artefact; refuses, before anything is locked or made, to replace one of another recipe."""
        if lock.other_holder(self.lock) is None:
            return self.finished()
        return self._current()

    def _begin(self, stack: ExitStack) -> Manifest | None:
        """Take the lock, repair what a killed process has left, and look once more whether the artefact is there."""
        stack.enter_context(lock.hold(self.lock, str(self.folder), wait=self.wait))
        discarded, partial = _discarded(self.folder), _partial(self.folder)
        if not os.path.lexists(self.folder) and (discarded / MANIFEST).is_file():  # killed between two renames
            discarded.rename(self.folder)
        manifest = self.finished()
        if manifest is None and self._is_sealed(partial):
            _put_in_place(self.folder, partial)
            manifest = self.finished()
        elif manifest is None and (self.folder / MANIFEST).is_file():
            try:
                Manifest.load(self.folder)
            except ArtifactError as error:
                log.warning("%s", error)
        return manifest

    def _is_sealed(self, folder: Path) -> bool:
        try:
            return Manifest.load(folder).key == self.key
        except ArtifactError:
            return False

    def _current(self) -> Manifest | None:
        try:
            manifest = Manifest.load(self.folder)
        except ArtifactError:  # missing, or damaged: it is made anew
            return None
        return manifest if manifest.key == self.key else None

    def finished(self) -> Manifest | None:
        """The finished, undamaged artefact of this recipe; None if it must be made.

        Raises:
            ConfigError: making it would delete files that no stage has made; or it would replace what was made from another
                recipe, and `replace` is not set. A change of the stage's revision alone is no other recipe.
        """
        if (manifest := self._current()) is not None:
            if is_main_process():
                self._tidy()
            return manifest
        self._refuse_foreign_files()
        if not self.replace:
            self._refuse_to_replace()
        return None

    def _tidy(self) -> None:
        """Remove what a process left that was killed after it had put the artefact in its place."""
        leftovers = [_discarded(self.folder), *(self.folder / name for name in _SCRATCH)]
        if any(map(os.path.lexists, leftovers)) or lock.is_abandoned(self.lock):
            with suppress(ArtifactError, LockedError, OSError), lock.hold(self.lock, str(self.folder)):  # may be read-only
                _clean(self.folder)

    def _refuse_foreign_files(self) -> None:
        """Refuse to delete what no stage has made, whatever `replace` says; of a link only the link itself would go."""
        if self.folder.is_symlink():
            return
        if (kind := foreign_content(self.folder)) is not None:
            raise ConfigError(
                f"{self.folder}: expected nothing or a finished artefact (with {MANIFEST}), found {kind}. Stage {self.stage} "
                "would delete what it did not make, which --replace does not allow either. Nothing was changed. Choose another "
                "place (--name or --out), or move this away yourself."
            )

    def _refuse_to_replace(self) -> None:
        advice = "pass --replace to {} it, or keep both: choose another --name or --out."
        if self.stage.partition("/")[0] in DERIVED:
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
                f"{partial} holds checkpoints of an interrupted run with other settings than this command's:\n{changes}\n"
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
    def write(
        self, *, resumable: bool = False, collective: bool = False, hopeless: type[Exception] | tuple[()] = ()
    ) -> Iterator[Draft]:
        """Write the artefact whole or not at all; an older one in its place is replaced at the end.

        Args:
            resumable: keep the partial folder when interrupted, for the next run with the same key. What it keeps below
                `CHECKPOINTS` for that purpose is not part of the artefact.
            collective: every process enters; the main process makes the folder, writes the manifest and renames. Otherwise
                only one process enters.
            hopeless: errors after which nothing is kept for the next run, since its inputs must be others.

        Raises:
            ArtifactError: the disk is full, an input was made anew meanwhile, or somebody deleted the folder or the lock;
                nothing is left at `folder` (an older artefact there stays).
            LockedError: another process makes the artefact, and `wait` is not set.
        """
        partial, started, opened = _partial(self.folder), time.monotonic(), False
        main, wait = is_main_process() or not collective, wait_for_everyone if collective else (lambda: None)
        record: dict[str, Any] = {"config": dict(self.config), "seed": self.seed, "inputs": dict(self.inputs)}
        with ExitStack() as stack:
            if main:
                stack.enter_context(lock.hold(self.lock, str(self.folder), wait=self.wait))
            try:
                if main:
                    _open_partial(partial, self.key, record, resumable)
                wait()
                opened, draft = True, Draft(partial)
                yield draft
                wait()
                if main:
                    self._check_undisturbed()
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
                planned = isinstance(error, MiniOneRecError) or not isinstance(error, Exception)
                intact = _has_key(partial, self.key)
                deleted = opened and not planned and not intact
                # Without its key it cannot be resumed: somebody deleted it, and a library made the folder again.
                useless = not resumable or isinstance(error, hopeless) or (not intact and lock.other_holder(self.lock) is None)
                if main and useless and partial.exists():
                    shutil.rmtree(partial, ignore_errors=True)
                if disk_full(error):
                    raise no_space(self.folder) from error
                if deleted:
                    raise ArtifactError(_deleted(partial, self.stage, error)) from error
                raise

    def _check_undisturbed(self) -> None:
        """Refuse to keep an artefact that another process may have written to, or whose inputs are others by now."""
        partial = _partial(self.folder)
        if not _has_key(partial, self.key):
            raise ArtifactError(_deleted(partial, self.stage))
        if not lock.is_ours(self.lock):
            raise ArtifactError(
                f"{self.lock}: somebody removed this lock while stage {self.stage} ran, so another process may have written "
                f"into {partial}. The artefact is not kept. Run the same command again."
            )
        if self.reread is None:
            return
        try:
            inputs = dict(self.reread())
        except (MiniOneRecError, OSError) as error:
            raise ArtifactError(
                f"{self.folder}: an input changed while stage {self.stage} ran, so the artefact is not kept: {error}"
            ) from None
        if changed := sorted(name for name in {*inputs, *self.inputs} if inputs.get(name) != self.inputs.get(name)):
            raise ArtifactError(
                f"{self.folder}: {', '.join(changed)} changed while stage {self.stage} ran, so nobody could say what the "
                "artefact was made from. It is not kept. Run the same command again."
            )


def foreign_content(folder: Path, mark: str = MANIFEST) -> str | None:
    """What lies at an artefact's place and is none: `a file` or `other files`; None if there is nothing, or an artefact.

    Args:
        mark: a file that every such artefact has.
    """
    kind = "a file" if folder.is_file() else "other files" if any(folder.glob("*")) else None
    return None if (folder / mark).is_file() else kind


def _deleted(folder: Path, stage: str, error: BaseException | None = None) -> str:
    reason = f" ({error})" if error is not None and str(error) else ""
    return f"{folder}: somebody deleted or replaced this folder while stage {stage} ran{reason}. Run the same command again."


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


def _partial(folder: Path) -> Path:
    """Where an artefact lies while it is written."""
    return folder.with_name(folder.name + ".partial")


def _has_key(partial: Path, key: str) -> bool:
    return (partial / _KEY).is_file() and (partial / _KEY).read_bytes() == key.encode()


def _open_partial(partial: Path, key: str, recipe: Mapping[str, Any], resumable: bool) -> None:
    try:
        if resumable and _has_key(partial, key):
            for path in partial.iterdir():  # outputs may be half-written
                if path.name not in _SCRATCH:
                    remove(path)
        else:
            remove(partial)
        partial.mkdir(parents=True, exist_ok=True)
        write_json(partial / _RECIPE, recipe)
        (partial / _KEY).write_text(key)
    except OSError as error:
        raise ArtifactError(f"{partial}: cannot be written ({error}). Choose another folder with --out DIR.") from None


def _discarded(folder: Path) -> Path:
    """Where an older artefact lies while its successor takes its place."""
    return folder.with_name(folder.name + ".old")


def _seal(folder: Path, partial: Path, record: dict[str, Any]) -> None:
    """Put a complete artefact in its place: first all is on the disk and has its name, then what led to it is removed.

    A process that is killed in between has lost nothing: the next one finds the whole artefact, or resumes from checkpoints.
    """
    scratch = partial / CHECKPOINTS
    paths = [path for path in sorted(partial.rglob("*")) if path != scratch and scratch not in path.parents]
    for path in paths:
        if path.is_file():
            share(path)
        sync(path)  # before the hashes: a power cut must not leave an artefact whose files are empty
    files = {
        path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in paths
        if path.is_file() and path not in (partial / _KEY, partial / _RECIPE)
    }
    digest = content_hash({name: entry["sha256"] for name, entry in files.items()})
    Manifest(digest=digest, files=files, **record).save(partial)
    sync(partial)
    _put_in_place(folder, partial)


def _put_in_place(folder: Path, partial: Path) -> None:
    remove(_discarded(folder))
    if os.path.lexists(folder):
        folder.rename(_discarded(folder))
    partial.rename(folder)
    sync(folder.parent)
    _clean(folder)


def _clean(folder: Path) -> None:
    """Remove what led to the artefact in a folder, and the older artefact that it has replaced."""
    for path in (*(folder / name for name in _SCRATCH), _discarded(folder)):
        remove(path)
