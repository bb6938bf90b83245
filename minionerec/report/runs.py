"""What the paper-gap report compares: evaluated recommenders of run folders, and single predictions files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from minionerec.artifacts import ITEM_STAGES, MANIFEST, Manifest, content_hash, read_json, require
from minionerec.baselines.trivial import TRIVIAL
from minionerec.config import CUTOFFS
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, DataError
from minionerec.eval.check_predictions import check_belongs
from minionerec.eval.compare import compare
from minionerec.eval.exposure import diversity
from minionerec.eval.lists import EMPTY, RankedLists
from minionerec.eval.metrics import measure
from minionerec.eval.result_json import read_lists
from minionerec.eval.slices import parts_of_lists, slice_tables
from minionerec.report.published import published
from minionerec.report.run_page import LABELS
from minionerec.sid.index import SidIndex

Setting = tuple[str, str, str]  # artefact, section, field
PAIRED = ("HR@1", "HR@10", "HR@50", "NDCG@10")
_STAGES = ("data", "sid", "sft", "rl")
_TRAINED = {"sft": ("sft",), "rl": ("sft", "rl")}
_PLACES: tuple[Setting, ...] = (("data", "data", "path"),)  # where raw files lie is no part of a recipe


@dataclass(frozen=True)
class Run:
    """One recommender's predictions with their metrics.

    Attributes:
        label: for readers; no two of a report have the same.
        path: the predictions file.
        recommender: `sft`, `rl`, a baseline's name, or `file`.
        lists: the predictions.
        metrics: as the eval stage's `metrics.json`; what takes a dataset is missing for a single file.
        counts: items and rows of the splits; None for a single file.
        split: the split that was predicted, None where unknown.
        seed: of the run; None for a single file.
        settings: per artefact that the predictions come from (`data`, `sft`, ..., `eval`) the sections of its manifest's
            configuration; None for a single file.
        parameters: of the model, None where unknown.
        whole: the whole catalog was ranked, the history not left out; taken on trust for a single file.
    """

    label: str
    path: Path
    recommender: str
    lists: RankedLists
    metrics: Mapping[str, Any]
    counts: Mapping[str, int] | None = None
    split: str | None = None
    seed: int | None = None
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    parameters: int | None = None
    whole: bool = True
    notes: list[str] = field(default_factory=list)

    def setting(self, at: Setting) -> Any:
        """A value of the configuration; None where the run has no such artefact, section or field."""
        artefact, section, name = at
        return (self.settings or {}).get(artefact, {}).get(section, {}).get(name)

    def recipe(self, without: Setting | None = None) -> str | None:
        """Identifies everything but the seed and one setting: runs of one recipe are seeds of one another.

        None for a single file, of which nothing is known.
        """
        if self.settings is None:
            return None
        known = {
            f"{artefact}.{section}.{name}": value
            for artefact, sections in self.settings.items()
            for section, fields in sections.items()
            for name, value in fields.items()
            if (artefact, section, name) not in (*_PLACES, without)
        }
        return content_hash([self.recommender, known])


def _counts(folder: Path) -> dict[str, int]:
    def rows(name: str) -> int:
        return int(pl.scan_parquet(folder / f"{name}.parquet").select(pl.len()).collect().item())

    return {"items": rows("catalog"), **{name: rows(name) for name in ("train", "valid", "test")}}


def _of_folder(folder: Path, label: str) -> list[Run]:
    for name, command in ITEM_STAGES.items():
        require(folder / name, command)
    manifests = {name: Manifest.load(folder / name) for name in _STAGES if (folder / name / MANIFEST).is_file()}
    baselines = {path.parent.name: Manifest.load(path.parent) for path in (folder / "baselines").glob(f"*/{MANIFEST}")}
    dataset = Dataset.load(folder / "data")
    index, counts = SidIndex.load(folder / "sid", dataset), _counts(folder / "data")
    found = []
    evaluated = sorted((folder / "eval").glob(f"*/{MANIFEST}"), key=lambda path: _place(path.parent.name))
    for path in evaluated:
        name, manifest = path.parent.name, Manifest.load(path.parent)
        split = manifest.config.get("eval", {}).get("split", "test")
        lists = RankedLists.read(path.with_name("predictions.jsonl"))
        check_belongs(lists, dataset, index, split, str(path.with_name("predictions.jsonl")))
        metrics = read_json(path.with_name("metrics.json"))
        lacking = [part for part in ("sid", "item", "levels", "detectable") if part not in metrics]
        if metrics.get("search") and "num_beams" not in metrics["search"]:
            lacking.append("search.num_beams")
        if lacking:
            raise DataError(
                f"{path.with_name('metrics.json')}: {lacking[0]} is missing; made by another version. Delete "
                f"{path.parent} and evaluate again."
            )
        used = {stage: manifests[stage] for stage in ("data", "sid", *_TRAINED.get(name, ())) if stage in manifests}
        if name in baselines:
            used["baseline"] = baselines[name]
        parameters = used.get(name, used.get("baseline", manifest)).metrics.get("parameters")
        found.append(
            Run(
                label=f"{label}, {LABELS.get(name, name)}",
                path=path.with_name("predictions.jsonl"),
                recommender=name,
                lists=lists,
                metrics=metrics,
                counts=counts,
                split=split,
                seed=manifest.seed,
                settings={**{stage: made.config for stage, made in used.items()}, "eval": manifest.config},
                parameters=parameters,
                whole=not manifest.config.get("eval", {}).get("exclude_history", False),
            )
        )
    if not found:
        raise ConfigError(f"--runs {folder}: nothing is evaluated there. Run minionerec eval for it first.")
    return found


def _place(name: str) -> tuple[int, str]:
    known = list(LABELS)
    return (known.index(name) if name in known else len(known), name)


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Each path by a name that tells it from the others: its own, with as many parent folders as that takes.

    A path that is given twice, or by a link as well, is there once.
    """
    apart: dict[Path, Path] = {}
    for path in paths:
        apart.setdefault(path.resolve(), Path(os.path.abspath(path)))
    names = {}
    for path in apart.values():
        depths = range(1, len(path.parts))
        alone = (n for n in depths if sum(other.parts[-n:] == path.parts[-n:] for other in apart.values()) == 1)
        names["/".join(path.parts[-next(alone, len(path.parts)) :])] = path
    return names


def seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """The groups of runs that differ in nothing but their seed, one run per seed; what draws nothing at random is no seed."""
    groups: dict[str | None, dict[int | None, Run]] = {}
    for run in runs:
        if run.settings is not None and run.recommender not in TRIVIAL:
            groups.setdefault(run.recipe(), {}).setdefault(run.seed, run)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def load(path: Path, label: str, resamples: int, seed: int, catalog: dict[tuple[int, ...], int] | None = None) -> list[Run]:
    """The evaluated recommenders of a run's folder, or the one of a predictions file (ours or the released code's JSON).

    Args:
        label: what to call the folder or the file.
        catalog: items per SID, for the released code's JSON; see `eval.foreign.read_catalog`. A folder has its own.

    Raises:
        ConfigError: there is nothing at the path, or nothing evaluated in the folder; a catalog for a file of ours.
        DataError: predictions are malformed, or not those of the folder's own split and catalog.
        ArtifactError: an artefact of the folder is missing or damaged.
    """
    if path.is_dir():
        return _of_folder(path, label)
    if not path.is_file():
        raise ConfigError(f"--runs {path}: not found; expected the folder of a run or a predictions file.")
    lists = read_lists(path, catalog)
    cutoffs = [k for k in CUTOFFS if k <= lists.width] or [max(1, lists.width)]
    metrics = measure(lists, cutoffs, resamples, seed).as_dict()
    parts = parts_of_lists(lists)
    if not lists.history_lengths.any():  # the prompts do not show their histories
        parts = {}
    if catalog:
        shared = np.array([catalog[tuple(code for code in sid if code != EMPTY)] > 1 for sid in lists.target_sids.tolist()])
        parts["target's SID"] = {"shared by several items": shared, "its own": ~shared}
    metrics["slices"] = slice_tables(lists, parts, cutoffs[-1:] if 10 not in cutoffs else (10,), resamples, seed)
    metrics["exposure"] = {"k": 10, "diversity": diversity(lists, 10)}
    note = "a single file: its training data is taken on trust"
    if lists.items is None:
        note += "; it names no users, so each example counts as one"
    return [Run(label, path, "file", lists, metrics, notes=[note])]


def dataset_of(run: Run, chosen: str | None) -> tuple[str | None, bool, str | None]:
    """Which published dataset a run was evaluated on.

    Returns:
        The dataset's name, None where no published table fits; whether the numbers may be compared with that table; and what
        the reader must know.
    """
    known = published()["datasets"]
    for name, entry in known.items():
        counts = entry["counts"]
        if run.counts is None:
            if chosen == name or (chosen is None and len(run.lists) == counts["test"]):
                fits = len(run.lists) == counts["test"]
                note = None if fits else f"{len(run.lists)} examples, the {name} test split has {counts['test']}"
                return name, fits, note
            continue
        same = all(run.counts[part] == counts[part] for part in ("items", "test"))
        if chosen == name or (chosen is None and same):
            if run.split != "test":
                return name, False, f"evaluated on the {run.split} split, the published numbers are on test"
            if not run.whole:
                return name, False, "the history is left out of the lists, the published numbers keep it"
            differing = [
                f"{run.counts[part]:,} {part}, published {counts[part]:,}"
                for part in counts
                if run.counts[part] != counts[part]
            ]
            return name, not differing, "; ".join(differing) or None
    if chosen is not None and chosen not in known:
        raise ConfigError(f"--dataset {chosen}: no published table of that name; known are {', '.join(known)}.")
    return None, False, None


def compared(first: Run, second: Run, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """`eval.compare.compare` of two runs, at the cut-offs that both lists reach.

    Raises:
        DataError: they were measured on different examples; the message names both files.
    """
    try:
        return compare(first.lists, second.lists, resamples, seed)
    except DataError as error:
        raise DataError(f"{first.path} and {second.path}: {error} Evaluate both on the same split again.") from None
