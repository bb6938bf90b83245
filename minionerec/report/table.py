"""The one form of a table on a page: named columns, and rows of texts. The macro `table` of `tables.html` shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from minionerec.report.page import figure, signed


@dataclass(frozen=True)
class Cell:
    """A value as text.

    Attributes:
        text: empty if there is no value.
        note: a second line in small print, such as the value's interval.
        tone: how the page colours it; a `flagged` value is struck through.
    """

    text: str = ""
    note: str = ""
    tone: Literal["", "gain", "loss", "noise", "flagged"] = ""


NO_VALUE = Cell()


@dataclass(frozen=True)
class Row:
    """A row: what names it, one text per heading of the table, and its cells, one per column."""

    headings: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Named columns and their rows.

    Attributes:
        headings: names of the columns that name a row.
        columns: names of the columns that hold values.
        rows: in order; rows whose first headings are equal stand together.
        title: empty for none.
    """

    headings: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    title: str = ""

    @property
    def groups(self) -> list[list[Row]]:
        """The rows in groups that share their first heading; one group if a row has one heading only."""
        if len(self.headings) == 1:
            return [list(self.rows)]
        return [list(rows) for _, rows in groupby(self.rows, key=lambda row: row.headings[0])]


def share(value: float | None) -> Cell:
    """A share or a metric, four decimals."""
    return NO_VALUE if value is None else Cell(f"{value:.4f}")


def percentage(value: float) -> Cell:
    """A share in percent, one decimal."""
    return Cell(f"{100 * value:.1f} %")


def interval(value: Mapping[str, float] | None) -> Cell:
    """A metric with its interval below."""
    if not value:
        return NO_VALUE
    return Cell(f"{value['value']:.4f}", f"{value['low']:.4f}\N{EN DASH}{value['high']:.4f}")


def difference(value: Mapping[str, Any]) -> Cell:
    """A paired difference with its interval below, coloured if it is beyond noise."""
    tone: Literal["gain", "loss", "noise"] = "noise" if value["noise"] else "gain" if value["value"] > 0 else "loss"
    return Cell(signed(value["value"]), f"{signed(value['low'])} to {signed(value['high'])}", tone)


def number(value: Any) -> Cell:
    """Any value, see `page.figure`."""
    return NO_VALUE if value is None else Cell(figure(value))
