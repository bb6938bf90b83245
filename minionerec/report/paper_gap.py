"""The paper-gap report answers: why are my numbers not the paper's.

Our runs beside the published table, a replication of it and the other baselines; what of the published numbers is possible at
all; which differences are noise; and the checklist of causes with what the runs at hand show of them. Writes
`paper_gap.json`, `paper_gap.md` and `paper_gap.html`; the last is self-contained and covers all datasets on one page.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from minionerec.artifacts import write_json
from minionerec.config import RESAMPLES
from minionerec.errors import ArtifactError, ConfigError, MiniOneRecError
from minionerec.eval.compare import left_out
from minionerec.eval.result_json import read_catalog
from minionerec.report import analysis
from minionerec.report import runs as sources
from minionerec.report.gap_causes import checklist
from minionerec.report.page import environment
from minionerec.report.published import (
    METRICS,
    PAPER,
    REPLICATION,
    audit,
    discrepancy,
    gap,
    impossible,
    published,
    replication_levels,
    summary,
)
from minionerec.report.runs import PAIRED, Run
from minionerec.statistics.intervals import across_seeds


def _verdict(cell: Mapping[str, float], target: float) -> str:
    """How a published number lies to our interval."""
    if cell["low"] <= target <= cell["high"]:
        return "within noise"
    return "below" if cell["high"] < target else "above"


def _against(run: Run, target: Mapping[str, float], skip: set[str], comparable: bool) -> dict[str, Any]:
    """Each published metric of a run: value, interval, gap, verdict."""
    cells = {}
    for name in METRICS:
        if name not in run.metrics["sid"]:
            continue
        cell = dict(run.metrics["sid"][name])
        cell["detectable"] = run.metrics["detectable"][name]
        if name in target and name not in skip:
            cell |= {key: value for key, value in gap(target[name], cell["value"]).items() if key != "ours"}
            cell["verdict"] = _verdict(cell, target[name]) if comparable else "not comparable"
        cells[name] = cell
    return cells


def _levels(run: Run) -> dict[str, Any]:
    return {name: run.metrics["levels"][name] for name in ("cumulative", "independent", "drop_off")}


def _seed_groups(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            "label": group[0].label,
            "seeds": [run.seed for run in group],
            "metrics": {
                name: across_seeds([run.metrics["sid"][name]["value"] for run in group], (0.0, 1.0))
                for name in ("HR@1", *METRICS)
                if all(name in run.metrics["sid"] for run in group)
            },
        }
        for group in sources.seeds(runs)
    ]


def _pairs(runs: Sequence[Run], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Paired comparisons of every two runs of a dataset, the later minus the earlier."""
    found = []
    for first, second in combinations(runs, 2):
        differences = sources.compared(first, second, resamples, seed)
        metrics = {name: differences[name] for name in PAIRED if name in differences}
        note = left_out(first.lists, second.lists)
        found.append({"first": first.label, "second": second.label, "metrics": metrics, "note": note})
    return found


def _main_run(runs: Sequence[Run]) -> Run:
    """The run that the causes are asked of: the first RL model, else SFT model, else file, else whatever came first."""
    for kind in ("rl", "sft", "file"):
        for run in runs:
            if run.recommender == kind:
                return run
    return runs[0]


def _published_section(name: str) -> dict[str, Any]:
    entry = published()["datasets"][name]
    flagged = impossible(entry["published"])
    table = discrepancy(entry["published"][PAPER], entry["replication"][REPLICATION], tuple(flagged.get(PAPER, ())))
    return {
        "counts": entry["counts"],
        "published": {
            method: {metric: {"value": value, "target": metric not in flagged.get(method, ())} for metric, value in row.items()}
            for method, row in entry["published"].items()
        },
        "audit": [
            {"method": finding.method, "first": finding.first, "second": finding.second, "rule": finding.rule}
            for finding in audit(entry["published"])
        ],
        "replication": entry["replication"],
        "replication_audit": [finding.rule for finding in audit(entry["replication"])],
        "replication_gap": table,
        "replication_summary": summary(table),
        "replication_levels": replication_levels(name),
    }


def gather(runs: Sequence[Run], chosen: str | None, resamples: int, seed: int) -> dict[str, Any]:
    """The content of `paper_gap.json`.

    Args:
        chosen: the published dataset that all runs belong to, where their size does not tell it.

    Raises:
        DataError: two runs of one dataset were measured on different examples.
    """
    groups: dict[str, list[Run]] = {name: [] for name in published()["datasets"]}
    fits: dict[str, tuple[bool, str | None]] = {}
    for run in runs:
        name, comparable, note = sources.dataset_of(run, chosen)
        name = name or _own_name(run)
        groups.setdefault(name, []).append(run)
        fits[str(run.path)] = (comparable, note)
    known = published()["datasets"]
    datasets = []
    for name, members in groups.items():
        flagged = impossible(known[name]["published"]).get(PAPER, set()) if name in known else set()
        target = known[name]["published"][PAPER] if name in known else {}
        section: dict[str, Any] = {"name": name, "runs": []}
        section |= _published_section(name) if name in known else {"published": None}
        for run in members:
            comparable, note = fits[str(run.path)]
            cells = _against(run, target, flagged, comparable)
            lines = {metric: cell for metric, cell in cells.items() if "relative" in cell}
            section["runs"].append(
                {
                    "label": run.label,
                    "recommender": run.recommender,
                    "rows": run.metrics["rows"],
                    "users": run.metrics["users"],
                    "seed": run.seed,
                    "comparable": comparable,
                    "notes": [*run.notes, *([note] if note else [])],
                    "metrics": cells,
                    "all_metrics": run.metrics["sid"],
                    "item": run.metrics["item"],
                    "levels": _levels(run),
                    **{name: run.metrics.get(name) for name in ("per_user", "slices", "exposure", "lost", "search")},
                    "summary": summary(lines) if lines and comparable else None,
                }
            )
        section["seeds"] = _seed_groups(members)
        section["pairs"] = _pairs(members, resamples, seed)
        main = _main_run(members) if members else None
        section["asked"] = main.label if main else None
        section["causes"] = None
        if main:
            differences = {(pair["first"], pair["second"]): pair["metrics"] for pair in section["pairs"]}
            released = name if name in known and len(main.lists) == known[name]["counts"]["test"] else None
            section["causes"] = checklist(main, [run for run in members if run is not main], differences, released)
        datasets.append(section)
    return {"sources": published()["sources"], "resamples": resamples, "seed": seed, "datasets": datasets}


def _own_name(run: Run) -> str:
    counts = run.counts
    return (
        f"other: {counts['items']:,} items, {counts['test']:,} test examples"
        if counts
        else f"other: {len(run.lists):,} examples"
    )


def _cross(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cross-dataset table: one line per replication and comparable run."""
    rows = []
    for section in found["datasets"]:
        if section["published"] is None:
            continue
        rows.append({"dataset": section["name"], "label": "replication", "cells": section["replication_gap"],
                     "summary": section["replication_summary"]})  # fmt: skip
        for run in section["runs"]:
            if run["summary"]:
                rows.append({"dataset": section["name"], "label": run["label"], "cells": run["metrics"],
                             "summary": run["summary"]})  # fmt: skip
    return rows


def _tables(section: Mapping[str, Any]) -> dict[str, Any]:
    """The level tables of a dataset's runs beside the replication's, and the tables that only runs have."""
    levels = {run["label"]: run["levels"] for run in section["runs"]}
    if section["published"]:
        replicated = section["replication_levels"]
        stages = {
            f"replication, {stage}": {name: replicated[name][stage] for name in ("independent", "cumulative", "drop_off")}
            for stage in replicated["drop_off"]
        }
        levels = {**stages, **levels}
    return {
        "level_tables": analysis.level_tables(levels),
        "drop_off": analysis.drop_off(levels),
        "more_tables": analysis.tables({run["label"]: run for run in section["runs"]}) if section["runs"] else None,
    }


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Write the three files into an existing folder; equal content gives equal bytes."""
    sections = [{**section, **_tables(section)} for section in found["datasets"]]
    values = {
        **found,
        "datasets": sections,
        "cross": _cross(found),
        "metrics": METRICS,
        "paired": PAIRED,
        "paper": PAPER,
        "replicated": REPLICATION,
    }
    pages = environment()
    for name in ("paper_gap.md", "paper_gap.html"):
        text = pages.get_template(name).render(**values)
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(folder / name)
    write_json(folder / "paper_gap.json", dict(found))


def build(
    paths: Sequence[Path], folder: Path, chosen: str | None, resamples: int, seed: int, index: Path | None = None
) -> dict[str, Any]:
    """Load the runs, compare, write; returns the content of `paper_gap.json`.

    Args:
        chosen: the published dataset that all runs belong to, where their size does not tell it.
        index: the catalog of the released code's result files, see `eval.foreign.read_catalog`.

    Raises:
        ConfigError, DataError, ArtifactError: a run is missing, malformed or of other examples; the folder cannot be written.
    """
    catalog = read_catalog(index) if index else None
    named = sources.named(paths)
    if index and all(path.is_dir() for path in named.values()):
        raise ConfigError(f"--index {index}: only for result files of the released code, and --runs names none. Leave it out.")
    loaded = [run for label, path in named.items() for run in sources.load(path, label, resamples, seed, catalog)]
    found = gather(loaded, chosen, resamples, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(found, folder)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error}). Choose another folder with --out DIR.") from None
    return found


def _print(found: Mapping[str, Any], console: Console) -> None:
    for section in found["datasets"]:
        table = Table(title=section["name"], title_justify="left")
        for column in ("", *METRICS, "in short"):
            table.add_column(column, justify="left" if column in ("", "in short") else "right")
        if section["published"]:
            table.add_row("paper", *(f"{section['published'][PAPER][name]['value']:.4f}" for name in METRICS), "")
            lines = section["replication_gap"]
            shown = [f"{lines[name]['ours']:.4f}\n{lines[name]['relative']:+.1%}" if name in lines else "-" for name in METRICS]
            table.add_row("replication", *shown, section["replication_summary"])
        for run in section["runs"]:
            cells = [run["metrics"].get(name) for name in METRICS]
            shown = ["-" if cell is None else f"{cell['value']:.4f}\n{cell.get('verdict', '')}" for cell in cells]
            table.add_row(run["label"], *shown, run["summary"] or "; ".join(run["notes"]))
        console.print(table)


def main(argv: Sequence[str]) -> int:
    """The command line: 0 where the report was written, 2 where the input is wrong."""
    parser = argparse.ArgumentParser(description="Our runs beside the published tables: gaps, noise, causes.")
    parser.add_argument(
        "--runs", type=Path, nargs="*", default=[], metavar="RUN",
        help="folders of runs, or predictions files (predictions.jsonl, or the released code's result JSON)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for paper_gap.json, .md and .html")
    parser.add_argument("--dataset", metavar="NAME", help="published dataset of all runs, where their size does not tell it")
    parser.add_argument(
        "--index", type=Path, metavar="FILE",
        help="index.json or info text of the catalog of the released code's result files: item-level ranks and collisions",
    )  # fmt: skip
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, metavar="N", help=f"bootstrap resamples (default: {RESAMPLES})"
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="seed of the resampling (default: 42)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.resamples < 1:
            raise ConfigError(f"--resamples is {arguments.resamples}; it must be at least 1.")
        found = build(arguments.runs, arguments.out, arguments.dataset, arguments.resamples, arguments.seed, arguments.index)
    except MiniOneRecError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 120)
    _print(found, console)
    console.print(f"written to {arguments.out / 'paper_gap.html'}", highlight=False, soft_wrap=True)
    return 0
