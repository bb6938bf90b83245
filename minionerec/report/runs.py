"""What the paper-gap report compares: evaluated recommenders of run folders, and single predictions files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from minionerec.artifacts import ITEM_STAGES, Manifest, content_hash, read_json, require
from minionerec.config import CUTOFFS
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, DataError
from minionerec.eval.belongs import check_belongs
from minionerec.eval.compare import compare
from minionerec.eval.foreign import read_lists
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import measure
from minionerec.eval.slices import parts_of_lists, slice_tables
from minionerec.report.content import LABELS
from minionerec.report.published import published
from minionerec.sid.index import SidIndex

PAIRED = ("HR@1", "HR@10", "HR@50", "NDCG@10")
_STAGES = ("data", "sid", "sft", "rl")
_TRAINED = {"sft": ("sft",), "rl": ("sft", "rl")}


@dataclass(frozen=True)
class Run:
    """One recommender's predictions with their metrics.

    Attributes:
        label: for readers.
        path: the predictions file.
        recommender: `sft`, `rl`, a baseline's name, or `file`.
        lists: the predictions.
        metrics: as the eval stage's `metrics.json`; what takes a dataset is missing for a single file.
        counts: items and rows of the splits; None for a single file.
        split: the split that was predicted, None where unknown.
        seed: of the run; None for a single file.
        recipe: identifies everything but the seed; runs of one recipe are seeds of one another.
        parameters: of the model, None where unknown.
        whole: the whole catalogue was ranked, the history not left out; taken on trust for a single file.
    """

    label: str
    path: Path
    recommender: str
    lists: RankedLists
    metrics: Mapping[str, Any]
    counts: Mapping[str, int] | None = None
    split: str | None = None
    seed: int | None = None
    recipe: str = ""
    parameters: int | None = None
    whole: bool = True
    notes: list[str] = field(default_factory=list)


def _counts(folder: Path) -> dict[str, int]:
    def rows(name: str) -> int:
        return int(pl.scan_parquet(folder / f"{name}.parquet").select(pl.len()).collect().item())

    return {"items": rows("catalog"), **{name: rows(name) for name in ("train", "valid", "test")}}


def _of_folder(folder: Path) -> list[Run]:
    for name, command in ITEM_STAGES.items():
        require(folder / name, command)
    manifests = {name: Manifest.load(folder / name) for name in _STAGES if (folder / name / "manifest.json").is_file()}
    dataset = Dataset.load(folder / "data")
    index, counts = SidIndex.load(folder / "sid", dataset), _counts(folder / "data")
    found = []
    evaluated = sorted((folder / "eval").glob("*/manifest.json"), key=lambda path: _place(path.parent.name))
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
        used = [stage for stage in ("data", "sid", *_TRAINED.get(name, ())) if stage in manifests]
        recipe = content_hash([name, manifest.config, {stage: _without_place(manifests[stage].config) for stage in used}])
        parameters = manifests[name].metrics.get("parameters") if name in manifests else None
        found.append(
            Run(
                label=f"{folder.name}, {LABELS.get(name, name)}",
                path=path.with_name("predictions.jsonl"),
                recommender=name,
                lists=lists,
                metrics=metrics,
                counts=counts,
                split=split,
                seed=manifest.seed,
                recipe=recipe,
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


def _without_place(config: Mapping[str, Any]) -> dict[str, Any]:
    # Where the raw files lie is no part of the recipe.
    return {
        section: {name: value for name, value in fields.items() if name != "path"} if section == "data" else fields
        for section, fields in config.items()
    }


def load(path: Path, resamples: int, seed: int) -> list[Run]:
    """The evaluated recommenders of a run's folder, or the one of a predictions file (ours or the reference's JSON).

    Raises:
        ConfigError: there is nothing at the path, or nothing evaluated in the folder.
        DataError: predictions are malformed, or not those of the folder's own split and catalogue.
        ArtifactError: an artefact of the folder is missing or damaged.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise ConfigError(f"--runs {path}: not found; expected the folder of a run or a predictions file.")
    lists = read_lists(path)
    cutoffs = [k for k in CUTOFFS if k <= lists.width] or [max(1, lists.width)]
    metrics = measure(lists, cutoffs, resamples, seed)
    metrics["slices"] = slice_tables(
        lists, parts_of_lists(lists), cutoffs[-1:] if 10 not in cutoffs else (10,), resamples, seed
    )
    note = "a single file: its training data is taken on trust"
    if lists.items is None:
        note += "; it names no users, so each example counts as one"
    return [Run(path.stem, path, "file", lists, metrics, recipe=str(path), notes=[note])]


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
