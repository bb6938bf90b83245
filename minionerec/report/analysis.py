"""The tables of a page beyond its headline figures, several recommenders next to one another: levels, users, slices, losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minionerec.eval.levels import right_so_far
from minionerec.report.table import NO_VALUE, Cell, Row, Table, interval, number, percentage, share

LevelsByLabel = Mapping[str, Mapping[str, Any]]  # a recommender's label to its level tables

_KINDS = {"independent": "Independent: one level's code alone", "cumulative": "Cumulative: all codes so far"}
_PER_USER = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@10", "MRR@10")
_SEARCH = ("HR@1", "HR@10", "NDCG@10", "overlap", "missed")


class MoreMetrics(Protocol):
    """The metrics that these tables show, see `eval.metrics_json.Metrics`."""

    @property
    def per_user(self) -> Mapping[str, Any] | None:
        """Metrics in which every user counts the same."""

    @property
    def slices(self) -> Mapping[str, Any] | None:
        """Metrics on parts of the split."""

    @property
    def exposure(self) -> Mapping[str, Any] | None:
        """What the lists show of the catalog."""

    @property
    def lost(self) -> Sequence[Mapping[str, Any]]:
        """Where the lists lost their target."""

    @property
    def search(self) -> Mapping[str, Any] | None:
        """What the beam search missed."""


ByLabel = Mapping[str, MoreMetrics]


@dataclass(frozen=True)
class SearchTables:
    """Beam width and search error of one recommender.

    Attributes:
        label: the recommender.
        examples: how many examples were scored over the whole catalog.
        widths: metrics per beam width.
        dropped: per level, how often the search dropped the target there.
    """

    label: str
    examples: int
    widths: Table
    dropped: Table


@dataclass(frozen=True)
class MetricTables:
    """The tables of `metrics.json` beyond accuracy; None if no recommender has the metrics.

    Attributes:
        per_user: metrics in which every user weighs the same.
        slices: a metric on parts of the split, named by `sliced`.
        exposure: what the first `exposed` places show of the catalog.
        lost: at which level the lists lost their target.
        search: one entry per recommender whose search was replayed.
    """

    per_user: Table | None
    slices: Table | None
    sliced: str
    exposure: Table | None
    exposed: int
    lost: Table
    search: list[SearchTables]


def level_tables(levels: LevelsByLabel) -> list[Table]:
    """The independent and the cumulative level table, rows grouped by cut-off.

    Args:
        levels: per label the section `levels` of `metrics.json`; depths and cut-offs may differ.
    """
    tables = []
    for kind, title in _KINDS.items():
        by_label = {label: tables_of_label[kind] for label, tables_of_label in levels.items()}
        columns = max((list(shares) for by_cutoff in by_label.values() for shares in by_cutoff.values()), key=len)
        cutoffs = sorted({k for by_cutoff in by_label.values() for k in by_cutoff}, key=int)
        headings = ("K", "Recommender") if len(by_label) > 1 else ("K",)
        rows = tuple(
            Row((k, label)[: len(headings)], tuple(share(by_cutoff[k].get(column)) for column in columns))
            for k in cutoffs
            for label, by_cutoff in by_label.items()
            if k in by_cutoff
        )
        tables.append(Table(headings, tuple(columns), rows, title))
    return tables


def drop_off(levels: LevelsByLabel, examples: Mapping[str, int]) -> Table:
    """The drop-off of the first recommendation: a row per step, a column per recommender; no value if no code was left.

    Args:
        levels: as of `level_tables`.
        examples: per label their number; each share has below it how many examples it is of.
    """
    by_label = {}
    for label, tables in levels.items():
        counts = right_so_far(tables["cumulative"], examples[label])
        by_label[label] = {
            step: NO_VALUE if value is None else Cell(share(value).text, f"of {count:,}")
            for (step, value), count in zip(tables["drop_off"].items(), counts, strict=True)
        }
    steps = max(by_label.values(), key=len)
    rows = tuple(Row((step,), tuple(cells.get(step, NO_VALUE) for cells in by_label.values())) for step in steps)
    return Table(("Step",), tuple(by_label), rows)


def metric_tables(metrics: ByLabel) -> MetricTables:
    """The tables of several recommenders.

    Args:
        metrics: the metrics of each recommender by its label.
    """
    sliced, slices = slices_table(_with_part(metrics, "slices"), "HR")
    exposed, exposure = _exposure(metrics)
    return MetricTables(
        per_user=_per_user(metrics),
        slices=slices,
        sliced=sliced,
        exposure=exposure,
        exposed=exposed,
        lost=_lost(metrics),
        search=[_search(label, values.search) for label, values in metrics.items() if values.search],
    )


def _with_part(metrics: ByLabel, part: str) -> dict[str, Any]:
    """One part of the metrics, of the recommenders that have it."""
    return {label: getattr(values, part) for label, values in metrics.items() if getattr(values, part)}


def _per_user(metrics: ByLabel) -> Table | None:
    by_label = _with_part(metrics, "per_user")
    if not by_label:
        return None
    names = tuple(name for name in _PER_USER if any(name in values for values in by_label.values()))
    rows = tuple(Row((label,), tuple(interval(values.get(name)) for name in names)) for label, values in by_label.items())
    return Table(("",), names, rows)


def slices_table(by_label: Mapping[str, Mapping[str, Any]], family: str) -> tuple[str, Table | None]:
    """A metric of several recommenders on parts of the split: its name, and a row per part; None without any.

    Args:
        by_label: per recommender, question and answer: the part's `share`, and metrics.
        family: of the metric; the one with the largest cut-off is shown, and a recommender that lacks it has no value.
    """
    parts = {
        (question, answer): part
        for slices in by_label.values()
        for question, answers in slices.items()
        for answer, part in answers.items()
    }
    if not parts:
        return "", None
    names = {name for slices in by_label.values() for answers in slices.values() for part in answers.values() for name in part}
    metric = max((name for name in names if name.startswith(f"{family}@")), key=lambda name: int(name.partition("@")[2]))
    questions = list(dict.fromkeys(question for question, _ in parts))
    rows = []
    for question, answer in sorted(parts, key=lambda part: questions.index(part[0])):
        values = [slices.get(question, {}).get(answer, {}).get(metric) for slices in by_label.values()]
        cells = (percentage(parts[question, answer]["share"]), *map(interval, values))
        rows.append(Row((question, answer), cells))
    return metric, Table(("Question", "Part"), ("Share", *by_label), tuple(rows))


def _exposure(metrics: ByLabel) -> tuple[int, Table | None]:
    by_label = _with_part(metrics, "exposure")
    names = [name for name in dict.fromkeys(name for values in by_label.values() for name in values) if name != "k"]
    rows = tuple(
        Row((name.replace("_", " "),), tuple(number(values.get(name)) for values in by_label.values()))
        for name in names
        if any(values.get(name) is not None for values in by_label.values())
    )
    if not rows:
        return 0, None
    return next(iter(by_label.values()))["k"], Table(("",), tuple(by_label), rows)


def _lost(metrics: ByLabel) -> Table:
    by_label = {label: {row["level"]: row for row in values.lost} for label, values in metrics.items()}
    levels = sorted({level for by_level in by_label.values() for level in by_level})
    rows = tuple(Row((str(level),), tuple(_loss(losses.get(level)) for losses in by_label.values())) for level in levels)
    return Table(("Level",), tuple(by_label), rows)


def _loss(loss: Mapping[str, Any] | None) -> Cell:
    if loss is None:
        return NO_VALUE
    place = "" if loss["rank"] is None else f"place {number(loss['rank']).text}"
    return Cell(share(loss["lost"]).text, place)


def _search(label: str, search: Mapping[str, Any]) -> SearchTables:
    widths = [
        Row((f"{width} beam{'s' * (width != '1')}",), tuple(share(rates.get(name)) for name in _SEARCH))
        for width, rates in search["widths"].items()
    ]
    # Scoring the whole catalog finds the exact list: it overlaps with itself and misses nothing.
    exact = {**search["exact"], "overlap": 1.0, "missed": 0.0}
    widths.append(Row(("whole catalog",), tuple(share(exact.get(name)) for name in _SEARCH)))
    dropped = [Row((str(level["level"]),), (share(level["dropped"]), number(level["rank"]))) for level in search["pruned"]]
    return SearchTables(
        label,
        search["rows"],
        Table(("",), _SEARCH, tuple(widths)),
        Table(("Level",), ("Target dropped here", "Median rank then"), tuple(dropped)),
    )
