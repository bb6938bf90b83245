"""A small synthetic experiment for whole-pipeline tests: users walk around a ring of items, so the next one can be learnt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import yaml

from minionerec.artifacts import MANIFEST, Manifest, file_hash, read_json
from minionerec.cli import parse
from minionerec.config import Config, DataConfig, ModelConfig, TaskName
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, Dataset, SplitName
from minionerec.data.prepare import build_dataset
from minionerec.sid.index import SidIndex

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen2Tokenizer

    from minionerec.prompts.builder import Prompts
    from minionerec.prompts.encode import TokenExample

_WORDS = ("red", "blue", "old", "new", "small", "large", "round", "square")
_THINGS = ("lamp", "chair", "table", "cup", "spoon", "knife", "bowl", "vase")


def write_csv(folder: Path, users: int = 40, items: int = 48, seed: int = 0) -> Path:
    """Write interactions.csv and items.csv."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    titles = [f"{_WORDS[i % 8]} {_THINGS[i // 8 % 8]} number {i}" for i in range(items)]
    rows = ["item,title", *(f"i{i},{title}" for i, title in enumerate(titles))]
    (folder / "items.csv").write_text("\n".join(rows) + "\n")
    lines = ["user,item,timestamp"]
    for user in range(users):
        item = int(rng.integers(items))
        for step in range(int(rng.integers(6, 14))):
            lines.append(f"u{user},i{item},{1_000_000 + step}")
            item = (item + int(rng.integers(1, 3))) % items
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    return folder


def values(data: Path, out: Path) -> dict:
    """The configuration of a run of about ten seconds, as plain values."""
    return {
        "name": "small",
        "out": str(out),
        "seed": 7,
        "data": {"source": "csv", "path": str(data), "max_history": 6},
        "sid": {"encoder": "tfidf", "levels": 3, "codebook_size": 8},
        "model": {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 2, "vocabulary": 400},
        "sft": {
            "history_stride": 6,
            "batch_size": 8,
            "micro_batch": 4,
            "row_tokens": 64,
            "epochs": 8,
            "learning_rate": 1e-2,
            "evaluations": 4,
        },
        "rl": {
            "max_examples": 64,
            "num_generations": 4,
            "prompts_per_step": 8,
            "micro_batch_prompts": 4,
            "checkpoints": 4,
            "learning_rate": 1e-3,
        },
        "eval": {"num_beams": 10, "batch_size": 16, "resamples": 200},
        "report": {"examples": 3},
    }


def write_config(folder: Path, **changes: dict) -> Path:
    """Write data and configuration below a folder; `changes` update sections. Returns the configuration's path."""
    chosen = values(write_csv(folder / "raw"), folder / "run")
    for section, fields in changes.items():
        chosen[section] = {**chosen.get(section, {}), **fields}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(chosen))
    return path


def config(folder: Path, **changes: dict) -> Config:
    """The same configuration as an object."""
    made = parse("run", ["--config", str(write_config(folder, **changes))])
    assert made is not None
    made.replace = True  # tests run a stage again with other settings
    return made


SEQUENCES = {"short": [4, 0, 1], "long": [2, 3, 2, 2, 0, 1], "mid": [4, 3, 1, 1]}


def leave_one_out(sequences: dict[str, list[int]], items: int, max_history: int) -> Dataset:
    """A dataset of users' sequences of items; the last item of each is its test target, the one before its valid target."""
    rows = {"train": [], "valid": [], "test": []}
    for user, sequence in sequences.items():
        for position in range(1, len(sequence)):
            split = {len(sequence) - 1: "test", len(sequence) - 2: "valid"}.get(position, "train")
            history = sequence[max(0, position - max_history) : position]
            rows[split].append((user, history, sequence[position], 0, position))
    ids = [str(item) for item in range(items)]
    catalog = pl.DataFrame({"item_id": ids, "title": ids, "text": ids}, schema=CATALOG_SCHEMA)
    return Dataset(catalog, **{name: pl.DataFrame(some, schema=SPLIT_SCHEMA, orient="row") for name, some in rows.items()})


def random_dataset(users: int = 20, items: int = 30, seed: int = 0) -> tuple[Dataset, SidIndex]:
    """A dataset and a SID index in memory, without files."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, items, rng.integers(4, 12)).tolist() for _ in range(users)]
    interactions = pl.DataFrame(
        [(f"u{user}", f"i{item}", step) for user, sequence in enumerate(sequences) for step, item in enumerate(sequence, 1)],
        schema={"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
        orient="row",
    )
    titles = [f"{_WORDS[i % 8]} {_THINGS[i // 8 % 8]} {i}" for i in range(items)]
    catalog = pl.DataFrame({"item_id": [f"i{i}" for i in range(items)], "title": titles, "text": titles})
    dataset, _ = build_dataset(interactions, catalog, DataConfig(max_history=6))
    codes = np.stack([np.arange(items) // 6, np.arange(items) % 6, rng.integers(0, 6, items)], axis=1).astype(np.int32)
    return dataset, SidIndex(codes, (6, 6, 6), dataset.digest)


def untrained_model(dataset: Dataset, index: SidIndex, sizes: ModelConfig) -> "tuple[PreTrainedModel, Qwen2Tokenizer]":
    """A model from scratch and its tokenizer, with the SID tokens of the dataset."""
    from minionerec.model import checkpoint, scratch
    from minionerec.prompts.builder import tokenizer_corpus

    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return model, tokenizer


def listed_examples(prompts: "Prompts", task: TaskName, split: SplitName = "train", stride: int = 1) -> list["TokenExample"]:
    """A task's examples with their tokens as lists, which compare with other lists; from the cache they are views of a file."""
    examples = prompts.examples(task, split, stride)
    return [replace(example, prompt=[*example.prompt], completion=[*example.completion]) for example in examples]


def reseal(folder: Path, **changes: Any) -> None:
    """Give an artefact the manifest that its stage would have written with these values and with the files as they are now."""
    manifest = dict(read_json(folder / MANIFEST))
    del manifest["checksum"]
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)} for name in manifest["files"]}
    Manifest(**{**manifest, "files": files, **changes}).save(folder)


def losses(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log that a finished training leaves in its folder."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
