"""Training checkpoints: which are complete, and which is the newest. Also writes the log of a finished training."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minionerec.artifacts import file_hash, read_json, write_json
from minionerec.artifacts.files import sync
from minionerec.distributed import is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError

_COMPLETE = "complete.json"
_TIMED = ("per_second", "flos", "time")  # ends of the names of figures that differ between equal runs
BestModel = Callable[[Sequence[Mapping[str, Any]]], Path]  # the folder of the best model of a Trainer's log


class MarkComplete(TrainerCallback):
    """Marks each training checkpoint as complete, and then deletes those that it replaces.

    Trainer writes the files of a checkpoint one by one, and may be interrupted in between. Its own limit of checkpoints stays
    unset: it would delete the older checkpoint before the newer one is marked, and tell their age by the clock.
    """

    def __init__(self, best_model: BestModel | None = None) -> None:
        """Keep the newest checkpoint and the best model.

        Args:
            best_model: finds the best model; None if it is the checkpoint that Trainer calls the best.
        """
        self._best_model = best_model

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Record the files of the checkpoint and of the best model, after every process has written its own."""
        wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        newest, best = folder / f"checkpoint-{state.global_step}", self._best(folder, state)
        needed = {newest, best} if best is not None and best.parent == folder else {newest}
        paths = sorted(path for part in needed for path in part.rglob("*") if path.is_file() and path.name != _COMPLETE)
        for path in paths:
            sync(path)  # a power cut must not leave an empty checkpoint in place of the older one
        files = {path.relative_to(folder).as_posix(): [path.stat().st_size, file_hash(path)] for path in paths}
        write_json(newest / _COMPLETE, files)
        sync(newest)
        for pattern in ("checkpoint-*", "best-*"):
            for path in folder.glob(pattern):
                if path not in needed:
                    shutil.rmtree(path)

    def _best(self, folder: Path, state: TrainerState) -> Path | None:
        if self._best_model is not None:
            return self._best_model(state.log_history)
        return folder / f"checkpoint-{state.best_global_step}" if state.best_global_step else None


def _is_complete(checkpoint: Path) -> bool:
    """Whether the files of a checkpoint, and of the best model so far, are those that were written."""
    try:
        files = read_json(checkpoint / _COMPLETE)
        for name, (size, sha256) in files.items():
            path = checkpoint.parent / name
            if path.stat().st_size != size or file_hash(path) != sha256:
                return False
    except (ArtifactError, AttributeError, OSError, TypeError, ValueError):  # no marker or none of this version, or no file
        return False
    return True


def last_checkpoint(folder: Path) -> str | None:
    """The complete training checkpoint of the latest step in a folder, None if there is none. Incomplete ones are deleted."""
    if is_main_process():
        for path in [path for path in folder.glob("checkpoint-*") if not _is_complete(path)]:
            shutil.rmtree(path)
    wait_for_everyone()
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def write_log(state: TrainerState, path: Path) -> None:
    """Write the curves, one JSON object per line, so that equal runs write equal files, also if one was interrupted.

    Durations are left out, and so are Trainer's totals: they are of the last attempt alone.
    """
    # A resumed run reads its first rows from a checkpoint, where keys are sorted. So they are sorted in all rows.
    history = [row for row in state.log_history if "train_runtime" not in row]
    rows = [{key: value for key, value in row.items() if not key.endswith(_TIMED)} for row in history]
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
