"""A stage of several processes: python tests/artifacts/collective.py FOLDER SEED. Every process writes a file of its own."""

import os
import sys
from pathlib import Path

from minionerec.artifacts import Recipe
from minionerec.errors import MiniOneRecError


def make(folder: Path, seed: int) -> None:
    chosen = Recipe("toy", folder, {}, {}, seed)

    def build() -> None:
        with chosen.write(collective=True) as draft:
            (draft.path / os.environ["RANK"]).write_text(str(seed))

    manifest, made_now = chosen.make(build, collective=True)
    print(f"process {os.environ['RANK']}: seed {manifest.seed}, {'made' if made_now else 'up to date'}", flush=True)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]), int(sys.argv[2]))
    except MiniOneRecError as error:
        print(f"process {os.environ['RANK']}: {type(error).__name__}", flush=True)
