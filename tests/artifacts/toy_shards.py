"""Work in shards for tests: writes the squares of its rows. A worker of Ray can be let die in the first try at a shard."""

import os
from dataclasses import dataclass
from pathlib import Path

from minionerec.errors import DataError


@dataclass
class Squares:
    """Writes the squares of some rows.

    Attributes:
        dies_at: the first row of the shard whose first writer ends at once; none if below 0.
        refuses: the first row of the shard that raises an error; none if below 0.
    """

    dies_at: int = -1
    refuses: int = -1

    def __call__(self, rows: range, path: Path) -> None:
        mark = path.with_suffix(".died")
        if rows.start == self.dies_at and not mark.exists():
            mark.touch()
            os._exit(9)
        if rows.start == self.refuses:
            raise DataError(f"row {rows.start} is wrong.")
        temporary = path.with_suffix(".tmp")
        temporary.write_text(" ".join(str(row**2) for row in rows))
        temporary.replace(path)
