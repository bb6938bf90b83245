"""What both trainings refuse before anything is loaded, even before earlier stages run. Nothing here imports torch."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from pyarrow import parquet

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import GENERATIVE_BASELINES, TASKS, TRIVIAL_BASELINES, Config, TaskName
from minionerec.data.parquet import read_parquet
from minionerec.data.texts import check_titled
from minionerec.data.vectors import stored_baseline
from minionerec.errors import ArtifactError, ConfigError
from minionerec.sid.encoder import check_encoder, vector_origin


def check_trackers(field: str, names: Collection[str]) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        ConfigError: transformers does not know it, or its package is missing.
    """
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    available = sorted(get_available_reporting_integrations())
    missing = sorted({*names} - {*available})
    if missing:
        raise ConfigError(
            f"{field} names {missing[0]}, which transformers does not know or whose package is not installed (pip install "
            f"{missing[0]}); available are: {', '.join(available) or 'none'}."
        )


def check_cutoff(field: str, metric: str, config: Config, else_do: str | None = None) -> None:
    """Refuse a metric that looks further down a list than lists are long: NDCG@50 of 10 beams would be NDCG@10.

    Args:
        else_do: what helps beside more beams; None for a smaller cut-off.

    Raises:
        ConfigError: the metric's cut-off is above `eval.num_beams`.
    """
    name, _, cutoff = metric.partition("@")
    if cutoff and int(cutoff) > config.eval.num_beams:
        raise ConfigError(
            f"{field} is {metric}, but lists end after {config.eval.num_beams} SIDs (eval.num_beams). "
            f"{else_do or f'Choose a smaller cut-off, such as {name}@1'}, or more beams."
        )


def check_baseline(field: str, name: str, config: Config, pending: Collection[str] = ()) -> None:
    """Refuse a setting that asks a trained baseline of the run, if the run has none that can be asked.

    Args:
        field: the setting, as the message names it.
        name: of the baseline.
        pending: stages that run before it is asked: `baseline` trains `baseline.model`, `data` may change what it must be of.

    Raises:
        ConfigError: this baseline has no vectors.
        ArtifactError: it is not trained yet, it is damaged, or it was trained on other data or on a file of sequences.
    """
    if name in TRIVIAL_BASELINES:
        raise ConfigError(f"{field} {name} only counts and has no vectors. Choose a neural baseline, e.g. sasrec.")
    if name in GENERATIVE_BASELINES:
        raise ConfigError(f"{field} {name} writes codes and has no vectors. Choose another neural baseline, e.g. sasrec.")
    if "baseline" in pending and config.baseline.model == name:
        return
    run = config.folder
    if not (run / "baselines" / name / MANIFEST).is_file():
        before = "" if (run / "data" / MANIFEST).is_file() else "minionerec data prepare, then "
        raise ArtifactError(
            f"{run / 'baselines' / name}: no finished artefact here, but {field} needs this baseline. First run, with the same "
            f"--config and options: {before}minionerec baseline --baseline.model {name}"
        )
    if "data" not in pending and (run / "data" / MANIFEST).is_file():
        stored_baseline(run, name, Manifest.load(run / "data", editable=None).digest)


def check_assistant(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse an assistant that cannot help, or a weight that would be chosen by lists that are too short.

    Args:
        pending: stages that run before it.

    Raises:
        ConfigError: `eval.assistant` is null, or names a baseline without vectors, or lists are shorter than 10.
        ArtifactError: as `check_baseline`.
    """
    if config.eval.assistant is None:
        raise ConfigError(
            "eval.assistant is null, so nothing helps the model. Name a neural baseline of the run, such as sasrec."
        )
    check_baseline("eval.assistant", config.eval.assistant, config, pending)
    if config.eval.assistant_weight is None:
        check_cutoff("the metric by which minionerec d3 chooses", "NDCG@10", config, "Set eval.assistant_weight")


def check_title_assistant(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse what cannot weigh the distances of titles, or a weight that cannot be chosen, before any title is written.

    Args:
        pending: stages that run before it.

    Raises:
        ConfigError: `eval.title_assistant` names a baseline without vectors; or the weight is to be chosen, and lists are
            shorter than 10 or the valid split is empty.
        ArtifactError: as `check_baseline`.
    """
    if (name := config.eval.title_assistant) is None:
        return
    if name != "popularity":
        check_baseline("eval.title_assistant", name, config, pending)
    if config.eval.chooses_title_weight:
        check_cutoff("the metric by which eval.title_weight is chosen", "NDCG@10", config, "Set eval.title_weight")
        if "data" not in pending:
            check_valid_rows(config, "eval.title_weight is chosen on it", "set eval.title_weight")


def check_titles(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse a catalog that cannot be ranked by its titles, before a model is trained to write them.

    Args:
        pending: stages that run before it.

    Raises:
        DataError: `eval.grounding` or `eval.title_trie` asks for titles, and an item has none.
    """
    asked = {"eval.grounding": config.eval.grounding != "none", "eval.title_trie": config.eval.title_trie}
    needed_by = next((field for field, is_set in asked.items() if is_set), None)
    if needed_by is not None and "data" not in pending and rows_of(config.folder, "catalog"):
        path = config.folder / "data" / "catalog.parquet"
        check_titled(read_parquet(path, ArtifactError, "Run minionerec data prepare again."), needed_by)


def check_components(config: Config) -> None:
    """Refuse to fit a mixture of nothing, with scores over the vocabulary, or by lists that are too short for the metric.

    Raises:
        ConfigError: `mixture.components` is empty, `eval.normalise_over` is not `catalog`, or `mixture.choose_by` looks further
            down a list than lists are long.
    """
    config.check_mixable()
    if not config.mixture.components:
        raise ConfigError(
            "mixture.components is empty, so there is nothing to mix in. Name some, such as --mixture.components "
            "'[popularity,markov,skip,item-knn]'."
        )
    check_cutoff("mixture.choose_by", config.mixture.choose_by, config, "Set mixture.choose_by likelihood")


def check_mixture(config: Config, pending: Collection[str]) -> None:
    """Refuse a mixture that cannot be fitted, before anything is trained.

    Args:
        pending: stages that run before it and may change what they have left so far.

    Raises:
        ArtifactError: as `check_mixed_in`.
        ConfigError: as `check_mixed_in`, or the valid split is empty.
    """
    check_mixed_in(config, pending)
    if "data" not in pending:
        check_valid_rows(config, "the weights of a mixture are fitted to it", "set mixture.components []")


def check_mixed_in(config: Config, pending: Collection[str]) -> None:
    """Refuse components that cannot be mixed in, before anything is trained.

    Args:
        pending: stages that run before and may change what they have left so far.

    Raises:
        ArtifactError: the baseline of `sequential` cannot be asked, see `check_baseline`.
        ConfigError: no component is named, or the encoder of `text` is not there.
    """
    check_components(config)
    if "text" in config.mixture.components:
        check_vectors(config, pending)
    check_component_baseline(config, pending)


def check_component_baseline(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse a mixture whose trained baseline cannot be asked; raises as `check_baseline`.

    Args:
        pending: stages that run before it is asked.
    """
    if config.mixture.sequential is not None:
        check_baseline("mixture.sequential", config.mixture.sequential, config, pending)


def check_valid_rows(config: Config, why: str, else_do: str) -> None:
    """Refuse to choose on a valid split without rows.

    Raises:
        ConfigError: it has none; the message says why it is needed and what else to do.
    """
    if rows_of(config.folder, "valid") == 0:
        raise ConfigError(
            f"{config.folder / 'data'}: the valid split is empty, and {why}. Make it with data.split or data.parts, or "
            f"{else_do}."
        )


def check_vectors(config: Config, pending: Collection[str]) -> None:
    """Refuse a run whose item vectors cannot be made here: those of its semantic IDs, if these are made already.

    Args:
        pending: stages that run before and may change what they have left so far.

    Raises:
        ArtifactError: the run's semantic IDs are damaged.
        ConfigError: their encoder, or the file of vectors, is not there.
    """
    check_encoder(config.sid if "sid" in pending else vector_origin(config)[0])


def rows_of(run: Path, name: str) -> int | None:
    """How many rows a file of the run's data has, such as `train` or `catalog`; None if the data stage has not finished."""
    if not (run / "data" / MANIFEST).is_file():
        return None
    try:
        return int(parquet.read_metadata(run / "data" / f"{name}.parquet").num_rows)
    except (OSError, ValueError):  # missing or damaged: the stage that loads the data says so
        return None


def most_examples(run: Path, tasks: Collection[TaskName], shares: Mapping[TaskName, float], split: str = "train") -> int | None:
    """How many examples of a split tasks have at most; None if the data stage has not finished."""
    train, items = rows_of(run, split), rows_of(run, "catalog")
    if train is None or items is None:
        return None
    return sum(math.ceil((train if TASKS[task].reads_history else items) * shares.get(task, 1.0)) for task in tasks)
