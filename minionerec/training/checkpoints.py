"""Training checkpoints: which are complete, and which is the newest. Also writes the log of a finished training."""

import json
import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minionerec.artifacts import read_json, write_json
from minionerec.distributed import is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError

_COMPLETE = "complete.json"
_TIMED = ("per_second", "flos", "time")  # ends of the names of figures that differ between equal runs


class MarkComplete(TrainerCallback):
    """Marks each training checkpoint as complete: Trainer writes its files one by one, and may be interrupted in between."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Record the names and sizes of a checkpoint's files, after every process has written its own."""
        wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
            write_json(folder / _COMPLETE, files)


def _is_complete(folder: Path) -> bool:
    try:
        sizes = read_json(folder / _COMPLETE)
    except ArtifactError:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete training checkpoint in a folder, None if there is none. Incomplete ones are deleted."""
    if is_main_process():
        for path in folder.glob("checkpoint-*"):
            if not _is_complete(path):
                shutil.rmtree(path)
    wait_for_everyone()
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def write_log(state: TrainerState, path: Path) -> None:
    """Write the curves, one JSON object per line; durations are left out, so that equal runs write equal files."""
    # A resumed run reads its first rows from a checkpoint, where keys are sorted. So they are sorted in all rows.
    rows = [{key: value for key, value in row.items() if not key.endswith(_TIMED)} for row in state.log_history]
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
