"""Training checkpoints: which are complete, which is the newest; and the log that a finished training leaves."""

import json
import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minionerec.artifacts import read_json, write_json
from minionerec.distributed import is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError

_COMPLETE = "complete.json"
_TIMED = ("per_second", "flos", "time")


class MarkComplete(TrainerCallback):
    """Marks each training checkpoint once all its files are written; the Trainer itself writes them one by one."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Record names and sizes of the files of the checkpoint just saved, once every rank has written its own."""
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
    """The newest complete training checkpoint below a folder, None if there is none; half-written ones are deleted."""
    if is_main_process():
        for path in folder.glob("checkpoint-*"):
            if not _is_complete(path):
                shutil.rmtree(path)
    wait_for_everyone()
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def write_log(state: TrainerState, path: Path) -> None:
    """The curves as one JSON object a line; durations are left out, so that equal runs write equal files."""
    rows = [{key: value for key, value in row.items() if not key.endswith(_TIMED)} for row in state.log_history]
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")  # a checkpoint sorts too
