"""A whole run, killed without warning in a stage: python tests/pipeline/killed.py STAGE --config NAME.

A training stage is killed once there is a checkpoint to resume from, the first of several; any other once it has written its
files, but not the manifest that makes them count.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minionerec.artifacts import Draft, Recipe
from minionerec.cli import main
from minionerec.training.checkpoints import MarkComplete

STAGE = sys.argv[1]
write, on_save = Recipe.write, MarkComplete.on_save


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def killed_after_writing(self: Recipe, **options: Any) -> Iterator[Draft]:
    with write(self, **options) as draft:
        yield draft
        if self.stage == STAGE:
            kill()


def killed_at_a_checkpoint(self: MarkComplete, args: Any, *others: Any, **options: Any) -> None:
    on_save(self, args, *others, **options)
    if f"{STAGE}.partial" in Path(args.output_dir).parts:
        kill()


if __name__ == "__main__":
    Recipe.write = killed_after_writing
    MarkComplete.on_save = killed_at_a_checkpoint
    sys.exit(main(["run", *sys.argv[2:]]))
