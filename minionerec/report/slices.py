"""Where each recommender of a run wins: one metric on items, per part of the split, and paired with one of the recommenders.

The run's page, the paper-gap page and `minionerec slices` show these tables. The parts are those of
`eval.slices.parts_of_training`: what training shows of the target, its popularity, and the split without its most frequent
targets and without items whose title another item has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table as ScreenTable

from minionerec.artifacts import ITEM_STAGES, MANIFEST, require
from minionerec.config import RESAMPLES
from minionerec.config.evaluation import FREQUENT
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.check_predictions import check_belongs
from minionerec.eval.lists import headline_cutoff
from minionerec.eval.metrics import interval_cells, values_per_row
from minionerec.eval.slices import Parts, parts_of_training, slice_differences, users_of_part
from minionerec.report.evaluated import Evaluated, of_present_inputs, read_evaluated, rows_as, same_history
from minionerec.report.page import chance
from minionerec.report.table import Cell, Row, Table, difference, interval, percentage
from minionerec.sid.index import SidIndex

WHOLE: tuple[str, str] = ("all", "all rows")  # question and answer of the rows of the whole split


@dataclass(frozen=True)
class PartRow:
    """A part of the split, and one metric of every recommender on it.

    Attributes:
        question, answer: what the part is.
        rows: examples in it.
        share: of all examples.
        cells: per label the metric with its interval, see `metrics.interval_cells`.
        changes: per label the metric minus the reference's, paired over users, see `statistics.differences`.
    """

    question: str
    answer: str
    rows: int
    share: float
    cells: dict[str, Any]
    changes: dict[str, Any]


@dataclass(frozen=True)
class SlicedMetric:
    """One metric of several recommenders per part of the split.

    Attributes:
        metric: its name, such as NDCG@10, on items.
        history: whether items of the history are candidates, `kept` or `left out`, the same for all.
        reference: label of the recommender that the others are compared with; None if there is one recommender only.
        rows: the whole split first, then every part that has examples.
        shorter: labels of recommenders without the metric, because their lists are shorter than its cut-off.
        outdated: a sentence on evaluations whose model, data or SIDs are others by now; None if there are none.
    """

    metric: str
    history: str
    reference: str | None
    rows: list[PartRow]
    shorter: list[str]
    outdated: str | None = None

    def of(self, label: str) -> dict[str, dict[str, dict[str, Any]]]:
        """One recommender's metric per question and answer, as `metrics.json` has slices; without the whole split."""
        parts: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self.rows:
            if (row.question, row.answer) != WHOLE:
                values = {"rows": row.rows, "share": row.share, self.metric: row.cells[label]}
                parts.setdefault(row.question, {})[row.answer] = values
        return parts

    def values(self) -> Table:
        """A column per recommender: the metric with its interval."""
        labels = list(self.rows[0].cells)
        rows = (
            Row((row.question, row.answer), (percentage(row.share), *(interval(row.cells[label]) for label in labels)))
            for row in self.rows
        )
        return Table(("Question", "Part"), ("Share", *labels), tuple(rows))

    def differences(self) -> Table | None:
        """A column per other recommender: the metric minus the reference's; None if there is no other."""
        labels = list(self.rows[0].changes)
        if not labels:
            return None
        rows = (
            Row((row.question, row.answer), (percentage(row.share), *(_change(row.changes[label]) for label in labels)))
            for row in self.rows
        )
        return Table(("Question", "Part"), ("Share", *(f"{label} minus {self.reference}" for label in labels)), tuple(rows))


def _change(change: dict[str, Any]) -> Cell:
    cell = difference(change)
    return Cell(cell.text, f"{cell.note}, {chance(change['p'])}", cell.tone)


def sliced_metric(
    recommenders: Sequence[Evaluated],
    parts: Parts,
    metric: str | None = None,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> SlicedMetric:
    """One metric on items of several recommenders, per part of the split.

    Args:
        recommenders: measured on the same examples.
        parts: of the rows of the first.
        metric: its name; None for NDCG at the headline's cut-off.
        reference: name of the recommender that the others are compared with; None for the last, which a page shows last.
        resamples: bootstrap resamples, and sign permutations.
        seed: of both.

    Raises:
        ArtifactError: their lists treat the history differently, they were measured on different examples, or no list reaches
            the metric's cut-off.
        DataError: they name no items.
    """
    history = same_history(recommenders)
    if metric is None:
        metric = f"NDCG@{headline_cutoff(k for recommender in recommenders for k in recommender.metrics.cutoffs)}"
    cutoff = int(metric.partition("@")[2])
    reaching = [recommender for recommender in recommenders if recommender.metrics.lengths["longest"] >= cutoff]
    if not reaching:
        raise ArtifactError(f"{metric}: no list has {cutoff} places. Name a smaller cut-off, or evaluate with more beams.")
    first = recommenders[0].lists
    values = {
        one.label: values_per_row(one.lists, (cutoff,), "item")[metric][rows_as(recommenders[0], one)] for one in reaching
    }
    base = next((one.label for one in reaching if one.name == reference), reaching[-1].label)
    if reference is not None and reference not in {one.name for one in reaching}:
        raise ArtifactError(f"{reference}: its lists are shorter than {cutoff} places, so it has no {metric} to compare with.")
    others = {label: row for label, row in values.items() if label != base}
    everything: Parts = {WHOLE[0]: {WHOLE[1]: np.ones(len(first), dtype=bool)}, **parts}
    units = first.units()

    # Recommender by recommender: the bootstrap's cost grows with the distinct rows, and one recommender has few.
    changes = {
        label: slice_differences({metric: values[base]}, {metric: row}, everything, units, resamples, seed)
        for label, row in others.items()
    }

    def cells(mask: np.ndarray) -> dict[str, Any]:
        users = users_of_part(units, mask)
        return {label: interval_cells({metric: row[mask]}, resamples, seed, users)[metric] for label, row in values.items()}

    rows = [
        PartRow(
            question,
            answer,
            int(mask.sum()),
            float(mask.mean()),
            cells(mask),
            {label: change[question][answer][metric] for label, change in changes.items()},
        )
        for question, answers in everything.items()
        for answer, mask in answers.items()
        if mask.any()
    ]
    shorter = [one.label for one in recommenders if one.label not in values]
    return SlicedMetric(metric, history, base if others else None, rows, shorter)


def slices_of_run(
    run: Path,
    metric: str = "NDCG@10",
    frequent: int = FREQUENT,
    only: Sequence[str] = (),
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> SlicedMetric:
    """The slices of the recommenders that are evaluated in a run's folder.

    Args:
        metric: its name, on items.
        frequent: how many of the most frequent targets one slice sets apart.
        only: names of the recommenders to show; all if it is empty.
        reference: name of the one that the others are compared with; None for `rl`, else `sft`, else the last.

    Raises:
        ConfigError: a name is not evaluated in the run.
        ArtifactError: nothing is evaluated with the run's present model, data and SIDs, or not all that is named is; an
            artefact is missing or damaged; or histories are treated differently.
        DataError: predictions are malformed, or not of the run's data.
    """
    for name, command in ITEM_STAGES.items():
        require(run / name, command)
    there = sorted(path.parent.name for path in (run / "eval").glob(f"*/{MANIFEST}"))
    if not there:
        raise ArtifactError(f"{run / 'eval'}: nothing evaluated here. Run minionerec eval --config {run} first.")
    for name in (*only, *([reference] if reference else [])):
        if name not in there:
            raise ConfigError(f"{run}: {name} is not evaluated there; expected one of {', '.join(there)}.")
    if reference is not None and only and reference not in only:
        raise ConfigError(f"--reference {reference}: not among the recommenders of --only; add it there.")
    command = f"minionerec eval --config {run}"
    for name in only or there:
        require(run / "eval" / name, command)
    names, outdated = of_present_inputs(run, list(only) or there)
    if outdated and (only or (reference and reference not in names)):
        raise ArtifactError(f"{run / 'eval'}: cannot show what was asked for. {outdated}")
    recommenders = [read_evaluated(run / "eval" / name) for name in names]
    dataset = Dataset.load(run / "data")
    index = SidIndex.load(run / "sid", dataset)
    for one in recommenders:
        check_belongs(one.lists, dataset, index, one.split or "test", str(one.path))
    parts = parts_of_training(recommenders[0].lists, dataset, frequent)
    reference = reference or next((name for name in ("rl", "sft") if name in names), None)
    return replace(sliced_metric(recommenders, parts, metric, reference, resamples, seed), outdated=outdated)


def screen_tables(sliced: SlicedMetric, title: str) -> list[ScreenTable]:
    """The tables for the terminal: the values, and the differences if there are several recommenders."""
    tables = []
    for table, words in (
        (sliced.values(), f"{sliced.metric} on items, history {sliced.history}, 95 % intervals"),
        (sliced.differences(), f"{sliced.metric} minus {sliced.reference}'s, paired over users, 95 % intervals"),
    ):
        if table is None:
            continue
        screen = ScreenTable(title=escape(f"{title}: {words}"), title_justify="left", show_lines=False)
        for heading in (*table.headings, "Rows"):
            screen.add_column(heading, justify="right" if heading == "Rows" else "left", no_wrap=True)
        for column in table.columns:
            screen.add_column(escape(column), justify="right")
        for part, row in zip(sliced.rows, table.rows, strict=True):
            cells = (f"{cell.text} [{cell.note}]" if cell.note else cell.text for cell in row.cells)
            screen.add_row(*map(escape, row.headings), f"{part.rows:,}", *map(escape, cells))
        shorter = f"Left out, because their lists are shorter: {', '.join(sliced.shorter)}." if sliced.shorter else None
        screen.caption = "\n".join(filter(None, (shorter, sliced.outdated))) or None
        tables.append(screen)
    return tables
