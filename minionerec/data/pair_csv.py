"""Your own files with labels: `interactions` with a column `label` of 0 or 1 (or a rating), and `items`.

The columns are those of `data.source csv`. In the ordinary pipeline a row labelled 0 is no interaction; here it is a dislike,
and rows labelled 1 are what the user has had, in order of time.
"""

import dataclasses
from pathlib import Path

import polars as pl

from minionerec.config import DataConfig
from minionerec.config.pairs import PairsConfig
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.checks import UNLISTED, checked, titled
from minionerec.data.folders import raw_files
from minionerec.data.pair_files import LabelledFiles
from minionerec.data.pairs import draw, rated
from minionerec.data.readers import csv_tables
from minionerec.errors import DataError

_ANY = -1_000_000.0  # a threshold below every label and rating: dislikes stay


def csv_files(folder: Path, data: DataConfig) -> tuple[Path, ...]:
    """The two files of a folder.

    Raises:
        DataError: one is missing, or there are too many to choose from.
    """
    return raw_files("csv", folder, data.category)


def read_labelled_csv(folder: Path, config: PairsConfig, data: DataConfig, seed: int, problems: Problems) -> LabelledFiles:
    """Pairs by the rule `rated`; labels, if there are any, take the place of ratings.

    Raises:
        DataError: a file or column is missing, a row is malformed, a label is neither 0 nor 1, or no user qualifies.
        ConfigError: there are labels, and a field is set that makes labels of ratings.
    """
    (interactions, items), names = csv_tables(folder, data, problems)
    if not len(interactions):
        raise DataError(f"{names[0]}: has no rows below its header; expected a row for each thing that a user did or saw.")
    if not {"label", "rating"} & {*interactions.columns}:
        raise DataError(
            f"{names[0]}: has no column label (0 or 1), and none of ratings. Add one, or name yours: --data.columns "
            "'{label: COLUMN}'."
        )
    if "label" in interactions.columns:
        config.refuse_threshold(f"{names[0]} has a column of labels")
        text = pl.col("label").str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0"})
        wrong = ~text.cast(pl.Float64, strict=False).is_in([0.0, 1.0]).fill_null(False)
        interactions = problems.without(
            interactions, wrong, braced(names[0]) + ", row {row}: label {label!r} is neither 0 nor 1."
        )
        interactions = interactions.with_columns(rating=text).drop("label")
        _refuse_one_label(interactions["rating"], names[0])
        config = dataclasses.replace(config, positive=0.5, neutral=[])
    kept = dataclasses.replace(data, positive=_ANY) if "rating" in interactions.columns else data
    rows, listed = checked(interactions, items, names, kept, problems)
    catalog = titled(listed, problems)
    codes = catalog.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    known = rows.join(codes, on="item_id", maintain_order="left")
    problems.count(UNLISTED, len(rows) - len(known))
    rows = known.sort("user", "timestamp", maintain_order=True)
    rows = rows.with_columns(position=pl.int_range(pl.len(), dtype=pl.Int32).over("user"))
    candidates = rated(rows.select("user", "position", "item", "rating"), config)
    return LabelledFiles(catalog, draw(candidates, config, seed), candidates.figures)


def _refuse_one_label(labels: pl.Series, name: str) -> None:
    values = labels.cast(pl.Float64).unique().to_list()
    if len(values) == 1:
        raise DataError(
            f"{name}: every label is {values[0]:g}; expected both 0 (disliked) and 1 (liked). With likes alone: --pairs.source "
            "dataset --pairs.rule purchases, whose dislikes are random items."
        )
