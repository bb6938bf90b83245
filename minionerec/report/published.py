"""Published tables, the paper's and a replication's: which of their numbers are possible at all, and the gap to them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

from minionerec.eval.levels import drop_off

METRICS = ("HR@3", "HR@5", "HR@10", "NDCG@3", "NDCG@5", "NDCG@10")  # the columns of the paper's table
PAPER, REPLICATION = "MiniOneRec", "RL (2 epochs)"  # the rows that our runs are compared with
_ROUNDING = 0.5e-4  # tables print four decimals
_FLOAT = 1e-9  # what floating point may add to it
Row = Mapping[str, float]


@cache
def published() -> dict[str, Any]:
    """`published.json`: `sources`, and per dataset its `counts`, rows and `levels`.

    Rows: `published` of the paper; `replication` of it; `rewards`, the replication's experiments with other rewards, each with
    `metrics`, the accuracy per level of its first recommendation, and the row that it `restates`; `elsewhere`, single cells.
    """
    text = (resources.files("minionerec.report") / "published.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


@dataclass(frozen=True)
class Finding:
    """Numbers of one row that cannot all be right.

    Attributes:
        method: the row.
        first, second: the cut-offs between which the rule is broken; equal if it is broken within one.
        rule: the rule in words, with the numbers.
        families: the metrics that the rule is about.
    """

    method: str
    first: int
    second: int
    rule: str
    families: tuple[str, ...] = ("HR", "NDCG")

    @property
    def where(self) -> str:
        """The cut-offs for display."""
        return str(self.first) if self.first == self.second else f"{self.first} to {self.second}"

    @property
    def cells(self) -> tuple[str, ...]:
        """The metrics, at least one of which is wrong."""
        return tuple(f"{family}@{k}" for k in dict.fromkeys((self.first, self.second)) for family in self.families)


def _cutoffs(row: Row) -> list[int]:
    return sorted(int(name.removeprefix("HR@")) for name in row if name.startswith("HR@") and f"NDCG@{name[3:]}" in row)


def _within(method: str, k: int, hit: float, gain: float) -> Finding | None:
    if not (0 <= hit <= 1 and 0 <= gain <= 1):
        return Finding(method, k, k, f"HR@{k} {hit:.4f} and NDCG@{k} {gain:.4f} must lie between 0 and 1")
    if gain > hit + 2 * _ROUNDING:
        return Finding(method, k, k, f"NDCG@{k} {gain:.4f} exceeds HR@{k} {hit:.4f}")
    least = hit / math.log2(k + 1)
    if gain < least - _ROUNDING * (1 + 1 / math.log2(k + 1)):
        return Finding(method, k, k, f"NDCG@{k} {gain:.4f} is below HR@{k} / log2({k + 1}) = {least:.4f}")
    return None


def _between(method: str, a: int, b: int, row: Row) -> Finding | None:
    hit_growth, gain_growth = row[f"HR@{b}"] - row[f"HR@{a}"], row[f"NDCG@{b}"] - row[f"NDCG@{a}"]
    for name, change in (("HR", hit_growth), ("NDCG", gain_growth)):
        if change < -2 * _ROUNDING:
            return Finding(method, a, b, f"{name} falls from @{a} to @{b} by {-change:.4f}")
    low, high = hit_growth / math.log2(b + 1), hit_growth / math.log2(a + 2)
    slack_low, slack_high = (2 * _ROUNDING * (1 + 1 / math.log2(k)) for k in (b + 1, a + 2))
    if not low - slack_low <= gain_growth <= high + slack_high:
        return Finding(
            method,
            a,
            b,
            f"HR grows by {hit_growth:.4f}, so NDCG must grow by {low:.4f} to {high:.4f}; it grows by {gain_growth:.4f}",
        )
    return None


def _uncounted(method: str, row: Row, rows: int) -> Iterator[Finding]:
    """The hit rates that no count of hits gives."""
    for name, value in row.items():
        k = name.removeprefix("HR@")
        if not k.isdigit() or abs(round(value * rows) / rows - value) <= _ROUNDING + _FLOAT:
            continue
        below = math.floor(value * rows)
        near = f"{below:,} hits give {below / rows:.4f}, {below + 1:,} give {(below + 1) / rows:.4f}"
        yield Finding(method, int(k), int(k), f"HR@{k} {value:.4f} is no share of {rows:,} test rows: {near}", ("HR",))


def audit(table: Mapping[str, Row], rows: int | None = None) -> list[Finding]:
    """Which numbers of a table are impossible for one target per example.

    Within a cut-off k: HR / log2(k + 1) <= NDCG <= HR. Between cut-offs a < b both must not fall, and each new hit adds at
    least 1 / log2(b + 1) and at most 1 / log2(a + 2) to NDCG. A hit rate is a count of hits over the test rows. Rounding to
    four decimals is allowed for.

    Args:
        table: method to metric to value.
        rows: of the test split; None if unknown, and then nothing is counted.
    """
    findings: list[Finding | None] = []
    for method, row in table.items():
        cutoffs = _cutoffs(row)
        findings += [_within(method, k, row[f"HR@{k}"], row[f"NDCG@{k}"]) for k in cutoffs]
        findings += [_between(method, a, b, row) for a, b in pairwise(cutoffs)]
        findings += [] if rows is None else _uncounted(method, row, rows)
    return [finding for finding in findings if finding]


def impossible(table: Mapping[str, Row], rows: int | None = None) -> dict[str, set[str]]:
    """The cells per method that the audit flags; they cannot serve as targets."""
    cells: dict[str, set[str]] = {}
    for finding in audit(table, rows):
        cells.setdefault(finding.method, set()).update(finding.cells)
    return cells


def reward_rows(dataset: str) -> dict[str, Row]:
    """The metrics of the replication's experiments with other rewards, by row."""
    return {name: row["metrics"] for name, row in published()["datasets"][dataset]["rewards"].items()}


def contradictions(dataset: str) -> list[str]:
    """Where a row of the reward experiments restates a logged row with other numbers, and what that does to gains over it."""
    entry, sentences = published()["datasets"][dataset], []
    for name, row in entry["rewards"].items():
        if "restates" not in row:
            continue
        logged, restated = entry["replication"][row["restates"]], row["metrics"]
        others = {cell: (logged[cell], value) for cell, value in restated.items() if cell in logged and logged[cell] != value}
        if not others:
            continue
        listed = ", ".join(f"{cell} {value:.4f} (logged {before:.4f})" for cell, (before, value) in others.items())
        value, best = max((cells["HR@10"], other) for other, cells in reward_rows(dataset).items() if other != name)
        gains = (f"{100 * (value / base['HR@10'] - 1):+.1f} %" for base in (restated, logged))
        sentences.append(
            f"{name}: {listed}. The gain of {best} in HR@10 is {next(gains)} over it and {next(gains)} over the logged row."
        )
    return sentences


def replication_levels(dataset: str) -> dict[str, Any]:
    """The replication's level tables: `independent` and `cumulative` as published, and `drop_off`, which follows from them."""
    entry = published()["datasets"][dataset]
    rows = entry["counts"]["test"]
    drops = {
        stage: drop_off([round(share * rows) / rows for share in table["1"].values()])  # the counts behind four decimals
        for stage, table in entry["levels"]["cumulative"].items()
    }
    return {**entry["levels"], "drop_off": drops}


def gap(paper: float, ours: float) -> dict[str, float]:
    """One line of a discrepancy table, from four decimals as printed: `gap` to four decimals, `relative` to three."""
    paper, ours = round(paper, 4), round(ours, 4)
    return {"paper": paper, "ours": ours, "gap": round(ours - paper, 4), "relative": round((ours - paper) / paper, 3)}


def verdict(low: float, high: float, target: float) -> str:
    """Whether our interval lies below or above a published number, or contains it.

    >>> verdict(0.03, 0.05, 0.05), verdict(0.03, 0.05, 0.051)
    ('within noise', 'below')
    """
    if low <= target <= high:
        return "within noise"
    return "below" if high < target else "above"


def discrepancy(paper: Row, ours: Row, skip: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """The discrepancy table over the metrics that both have; `skip` names cells that cannot serve as targets."""
    return {name: gap(paper[name], ours[name]) for name in METRICS if name in paper and name in ours and name not in skip}


def span(table: Mapping[str, Mapping[str, float]], family: str) -> str:
    """The range of a family's relative gaps in whole percent, rounded outwards from the printed decimals, e.g. `~13-16 %`."""
    percents = [round(100 * line["relative"], 1) for name, line in table.items() if name.startswith(family)]
    if not percents:
        return "no target"
    below, above = max(percents) <= 0, min(percents) >= 0
    if below or above:
        sizes = [abs(percent) for percent in percents]
        return f"~{math.floor(min(sizes))}-{math.ceil(max(sizes))} % {'below' if below else 'above'}"
    return f"{math.floor(min(percents)):+d} % to {math.ceil(max(percents)):+d} %"


def summary(table: Mapping[str, Mapping[str, float]]) -> str:
    """The discrepancy table in one line."""
    return f"NDCG {span(table, 'NDCG')}, HR {span(table, 'HR')} the paper"
