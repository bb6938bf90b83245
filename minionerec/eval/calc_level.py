"""Print, plot and store the level tables of a predictions file, ours or the released code's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from minionerec.artifacts import write_json
from minionerec.config import CUTOFFS, RESAMPLES
from minionerec.config.evaluation import RESAMPLES_BOUNDS
from minionerec.errors import ConfigError, DataError
from minionerec.eval.level_plot import draw_levels
from minionerec.eval.levels import right_so_far, why_uncalibrated
from minionerec.eval.lists import RankedLists, cutoffs_within
from minionerec.eval.metrics import measure
from minionerec.eval.result_json import read_catalog, read_lists

_MEASURED = ("exact", "invalid", "sid", "item", "per_user", "detectable", "lost", "calibration")  # copied into levels.json


def level_report(lists: RankedLists, cutoffs: Sequence[int], resamples: int, seed: int) -> dict[str, Any]:
    """The content of `levels.json`: numbers of users and rows, lengths of the lists, the three level tables, the metrics, and
    why there is no calibration (null if there is one).

    Cut-offs beyond the longest list are left out. If that leaves none, the longest list's length is the only cut-off.

    Args:
        resamples: of the bootstrap intervals.
        seed: of the resampling.
    """
    metrics = measure(lists, cutoffs_within(lists.span["longest"], cutoffs), resamples, seed)
    return {
        "users": metrics.users,
        "rows": metrics.rows,
        "lengths": metrics.lengths,
        **metrics.levels,
        **{name: getattr(metrics, name) for name in _MEASURED},
        "uncalibrated": why_uncalibrated(lists),
    }


def _rank(rank: float | None) -> str:
    return "-" if rank is None else f"{rank:.0f}"


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("K", title=title, title_justify="left")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for k, shares in rows.items():
        table.add_row(k, *(f"{share:.4f}" for share in shares.values()))
    return table


def _metrics_table(report: Mapping[str, Any]) -> Table:
    table = Table(
        "Metric",
        title="Metrics with 95 % intervals; on items: expected, best and worst order of tied ones",
        title_justify="left",
    )
    on_items = report["item"] is not None
    for name in ("on SIDs", "interval", *(("on items", "best", "worst") if on_items else ())):
        table.add_column(name, justify="right")
    for name, cell in report["sid"].items():
        items = [f"{report['item'][name][part]:.4f}" for part in ("value", "best", "worst")] if on_items else []
        table.add_row(name, f"{cell['value']:.4f}", f"{cell['low']:.4f} to {cell['high']:.4f}", *items)
    return table


def _print(report: Mapping[str, Any], console: Console) -> None:
    console.print(_metrics_table(report))
    console.print(_table("Independent: the code of one level, alone", report["independent"]))
    console.print(_table("Cumulative: all codes up to a level", report["cumulative"]))
    steps = Table("Step", title="Drop-off of the first recommendation", title_justify="left")
    steps.add_column("Share", justify="right")
    for (step, share), count in zip(
        report["drop_off"].items(), right_so_far(report["cumulative"], report["rows"]), strict=True
    ):
        steps.add_row(step, "-" if share is None else f"{share:.4f} of {count:,}")
    console.print(steps)
    lost = Table("Level", title="Where the list lost the target", title_justify="left")
    lost.add_column("lost here", justify="right")
    lost.add_column("rank of the prefix before", justify="right")
    for row in report["lost"]:
        lost.add_row(str(row["level"]), f"{row['lost']:.4f}", _rank(row["rank"]))
    console.print(lost)
    if report["calibration"] is None:
        console.print(f"No calibration: {report['uncalibrated']}.", highlight=False, soft_wrap=True)
    else:
        calibration = Table("Level", "confidence", "accuracy", "calibration error", title="Calibration", title_justify="left")
        for row in report["calibration"]:
            calibration.add_row(str(row["level"]), *(f"{row[name]:.4f}" for name in ("confidence", "accuracy", "error")))
        console.print(calibration)
    if report.get("search"):
        _print_search(report["search"], console)


def _print_search(search: Mapping[str, Any], console: Console) -> None:
    widths = Table("beams", title=f"Beam width and search error, {search['rows']} examples", title_justify="left")
    names = ("HR@1", "HR@10", "NDCG@10", "overlap", "missed")
    for name in names:
        widths.add_column(name, justify="right")
    for width, row in {**search["widths"], "exact": {**search["exact"], "overlap": 1.0, "missed": 0.0}}.items():
        widths.add_row(width, *(f"{row[name]:.4f}" if name in row else "-" for name in names))
    console.print(widths)
    pruned = Table("Level", title="Where the beam search dropped the target", title_justify="left")
    pruned.add_column("dropped here", justify="right")
    pruned.add_column("median rank then", justify="right")
    for row in search["pruned"]:
        pruned.add_row(str(row["level"]), f"{row['dropped']:.4f}", _rank(row["rank"]))
    console.print(pruned)


def _no_sid(index: Path | None) -> str:
    """What the texts are that count for no level."""
    if index is None:
        return "no SID and count for no level"
    return (
        "no SID of the catalog and count for no level (tables that are made without the catalog, such as the published ones, "
        "count the codes of SIDs outside it)"
    )


def _search_next_to(path: Path) -> Any:
    """The section `search` of the `metrics.json` in the file's folder; None if there is none."""
    metrics_path = path.with_name("metrics.json")
    if not metrics_path.is_file():
        return None
    try:
        values = json.loads(metrics_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{metrics_path}: not valid JSON ({error}). Run the eval stage again.") from None
    return values.get("search") if isinstance(values, dict) else None


def run(
    path: Path,
    out: Path | None = None,
    index: Path | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> None:
    """Print the level tables of a file of lists; write `levels.json` and `levels.png`.

    Args:
        path: `predictions.jsonl` of an eval stage, or the released code's result JSON.
        out: folder of the two files; None for the folder of `path`.
        index: `index.json` or info text of the catalog, for the released code's JSON.

    Raises:
        ConfigError: a cut-off is below 1, or too few resamples.
        DataError: the file is missing or malformed, or `out` cannot be written.
    """
    for name, value, least in (("--cutoffs", min(cutoffs), 1), ("--resamples", resamples, RESAMPLES_BOUNDS.low)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}.")
    out = out or path.parent
    lists = read_lists(path, read_catalog(index) if index else None)
    report = level_report(lists, sorted(set(cutoffs)), resamples, seed)
    report["search"] = _search_next_to(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "levels.json", report)
        draw_levels(report, out / "levels.png")
    except OSError as error:
        raise DataError(f"{out / 'levels.json'}: cannot be written ({error}). Choose another folder with --out DIR.") from None
    console = Console(emoji=False)
    _print(report, console)
    note = f", {report['invalid']:.2%} of the listed texts are {_no_sid(index)}" if report["invalid"] else ""
    console.print(
        f"{report['users']} users, {report['rows']} examples, lists of {report['lengths']['shortest']} to "
        f"{report['lengths']['longest']}{note}; written to {out / 'levels.json'} and levels.png",
        highlight=False,
        soft_wrap=True,
    )
