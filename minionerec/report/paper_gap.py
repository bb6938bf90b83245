"""The paper-gap report: why our numbers are not the paper's.

It compares our runs with the published table, a replication of it and the other baselines. It audits the published numbers,
says which differences are noise, and goes through a checklist of causes with what the runs show of them. It writes
`paper_gap.json`, `paper_gap.md` and `paper_gap.html`, which covers all datasets on one page, and `plotly.min.js`, which the
page needs next to it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.markup import escape
from rich.table import Table

from minionerec.artifacts import write_json
from minionerec.config import RESAMPLES
from minionerec.config.evaluation import RESAMPLES_BOUNDS
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.result_json import read_catalog
from minionerec.report import analysis, plots, table
from minionerec.report.evaluated import FAMILIES
from minionerec.report.gap import LEVEL_TABLES, GapDataset, GapReport, PublishedPart, compare_with_paper
from minionerec.report.page import environment, write_pages
from minionerec.report.published import METRICS, PAPER, REPLICATION
from minionerec.report.runs import PAIRED, distinct_names, load_runs

_REPLICATED = "replication"  # the label of its row


@dataclass(frozen=True)
class _GapRow:
    """A row of the table across datasets: its cells hold the `relative` gap per metric."""

    dataset: str
    label: str
    cells: Mapping[str, Mapping[str, Any]]
    summary: str


def _rows_across_datasets(report: GapReport) -> list[_GapRow]:
    """One row per replication and comparable run."""
    rows = []
    for part in report.datasets:
        if part.tables is None:
            continue
        rows.append(_GapRow(part.name, _REPLICATED, part.tables.replication_gap, part.tables.replication_summary))
        rows += [_GapRow(part.name, run.label, run.metrics, run.summary) for run in part.runs if run.summary]
    return rows


def _levels_by_label(part: GapDataset) -> dict[str, Mapping[str, Any]]:
    """The level tables of the replication's stages and of the runs."""
    levels: dict[str, Mapping[str, Any]] = {}
    if part.tables:
        replicated = part.tables.replication_levels
        for stage in replicated["drop_off"]:
            levels[f"replication, {stage}"] = {name: replicated[name][stage] for name in LEVEL_TABLES}
    return {**levels, **{run.label: run.levels for run in part.runs}}


def _examples(part: GapDataset, labels: Iterable[str]) -> dict[str, int]:
    """How many examples the level tables of each label are of."""
    rows = {run.label: run.rows for run in part.runs}
    return {label: rows[label] if label in rows or not part.tables else part.tables.counts["test"] for label in labels}


@dataclass(frozen=True)
class _Section:
    """A dataset with its tables, for the templates; `anchor` is its address on the page."""

    dataset: GapDataset
    anchor: str
    forests: dict[str, Markup]
    level_plot: Markup
    level_tables: list[table.Table]
    drop_off: table.Table
    more_tables: analysis.MetricTables | None
    parts: table.Table | None
    parts_metric: str
    rewards: table.Table | None


def _section(part: GapDataset, number: int) -> _Section:
    levels = _levels_by_label(part)
    targets: dict[str, dict[str, float]] = {}
    if part.tables:
        targets["paper"] = {name: cell["value"] for name, cell in part.tables.published[PAPER].items()}
        targets["replication"] = part.tables.replication[REPLICATION]
    runs = {run.label: run.metrics for run in part.runs}
    forests = {FAMILIES[family]: plot for family, plot in plots.forests(targets, runs).items()}
    more_tables = analysis.metric_tables({run.label: run for run in part.runs}) if part.runs else None
    level_tables, drop_off = analysis.level_tables(levels), analysis.drop_off(levels, _examples(part, levels))
    metric, parts = analysis.slices_table({run.label: run.parts for run in part.runs if run.parts}, "NDCG")
    rewards = None if part.tables is None else _rewards_table(part.tables)
    return _Section(part, f"d{number}", forests, _level_plot(part), level_tables, drop_off, more_tables, parts, metric, rewards)


def _rewards_table(tables: PublishedPart) -> table.Table:
    """The replication's experiments with other rewards; what cannot be right is flagged."""
    columns = tuple(dict.fromkeys(name for row in tables.rewards.values() for name in row))
    flagged = {(finding.method, cell) for finding in tables.rewards_audit for cell in finding.cells}
    rows = tuple(
        table.Row((method,), tuple(_flagged(table.share(row.get(name)), (method, name) in flagged) for name in columns))
        for method, row in tables.rewards.items()
    )
    return table.Table(("Row",), columns, rows)


def _flagged(cell: table.Cell, flagged: bool) -> table.Cell:
    return replace(cell, tone="flagged") if flagged else cell


def _level_plot(part: GapDataset) -> Markup:
    """Level accuracy in the top 10, or at a run's largest cut-off if its lists are shorter."""
    replication = None
    if part.tables:
        shares = part.tables.replication_levels["cumulative"][REPLICATION]["10"]
        replication = plots.LevelCurve("replication", shares, part.tables.counts["test"])
    curves = []
    for run in part.runs:
        by_cutoff = run.levels["cumulative"]
        shares = by_cutoff.get("10") or by_cutoff[max(by_cutoff, key=int)]
        curves.append(plots.LevelCurve(run.label, shares, run.users))
    return plots.level_lines(replication, curves)


def _as_json(report: GapReport) -> dict[str, Any]:
    """The report as plain values; what is published about a dataset stands at the same level as its runs."""
    values = asdict(report)
    for part in values["datasets"]:
        part.update(part.pop("tables") or {"published": None})
    return values


def _write_files(report: GapReport, folder: Path) -> None:
    """Write the files into an existing folder; equal content gives equal bytes.

    Datasets with a run come first. If there is any, published tables of other datasets are folded: they say nothing about the
    run.
    """
    templates, rows = environment(), _rows_across_datasets(report)
    sections = [_section(part, number) for number, part in enumerate(report.datasets, 1)]
    with_runs = [section for section in sections if section.dataset.runs]
    folded = [section for section in sections if with_runs and not section.dataset.runs]
    texts = {
        name: templates.get_template(name).render(
            report=report,
            sections=with_runs or sections,
            folded=folded,
            across_first=not with_runs or any(row.label != _REPLICATED for row in rows),
            rows_across_datasets=rows,
            metrics=METRICS,
            paired=PAIRED,
            paper=PAPER,
        )
        for name in ("paper_gap.md", "paper_gap.html")
    }
    write_pages(folder, texts)
    write_json(folder / "paper_gap.json", _as_json(report))


def write_gap_report(
    runs: Sequence[Path],
    folder: Path,
    dataset: str | None = None,
    index: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> GapReport:
    """Load runs, compare them with the published tables, and write `paper_gap.json`, `.md`, `.html` and `plotly.min.js`.

    Args:
        runs: folders of runs, or predictions files. Without any, the published tables alone.
        folder: where the files are written; it is made if it does not exist.
        dataset: the published dataset that all runs belong to, if their size does not tell it.
        index: the catalog of the released code's result files, see `eval.result_json.read_catalog`.

    Raises:
        ConfigError: a run or the dataset does not exist, or an option does not fit the runs.
        DataError, ArtifactError: a run is malformed or of other examples; the folder cannot be written.
    """
    if resamples < RESAMPLES_BOUNDS.low:
        raise ConfigError(f"--resamples is {resamples}; it must be at least {RESAMPLES_BOUNDS.low}.")
    catalog = read_catalog(index) if index else None
    paths = distinct_names(runs)
    if index and all(path.is_dir() for path in paths.values()):
        raise ConfigError(f"--index {index}: only for result files of the released code, and --runs names none. Leave it out.")
    evaluated = [run for label, path in paths.items() for run in load_runs(path, label, resamples, seed, catalog)]
    report = compare_with_paper(evaluated, dataset, resamples, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_files(report, folder)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error}). Choose another folder with --out DIR.") from None
    return report


def _cell(metric: Mapping[str, Any] | None) -> str:
    """A metric of a run with its interval and its verdict, for the terminal."""
    if metric is None:
        return "-"
    lines = (f"{metric['value']:.4f}", f"{metric['low']:.4f}-{metric['high']:.4f}", metric.get("verdict", ""))
    return "\n".join(filter(None, lines))


def gap_tables(report: GapReport) -> list[Table]:
    """The report for the terminal, a table per dataset."""
    tables = []
    for part in report.datasets:
        table_of_part = Table(title=escape(f"{part.name}, 95 % intervals"), title_justify="left")
        for column in ("", *METRICS, "in short"):
            table_of_part.add_column(column, justify="left" if column in ("", "in short") else "right")
        if part.tables:
            table_of_part.add_row("paper", *(f"{part.tables.published[PAPER][name]['value']:.4f}" for name in METRICS), "")
            gaps = part.tables.replication_gap
            cells = [f"{gaps[name]['ours']:.4f}\n{gaps[name]['relative']:+.1%}" if name in gaps else "-" for name in METRICS]
            table_of_part.add_row("replication", *cells, part.tables.replication_summary)
        for run in part.runs:
            metrics = [run.metrics.get(name) for name in METRICS]
            table_of_part.add_row(
                escape(f"{run.label}\n{run.rows:,} examples, history {run.history}"),
                *map(_cell, metrics),
                escape(run.summary or "; ".join(run.notes)),
            )
        tables.append(table_of_part)
    return tables
