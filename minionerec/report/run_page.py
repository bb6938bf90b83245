"""The content of a run's page: result tables, semantic IDs and examples, computed from the run's artefacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minionerec.artifacts import Manifest
from minionerec.data.dataset import Dataset
from minionerec.eval.metrics import ranks
from minionerec.eval.metrics_json import Cell as MetricCell
from minionerec.report.evaluated import FAMILIES, Evaluated, Scale
from minionerec.report.table import Row, Table, number
from minionerec.sid.diagnose import perplexity
from minionerec.sid.index import SidIndex, collision_warning

_GROUPS, _TITLES = 6, 5  # groups of items that share their first codes, and titles of each
_HISTORY, _TOP = 8, 5  # newest items of a history, and first recommendations


@dataclass(frozen=True)
class ResultCell:
    """A metric of one recommender.

    Attributes:
        value, low, high: the metric and its 95 % interval.
        best: no recommender has a higher value.
        sign: `above` or `below` if the interval lies wholly above or below popularity's, else empty.
    """

    value: float
    low: float
    high: float
    best: bool
    sign: str


@dataclass(frozen=True)
class ResultRow:
    """The metrics of one recommender, one cell per cut-off; None beyond the length of its lists."""

    name: str
    label: str
    cells: list[ResultCell | None]


@dataclass(frozen=True)
class ResultTable:
    """A metric family of all recommenders.

    Attributes:
        title: the family.
        cutoffs: one per column.
        rows: one per recommender.
        changes: RL minus SFT per cut-off as `eval.compare.compare` has it, None if the lists are too short; empty without RL.
    """

    title: str
    cutoffs: Sequence[int]
    rows: list[ResultRow]
    changes: list[Mapping[str, Any] | None]


@dataclass(frozen=True)
class ItemGroup:
    """Items that share their first codes: the codes, the first titles, and how many more there are."""

    prefix: str
    titles: list[str]
    more: int


@dataclass(frozen=True)
class ShownItem:
    """The titles of all items of a SID, the SID, and whether it is the target's."""

    title: str
    sid: str
    hit: bool = False


@dataclass(frozen=True)
class ShownExample:
    """An example with its recommendations.

    Attributes:
        user: the user's id.
        history: the newest items, oldest first.
        earlier: how many older items are not shown.
        target: the item to be found.
        top: the first recommendations.
        rank: the target's 1-based rank, None if it is not listed.
        length: SIDs in the list.
    """

    user: str
    history: list[ShownItem]
    earlier: int
    target: ShownItem
    top: list[ShownItem]
    rank: int | None
    length: int


def result_tables(
    evaluated: Sequence[Evaluated], on: Scale, changes: Mapping[str, Mapping[str, Any]] | None
) -> list[ResultTable]:
    """A table per metric family, with the cut-offs that the lists of any recommender reach.

    Args:
        changes: RL minus SFT by metric; None without RL.
    """
    metrics = {model.name: model.metrics_on(on) for model in evaluated}
    floor = metrics.get("popularity", {})
    cutoffs = sorted({k for model in evaluated for k in model.metrics.cutoffs})
    tables = []
    for family, title in FAMILIES.items():
        names = [f"{family}@{k}" for k in cutoffs]
        best = {name: max(cells[name]["value"] for cells in metrics.values() if name in cells) for name in names}
        rows = [
            ResultRow(
                model.name,
                model.label,
                [_result_cell(metrics[model.name].get(name), best[name], floor.get(name)) for name in names],
            )
            for model in evaluated
        ]
        tables.append(ResultTable(title, cutoffs, rows, [changes.get(name) for name in names] if changes else []))
    return tables


def list_lengths(evaluated: Sequence[Evaluated]) -> str | None:
    """Which recommenders' lists are shorter than the largest cut-off of the page, in words; None if none are."""
    largest = max(k for model in evaluated for k in model.metrics.cutoffs)
    shorter = [
        f"{model.label} {_span(model.metrics.lengths)}" for model in evaluated if model.metrics.lengths["shortest"] < largest
    ]
    return f"Some lists are shorter than the largest cut-off: {', '.join(shorter)}." if shorter else None


def _span(lengths: Mapping[str, int]) -> str:
    shortest, longest = lengths["shortest"], lengths["longest"]
    return f"{longest} places" if shortest == longest else f"{shortest} to {longest} places"


def _result_cell(metric: MetricCell | None, best: float, floor: MetricCell | None) -> ResultCell | None:
    if metric is None:
        return None
    value, low, high = metric["value"], metric["low"], metric["high"]
    sign = ""
    if floor is not None:
        sign = "above" if low > floor["high"] else "below" if high < floor["low"] else ""
    return ResultCell(value, low, high, best > 0 and value == best, sign)


def items_differ(evaluated: Sequence[Evaluated]) -> bool:
    """Whether item-level metrics say anything that SID-level metrics do not."""
    return any(
        cell["value"] != recommender.metrics_on("item")[name]["value"]
        for recommender in evaluated
        for name, cell in recommender.metrics.sid.items()
    )


def codebook_use(index: SidIndex) -> Table:
    """How evenly each level uses its codes; perplexity is the exponential of the entropy of code use over items."""
    rows = []
    for level, size in enumerate(index.codebook_sizes):
        column = index.codes[:, level]
        counts = np.bincount(column[column >= 0], minlength=size)
        used = counts[counts > 0]
        values = (str(len(used)), str(size), f"{perplexity(used):.1f}", str(int(counts.max())))
        rows.append(Row((str(level + 1),), tuple(map(number, values))))
    return Table(("Level",), ("Codes used", "of", "Perplexity", "Most used, items"), tuple(rows))


def item_groups(index: SidIndex, titles: Sequence[str]) -> list[ItemGroup]:
    """The largest groups of items that share their first two codes (one code if SIDs have one level)."""
    depth = min(2, index.levels)
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, codes in enumerate(index.codes[:, :depth].tolist()):
        groups.setdefault(tuple(codes), []).append(item)
    largest = sorted(groups.values(), key=lambda items: (-len(items), items[0]))
    return [
        ItemGroup(
            prefix="".join(f"{token}>" for token in index.text(items[0]).split(">")[:depth]),
            titles=[titles[item] for item in items[:_TITLES]],
            more=max(0, len(items) - _TITLES),
        )
        for items in largest[:_GROUPS]
        if len(items) > 1
    ]


def _evenly_spaced(rows: np.ndarray, count: int) -> list[int]:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)].tolist() if len(rows) else []


def examples(recommender: Evaluated, index: SidIndex, titles: Sequence[str], count: int) -> list[ShownExample]:
    """Examples evenly spaced over the file; half of them have the target in the top five, if there are enough.

    Recommendations are SIDs with the titles of all their items.
    """
    rank_of_row = ranks(recommender.lists)
    hits, misses = np.flatnonzero(rank_of_row < _TOP), np.flatnonzero(rank_of_row >= _TOP)
    rows = _evenly_spaced(hits, max(count // 2, count - len(misses)))
    rows += _evenly_spaced(misses, count - len(rows))

    def shown(items: Sequence[int], hit: bool = False) -> ShownItem:
        return ShownItem(" / ".join(titles[item] for item in items), index.text(items[0]), hit)

    shown_examples = []
    for row in rows:
        example = recommender.lists.example(row)
        shown_examples.append(
            ShownExample(
                user=example.user,
                history=[shown([item]) for item in example.history[-_HISTORY:]],
                earlier=max(0, len(example.history) - _HISTORY),
                target=shown([example.target]),
                top=[shown(index.items(sid), sid == example.target_sid) for sid in example.sids[:_TOP]],
                rank=int(rank_of_row[row]) + 1 if np.isfinite(rank_of_row[row]) else None,
                length=len(example.sids),
            )
        )
    return shown_examples


def dataset_figures(dataset: Dataset) -> dict[str, float]:
    """Counts of the dataset and the mean length of a test history."""
    return {
        "items": len(dataset.catalog),
        "users": dataset.test["user"].n_unique(),
        "train": len(dataset.train),
        "valid": len(dataset.valid),
        "test": len(dataset.test),
        "history": float(dataset.test["history"].list.len().cast(float).to_numpy().mean()),
    }


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers and words among an artefact's metrics."""
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}


def notes(manifests: Mapping[str, Manifest], missing: Sequence[str], outdated: Mapping[str, str], index: SidIndex) -> list[str]:
    """What the reader must know first.

    These are missing parts, parts that were made from another run of their input, shown or left out, and a catalog in which
    many items share SIDs.

    Args:
        outdated: parts that are left out, each with the reason.
    """
    warning = collision_warning(index.collisions(), len(index.codes))
    sentences = [f"{warning}."] if warning else []
    sentences += [f"Not in this run, and so not on this page: {', '.join(missing)}."] if missing else []
    for name, reason in outdated.items():
        ways = (way for way in ("mixture", "d3") if name.startswith(f"{way}/") or name.endswith(f"-{way}"))
        again = "".join(f"{way} and minionerec " for way in ways) + "eval"
        sentences.append(f"Not on this page: {name}, {reason}. Run minionerec {again}.")
    for name, manifest in manifests.items():
        for source, digest in manifest.inputs.items():
            if source in manifests and manifests[source].digest != digest:
                sentences.append(f"{name} was made from another {source} than the one in this folder: run {name} again.")
    return sentences
