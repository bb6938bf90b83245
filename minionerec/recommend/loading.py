"""What a recommender is made of, read from a run's folder or from an exported one."""

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from minionerec.artifacts import ITEM_STAGES, MANIFEST, Manifest, require
from minionerec.config import TASKS, EvalConfig, PromptsConfig, TaskName, run_file
from minionerec.config.evaluation import Dtype
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts
from minionerec.recommend import bundle
from minionerec.recommend.variants import STAGES
from minionerec.sid.index import SidIndex
from minionerec.tree import CatalogTrie

if TYPE_CHECKING:
    from minionerec.recommend.cache import Mixture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The arguments of `Recommender`, which says what they are; the model and the trie are on the CPU."""

    model: PreTrainedModel
    prompts: Prompts
    trie: CatalogTrie | None
    lists: EvalConfig
    max_history: int | None
    popularity: np.ndarray | None
    digests: dict[str, str]
    mixture: "Mixture | None" = None


def load_parts(folder: Path, stage: str | None, dtype: Dtype | None, mixture: bool | None = None) -> Parts:
    """Read a folder. `Recommender.load` describes arguments and errors."""
    if not bundle.is_bundle(folder):
        return _of_run(folder, trained_stage(folder, stage), dtype, mixture)
    if mixture:
        raise ConfigError(f"{folder}: an exported folder holds a model alone, without the interactions that a mixture counts.")
    return _of_bundle(folder, stage, dtype)


def has_mixture(folder: Path, stage: str) -> bool:
    """Whether weights of a mixture were fitted to a run's model."""
    return (folder / "mixture" / stage / MANIFEST).is_file()


def _of_run(folder: Path, stage: str, dtype: Dtype | None, mixture: bool | None) -> Parts:
    inputs = {name: require(folder / name, command).digest for name, command in ITEM_STAGES.items()}
    manifest = require(folder / stage, f"minionerec {stage}", made_from=inputs)
    if stage == "sft":
        _refuse_without_sids(folder, manifest.config["sft"]["tasks"])
    trained = manifest.config["prompts"]
    # A field that another version did not record keeps its default here, and the check names it.
    config = PromptsConfig(**{field.name: trained[field.name] for field in fields(PromptsConfig) if field.name in trained})
    check_prompts(manifest.config, config, str(folder / stage))
    dataset = Dataset.load(folder / "data")
    index = SidIndex.load(folder / "sid", dataset)
    if mixture is None:
        mixture = has_mixture(folder, stage)
        if not mixture and (others := [other for other in STAGES if has_mixture(folder, other)]):
            log.warning(
                "%s: a mixture was fitted to the model of stage %s; that of stage %s has none, so it ranks alone. Fit one: "
                "minionerec mixture --config %s",
                folder,
                others[-1],
                stage,
                folder,
            )
    settings = _settings(folder)
    lists = _evaluated_with(folder, f"{stage}-mixture" if mixture else stage, settings)
    if mixture and has_mixture(folder, stage):  # its weights were fitted to lists that are made so
        # Its files are checked once, where the weights are read (`load_cache`).
        fitted = Manifest.load(folder / "mixture" / stage, editable=None).config["eval"]
        lists = replace(lists, normalise_over="catalog", exclude_history=fitted["exclude_history"], dtype=fitted["dtype"])
    if (assistant := settings.get("assistant")) is not None:
        log.warning(
            "%s: eval.assistant is %s, which has vectors for the rows of the splits only; the lists leave it out.",
            folder,
            assistant,
        )
    lists = _in_dtype(lists, dtype)
    model, tokenizer = checkpoint.load(str(folder / stage / "model"), lists.dtype)
    prompts = Prompts(dataset, index, tokenizer, config, checkpoint.context_of(model))
    digests = {**inputs, stage: manifest.digest}
    if not mixture:
        return Parts(model, prompts, None, lists, None, None, digests)
    from minionerec.recommend.mixing import load_cache  # needs scipy

    cache, digest = load_cache(folder, stage, dataset, digests)
    return Parts(model, prompts, None, lists, None, None, {**digests, f"mixture/{stage}": digest}, cache)


def _refuse_without_sids(folder: Path, tasks: list[TaskName] | Literal["released"]) -> None:
    """Refuse a model that was trained on texts alone: lists of SIDs that it never learnt to write would look like any others.

    Raises:
        ConfigError: no task has a SID as its answer.
    """
    if tasks != "released" and not any(TASKS[task].answers_with_sid for task in tasks):
        raise ConfigError(
            f"{folder / 'sft'}: was trained on [{', '.join(tasks)}], none of which has a SID as its answer, so it cannot list "
            "items by their SIDs. Train it with history_sid_to_sid, too, or see the lists of its titles: minionerec eval "
            f"--config {folder} --eval.title_trie true"
        )


def _of_bundle(folder: Path, stage: str | None, dtype: Dtype | None) -> Parts:
    exported = bundle.read(folder)
    if stage not in (None, exported.stage):
        raise ConfigError(f"stage {stage}: {folder} was exported from the stage {exported.stage} and holds no other.")
    lists = _in_dtype(exported.lists, dtype)
    model, tokenizer = checkpoint.load(str(folder), lists.dtype)
    prompts = Prompts(exported.dataset, exported.index, tokenizer, exported.prompts, checkpoint.context_of(model))
    trie = CatalogTrie.load(folder / bundle.TRIE)
    if not torch.equal(trie.sid(trie.leaf_of_item.long()), prompts.sid_tokens):
        raise ArtifactError(f"{folder / bundle.TRIE}: has other SIDs than {bundle.SIDS} next to it. Export the run again.")
    digests = {"bundle": bundle.load_manifest(folder).digest}
    return Parts(model, prompts, trie, lists, exported.max_history, exported.popularity, digests)


def trained_stage(folder: Path, stage: str | None) -> str:
    """The training stage that is asked: the one that is named, else the last that the run has.

    Raises:
        ConfigError: there is no such stage.
    """
    if stage is None:
        return "rl" if (folder / "rl" / MANIFEST).is_file() else "sft"
    if stage not in STAGES:
        raise ConfigError(f"stage {stage}: no such training stage; expected one of {', '.join(STAGES)}.")
    return stage


def _in_dtype(lists: EvalConfig, dtype: str | None) -> EvalConfig:
    """How lists are made, with another number format if one is given."""
    changes: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    return replace(lists, **changes)


def _settings(folder: Path) -> dict[str, Any]:
    """The section `eval` of a run's `run.yaml`; empty without one."""
    section: dict[str, Any] = run_file.load(folder).get("eval", {}) if (folder / run_file.RUN_FILE).is_file() else {}
    return section


def _evaluated_with(folder: Path, name: str, values: dict[str, Any]) -> EvalConfig:
    """As the evaluation of this name made a run's lists, else as its `run.yaml` says (`values`), else by default."""
    if (folder / "eval" / name / MANIFEST).is_file():
        values = Manifest.load(folder / "eval" / name).config["eval"]
    return EvalConfig(**{field.name: values[field.name] for field in fields(EvalConfig) if field.name in values})
