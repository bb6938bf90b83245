"""The runs that the paper-gap report compares: the evaluated recommenders of run folders, and single predictions files."""

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minionerec.artifacts import ITEM_STAGES, MANIFEST, MILLISECONDS, Manifest, require
from minionerec.config import TRIVIAL_BASELINES
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.errors import ConfigError
from minionerec.eval.check_predictions import check_belongs
from minionerec.eval.exposure import diversity
from minionerec.eval.listed import LEGO
from minionerec.eval.lists import EMPTY, RankedLists, cutoffs_within, headline_cutoff
from minionerec.eval.metrics import measure
from minionerec.eval.result_json import read_lists
from minionerec.eval.slices import parts_of_lists, parts_of_training, slice_tables
from minionerec.recommend.variants import STAGES, VARIANTS, trained_parts
from minionerec.report.evaluated import Evaluated, page_order, read_evaluated, why_outdated
from minionerec.report.published import published
from minionerec.report.slices import sliced_metric
from minionerec.sid.index import SidIndex, collision_warning

PAIRED = ("HR@1", "HR@10", "HR@50", "NDCG@10")
_ARTEFACTS = (*ITEM_STAGES, *STAGES, *itertools.chain.from_iterable(map(trained_parts, VARIANTS)))


class DatasetMatch(NamedTuple):
    """Which published dataset a run was evaluated on.

    Attributes:
        name: the dataset; None if no published table fits.
        comparable: whether the run's metrics may be compared with the published ones.
        note: what the reader must know.
    """

    name: str | None
    comparable: bool
    note: str | None


def distinct_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Each path by the shortest name that no other path has: its own name, preceded by as many parent folders as needed.

    A path that is given twice, or once more through a link, appears once.
    """
    distinct: dict[Path, Path] = {}
    for path in paths:
        distinct.setdefault(path.resolve(), Path(os.path.abspath(path)))
    names = {}
    for path in distinct.values():
        unique_lengths = (
            length
            for length in range(1, len(path.parts))
            if sum(other.parts[-length:] == path.parts[-length:] for other in distinct.values()) == 1
        )
        names["/".join(path.parts[-next(unique_lengths, len(path.parts)) :])] = path
    return names


def load_runs(
    path: Path, label: str, resamples: int, seed: int, catalog: dict[tuple[int, ...], int] | None = None
) -> list[Evaluated]:
    """The evaluated recommenders of a run's folder, or the one of a predictions file (ours or the released code's JSON).

    Args:
        label: name of the folder or the file on the page.
        catalog: items per SID, for the released code's JSON; see `eval.result_json.read_catalog`. A folder has its own.

    Raises:
        ConfigError: there is nothing at the path, or nothing evaluated in the folder; a catalog for a file of ours.
        DataError: predictions are malformed, or not those of the folder's own split and catalog.
        ArtifactError: an artefact of the folder is missing, damaged or of another version.
    """
    if path.is_dir():
        return _load_folder(path, label, resamples, seed)
    if not path.is_file():
        raise ConfigError(f"--runs {path}: not found; expected the folder of a run or a predictions file.")
    return [_load_file(path, label, resamples, seed, catalog)]


def read_run(folder: Path, label: str | None = None, only: Collection[str] | None = None) -> list[Evaluated]:
    """The evaluated recommenders of a run's folder, with the settings and the cost of the trainings behind them.

    Args:
        label: stands before each recommender's own on a page; None for the recommender's own alone.
        only: names of the recommenders; None for all that are evaluated.

    Raises:
        ArtifactError: an artefact of the folder is missing, damaged or of another version.
        ConfigError: nothing is evaluated in the folder.
        DataError: predictions are malformed, or not those of the folder's own split and catalog.
    """
    for name, command in ITEM_STAGES.items():
        require(folder / name, command)
    stages = {name: Manifest.load(folder / name) for name in dict.fromkeys(_ARTEFACTS) if (folder / name / MANIFEST).is_file()}
    baselines = {path.parent.name: Manifest.load(path.parent) for path in (folder / "baselines").glob(f"*/{MANIFEST}")}
    content = {
        f"{LEGO}{path.parent.name}": Manifest.load(path.parent) for path in (folder / "lego" / "lists").glob(f"*/{MANIFEST}")
    }
    dataset = Dataset.load(folder / "data")
    index, counts = SidIndex.load(folder / "sid", dataset), {"items": len(dataset.catalog)}
    counts |= {split: len(dataset.split(split)) for split in SPLITS}
    names = sorted((path.parent.name for path in (folder / "eval").glob(f"*/{MANIFEST}")), key=page_order)
    names = [name for name in names if only is None or name in only]
    warning = collision_warning(index.collisions(), len(index.codes))
    runs = []
    for name in names:
        run = read_evaluated(folder / "eval" / name, label)
        check_belongs(run.lists, dataset, index, run.split or "test", str(run.path))
        evaluation = Manifest.load(run.path.parent)
        made_from = {stage: stages[stage] for stage in ITEM_STAGES}
        helper = _trained_helper(name, evaluation, baselines)
        if helper is not None:
            made_from[f"baselines/{helper}"] = baselines[helper]
        made_from |= {part: stages[part] for part in trained_parts(name) if part in stages}
        if name in baselines:
            made_from["baseline"] = baselines[name]
        if name in content:
            made_from["lego"] = content[name]
        notes = [warning] if warning else []
        reason = why_outdated(folder, name, evaluation)
        if reason is not None:
            notes.append(f"{reason}; the run's present settings stand here; run minionerec eval again")
        settings = {stage: manifest.config for stage, manifest in made_from.items()}
        trainings = {stage: manifest for stage, manifest in made_from.items() if stage not in ITEM_STAGES}
        sizes = {stage: one.metrics["parameters"] for stage, one in trainings.items() if "parameters" in one.metrics}
        of_helper = sizes.pop(f"baselines/{helper}", None)
        own = [*sizes.values()]  # counts that weigh a baseline have none, so its parameters are theirs
        # Stored lists were timed as they were made, those that the evaluation makes itself then.
        timed = [evaluation.metrics, *(made_from[one].metrics for one in ("baseline", "lego") if one in made_from)]
        runs.append(
            replace(
                run,
                counts=counts,
                settings={**settings, "eval": evaluation.config},
                parameters=own[-1] if own else of_helper,
                helper_parameters=of_helper if own else None,
                inputs=evaluation.inputs,
                seconds=sum(one.seconds for one in trainings.values())
                if trainings and (name not in TRIVIAL_BASELINES or helper)
                else None,
                milliseconds=next((one[MILLISECONDS] for one in timed if MILLISECONDS in one), None),
                notes=tuple(notes),
                stale=reason is not None,
            )
        )
    if not runs:
        raise ConfigError(f"--runs {folder}: nothing is evaluated there. Run minionerec eval for it first.")
    return runs


def _trained_helper(name: str, evaluation: Manifest, baselines: Mapping[str, Manifest]) -> str | None:
    """The other baseline of the run that a recommender was made with: its assistant, or a component of its mixture.

    Args:
        name: of the recommender.

    Returns:
        the baseline's name; None if there is none, or the run has it no more.
    """
    inputs = baselines[name].inputs if name in baselines else evaluation.inputs
    helpers = (artefact.removeprefix("baselines/") for artefact in inputs if artefact.startswith("baselines/"))
    return next((helper for helper in helpers if helper in baselines), None)


def _load_folder(folder: Path, label: str, resamples: int, seed: int) -> list[Evaluated]:
    evaluated, dataset = read_run(folder, label), Dataset.load(folder / "data")
    runs = []
    for run in evaluated:
        parts = sliced_metric([run], parts_of_training(run.lists, dataset), resamples=resamples, seed=seed)
        runs.append(replace(run, parts=parts.of(run.label)))
    return runs


def _load_file(
    path: Path, label: str, resamples: int, seed: int, catalog: dict[tuple[int, ...], int] | None = None
) -> Evaluated:
    lists = read_lists(path, catalog)
    sliced = (headline_cutoff(cutoffs_within(lists.span["longest"])),)
    metrics = replace(
        measure(lists, resamples=resamples, seed=seed),
        slices=slice_tables(lists, _parts_of_file(lists, catalog), sliced, resamples, seed),
        exposure={"k": (k := min(10, lists.width)), "diversity": diversity(lists, k)},
    )
    notes = ["a single file: its training data is taken on trust"]
    if lists.items is None:
        notes[0] += "; it names no users, so each example counts as one"
    if catalog and metrics.invalid:
        notes.append(
            f"{metrics.invalid:.2%} of the listed texts are no SID of the catalog and count for no level; the published level "
            "tables were made without a catalog and count the codes of SIDs outside it"
        )
    shared = [items for items in (catalog or {}).values() if items > 1]
    notes += [warning] if (warning := collision_warning(sum(shared), sum((catalog or {}).values()))) else []
    return Evaluated("file", label, path, lists, metrics, notes=tuple(notes))


def _parts_of_file(lists: RankedLists, catalog: dict[tuple[int, ...], int] | None) -> dict[str, dict[str, np.ndarray]]:
    # A file whose prompts do not show their histories has only empty ones: it says nothing about repeats or lengths.
    parts = parts_of_lists(lists) if lists.history_lengths.any() else {}
    if catalog:
        sids = [tuple(code for code in sid if code != EMPTY) for sid in lists.target_sids.tolist()]
        shared = np.array([catalog[sid] > 1 for sid in sids])
        parts["target's SID"] = {"shared by several items": shared, "its own": ~shared}
    return parts


def seed_groups(runs: Iterable[Evaluated]) -> list[list[Evaluated]]:
    """The groups of runs that differ only in their seed, one run per seed.

    Recommenders without randomness form no group, and a stale one joins none: its settings and seed are those of another model.
    """
    groups: dict[str | None, dict[int | None, Evaluated]] = {}
    for run in runs:
        if run.settings is not None and run.has_seed and not run.stale:
            groups.setdefault(run.recipe(), {}).setdefault(run.seed, run)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def match_dataset(run: Evaluated, dataset: str | None) -> DatasetMatch:
    """Find the published dataset that a run was evaluated on, by the sizes of its catalog and test split.

    Args:
        dataset: the published dataset of all runs, if their sizes do not tell it.

    Raises:
        ConfigError: no published dataset has this name.
    """
    datasets = published()["datasets"]
    if dataset is not None and dataset not in datasets:
        raise ConfigError(f"--dataset {dataset}: no published table of that name; expected one of {', '.join(datasets)}.")
    for name, entry in datasets.items():
        counts = entry["counts"]
        if run.counts is None:
            same_size = len(run.lists) == counts["test"]
            if dataset == name or (dataset is None and same_size):
                note = None if same_size else f"{len(run.lists)} examples, the {name} test split has {counts['test']}"
                return DatasetMatch(name, same_size, note)
        elif dataset == name or (dataset is None and all(run.counts[part] == counts[part] for part in ("items", "test"))):
            return _match_counts(run, name, run.counts, counts)
    return DatasetMatch(None, False, None)


def _match_counts(run: Evaluated, name: str, ours: Mapping[str, int], theirs: Mapping[str, int]) -> DatasetMatch:
    if run.split != "test":
        return DatasetMatch(name, False, f"evaluated on the {run.split} split, the published numbers are on test")
    if not run.ranks_whole_catalog:
        return DatasetMatch(name, False, "the history is left out of the lists, the published numbers keep it")
    differing = [f"{ours[part]:,} {part}, published {theirs[part]:,}" for part in theirs if ours[part] != theirs[part]]
    return DatasetMatch(name, not differing, "; ".join(differing) or None)
