"""The gap between our runs and the published tables: what is compared, and the content of `paper_gap.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from minionerec.eval.compare import left_out
from minionerec.report.evaluated import Evaluated, compare_evaluated, name_histories
from minionerec.report.gap_causes import CheckedCause, check_causes
from minionerec.report.published import (
    METRICS,
    PAPER,
    REPLICATION,
    Finding,
    audit,
    contradictions,
    discrepancy,
    gap,
    impossible,
    published,
    replication_levels,
    reward_rows,
    summary,
    verdict,
)
from minionerec.report.runs import PAIRED, DatasetMatch, match_dataset, seed_groups
from minionerec.statistics.intervals import across_seeds

LEVEL_TABLES = ("cumulative", "independent", "drop_off")


@dataclass(frozen=True)
class GapRun:
    """A run next to the paper's row.

    Attributes:
        label, recommender: the run's name on the page, and what it evaluates (`sft`, `rl`, a baseline's name, `file`).
        rows, users, seed: how much was evaluated, and the run's seed.
        comparable: whether it may be compared with the published table.
        notes: what a reader must know.
        metrics: per published metric its value, interval and `detectable`; with a target also `paper`, `gap`, `relative`
            and `verdict`.
        all_metrics: all metrics on SIDs.
        item, levels, per_user, slices, exposure, lost, search: as in `metrics.json`; None if unknown.
        summary: the gap in one line; None without a target.
        history: whether items of the history may stand in its lists, `kept` or `left out`.
        parts: a metric on items on the parts of `eval.slices.parts_of_training`; empty for a single file.
    """

    label: str
    recommender: str
    rows: int
    users: int
    seed: int | None
    comparable: bool
    notes: list[str]
    metrics: dict[str, dict[str, Any]]
    all_metrics: dict[str, Any]
    item: dict[str, Any] | None
    levels: dict[str, Any]
    per_user: dict[str, Any] | None
    slices: dict[str, Any] | None
    exposure: dict[str, Any] | None
    lost: list[dict[str, Any]]
    search: dict[str, Any] | None
    summary: str | None
    history: str
    parts: dict[str, Any]


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one recipe with several seeds: mean, standard deviation and interval per metric, see `across_seeds`."""

    label: str
    seeds: list[int | None]
    metrics: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunPair:
    """Labels of two runs, the second minus the first per metric, and why metrics are left out.

    No metric if only one of the two keeps the history.
    """

    first: str
    second: str
    metrics: dict[str, dict[str, Any]]
    note: str | None


@dataclass(frozen=True)
class PublishedPart:
    """What is published about a dataset.

    Attributes:
        counts: items, and rows of each split.
        published: method to metric to its `value`, and whether it is a `target`.
        audit: numbers of it that cannot all be right.
        replication: method to metric to value; `replication_audit`: rules that it breaks.
        replication_gap: the replication minus the paper; `replication_summary`: in one line.
        replication_levels: level tables of the replication.
        rewards: the replication's experiments with other rewards: per row its metrics, and how many first recommendations are
            right at level 1, and of these at the next.
        rewards_audit: numbers of it that cannot all be right; `contradictions`: with the replication's own rows.
        elsewhere: single published cells of other methods.
    """

    counts: dict[str, int]
    published: dict[str, dict[str, dict[str, Any]]]
    audit: list[Finding]
    replication: dict[str, dict[str, float]]
    replication_audit: list[str]
    replication_gap: dict[str, dict[str, float]]
    replication_summary: str
    replication_levels: dict[str, Any]
    rewards: dict[str, dict[str, float]]
    rewards_audit: list[Finding]
    contradictions: list[str]
    elsewhere: dict[str, dict[str, float]]


@dataclass(frozen=True)
class GapDataset:
    """One dataset of the report.

    Attributes:
        name: the published dataset's, or one that says how large it is.
        tables: None if no published table fits.
        run_in_question: label of the run whose causes are checked; None without runs.
        causes: the checklist; None without runs.
    """

    name: str
    tables: PublishedPart | None = None
    runs: list[GapRun] = field(default_factory=list)
    seeds: list[SeedGroup] = field(default_factory=list)
    pairs: list[RunPair] = field(default_factory=list)
    run_in_question: str | None = None
    causes: list[CheckedCause] | None = None


@dataclass(frozen=True)
class GapReport:
    """The content of `paper_gap.json`: where the published numbers come from, and a part per dataset."""

    sources: dict[str, str]
    resamples: int
    seed: int
    datasets: list[GapDataset]


def _gap_run(run: Evaluated, match: DatasetMatch) -> GapRun:
    entry = published()["datasets"].get(match.name)
    targets = entry["published"][PAPER] if entry else {}
    flagged = impossible(entry["published"], entry["counts"]["test"]).get(PAPER, set()) if entry else set()
    metrics = {}
    for name in METRICS:
        if name not in run.metrics.sid:
            continue
        metric: dict[str, Any] = {**run.metrics.sid[name], "detectable": run.metrics.detectable[name]}
        if name in targets and name not in flagged:
            metric |= {key: value for key, value in gap(targets[name], metric["value"]).items() if key != "ours"}
            metric["verdict"] = verdict(metric["low"], metric["high"], targets[name]) if match.comparable else "not comparable"
        metrics[name] = metric
    gaps = {name: metric for name, metric in metrics.items() if "relative" in metric}
    return GapRun(
        label=run.label,
        recommender=run.name,
        rows=run.metrics.rows,
        users=run.metrics.users,
        seed=run.seed,
        comparable=match.comparable,
        notes=[*run.notes, *([match.note] if match.note else [])],
        metrics=metrics,
        all_metrics=run.metrics.sid,
        item=run.metrics.item,
        levels={name: run.metrics.levels[name] for name in LEVEL_TABLES},
        per_user=run.metrics.per_user,
        slices=run.metrics.slices,
        exposure=run.metrics.exposure,
        lost=run.metrics.lost,
        search=run.metrics.search,
        summary=summary(gaps) if gaps and match.comparable else None,
        history=run.history,
        parts=dict(run.parts),
    )


def _seed_group(runs: Sequence[Evaluated]) -> SeedGroup:
    metrics = {
        name: across_seeds([run.metrics.sid[name]["value"] for run in runs], (0.0, 1.0))
        for name in ("HR@1", *METRICS)
        if all(name in run.metrics.sid for run in runs)
    }
    return SeedGroup(runs[0].label, [run.seed for run in runs], metrics)


def _compare_pairs(runs: Sequence[Evaluated], resamples: int, seed: int) -> list[RunPair]:
    """Paired comparisons of every two runs of a dataset, the later minus the earlier."""
    pairs = []
    for first, second in combinations(runs, 2):
        if first.history != second.history:
            pairs.append(RunPair(first.label, second.label, {}, "not compared: only one of them keeps the history"))
            continue
        differences = compare_evaluated(first, second, resamples, seed)
        metrics = {name: differences[name] for name in PAIRED if name in differences}
        pairs.append(RunPair(first.label, second.label, metrics, left_out(first.lists, second.lists)))
    return pairs


def _run_in_question(runs: Sequence[Evaluated]) -> Evaluated:
    """The run whose causes are checked: the first RL model, else SFT model, else file, else the first run."""
    for name in ("rl", "sft", "file"):
        for run in runs:
            if run.name == name:
                return run
    return runs[0]


def _published_part(name: str) -> PublishedPart | None:
    entry = published()["datasets"].get(name)
    if entry is None:
        return None
    rows = entry["counts"]["test"]
    flagged, rewards = impossible(entry["published"], rows), reward_rows(name)
    gaps = discrepancy(entry["published"][PAPER], entry["replication"][REPLICATION], tuple(flagged.get(PAPER, ())))
    return PublishedPart(
        counts=entry["counts"],
        published={
            method: {metric: {"value": value, "target": metric not in flagged.get(method, ())} for metric, value in row.items()}
            for method, row in entry["published"].items()
        },
        audit=audit(entry["published"], rows),
        replication=entry["replication"],
        replication_audit=[finding.rule for finding in audit(entry["replication"], rows)],
        replication_gap=gaps,
        replication_summary=summary(gaps),
        replication_levels=replication_levels(name),
        rewards={row: {**values, **entry["rewards"][row]["levels"]} for row, values in rewards.items()},
        rewards_audit=audit(rewards, rows),
        contradictions=contradictions(name),
        elsewhere=entry["elsewhere"],
    )


def _gap_dataset(
    name: str, runs: Sequence[Evaluated], matches: Mapping[Path, DatasetMatch], resamples: int, seed: int
) -> GapDataset:
    tables = _published_part(name)
    if not runs:
        return GapDataset(name, tables)
    pairs = _compare_pairs(runs, resamples, seed)
    differences = {(pair.first, pair.second): pair.metrics for pair in pairs}
    questioned = _run_in_question(runs)
    others = [run for run in runs if run is not questioned]
    is_published_split = tables is not None and len(questioned.lists) == tables.counts["test"]
    return GapDataset(
        name,
        tables,
        [_gap_run(run, matches[run.path]) for run in runs],
        [_seed_group(group) for group in seed_groups(runs)],
        pairs,
        questioned.label,
        check_causes(questioned, others, differences, name if is_published_split else None),
    )


def compare_with_paper(runs: Sequence[Evaluated], dataset: str | None, resamples: int, seed: int) -> GapReport:
    """Compare runs with the published tables and with one another.

    Args:
        dataset: the published dataset that all runs belong to, if their size does not tell it.

    Raises:
        ArtifactError: two runs of one dataset were measured on different examples.
        ConfigError: no published dataset has this name.
    """
    runs_of: dict[str, list[Evaluated]] = {name: [] for name in published()["datasets"]}
    matches = {run.path: match_dataset(run, dataset) for run in runs}
    for run in runs:
        runs_of.setdefault(matches[run.path].name or _name_by_size(run), []).append(run)
    datasets = [_gap_dataset(name, name_histories(members), matches, resamples, seed) for name, members in runs_of.items()]
    return GapReport(published()["sources"], resamples, seed, datasets)


def _name_by_size(run: Evaluated) -> str:
    counts = run.counts
    return (
        f"other: {counts['items']:,} items, {counts['test']:,} test examples"
        if counts
        else f"other: {len(run.lists):,} examples"
    )
