"""How a comparison of recommenders is shown: as a table of a page, on the screen, and as a page of its own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.markup import escape
from rich.table import Table as ScreenTable

from minionerec.report.comparison import Compared, Comparison, PublishedCell
from minionerec.report.page import chance, environment
from minionerec.report.published import METRICS
from minionerec.report.table import NO_VALUE, Cell, Row, Table, difference, interval, number


def _published_row(cells: Mapping[str, PublishedCell]) -> tuple[Cell, ...]:
    shown = [cells.get(name) for name in METRICS]
    return tuple(
        NO_VALUE if cell is None else Cell(f"{cell.value:.4f}", tone="" if cell.possible else "flagged") for cell in shown
    )


def _rows_of(row: Compared, reference: str | None) -> list[Row]:
    """A recommender as rows of the page's table: its values, how seeds differ, the difference, the published values."""
    costs = (
        NO_VALUE if row.parameters is None else Cell(" + ".join(f"{count:,}" for count in _parameters(row))),
        NO_VALUE if row.minutes is None else Cell(f"{row.minutes:.1f}"),
        NO_VALUE if row.milliseconds is None else number(row.milliseconds),
    )
    none = (NO_VALUE,) * len(costs)
    seeds = len(row.seeds)
    here = "here" if seeds == 1 else f"here, mean of {seeds} seeds"
    rows = [Row((row.label, here), (*costs, *(interval(row.metrics.get(name)) for name in METRICS)))]
    if seeds > 1:
        deviations = (row.metrics[name]["seeds"]["sd"] if name in row.metrics else None for name in METRICS)
        cells = tuple(NO_VALUE if sd is None else Cell(f"{sd:.4f}") for sd in deviations)
        rows.append(Row((row.label, "sd over seeds"), (*none, *cells)))
    if row.change:
        changes = [row.change.get(name) for name in METRICS]
        cells = tuple(NO_VALUE if change is None else _with_chance(change) for change in changes)
        rows.append(Row((row.label, f"minus {reference}, paired"), (*none, *cells)))
    if row.published:
        rows.append(Row((row.label, "published"), (*none, *_published_row(row.published))))
    return rows


def _parameters(row: Compared) -> list[int]:
    """Of the model, then of the baseline that helps it."""
    return [count for count in (row.parameters, row.helper_parameters) if count is not None]


def _with_chance(change: Mapping[str, Any]) -> Cell:
    cell = difference(change)
    return replace(cell, note=f"{cell.note}, {chance(change['p'])}")


def page_table(comparison: Comparison) -> Table:
    """The comparison as a table of a page; recommenders that are published and were not run stand last."""
    rows = [line for row in comparison.recommenders for line in _rows_of(row, comparison.reference)]
    rows += [
        Row((absent.label, "published, not run here"), (*(NO_VALUE,) * 3, *_published_row(absent.published)))
        for absent in comparison.not_run
        if absent.published
    ]
    columns = ("Parameters", "Training, min", "ms a list", *METRICS)
    return Table(("Recommender", "Figures"), columns, tuple(rows), title=caption(comparison))


def caption(comparison: Comparison) -> str:
    """What the table is of, in one line."""
    level = "items" if comparison.on == "item" else "SIDs"
    examples = f"{comparison.rows:,} examples of {comparison.users:,} users, {comparison.split} split"
    return f"{', '.join(comparison.runs)}: {examples}, on {level}, history {comparison.history}, 95 % intervals"


def remarks(comparison: Comparison) -> list[str]:
    """What a reader of the table must know, in sentences."""
    sentences = list(comparison.left_out)
    if comparison.dataset is not None:
        sentences.append(
            f"Published: Table 1 of the paper for {comparison.dataset}, on SIDs, history kept."
            + ("" if comparison.comparable else f" Not comparable with ours: {comparison.note}.")
        )
        sentences += [f"Impossible: {finding.method}, {finding.where}: {finding.rule}." for finding in comparison.findings]
    return sentences


def screen_table(comparison: Comparison) -> ScreenTable:
    """The same for the terminal. A published cell that cannot be right is followed by an exclamation mark."""
    table, page = ScreenTable(title_justify="left", caption_justify="left"), page_table(comparison)
    table.title = escape(page.title)
    lines = remarks(comparison)
    if any("flagged" in (cell.tone for cell in row.cells) for row in page.rows):
        lines.append("! after a published value: it cannot be right.")
    for absent in comparison.not_run:
        lines.append(f"Not run here: {absent.label}: {'; '.join(filter(None, (absent.command, absent.note)))}")
    table.caption = escape("\n".join(lines))
    for name in page.headings:
        table.add_column(name, overflow="fold")
    for name in page.columns:
        table.add_column(name, justify="right", no_wrap=True)
    for group in page.groups:
        for place, row in enumerate(group):
            cells = [
                "\n".join(filter(None, (cell.text + "!" * (cell.tone == "flagged"), *_lines(cell.note)))) for cell in row.cells
            ]
            label, kind = row.headings
            table.add_row(escape(label) if not place else "", escape(kind), *cells, end_section=place == len(group) - 1)
    return table


def _lines(note: str) -> list[str]:
    """A note in the terminal: the p-value on a line of its own."""
    return note.split(", ")


def render_page(comparison: Comparison, heading: str, linked: bool = False) -> str:
    """The page as HTML text.

    Args:
        heading: the name of the run or the runs.
        linked: whether the other pages of a run's report lie beside it.
    """
    template = environment().get_template("comparison.html")
    return template.render(
        comparison=comparison, heading=heading, table=page_table(comparison), remarks=remarks(comparison), linked=linked
    )
