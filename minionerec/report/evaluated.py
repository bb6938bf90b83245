"""An evaluated recommender: its lists with their metrics, and how it was made. Every page of a report is made from these."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minionerec.artifacts import MANIFEST, Manifest, changed_input, content_hash
from minionerec.config import BASELINES, TRIVIAL_BASELINES, not_in_key
from minionerec.config.lego import RECIPES
from minionerec.data.dataset import SplitName
from minionerec.errors import ArtifactError, DataError
from minionerec.eval.compare import align, compare
from minionerec.eval.listed import stored_artefact, stored_command, why_measured_otherwise, why_unusable
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics_json import Cell, Metrics

Setting = tuple[str, str, str]  # artefact, section, field
Scale = Literal["sid", "item"]
SCALES: tuple[Scale, ...] = ("sid", "item")
FAMILIES = {"HR": "Hit rate", "NDCG": "NDCG", "MRR": "MRR"}
_LEGO = {"fastformer": "Fastformer", "dcnv2": "DCNv2", "deepfm": "DeepFM", "recformer": "Flat text (as Recformer)"}
LABELS = {name: baseline.label for name, baseline in BASELINES.items()} | {
    "sft": "SFT",
    "rl": "SFT + RL",
    "sft-mixture": "SFT, mixed",
    "rl-mixture": "SFT + RL, mixed",
    "sft-d3": "SFT, assisted (D3)",
    "rl-d3": "SFT + RL, assisted (D3)",
    "sft-titles": "SFT, titles grounded (BIGRec)",
    "sft-titles-trie": "SFT, titles of the catalog (BIGRec)",
    "sft-titles-d3": "SFT, titles of the catalog, assisted (D3)",
    **{f"lego-{name}": _LEGO.get(name, name.upper()) for name in RECIPES},
}


@dataclass(frozen=True)
class Evaluated:
    """One recommender's predictions with their metrics.

    Attributes:
        name: `sft`, `rl`, these with `-mixture` or `-d3`, `sft-titles`, it with `-trie` or `-d3`, a baseline's name, or `file`.
        label: its name on a page; unique within a page.
        path: the predictions file.
        lists: the predictions.
        metrics: the content of `metrics.json`; a single file lacks the metrics that need its dataset.
        counts: items, and rows of each split; None for a single file.
        split: the split that was predicted; None if unknown.
        seed: the run's seed; None for a single file.
        settings: the configuration of each artefact that the predictions come from (`data`, `sft`, ..., `eval`), by section;
            None for a single file.
        parameters: parameters of the model; None if unknown.
        helper_parameters: parameters of the baseline that helps it, such as D3's assistant; None if there is none.
        inputs: digests of what the evaluation was made from, by artefact; empty for a single file.
        seconds: all trainings behind it, one after the other; None if nothing was trained, or it is unknown.
        milliseconds: what making one list took; None if its manifest does not say.
        ranks_whole_catalog: False if items of the history were left out. A single file is trusted to rank all items.
        notes: what a reader must know about this recommender.
        stale: the run has another model or other data by now than the lists were made from, or an earlier version
            measured them otherwise.
        parts: per question and answer of `eval.slices.parts_of_training` its `share` and a metric on items; empty for a single
            file, whose training data is unknown.
    """

    name: str
    label: str
    path: Path
    lists: RankedLists
    metrics: Metrics
    counts: Mapping[str, int] | None = None
    split: SplitName | None = None
    seed: int | None = None
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    parameters: int | None = None
    helper_parameters: int | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    milliseconds: float | None = None
    ranks_whole_catalog: bool = True
    notes: tuple[str, ...] = ()
    stale: bool = False
    parts: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def history(self) -> str:
        """Whether items of the history may stand in the lists: `kept`, or `left out`."""
        return "kept" if self.ranks_whole_catalog else "left out"

    @property
    def has_seed(self) -> bool:
        """Whether a training stands behind it, so that another seed gives other lists: not behind what only counts."""
        return self.name not in TRIVIAL_BASELINES or any(stage.startswith("baselines/") for stage in self.settings or {})

    def metrics_on(self, scale: Scale) -> Mapping[str, Cell]:
        """The metrics on SIDs or on items, with intervals; those on items are empty if the lists name no items."""
        on_items: Mapping[str, Cell] = self.metrics.item or {}
        return self.metrics.sid if scale == "sid" else on_items

    def setting(self, setting: Setting) -> Any:
        """A value of the configuration; None if there is no such artefact, section or field."""
        artefact, section, field = setting
        return (self.settings or {}).get(artefact, {}).get(section, {}).get(field)

    def recipe(self, without: Setting | None = None) -> str | None:
        """A hash of all settings but the seed and one more: evaluated recommenders with equal recipes differ in their seed.

        None for a single file, whose settings are unknown.
        """
        if self.settings is None:
            return None
        unrelated = {without}
        if without and without[1] == "prompts":  # the recorded words follow from the style
            unrelated.add((without[0], "prompts", "words"))
        values = {
            f"{artefact}.{section}.{field}": value
            for artefact, sections in self.settings.items()
            for section, fields in sections.items()
            for field, value in deciding(section, fields).items()
            if (artefact, section, field) not in unrelated
        }
        return content_hash([self.name, values])


def page_order(name: str) -> tuple[int, str]:
    """The place of a recommender on a page: those with a label in its order, then the others by name."""
    names = list(LABELS)
    return (names.index(name) if name in names else len(names), name)


def deciding(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recorded section that a result may depend on: not where files lie, nor how a step is cut into parts.

    `eval` and `mixture` keep all: theirs that stand in no key decide some recommenders' lists. A field that is null is left
    out, since an earlier version, which did not have it, trained the same.
    """
    idle = () if section in ("eval", "mixture") else not_in_key(section)
    return {field: value for field, value in values.items() if field not in idle and value is not None}


def read_evaluated(folder: Path, of: str | None = None) -> Evaluated:
    """Read what the eval stage wrote about one recommender.

    Args:
        folder: `eval/<recommender>` of a run.
        of: stands before the recommender's own label; None for that alone.

    Raises:
        ArtifactError: the artefact is damaged, or its metrics are those of another version.
        DataError: the predictions are malformed.
    """
    manifest = Manifest.load(folder)
    options, own = manifest.config.get("eval", {}), _label(folder, manifest)
    return Evaluated(
        name=folder.name,
        label=own if of is None else f"{of}, {own}",
        path=folder / "predictions.jsonl",
        lists=RankedLists.read(folder / "predictions.jsonl"),
        metrics=Metrics.read(folder / "metrics.json"),
        split=options.get("split", "test"),
        seed=manifest.seed,
        ranks_whole_catalog=not options.get("exclude_history", False),
    )


def _label(folder: Path, evaluation: Manifest) -> str:
    """A recommender's label; a stored `mixture` also names the trained baseline that it weighs."""
    name = folder.name
    label, lists = LABELS.get(name, name), folder.parents[1] / stored_artefact(name)
    if name != "mixture" or stored_artefact(name) not in evaluation.inputs or not (lists / MANIFEST).is_file():
        return label
    component = Manifest.load(lists, editable=None).config["baseline"].get("sequential")  # earlier versions had none
    return label if component is None else f"{label} with {LABELS[component]}"


def of_present_inputs(run: Path, names: Sequence[str]) -> tuple[list[str], str | None]:
    """Those of a run's evaluations that `minionerec eval` would not make anew, see `why_outdated`.

    Args:
        names: folders in `eval/` of the run.

    Returns:
        their names, and a sentence on the ones left out; None if there is none.

    Raises:
        ArtifactError: none is left, or a manifest is damaged.
    """
    reasons = {name: why_outdated(run, name, Manifest.load(run / "eval" / name)) for name in names}
    others = ", ".join(f"{name} ({reason})" for name, reason in reasons.items() if reason)
    present = [name for name, reason in reasons.items() if reason is None]
    if not present:
        raise ArtifactError(f"{run / 'eval'}: {others}. Make it anew: minionerec eval --config {run}")
    return present, f"Left out: {others}. minionerec eval makes them anew." if others else None


def why_outdated(run: Path, name: str, evaluation: Manifest) -> str | None:
    """Why an evaluation does not say what is evaluated now, in words; None if it does.

    Its data, model or baseline, or one that its lists mix in, is another by now, or an earlier version measured otherwise.

    Args:
        name: of the recommender.

    Raises:
        ArtifactError: the manifest of a baseline is damaged.
    """
    if (source := changed_input(run, evaluation)) is not None:
        reason: str | None = f"made from another {source} than the run has"
    else:
        reason = why_measured_otherwise(run, name, evaluation)
    return None if reason is None else reason + _first(run, name)


def _first(run: Path, name: str) -> str:
    """What must be made anew before an evaluation can be, in words after a semicolon; empty if nothing must."""
    return f"; first {stored_command(name)}" if why_unusable(run, name) is not None else ""


def same_history(recommenders: Sequence[Evaluated]) -> str:
    """Whether the lists of all keep the history: `kept` or `left out`, as the manifests of their evaluations say.

    Raises:
        ArtifactError: some keep it and some do not; a table of both would compare unlike with unlike.
    """
    rules = {recommender.history for recommender in recommenders}
    if len(rules) == 1:
        return rules.pop()
    kept, left_out = ([one for one in recommenders if one.history == rule] for rule in ("kept", "left out"))
    raise ArtifactError(
        f"{_enumerated(kept)} may recommend items of the history, {_enumerated(left_out)} may not (eval.exclude_history in the "
        f"manifests), so they cannot be compared: {kept[0].path.parent} and {left_out[0].path.parent}. Evaluate all of them "
        "with one setting: minionerec eval --config RUN --eval.exclude_history true (or false)."
    )


def _enumerated(recommenders: Sequence[Evaluated]) -> str:
    return ", ".join(recommender.label for recommender in recommenders)


def name_histories(recommenders: Sequence[Evaluated]) -> list[Evaluated]:
    """The same, but if some keep the history and some do not, every label says which.

    For pages of several runs, where each row must stand: `compare_evaluated` refuses the differences between the two kinds.
    """
    if len({recommender.history for recommender in recommenders}) < 2:
        return list(recommenders)
    return [replace(one, label=f"{one.label} (history {one.history})") for one in recommenders]


def compare_evaluated(
    first: Evaluated,
    second: Evaluated,
    resamples: int,
    seed: int,
    on: Scale = "sid",
    cutoffs: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:
    """How much `second` exceeds `first` on the same examples, see `eval.compare.compare`.

    Raises:
        ArtifactError: they were measured on different examples, or only one keeps the history; the message names both files.
    """
    same_history((first, second))
    with naming_files(first, second):
        return compare(first.lists, second.lists, resamples, seed, cutoffs, on)


def rows_as(first: Evaluated, second: Evaluated) -> np.ndarray:
    """The rows of `second` in the order of `first`, (rows,), see `eval.compare.align`.

    Raises:
        ArtifactError: they were measured on different examples; the message names both files.
    """
    with naming_files(first, second):
        return align(first.lists, second.lists)


@contextmanager
def naming_files(first: Evaluated, second: Evaluated) -> Iterator[None]:
    """Errors of a comparison name both files."""
    try:
        yield
    except DataError as error:
        raise ArtifactError(
            f"{first.path} has {len(first.lists)} examples, {second.path} has {len(second.lists)}: {error} "
            "Evaluate both on the same split again."
        ) from None
