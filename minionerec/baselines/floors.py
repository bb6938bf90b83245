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
    to the start of the sequence. Where each user's last two are held out, users with three interactions have no train row, so
    valid rows are asked as well; under a split by time, users without a train row came later and count nothing.
    """
    examples = pl.concat([dataset.train, dataset.valid]) if _holds_out_last_two(dataset) else dataset.train
    whole = examples.filter(pl.col("position") == pl.col("history").list.len().cast(pl.Int32)).sort("position")
    first = whole.unique("user", keep="first", maintain_order=True).select(pl.col("history").list.first().alias("target"))
    items = pl.concat([dataset.train.select("target"), first])["target"].to_numpy()
    return np.bincount(items, minlength=len(dataset.catalog))


def _holds_out_last_two(dataset: Dataset) -> bool:
    """Whether each user has one valid example and the next of their sequence as the one test example."""
    following = dataset.valid.select("user", pl.col("position") + 1).sort("user")
    return following["user"].is_unique().all() and following.equals(dataset.test.select("user", "position").sort("user"))


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
