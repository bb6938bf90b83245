"""Which interactions a dataset trains on, and how often each item is among them.

Baselines learn from these interactions, and evaluation forms its popularity slices from the counts. The loss weights of
SFT (`sft/weights.py`) and the reward `popularity` (`rl/rewards.py`) count the targets of training examples instead, on purpose:
they weigh examples, and a user's first item is the target of none.
"""

import numpy as np
import polars as pl

from minionerec.data.dataset import Dataset


def training_interactions(dataset: Dataset) -> pl.DataFrame:
    """Training interactions (user, position, item index), by user (any order), then position.

    These are all targets of the train split, and each user's first item: no example has it as target, but it opens every
    history that reaches back to the start of the sequence. If each user's last two items are held out, a user with three
    interactions has no train row; the first item then comes from the valid row. In a split by time, a user without a train row
    came later and has no training interactions.
    """
    examples = pl.concat([dataset.train, dataset.valid]) if _holds_out_last_two(dataset) else dataset.train
    complete = examples.filter(pl.col("position") == pl.col("history").list.len().cast(pl.Int32)).sort("position")
    complete = complete.unique("user", keep="first", maintain_order=True)
    opening = complete.select("user", pl.lit(0, pl.Int32).alias("position"), pl.col("history").list.first().alias("item"))
    return pl.concat([opening, dataset.train.select("user", "position", item="target")]).sort("user", "position")


def interaction_counts(dataset: Dataset) -> np.ndarray:
    """How often each item occurs in `training_interactions`, (items,) int."""
    return np.bincount(training_interactions(dataset)["item"].to_numpy(), minlength=len(dataset.catalog))


def _holds_out_last_two(dataset: Dataset) -> bool:
    """Whether each user has one valid example, and the next item of the sequence as the one test example."""
    following = dataset.valid.select("user", pl.col("position") + 1).sort("user")
    return following["user"].is_unique().all() and following.equals(dataset.test.select("user", "position").sort("user"))
