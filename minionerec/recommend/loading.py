"""What a recommender is made of, read from a run's folder or from an exported one."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from minionerec.artifacts import ITEM_STAGES, MANIFEST, Manifest, require
from minionerec.config import EvalConfig, PromptsConfig, run_file
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts
from minionerec.recommend import bundle
from minionerec.sid.index import SidIndex
from minionerec.tree import CatalogTrie

STAGES = ("sft", "rl")  # the training stages, in their order


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


def load_parts(folder: Path, stage: str | None, dtype: str | None) -> Parts:
    """Read a folder. `Recommender.load` describes arguments and errors."""
    return (
        _of_bundle(folder, stage, dtype) if bundle.is_bundle(folder) else _of_run(folder, trained_stage(folder, stage), dtype)
    )


def _of_run(folder: Path, stage: str, dtype: str | None) -> Parts:
    inputs = {name: require(folder / name, command).digest for name, command in ITEM_STAGES.items()}
    manifest = require(folder / stage, f"minionerec {stage}", made_from=inputs)
    trained = manifest.config["prompts"]
    # A field that another version did not record keeps its default here, and the check names it.
    config = PromptsConfig(**{field.name: trained[field.name] for field in fields(PromptsConfig) if field.name in trained})
    check_prompts(manifest.config, config, str(folder / stage))
    dataset = Dataset.load(folder / "data")
    index = SidIndex.load(folder / "sid", dataset)
    lists = _evaluated_with(folder, stage)
    lists = replace(lists, dtype=dtype or lists.dtype)
    model, tokenizer = checkpoint.load(str(folder / stage / "model"), lists.dtype)
    prompts = Prompts(dataset, index, tokenizer, config, checkpoint.context_of(model))
    return Parts(model, prompts, None, lists, None, None, {**inputs, stage: manifest.digest})


def _of_bundle(folder: Path, stage: str | None, dtype: str | None) -> Parts:
    exported = bundle.read(folder)
    if stage not in (None, exported.stage):
        raise ConfigError(f"stage {stage}: {folder} was exported from the stage {exported.stage} and holds no other.")
    lists = replace(exported.lists, dtype=dtype or exported.lists.dtype)
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


def _evaluated_with(folder: Path, stage: str) -> EvalConfig:
    """How a run's lists are made: as its evaluation made them, else as its `run.yaml` says, else by default."""
    values: dict[str, Any] = {}
    if (folder / run_file.RUN_FILE).is_file():
        values = run_file.load(folder).get("eval", {})
    if (folder / "eval" / stage / MANIFEST).is_file():
        values = Manifest.load(folder / "eval" / stage).config["eval"]
    return EvalConfig(**{field.name: values[field.name] for field in fields(EvalConfig) if field.name in values})
