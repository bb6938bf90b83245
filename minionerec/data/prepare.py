"""Stage `data`: raw files to a Dataset.

Inputs: ml-100k (downloaded once into the cache), or your own csv or RecBole files.
Outputs: `<run>/data/` with `catalog.parquet`, `train.parquet`, `valid.parquet`, `test.parquet`, `manifest.json`.
Deviation from the paper: leave-last-two-out per user instead of one global split by time.
Command: `python data/prepare.py --config ml-100k.yaml`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from minionerec.artifacts import (
    Manifest,
    cache_folder,
    content_hash,
    file_hash,
    is_current,
    write_artifact,
)
from minionerec.config import Config, DataConfig
from minionerec.data.dataset import SPLIT_SCHEMA, SPLITS, Dataset
from minionerec.data.readers import Frames, raw_files, read_csv, read_movielens_zip, read_recbole
from minionerec.data.sources import fetch_ml_100k
from minionerec.errors import ArtifactError, DataError


class Plan(NamedTuple):
    """What the stage would read: the artefact's key, the SHA-256 of each raw file, and where the files are."""

    key: str
    inputs: dict[str, str]
    source: Path


def plan(config: Config) -> Plan:
    """Find the raw files (ml-100k: download them unless cached) and hash them.

    Raises:
        DataError: see `fetch_ml_100k` and `raw_files`.
    """
    data = config.data
    source = Path(data.path) if data.path else None
    if data.source == "ml-100k":
        source = fetch_ml_100k(cache_folder() / "ml-100k", source)
    if source is None:
        raise DataError(f"data.source {data.source!r} needs data.path, the folder that holds your files.")
    if source.suffix == ".zip" and data.source == "ml-100k":
        files: tuple[Path, ...] = (source,)
    else:
        files = raw_files("csv" if data.source == "csv" else "recbole", source)
    inputs = {path.name: file_hash(path) for path in files}
    return Plan(_key(config, inputs), inputs, source)


def run(config: Config) -> tuple[Manifest, bool]:
    """Write `<run>/data/`, unless it is there already with the same key.

    Returns:
        the manifest, and whether the artefact was made anew.

    Raises:
        DataError: the raw files are missing or malformed, or nothing is left of them.
        ArtifactError: the disk is full.
    """
    folder = config.folder / "data"
    if config.data.source == "ml-100k" and (made := _made_from_a_download(config)):
        return made, False
    key, inputs, source = plan(config)
    if is_current(folder, key):
        return Manifest.load(folder), False
    interactions, items = _read(config.data, source)
    dataset, metrics = build(interactions, items, config.data)
    with write_artifact(folder, stage="data", key=key, config=config.section("data"), inputs=inputs, seed=config.seed) as draft:
        dataset.save(draft.path)
        draft.metrics.update(metrics)
    return Manifest.load(folder), True


def _made_from_a_download(config: Config) -> Manifest | None:
    """The finished artefact of a download, which cannot change: neither the cache nor a network is needed to go on."""
    folder = config.folder / "data"
    try:
        manifest = Manifest.load(folder)
    except ArtifactError:  # not there, or damaged: made anew
        return None
    return manifest if manifest.key == _key(config, manifest.inputs) else None


def _key(config: Config, inputs: dict[str, str]) -> str:
    return content_hash({"config": config.section("data"), "inputs": inputs})


def _read(config: DataConfig, source: Path) -> Frames:
    if config.source == "csv":
        return read_csv(source, config.missing_text)
    if config.source == "ml-100k" and source.is_file():
        return read_movielens_zip(source, config.missing_text)
    return read_recbole(source, config.missing_text)


def build(interactions: pl.DataFrame, items: pl.DataFrame, config: DataConfig) -> tuple[Dataset, dict[str, Any]]:
    """Split each user's sequence: the last interaction is test, the one before is valid, the rest rolls into train.

    Items with an empty title go first, with their interactions; then repeated rows (same user, item and timestamp), keeping
    the first; then users with fewer than `min_interactions`. Interactions are sorted by time within a user, ties in file
    order. Every item of the items file stays in the catalogue, in file order, also one that nobody interacted with: it can
    be recommended all the same. Examples are ordered by user (first appearance), then position.

    Args:
        interactions, items: as the readers return them.
        config: `max_history` and `min_interactions` are used.

    Returns:
        the dataset, and its figures for the manifest: what is in it, and what was dropped.

    Raises:
        DataError: no user, or no training example, is left.
    """
    catalog = items.filter(pl.col("title") != "")
    listed = interactions.join(
        catalog.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32)), on="item_id", maintain_order="left"
    ).select("user", "item", "timestamp")
    unique = listed.unique(maintain_order=True, keep="first")
    kept = unique.filter(pl.len().over("user") >= config.min_interactions)
    users = kept.select(pl.col("user").unique(maintain_order=True)).with_row_index("order")
    kept = kept.join(users, on="user", maintain_order="left").sort("order", "timestamp", maintain_order=True)
    splits = _split(kept, config.max_history) if len(kept) else {}
    if not splits or not len(splits["train"]):
        longest = int(unique.group_by("user").len().select(pl.col("len").max().fill_null(0)).item())
        raise DataError(
            f"No {'training example' if splits else 'user'} is left: {len(interactions)} interactions read, {len(unique)} kept "
            f"without items that have no text and repeated rows; the longest user has {longest}. Expected users with at least "
            f"{max(4, config.min_interactions)}; see data.min_interactions and data.missing_text."
        )
    histories = pl.concat([frame["history"].list.len() for frame in splits.values()])
    metrics = {
        "users": len(users),
        "items": len(catalog),
        "interactions": len(kept),
        **{name: len(frame) for name, frame in splits.items()},
        "mean_history": round(float(histories.cast(pl.Float64).sum()) / len(histories), 4),
        "items_without_interaction": len(catalog) - kept["item"].n_unique(),
        "dropped_items_without_text": len(items) - len(catalog),
        "dropped_interactions_without_text": len(interactions) - len(listed),
        "dropped_duplicates": len(listed) - len(unique),
        "dropped_short_users": unique["user"].n_unique() - len(users),
        "dropped_short_user_interactions": len(unique) - len(kept),
    }
    return Dataset(catalog=catalog, **splits), metrics


def _split(kept: pl.DataFrame, max_history: int) -> dict[str, pl.DataFrame]:
    """The three splits of (user, item, timestamp, order), sorted by user and time."""
    _, start, count = np.unique(kept["order"].to_numpy(), return_index=True, return_counts=True)
    position = np.arange(len(kept)) - np.repeat(start, count)
    left = np.repeat(count, count) - 1 - position  # interactions of the user after this one
    items = np.concatenate([np.zeros(max_history, np.int32), kept["item"].to_numpy()])
    # Row r holds the items of the max_history rows before row r, oldest first; a view, nothing is copied.
    before = np.lib.stride_tricks.sliding_window_view(items[:-1], max_history)  # (rows, max_history)
    chosen = {"train": (left >= 2) & (position >= 1), "valid": left == 1, "test": left == 0}
    return {name: _examples(kept, position, before, chosen[name]) for name in SPLITS}


def _examples(kept: pl.DataFrame, position: np.ndarray, before: np.ndarray, chosen: np.ndarray) -> pl.DataFrame:
    max_history = before.shape[1]
    length = np.where(chosen, np.minimum(position, max_history), 0)
    values = before[np.arange(max_history, 0, -1) <= length[:, None]]
    offsets = np.concatenate([[0], np.cumsum(length[chosen])])
    history = pl.Series(values=pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))))
    rows = kept.filter(pl.Series(chosen))
    frame = rows.select("user", target="item", timestamp="timestamp", position=pl.Series(position[chosen], dtype=pl.Int32))
    return frame.with_columns(history=history).select(SPLIT_SCHEMA.names())
