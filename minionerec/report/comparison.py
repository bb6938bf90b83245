"""All recommenders of one run or of several, ours and theirs, in one table, beside the published rows and their audit.

Runs that differ in their seed alone make one row. Its values are means over the seeds for each example, so the intervals and
the paired differences resample users, as for a single run, and not seeds; a standard deviation shows how much seeds differ.
Rows that are of different examples, of other data, of lists with the history and without, or of other semantic IDs where SIDs
are counted, are refused: one table compares like with like. `comparison_pages.py` draws it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.artifacts import MANIFEST, content_hash
from minionerec.config import RESAMPLES, EvalConfig
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.compare import values_by_seed
from minionerec.eval.lists import cutoffs_within
from minionerec.eval.metrics import interval_cells
from minionerec.report.evaluated import Evaluated, Scale, deciding, naming_files, of_present_inputs, same_history
from minionerec.report.published import METRICS, Finding, audit, impossible, published
from minionerec.report.rivals import LABELS_OF_KINDS, PUBLISHED_ROW, RIVALS, RunFolder, how_to, kind_of
from minionerec.report.runs import distinct_names, match_dataset, read_run
from minionerec.statistics.differences import differences
from minionerec.statistics.intervals import across_seeds, mean_over_seeds

_CUTOFFS = (3, 5, 10)  # those of the published tables
# Fields of `eval` that change no list, or those of some recommenders only, see `_decoding`.
_MEASURING = ("shard_size", "resamples", "oracle_examples", *EvalConfig.NOT_IN_KEY)


@dataclass(frozen=True)
class PublishedCell:
    """A published value, and whether the audit lets it be right."""

    value: float
    possible: bool


@dataclass(frozen=True)
class Compared:
    """A row: one recommender, trained with one seed or with several.

    Attributes:
        label: unique within the table.
        name, kind: of the recommender, see `kind_of`.
        runs, seeds: where its lists are, and the seed of each.
        parameters: of the model; None if it has none, or they are unknown.
        helper_parameters: of the baseline that helps it, such as D3's assistant; None without one.
        minutes: all trainings behind it, mean over the seeds, as the manifests have them: one that was interrupted counts from
            its last start. None if nothing was trained.
        milliseconds: what making a list took, mean over the seeds; None if unknown.
        metrics: per metric `value`, `low`, `high` and `seeds`, what `across_seeds` says of the means of the seeds. A cut-off
            beyond its lists is left out.
        change: per metric how much it exceeds the reference; empty for the reference itself, or without one.
        published: the cells of its published row; empty if there is none.
    """

    label: str
    name: str
    kind: str
    runs: tuple[str, ...]
    seeds: tuple[int | None, ...]
    parameters: int | None
    helper_parameters: int | None
    minutes: float | None
    milliseconds: float | None
    metrics: Mapping[str, Mapping[str, Any]]
    change: Mapping[str, Mapping[str, Any]]
    published: Mapping[str, PublishedCell]


@dataclass(frozen=True)
class NotRun:
    """A recommender that the table lacks, the command that makes it (`note`: why there is none, see `HowTo`), and its published
    cells.
    """

    label: str
    command: str | None
    note: str
    published: Mapping[str, PublishedCell]


@dataclass(frozen=True)
class Comparison:
    """The whole table.

    Attributes:
        runs: the folders.
        on: whether a SID or an item must be the target's.
        history: whether items of the history may stand in the lists: `kept` or `left out`.
        reference: the label of the row that the others are compared with; None for none.
        recommenders: best NDCG@10 first; one with shorter lists stands last.
        dataset: the published dataset that the runs belong to; None if none fits.
        comparable: whether our values may be compared with the published ones; `note` says why not.
        findings: which published cells cannot all be right.
        left_out: evaluations that are not shown because their model is another by now, and second runs of one seed.
    """

    runs: tuple[str, ...]
    split: str
    rows: int
    users: int
    on: Scale
    history: str
    reference: str | None
    recommenders: tuple[Compared, ...]
    not_run: tuple[NotRun, ...]
    dataset: str | None
    comparable: bool
    note: str | None
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return asdict(self)


@dataclass
class _Group:
    """The runs of one recommender that differ in their seed alone."""

    label: str
    members: dict[int | None, Evaluated] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    @property
    def first(self) -> Evaluated:
        return next(iter(self.members.values()))


def compare_runs(
    folders: Sequence[Path],
    reference: str | None = None,
    on: Scale = "item",
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> Comparison:
    """Compare everything that is evaluated in some runs.

    Args:
        reference: name, kind or label of the recommender that the others are compared with; None for SFT + RL, else SFT, else
            none.
        resamples: bootstrap resamples, and sign permutations; `seed` is that of both.

    Raises:
        ConfigError: the reference is not in the table, or names several rows.
        ArtifactError: nothing is evaluated in a run as it is now, an artefact is damaged, or the rows are not alike.
        DataError: predictions are malformed.
    """
    evaluated, left_out = _read(folders)
    runs = [run for _, run in evaluated]
    history = same_history(runs)
    _refuse_unlike(evaluated, on)
    groups = _grouped(evaluated, left_out)
    first = runs[0].lists
    values = {group.label: _values(group, runs[0], on) for group in groups}
    chosen = _reference(groups, reference)
    match = match_dataset(runs[0], None)
    unpublished: dict[str, Any] = {"published": {}, "counts": {"test": None}}
    entry = published()["datasets"][match.name] if match.name else unpublished
    table, test_rows = entry["published"], entry["counts"]["test"]
    flagged = impossible(table, test_rows)
    rows = [
        _compared(group, values, chosen, first.units(), _published_cells(table, flagged, kind_of(group.first)), resamples, seed)
        for group in groups
    ]
    gain = METRICS[-1]
    return Comparison(
        runs=tuple(map(str, folders)),
        split=runs[0].split or "test",
        rows=len(first),
        users=runs[0].metrics.users,
        on=on,
        history=history,
        reference=None if chosen is None else chosen.label,
        recommenders=tuple(sorted(rows, key=lambda row: -row.metrics[gain]["value"] if gain in row.metrics else 1)),
        not_run=tuple(_not_run(runs, folders, table, flagged)),
        dataset=match.name,
        comparable=match.comparable,
        note=match.note,
        findings=tuple(audit(table, test_rows)),
        left_out=tuple(left_out),
    )


def _read(folders: Sequence[Path]) -> tuple[list[tuple[str, Evaluated]], list[str]]:
    """All evaluations with their run's name, and sentences on those that are left out."""
    evaluated, left_out = [], []
    paths = distinct_names(folders)
    for name, folder in paths.items():
        names = sorted(path.parent.name for path in (folder / "eval").glob(f"*/{MANIFEST}"))
        if not names:
            raise ArtifactError(
                f"{folder / 'eval'}: nothing evaluated here. Run minionerec eval and minionerec baseline first."
            )
        names, sentence = of_present_inputs(folder, names)
        if sentence:
            left_out.append(sentence if len(paths) == 1 else f"{name}: {sentence}")
        evaluated += [(name, run) for run in read_run(folder, only=names)]
    return evaluated, left_out


def _refuse_unlike(evaluated: Sequence[tuple[str, Evaluated]], on: Scale) -> None:
    """Refuse rows that one table cannot hold.

    Raises:
        ArtifactError: two of them are of different splits or data, or on SIDs of different semantic IDs.
    """
    _, first = evaluated[0]
    for _, run in evaluated[1:]:
        if run.split != first.split:
            raise ArtifactError(
                f"{first.path} is of the {first.split} split, {run.path} of the {run.split} split, so they cannot stand in one "
                "table. Evaluate both on one: minionerec eval --config RUN --eval.split test"
            )
        if run.inputs.get("data") != first.inputs.get("data"):
            raise ArtifactError(
                f"{first.path} and {run.path} were made from different data (catalog, training rows or split), so they cannot "
                "stand in one table. Prepare both runs with the same section data."
            )
        if on == "sid" and run.inputs.get("sid") != first.inputs.get("sid"):
            raise ArtifactError(
                f"{first.path} and {run.path} have different semantic IDs, and a hit of a SID that several items share counts "
                "for all of them. Compare them on items (--on item)."
            )


def _grouped(evaluated: Sequence[tuple[str, Evaluated]], left_out: list[str]) -> list[_Group]:
    """The rows. What is counted and not trained has no seed; of equal ones the first stays."""
    groups: dict[str, _Group] = {}
    for name, run in evaluated:
        settings = {
            stage: {section: deciding(section, values) for section, values in sections.items()}
            for stage, sections in (run.settings or {}).items()
            if stage not in ("data", "sid", "eval")
        }
        key = content_hash([run.name, run.inputs.get("sid"), settings, _decoding(run)])
        group = groups.setdefault(key, _Group(run.label))
        seed = run.seed if run.has_seed else None
        if seed not in group.members:
            group.members[seed] = run
            group.runs.append(name)
        elif run.has_seed:
            left_out.append(f"{name}: {run.label} with seed {seed} is there already, from {group.runs[0]}.")
    for group in groups.values():
        group.label = LABELS_OF_KINDS.get(kind_of(group.first), group.label)
    labels = [group.label for group in groups.values()]
    for group in groups.values():
        if labels.count(group.label) > 1:
            group.label += f" ({', '.join(group.runs)})"
    return list(groups.values())


def _decoding(run: Evaluated) -> dict[str, Any]:
    """The settings of an evaluation that decide this recommender's lists."""
    sections = (run.settings or {})["eval"]
    helped = ("assistant", "assistant_weight") if "d3" in sections else ()
    decides = {name: value for name, value in sections["eval"].items() if name not in _MEASURING or name in helped}
    return {**decides, **sections.get("titles", {})}


def _values(group: _Group, first: Evaluated, on: Scale) -> list[dict[str, np.ndarray]]:
    """Per seed each metric, (rows,) in the order of `first`, at the cut-offs that all its lists reach."""
    longest = min(run.lists.span["longest"] for run in group.members.values())
    cutoffs = [k for k in cutoffs_within(longest, _CUTOFFS) if k in _CUTOFFS]
    by_seed = []
    for run in group.members.values():
        with naming_files(first, run):
            [values] = values_by_seed([run.lists], first.lists, cutoffs, on)
        by_seed.append({name: values[name] for name in METRICS if name in values})
    return by_seed


def _reference(groups: Sequence[_Group], asked: str | None) -> _Group | None:
    """The row that the others are compared with."""
    if asked is None:
        by_kind = {kind_of(group.first): group for group in reversed(groups)}
        return by_kind.get("rl", by_kind.get("sft"))
    matches = [group for group in groups if asked in (group.label, group.first.name, kind_of(group.first))]
    if len(matches) != 1:
        labels = ", ".join(group.label for group in (matches or groups))
        problem = "names several rows" if matches else "is not evaluated in these runs"
        raise ConfigError(f"--reference {asked}: {problem}. Expected one of: {labels}.")
    return matches[0]


def _compared(
    group: _Group,
    values: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    reference: _Group | None,
    units: np.ndarray | None,
    cells: Mapping[str, PublishedCell],
    resamples: int,
    seed: int,
) -> Compared:
    """One row, its values those of `values`."""
    by_seed, members = values[group.label], list(group.members.values())
    means = mean_over_seeds(by_seed)
    metrics: dict[str, dict[str, Any]] = {}
    if means:
        for name, cell in interval_cells(means, resamples, seed, units).items():
            metrics[name] = {**cell, "seeds": across_seeds([float(one[name].mean()) for one in by_seed], (0, 1))}
    change: dict[str, dict[str, Any]] = {}
    if reference is not None and reference is not group:
        before = mean_over_seeds(values[reference.label])
        shared = [name for name in means if name in before]
        if shared:
            theirs, ours = ({name: one[name] for name in shared} for one in (before, means))
            change = differences(theirs, ours, resamples, seed, units)
    seconds = [run.seconds for run in members if run.seconds is not None]
    milliseconds = [run.milliseconds for run in members if run.milliseconds is not None]
    return Compared(
        label=group.label,
        name=group.first.name,
        kind=kind_of(group.first),
        runs=tuple(group.runs),
        seeds=tuple(group.members),
        parameters=group.first.parameters,
        helper_parameters=group.first.helper_parameters,
        minutes=float(np.mean(seconds)) / 60 if seconds else None,
        milliseconds=float(np.mean(milliseconds)) if milliseconds else None,
        metrics=metrics,
        change=change,
        published=cells,
    )


def _published_cells(
    table: Mapping[str, Mapping[str, float]], flagged: Mapping[str, set[str]], kind: str
) -> dict[str, PublishedCell]:
    row = PUBLISHED_ROW.get(kind)
    if row is None or row not in table:
        return {}
    return {name: PublishedCell(table[row][name], name not in flagged.get(row, ())) for name in METRICS}


def _not_run(
    runs: Sequence[Evaluated],
    folders: Sequence[Path],
    table: Mapping[str, Mapping[str, float]],
    flagged: Mapping[str, set[str]],
) -> list[NotRun]:
    present, places = {kind_of(run) for run in runs}, [RunFolder(folder) for folder in folders]
    absent = [(rival, how_to(rival, places)) for rival in RIVALS if not present & set(rival.kinds)]
    return [
        NotRun(rival.label, how.command, how.note, _published_cells(table, flagged, rival.kinds[0])) for rival, how in absent
    ]
