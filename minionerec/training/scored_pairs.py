"""What all scores of pairs share: which pairs are scored, and the artefact `<run>/scoring/<name>/` that keeps a score of each.

`scores.parquet` holds user, candidate, label and score (float32), in the order of the split.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from minionerec.artifacts import Draft, Manifest, Recipe, content_hash, require
from minionerec.config import Config
from minionerec.data.pairs import PairSet
from minionerec.data.parquet import read_parquet
from minionerec.errors import ArtifactError, DataError
from minionerec.statistics.pair_metrics import ScoredPairs, auc, per_user

FOLDER = "scoring"
SCORE_SCHEMA = pl.Schema({"user": pl.String(), "candidate": pl.Int32(), "label": pl.Int8(), "score": pl.Float32()})
_FILE = "scores.parquet"


def pairs_of_split(pairs: PairSet, config: Config) -> pl.DataFrame:
    """The pairs that are scored: a split, or those of its first users.

    Raises:
        DataError: there are none, or no user has both labels.
    """
    rows = pairs.split(config.score.split)
    if config.score.users is not None:
        first = rows["user"].unique(maintain_order=True).head(config.score.users)
        rows = rows.filter(pl.col("user").is_in(first.implode()))
    if not len(rows):
        raise DataError(
            f"{config.folder / 'pairs'}: the {config.score.split} split is empty. See pairs.test_share and pairs.valid_share."
        )
    if not len(rows.group_by("user").agg(pl.col("label").n_unique()).filter(label=2)):
        raise DataError(
            f"{config.folder / 'pairs'}: no user of the {config.score.split} split has both labels; nothing can be measured."
        )
    return rows


def refuse_one_sided(pairs: PairSet, config: Config) -> None:
    """Refuse pairs that no training could learn from, or be chosen by.

    Raises:
        DataError: train or valid has no user with both labels.
    """
    for name in ("train", "valid"):
        labels = pairs.split(name).group_by("user").agg(pl.col("label").n_unique())
        if not len(labels.filter(label=2)):
            raise DataError(
                f"{config.folder / 'pairs'}: no user of the {name} split has both labels, so nothing can be "
                f"{'learnt' if name == 'train' else 'chosen by GAUC'}. See pairs.test_share, pairs.valid_share."
            )


def row_name(kind: str, path: str) -> str:
    """A row's name: its kind and the last part of the model's path, with a digest if signs had to be left out.

    >>> row_name("zero-shot", "smollm2-135m")
    'zero-shot-smollm2-135m'
    """
    last = path.rstrip("/").rpartition("/")[2]
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", last).strip("-.")
    return f"{kind}-{plain}" if plain == last and "/" not in path else f"{kind}-{plain}-{content_hash(path)[:6]}"


def score_recipe(
    config: Config, name: str, settings: Mapping[str, Any] | None = None, inputs: Callable[[], dict[str, str]] = dict
) -> Recipe:
    """What the scores of this name are made from.

    Args:
        settings: further sections that decide them.
        inputs: gives the digests of further inputs.
    """

    def digests() -> dict[str, str]:
        return {"pairs": require(config.folder / "pairs", "minionerec pairs prepare").digest, **inputs()}

    sections = {**config.key_fields("score"), **(settings or {})}
    folder, replace, wait = config.folder / FOLDER / name, config.replace, config.wait
    return Recipe(f"{FOLDER}/{name}", folder, sections, digests(), config.seed, None, replace, wait, digests)


def write_scores(draft: Draft, rows: pl.DataFrame, scores: np.ndarray, **facts: Any) -> None:
    """Keep the scores of these pairs, with AUC and GAUC in the manifest.

    Args:
        rows: pairs, schema `PAIR_SCHEMA`.
        scores: (rows,) float.
        facts: what the table shall know of the score, for the manifest.

    Raises:
        DataError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(f"{draft.path}: the score of pair {row} is {scores[row]}, not finite. Nothing was kept.")
    kept = rows.select("user", "candidate", "label").with_columns(score=pl.Series(scores.astype(np.float32)))
    kept.write_parquet(draft.path / _FILE)
    pairs = scored_pairs(kept)
    figures = {"AUC": float(auc(pairs)[0]), "GAUC": float(per_user(pairs)["GAUC"].mean()), "rows": len(kept)}
    draft.metrics.update(figures, **facts)


def read_scores(folder: Path) -> tuple[Manifest, pl.DataFrame]:
    """A folder's manifest and scores.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    manifest = Manifest.load(folder)
    frame = read_parquet(folder / _FILE, ArtifactError, "Run minionerec score again.")
    if frame.schema != SCORE_SCHEMA:
        raise ArtifactError(
            f"{folder / _FILE}: columns {dict(frame.schema)}, expected {dict(SCORE_SCHEMA)}. Run minionerec score again."
        )
    return manifest, frame


def scored_pairs(frame: pl.DataFrame) -> ScoredPairs:
    """Scores as the metrics take them; users are numbered in the order of their rows."""
    users = frame["user"].to_arrow().dictionary_encode().indices
    return ScoredPairs(np.asarray(users), frame["label"].to_numpy().astype(np.int64), frame["score"].to_numpy().astype(float))
