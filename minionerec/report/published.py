"""Published tables, the paper's and a replication's: which of their numbers are possible at all, and the gap to them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

from minionerec.eval.levels import drop_off

METRICS = ("HR@3", "HR@5", "HR@10", "NDCG@3", "NDCG@5", "NDCG@10")  # the columns of the paper's table
PAPER, REPLICATION = "MiniOneRec", "RL (2 epochs)"  # the rows that our runs are compared with
_ROUNDING = 0.5e-4  # tables print four decimals
Row = Mapping[str, float]


@cache
def published() -> dict[str, Any]:
    """`published.json`: `sources`, and per dataset its `counts`, the `published` and `replication` rows, and `levels`."""
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
    """

    method: str
    first: int
    second: int
    rule: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The metrics, at least one of which is wrong."""
        return tuple(f"{family}@{k}" for k in dict.fromkeys((self.first, self.second)) for family in ("HR", "NDCG"))


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


def audit(table: Mapping[str, Row]) -> list[Finding]:
    """Which numbers of a table are impossible for one target per example.

    Within a cut-off k: HR / log2(k + 1) <= NDCG <= HR. Between cut-offs a < b both must not fall, and each new hit adds at
    least 1 / log2(b + 1) and at most 1 / log2(a + 2) to NDCG. Rounding to four decimals is allowed for.

    Args:
        table: method to metric to value.
    """
    findings: list[Finding | None] = []
    for method, row in table.items():
        cutoffs = _cutoffs(row)
        findings += [_within(method, k, row[f"HR@{k}"], row[f"NDCG@{k}"]) for k in cutoffs]
        findings += [_between(method, a, b, row) for a, b in pairwise(cutoffs)]
    return [finding for finding in findings if finding]


def impossible(table: Mapping[str, Row]) -> dict[str, set[str]]:
    """The cells per method that the audit flags; they cannot serve as targets."""
    cells: dict[str, set[str]] = {}
    for finding in audit(table):
        cells.setdefault(finding.method, set()).update(finding.cells)
    return cells


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
