"""Floors: recommenders without a model. A model that does not beat them has learnt nothing.

The history is not removed from the lists, as it is not removed from a model's. Rankings become predictions
through `eval.predictions.as_predictions`.
"""

import numpy as np
import polars as pl

from minionerec.data.dataset import Dataset, SplitName


def training_counts(dataset: Dataset) -> np.ndarray:
    """How often each item occurs in training interactions, (items,) int.

    Those are all train targets and each user's first item, which is nobody's target: it opens every history that reaches back
    to the start of the sequence. Users with three interactions have no train row, so valid rows are asked as well.
    """
    examples = pl.concat([dataset.train, dataset.valid])
    whole = examples.filter(pl.col("position") == pl.col("history").list.len().cast(pl.Int32))
    first = whole.unique("user", keep="any").select(pl.col("history").list.first().alias("target"))
    items = pl.concat([dataset.train.select("target"), first])["target"].to_numpy()
    return np.bincount(items, minlength=len(dataset.catalog))


def popularity(dataset: Dataset, length: int, split: SplitName = "test") -> list[np.ndarray]:
    """For each example of the split the same list: items by `training_counts`, ties by item index.

    Returns:
        Item indices, (min(length, items),), per example.
    """
    ranked = np.argsort(-training_counts(dataset), kind="stable")[:length]
    return [ranked] * len(dataset.split(split))


def repeat_last(examples: pl.DataFrame, length: int) -> list[np.ndarray]:
    """For each example its own history, most recent first, each item once.

    Returns:
        Item indices, at most `length`, per example.
    """
    return [np.array(list(dict.fromkeys(reversed(history)))[:length]) for history in examples["history"].to_list()]
