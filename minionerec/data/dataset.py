"""The Dataset: a catalog and three splits of examples, on disk as parquet.

Files: `catalog.parquet` (item_id, title, text and further details that the source has; the row number is the item's index),
`train.parquet`, `valid.parquet`, `test.parquet` (user, history, target, timestamp, position); `interactions.parquet`
(user, position, item, timestamp, rating) if the source gives interactions rather than examples; `sids.parquet` (tokens) if the
source brings semantic IDs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from minionerec.artifacts import content_hash
from minionerec.data.parquet import read_parquet, write_parquet
from minionerec.errors import ArtifactError

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
CATALOG_SCHEMA = pl.Schema({"item_id": pl.String(), "title": pl.String(), "text": pl.String()})
CATALOG_DETAILS = ("description", "brand", "categories")  # further columns that a catalog may have, all String
SPLIT_SCHEMA = pl.Schema(
    {
        "user": pl.String(),
        "history": pl.List(pl.Int32()),
        "target": pl.Int32(),
        "timestamp": pl.Int64(),
        "position": pl.Int32(),
    }
)
INTERACTION_SCHEMA = pl.Schema(
    {"user": pl.String(), "position": pl.Int32(), "item": pl.Int32(), "timestamp": pl.Int64(), "rating": pl.Float32()}
)
SID_SCHEMA = pl.Schema({"tokens": pl.List(pl.String())})
_OPTIONAL = ("interactions", "sids")
_ADVICE = "Run the data stage again (--replace if it says that it is up to date)."


def catalog_schema(catalog: pl.DataFrame) -> pl.Schema:
    """The columns that a catalog must have, with those of `CATALOG_DETAILS` that it has."""
    details = [column for column in CATALOG_DETAILS if column in catalog.columns]
    return pl.Schema([*CATALOG_SCHEMA.items(), *((column, pl.String()) for column in details)])


@dataclass(frozen=True)
class Dataset:
    """A catalog and its examples.

    Attributes:
        catalog: one row per item, schema `CATALOG_SCHEMA`, then any of `CATALOG_DETAILS`. `title` is shown to people and
            models, `text` is embedded; it is empty if the source has no texts at all.
        train, valid, test: one row per example, schema `SPLIT_SCHEMA`. `history` holds item indices, oldest first, and is
            never empty; `target` is the next item's index; `timestamp` is the target's, in seconds since 1970 (UTC), null
            if the source has none; `position` is the target's 0-based place in the user's whole sequence, so
            `position - len(history)` is the place of the history's first item. A user may have several examples in a split.
        interactions: every interaction that the filters keep, sorted by user, then position; `rating` is null if unknown.
            None if the source gives examples and not the interactions behind them.
        sids: the semantic IDs that came with the source, one row per item of the catalog, schema `SID_SCHEMA`: `tokens`
            holds `<a_17>` and so on, one per level. None if the source has none.
    """

    catalog: pl.DataFrame
    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    interactions: pl.DataFrame | None = None
    sids: pl.DataFrame | None = None

    @property
    def digest(self) -> str:
        """Identifies the catalog: SHA-256 of the item ids in order. A SID index carries it."""
        return content_hash(self.catalog["item_id"].to_list())

    def split(self, name: SplitName) -> pl.DataFrame:
        """The examples of one split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def save(self, folder: Path) -> None:
        """Write the parquet files into an existing folder."""
        frames: dict[str, pl.DataFrame] = {"catalog": self.catalog, **{name: self.split(name) for name in SPLITS}}
        frames |= {name: frame for name in _OPTIONAL if (frame := getattr(self, name)) is not None}
        for name, frame in frames.items():
            write_parquet(folder / f"{name}.parquet", [frame], frame.schema)

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read a folder that `save` wrote.

        Raises:
            ArtifactError: a file is missing, is not parquet, or has other columns.
        """
        names = ("catalog", *SPLITS, *(name for name in _OPTIONAL if (folder / f"{name}.parquet").is_file()))
        frames = {name: read_parquet(folder / f"{name}.parquet", ArtifactError, _ADVICE) for name in names}
        for name, frame in frames.items():
            expected = {"catalog": catalog_schema(frame), "interactions": INTERACTION_SCHEMA, "sids": SID_SCHEMA}.get(
                name, SPLIT_SCHEMA
            )
            if frame.schema != expected:
                raise ArtifactError(
                    f"{folder / name}.parquet: columns {dict(frame.schema)}, expected {dict(expected)}. "
                    "Run the data stage again."
                )
        return cls(**frames)
