"""Stage `pairs`: labelled pairs of a user's history and a candidate, for models that say yes or no.

Inputs: the run's `data/`, whose ratings, or order, give the labels; or files with labels (`pairs.source` csv, mind, recbench).
Outputs: `<run>/pairs/` with `catalog.parquet`, `train.parquet`, `valid.parquet`, `test.parquet`, `counts.parquet` (what
train users have done with each item), `users.parquet` (the order of the walk), `skipped.txt` if rows were skipped, and
`manifest.json`.
Differs from RecBench: `pairs.order: past_only` leaves out dislikes from before the end of the history, `pairs.test_share`
splits small data, and an item that was rated or shown several times counts once.
Command: `minionerec pairs prepare --config ml-100k`.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from minionerec.artifacts import Manifest, Recipe, file_hash, require
from minionerec.config import Config, DataConfig
from minionerec.config.pairs import PairsConfig
from minionerec.data.bad_rows import Problems
from minionerec.data.checks import NEGATIVE
from minionerec.data.dataset import Dataset
from minionerec.data.pair_csv import csv_files, read_labelled_csv
from minionerec.data.pair_files import LabelledFiles, mind_files, read_mind, read_recbench, recbench_files
from minionerec.data.pairs import Drawn, PairSet, draw, purchases, rated, rule_of
from minionerec.errors import DataError

log = logging.getLogger(__name__)


class _Layout(NamedTuple):
    """How files with labels are found and read, and by which rule.

    Attributes:
        obeys: fields of `data` that its reader obeys.
    """

    files: Callable[[Path, DataConfig], tuple[Path, ...]]
    read: Callable[[Path, PairsConfig, DataConfig, int, Problems], LabelledFiles]
    rule: str
    obeys: tuple[str, ...] = ("missing_text", "on_error")


_LAYOUTS = {
    "csv": _Layout(csv_files, read_labelled_csv, "rated", ("missing_text", "on_error", "columns", "category")),
    "mind": _Layout(lambda folder, _: mind_files(folder), read_mind, "impressions"),
    "recbench": _Layout(lambda folder, _: recbench_files(folder), read_recbench, "impressions"),
}


def prepare_pairs(config: Config) -> tuple[Manifest, bool]:
    """Write `<run>/pairs/`, unless it was made from the same data with the same settings.

    Returns:
        the manifest, and whether the artefact was made anew.

    Raises:
        ArtifactError: the data stage has not run.
        DataError: labels are missing or malformed, or no user has both; the message names the rule.
        ConfigError: a field is set that the rule does not read; or finished pairs of other settings, without `replace`.
    """
    recipe = pairs_recipe(config)
    return recipe.make(lambda: _make(config, recipe))


def pairs_recipe(config: Config) -> Recipe:
    """What the artefact is made from."""
    settings, deciding = config.section("pairs"), config.key_fields("pairs")
    if config.pairs.source != "dataset":
        obeyed = _LAYOUTS[config.pairs.source].obeys
        strictness = {"data": {name: getattr(config.data, name) for name in obeyed}}
        settings, deciding = settings | strictness, deciding | strictness

    def inputs() -> dict[str, str]:
        return _inputs(config)

    folder, replace, wait = config.folder / "pairs", config.replace, config.wait
    return Recipe("pairs", folder, settings, inputs(), config.seed, deciding, replace, wait, reread=inputs)


def _inputs(config: Config) -> dict[str, str]:
    if config.pairs.source == "dataset":
        return {"data": require(config.folder / "data", "minionerec data prepare --config YOUR.yaml").digest}
    if not (folder := Path(str(config.pairs.path))).is_dir():
        raise DataError(f"{folder}: not a folder. pairs.path is the folder that holds your files.")
    try:
        files = _LAYOUTS[config.pairs.source].files(folder, config.data)
        return {path.name: file_hash(path) for path in files}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). pairs.path names your files.") from None


def _make(config: Config, recipe: Recipe) -> None:
    problems = Problems(skip=config.data.on_error == "skip")
    if config.pairs.source == "dataset":
        catalog, drawn, figures, rule = _of_dataset(config)
    else:
        layout = _LAYOUTS[config.pairs.source]
        folder = Path(str(config.pairs.path))
        catalog, drawn, figures = layout.read(folder, config.pairs, config.data, config.seed, problems)
        rule = layout.rule
    with recipe.write() as draft:
        PairSet(catalog, **drawn.splits, counts=drawn.counts(len(catalog))).save(draft.path)
        drawn.order.write_parquet(draft.path / "users.parquet")
        if problems.messages:
            (draft.path / "skipped.txt").write_text("\n".join(problems.messages) + "\n", encoding="utf-8")
        figures = {**_figures(drawn), **figures, **problems.counts}
        draft.metrics.update(figures, rule=rule, items=len(catalog), skipped_rows=len(problems.messages))


def _of_dataset(config: Config) -> tuple[pl.DataFrame, Drawn, dict[str, int], str]:
    """The pairs of the run's Dataset: catalog, what was drawn, figures, and the rule."""
    dataset = Dataset.load(config.folder / "data")
    rule = rule_of(dataset, config.pairs)
    if rule == "purchases":
        _warn_about_dropped_labels(config)
        candidates = purchases(dataset, config.pairs, config.seed)
    else:
        candidates = rated(dataset.interactions, config.pairs)
    return dataset.catalog, draw(candidates, config.pairs, config.seed), candidates.figures, rule


def _warn_about_dropped_labels(config: Config) -> None:
    dropped = Manifest.load(config.folder / "data").metrics.get(NEGATIVE, 0)
    if dropped:
        log.warning(
            "data.positive has dropped %d rows from the Dataset, which would be true dislikes; the pairs' dislikes are random "
            "items. For pairs of them: --pairs.source csv --pairs.path FOLDER, the folder of your files.",
            dropped,
        )


def _figures(drawn: Drawn) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, frame in reversed(drawn.splits.items()):  # test first: the first figures are those of the line on the screen
        figures[name] = len(frame)
        figures[f"{name}_users"] = frame["user"].n_unique()
    for name, frame in drawn.splits.items():
        figures[f"{name}_positives"] = int(frame["label"].sum())
        figures[f"{name}_older_candidates"] = drawn.older[name]
    return figures
