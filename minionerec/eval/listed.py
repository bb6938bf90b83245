"""Predictions of recommenders that list items without a language model: the floors, and the run's baselines."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from minionerec.artifacts import ITEM_STAGES, MANIFEST, Manifest, changed_input, of_another_revision, require
from minionerec.baselines import trivial
from minionerec.config import FLOORS, GENERATIVE_BASELINES, PLAIN_FLOORS, BaselineConfig, Config, run_file
from minionerec.config.lego import options_of
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.data.parquet import read_parquet
from minionerec.data.vectors import training_command
from minionerec.errors import ArtifactError, ConfigError, MiniOneRecError
from minionerec.eval.coded import inputs_of
from minionerec.eval.predictions import Prediction, as_predictions
from minionerec.recommend.cache.vectors import has_vectors, present_digest, vectors_digest, vectors_of_run
from minionerec.sid.index import SidIndex
from minionerec.training.ranking import TIES, frame
from minionerec.training.ranking_data import from_dataset

WEIGHTS = "weights.json"  # of `mixture`, next to its predictions
LEGO = "lego-"  # begins the names of content recommenders
_MOST_CELLS = (
    10**9
)  # rows of valid and test times items: some minutes; larger runs ask for such floors by `minionerec baseline`

_Ranked = tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray]]  # lists; the targets' best ranks and ties

log = logging.getLogger(__name__)


def floors(config: Config) -> list[str]:
    """Those of `FLOORS` that evaluation computes itself for this run, in their order.

    All but popularity and repeat need rows in every split, and a catalog that is not too large to be scored whole for each of
    them; `text` needs item vectors. What the run has as a stored baseline is evaluated as that, and not computed here.
    """
    if not (config.folder / "data" / MANIFEST).is_file():
        return list(PLAIN_FLOORS)
    dataset = Dataset.load(config.folder / "data")
    rows = {split: len(dataset.split(split)) for split in SPLITS}
    names = [name for name in FLOORS if name in PLAIN_FLOORS or not is_stored(config, name)]
    if not all(rows.values()) or (rows["valid"] + rows["test"]) * len(dataset.catalog) > _MOST_CELLS:
        return [name for name in names if name in PLAIN_FLOORS]
    if not has_vectors(config, dataset):
        return [name for name in names if name != "text"]
    if not {"text", "mixture"} & set(names):
        return names
    try:
        vectors_of_run(config, dataset)
    except ConfigError as error:  # the semantic IDs were made on another machine, and their encoder is not here
        log.warning("text and mixture are not evaluated: %s", error)
        return [name for name in names if name not in ("text", "mixture")]
    return names


def stored_artefact(name: str) -> str:
    """The artefact in a run that has the lists of a recommender: a baseline's, or of `lego-<title>` a content recommender's."""
    return f"lego/lists/{name.removeprefix(LEGO)}" if name.startswith(LEGO) else f"baselines/{name}"


def stored_command(name: str) -> str:
    """The command that makes these lists."""
    if name.startswith(LEGO):
        return f"minionerec lego --lego.task lists {options_of(name.removeprefix(LEGO))}"
    return training_command(name)


def _section(name: str) -> str:
    """The section of a manifest that has the settings of a recommender's stored lists."""
    return "lego" if name.startswith(LEGO) else "baseline"


def _says_ties(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a recommender's stored lists say where scores are equal, if they are read. `config` is that of their manifest."""
    return name in GENERATIVE_BASELINES or TIES.items() <= config[_section(name)].items()


def why_measured_otherwise(run: Path, name: str, evaluation: Manifest) -> str | None:
    """Why an evaluation of what the run still has does not count any more, in words; None if it does.

    An earlier version measured otherwise, the stored lists mix in a baseline that is another by now, or the item vectors that
    were read are others by now. Files are not checked.
    """
    source = stored_artefact(name)
    lists = Manifest.load(run / source, editable=None) if source in evaluation.inputs else None
    if of_another_revision(evaluation) or (lists is not None and not _says_ties(name, lists.config)):
        return "made by an earlier version, which measured otherwise"
    if lists is not None and (changed := _changed_baseline(run, lists)) is not None:
        return f"made from lists with another {changed} than the run has"
    if _of_other_vectors(run, lists or evaluation):
        return "made with other item vectors than the run has"
    return None


def _changed_baseline(run: Path, lists: Manifest) -> str | None:
    """The baseline that stored lists mix with counts, if it is another by now or gone."""
    changed = changed_input(run, lists)
    return changed if changed is not None and changed.startswith("baselines/") else None


def _own_configuration(run: Path) -> Config | None:
    """The configuration in a run's `run.yaml`; None if there is none that this version reads."""
    try:
        return run_file.configuration(run)
    except ConfigError:
        return None


def _of_other_vectors(run: Path, made: Manifest, config: Config | None = None) -> bool:
    """Whether an artefact was made with other item vectors than its run has; False if those are not at hand.

    Args:
        made: of a baseline or an evaluation.
        config: says which the run has; None for its own configuration.
    """
    if "vectors" not in made.inputs or (config := config or _own_configuration(run)) is None:
        return False
    return present_digest(config, Dataset.load(config.folder / "data")) not in (None, made.inputs["vectors"])


def stored_lists(run: Path, name: str, made_from: Mapping[str, str], config: Config | None = None) -> Manifest:
    """The manifest of a recommender's stored lists or, of a baseline that writes codes, of the weights that are asked anew.

    Args:
        made_from: digests of what they must have been made from, by the name of the input.
        config: says which item vectors the run has; None for its own configuration.

    Raises:
        ArtifactError: they are missing or damaged, or other data, vectors, another baseline or a version without ties made
            them.
    """
    manifest = require(run / stored_artefact(name), stored_command(name), made_from=made_from)
    where, again = run / stored_artefact(name), f"{stored_command(name)} --replace (same --config and options)."
    if not _says_ties(name, manifest.config):
        raise ArtifactError(
            f"{where}: an earlier version made these lists, which do not say where scores are equal. Make them again: {again}"
        )
    if (changed := _changed_baseline(run, manifest)) is not None:
        raise ArtifactError(
            f"{where}: these lists were made with another {changed} than the run has now. Make them again: {again}"
        )
    if _of_other_vectors(run, manifest, config):
        raise ArtifactError(
            f"{where}: was made with other item vectors than the run has now. Name those that it was made with (--sid.vectors "
            f"FILE.npy), or make it again: {again}"
        )
    return manifest


def why_unusable(run: Path, name: str, config: Config | None = None) -> str | None:
    """Why a recommender's stored lists or weights cannot be read, and what to do: they are damaged, or made from other data
    or item vectors.

    None if they can be read, or if none are stored.

    Args:
        config: says which item vectors the run has; None for its own configuration.

    Raises:
        ArtifactError: the run has no data, or no semantic IDs for a baseline that writes codes.
    """
    if not _has_stored(run, name):
        return None
    stages = ITEM_STAGES if name in GENERATIVE_BASELINES else ("data",)
    made_from = {stage: require(run / stage, ITEM_STAGES[stage]).digest for stage in stages}
    try:
        stored_lists(run, name, made_from, config)
    except ArtifactError as error:
        return str(error)
    return None


def left_out(config: Config, names: Iterable[str]) -> dict[str, str]:
    """The recommenders that a run's evaluation leaves out, each with the reason and what to do.

    The reason is that of `why_unusable`, that the stored lists are too short, or that a model cannot be asked. The run's data
    are read at most once for the lengths.

    Raises:
        ArtifactError: the run has no data.
    """
    reasons: dict[str, str] = {}
    needed: int | None = None
    for name in names:
        reason = why_unusable(config.folder, name, config) or _why_not_asked(config, name)
        cut = config.eval.exclude_history and name not in GENERATIVE_BASELINES  # their searches leave it out
        if reason is None and cut and _has_stored(config.folder, name):
            needed = needed or _needed_length(config, Dataset.load(config.folder / "data"))
            reason = _too_short(name, config, needed)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _why_not_asked(config: Config, name: str) -> str | None:
    """Why a model cannot be asked: it never learnt to write SIDs, or what a baseline that writes codes reads of the items is
    another now, or not to be had.
    """
    if name == "sft" and not config.sft.writes_sids:
        return (
            f"Its tasks [{', '.join(config.sft.task_names)}] have no SID as an answer, so it has never written one; it writes "
            "titles. Evaluate these: --eval.title_trie true, or --eval.grounding trained (or base)."
        )
    if name not in GENERATIVE_BASELINES or not _has_stored(config.folder, name):
        return None
    try:
        inputs_of(config, name)
    except MiniOneRecError as error:
        return str(error)
    return None


def is_stored(config: Config, name: str) -> bool:
    """Whether the lists of this recommender are read from a baseline, or a content recommender, of the run."""
    return name not in FLOORS or _has_stored(config.folder, name)


def _has_stored(run: Path, name: str) -> bool:
    """Whether a run has stored lists of a recommender that are read: popularity and repeat are always counted anew."""
    return name not in PLAIN_FLOORS and (run / stored_artefact(name) / MANIFEST).is_file()


def _vectors_for(name: str, config: Config, dataset: Dataset) -> np.ndarray | None:
    """The item vectors that a floor reads; None if it reads none, or the run has none."""
    available = has_vectors(config, dataset)
    needed = name in FLOORS and trivial.needs_vectors(BaselineConfig(model=name), available)
    return vectors_of_run(config, dataset) if needed else None


def floor_vectors_digest(name: str, config: Config) -> str | None:
    """Identifies the item vectors that a floor reads; None if it reads none."""
    if name not in trivial.WITH_VECTORS:
        return None
    vectors = _vectors_for(name, config, Dataset.load(config.folder / "data"))
    return None if vectors is None else vectors_digest(vectors)


def listed_predictions(
    name: str, config: Config, dataset: Dataset, index: SidIndex, keep: Path | None = None
) -> list[Prediction]:
    """Predictions for the whole split, in its order. Lists have at most `eval.num_beams` items.

    Args:
        name: one of `FLOORS`, a content recommender, or a baseline of the run that scores every item.
        keep: a folder for the weights of `mixture`; None keeps them nowhere.

    Raises:
        ArtifactError: histories are excluded, and the baseline's stored lists are too short to lose them.
        ConfigError, DataError: a floor needs item vectors or rows that the run does not have.
    """
    examples, length = dataset.split(config.eval.split), config.eval.num_beams
    longest = _longest_hidden(config, dataset)
    places = None
    if name == "popularity":
        rankings = trivial.popularity(dataset, length + longest, config.eval.split)
        places = trivial.popularity_places(dataset, config.eval.split, config.eval.exclude_history)
    elif name == "repeat":
        rankings = trivial.repeat_last(examples, length)
    elif is_stored(config, name):
        rankings, places = _of_baseline(name, config, dataset)
    else:
        rankings, places = _of_floor(name, config, dataset, length + longest, keep)
    if config.eval.exclude_history:
        histories = examples["history"].to_list()
        rankings = [ranking[~np.isin(ranking, history)] for ranking, history in zip(rankings, histories, strict=True)]
    ids = dataset.catalog["item_id"].to_list()
    return as_predictions(examples, [ranking[:length] for ranking in rankings], index, ids, places=places)


def _of_floor(name: str, config: Config, dataset: Dataset, length: int, keep: Path | None) -> _Ranked:
    """The lists of a floor with its default options, and the targets' places, as `minionerec baseline` would store them."""
    baseline = BaselineConfig(model=name)
    data = from_dataset(dataset, baseline.max_history)
    recommender = trivial.make_trivial(baseline, data, _vectors_for(name, config, dataset))
    if keep is not None and isinstance(recommender, trivial.CacheMixture):
        recommender.mixture.weights.save(keep / WEIGHTS)
    table = frame(data, config.eval.split, trivial.floor_ranking(recommender, data, config.eval.split, length))
    return _read_table(table, config)


def _longest_hidden(config: Config, dataset: Dataset) -> int:
    """Items of the longest history that is taken out of a list."""
    histories = dataset.split(config.eval.split)["history"]
    return int(cast(int, histories.list.len().max() or 0)) if config.eval.exclude_history else 0


def _needed_length(config: Config, dataset: Dataset) -> int:
    """Items of a stored list from which any history of the split can be left out."""
    return min(config.eval.num_beams + _longest_hidden(config, dataset), len(dataset.catalog))


def _too_short(name: str, config: Config, needed: int) -> str | None:
    """That stored lists have fewer items than needed, and what to do; None if they have enough."""
    folder = config.folder / stored_artefact(name)
    stored = Manifest.load(folder).config[_section(name)]["top"]
    if stored >= needed:
        return None
    return (
        f"{folder}: the lists have {stored} items, but {needed} are needed to leave out histories and keep "
        f"{config.eval.num_beams}. Run {stored_command(name)} --replace with eval.exclude_history set: it then stores enough."
    )


def _of_baseline(name: str, config: Config, dataset: Dataset) -> _Ranked:
    """The lists that a baseline of the run has stored, and the targets' places.

    Raises:
        ArtifactError: histories are left out, and the lists are too short for it.
    """
    if config.eval.exclude_history and (reason := _too_short(name, config, _needed_length(config, dataset))) is not None:
        raise ArtifactError(reason)
    path = config.folder / stored_artefact(name) / f"{config.eval.split}.parquet"
    return _read_table(read_parquet(path, ArtifactError, f"Run {stored_command(name)} again."), config)


def _read_table(table: pl.DataFrame, config: Config) -> _Ranked:
    """What `training.ranking.frame` says of lists, and of the places by the run's rule for the history."""
    suffix = "_left_out" if config.eval.exclude_history else ""
    lists = [np.array(items, dtype=np.int64) for items in table["items"].to_list()]
    return lists, (table[f"rank{suffix}"].to_numpy(), table[f"ties{suffix}"].to_numpy())
