"""What to do with a row that cannot be used: stop at the first, or skip it, count it and list it; and how files were read."""

import logging
from dataclasses import dataclass, field

import polars as pl

from minionerec.errors import DataError

log = logging.getLogger(__name__)
_LOGGED = 5


@dataclass
class Problems:
    """The rows of one reading that could not be used, and what else a user should know about the reading.

    Attributes:
        skip: note a bad row and continue; otherwise the first bad row raises.
        log: say so for the first few.
        messages: one for each bad row, in the order of reading; each names file, row and field.
        counts: figures for the manifest: what was left out or changed, by reason.
        notes: how files were read, one line each.
    """

    skip: bool = False
    log: bool = True
    messages: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, name: str, number: int) -> None:
        """Add to a figure."""
        self.counts[name] = self.counts.get(name, 0) + number

    def add(self, message: str) -> None:
        """Note one bad row.

        Raises:
            DataError: bad rows are not skipped.
        """
        if not self.skip:
            raise DataError(f"{message} Correct it, or pass --data.on_error skip to leave such rows out, counted and listed.")
        self.messages.append(message)
        if self.log and len(self.messages) <= _LOGGED:
            log.warning("Skipped: %s", message)

    def without(self, frame: pl.DataFrame, wrong: pl.Expr, message: str) -> pl.DataFrame:
        """The rows that are not wrong; `message` may name columns of a wrong row in braces.

        Raises:
            DataError: there is a wrong row and bad rows are not skipped.
        """
        bad = frame.filter(wrong)
        for row in bad.iter_rows(named=True):
            self.add(message.format(**row))
        return frame.filter(~wrong) if len(bad) else frame


def braced(name: str) -> str:
    """A file name inside a message with braces."""
    return name.replace("{", "{{").replace("}", "}}")
