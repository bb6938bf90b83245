"""For whom it works: metrics on parts of the split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from minionerec.config import RESAMPLES
from minionerec.data.dataset import SPLITS, Dataset, SplitName
from minionerec.data.interactions import interaction_counts
from minionerec.eval.lists import Lists, RankedLists
from minionerec.eval.metrics import interval_cells, ranks
from minionerec.sid.index import SidIndex
from minionerec.statistics.ranking import per_user

Parts = dict[str, dict[str, np.ndarray]]  # per question, per answer: (rows,) bool, the rows with this answer

_LENGTHS = {"1 item": (1, 1), "2 to 3": (2, 3), "4 to 5": (4, 5), "6 to 10": (6, 10), "more than 10": (11, 2**31)}
POPULARITY = ("head", "middle", "tail", "unseen")


def popularity_groups(counts: np.ndarray) -> np.ndarray:
    """The group of each item, an index into `POPULARITY`, (items,), from its `interaction_counts`.

    Head: the most popular items, as few as make up a third of all training interactions; middle: the next third; tail: all
    other items with interactions; unseen: items with no training interaction.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.concatenate([[0], counts[order].cumsum()[:-1]])  # interactions of the more popular items
    group = np.empty(len(counts), dtype=int)
    group[order] = np.searchsorted(np.array([1 / 3, 2 / 3]) * counts.sum(), before, side="right")
    group[counts == 0] = POPULARITY.index("unseen")
    return group


def same_time(lists: RankedLists, dataset: Dataset, split: SplitName) -> np.ndarray | None:
    """Whether the target has the timestamp of the item before it, so that their order is arbitrary.

    Returns:
        (rows,) 1 yes, 0 no, -1 unknown; None if timestamps are missing or all equal.
    """
    if dataset.interactions is not None:
        times = dataset.interactions.select("user", "position", "timestamp")
    else:  # the splits do not tell the time of a user's first item
        frames = [dataset.split(name).select("user", "position", "timestamp") for name in SPLITS]
        times = pl.concat(frames).unique(["user", "position"], keep="first", maintain_order=True)
    if times["timestamp"].null_count() or times["timestamp"].n_unique() < 2:
        return None
    rows = dataset.split(split).select("user", "position", "timestamp").with_columns(before=pl.col("position") - 1)
    earlier = times.rename({"timestamp": "earlier", "position": "before"})
    joined = rows.join(earlier, on=["user", "before"], how="left")
    several = rows["user"].n_unique() < len(rows)
    keys = ["user", "position"] if several else ["user"]
    order = pl.DataFrame({"user": lists.users, "position": lists.positions}).with_columns(
        pl.col("user").cast(pl.String), pl.col("position").cast(pl.Int32)
    )
    aligned = order.join(joined, on=keys, how="left", maintain_order="left")  # in the order of the predictions
    same = (aligned["timestamp"] == aligned["earlier"]).cast(pl.Int8).fill_null(-1)
    return same.to_numpy()


def parts_of_lists(lists: RankedLists) -> Parts:
    """Parts that the predictions alone can tell."""
    lengths = lists.history_lengths
    parts: Parts = {
        "history length": {name: (lengths >= low) & (lengths <= high) for name, (low, high) in _LENGTHS.items()},
        "target in the history": {"repeat": lists.repeats, "new": ~lists.repeats},
    }
    return parts


def parts_of_dataset(lists: RankedLists, dataset: Dataset, index: SidIndex, split: SplitName) -> Parts:
    """Parts that need the dataset and the SID index."""
    group = popularity_groups(interaction_counts(dataset))[lists.targets]
    shared = np.array([len(index.items(sid)) > 1 for sid in index.codes.tolist()])[lists.targets]
    trained = np.isin(lists.users, dataset.train["user"].unique().to_numpy().astype(np.str_))
    parts: Parts = {
        "target popularity": {name: group == number for number, name in enumerate(POPULARITY)},
        "target's SID": {"shared by several items": shared, "its own": ~shared},
        "user": {"in training": trained, "new": ~trained},
    }
    same = same_time(lists, dataset, split)
    if same is not None:
        answers = {"same as the item before": 1, "later": 0, "item before unknown": -1}
        parts["target's time"] = {name: same == value for name, value in answers.items()}
    return parts


def slice_tables(
    predictions: Lists, parts: Parts, cutoffs: Sequence[int] = (10,), resamples: int = RESAMPLES, seed: int = 42
) -> dict[str, dict[str, Any]]:
    """Metrics on SIDs per part.

    Args:
        parts: see `Parts`.
        cutoffs: of HR, NDCG and MRR.
        resamples: of the bootstrap intervals.
        seed: of the resampling.

    Returns:
        Per question and answer: `rows`, their `share` of all, and each metric with its 95 % interval. Empty parts are left out.
    """
    lists = RankedLists.of(predictions)
    target_ranks, units = ranks(lists), lists.units()

    def units_of(rows: np.ndarray) -> np.ndarray | None:
        """The users of some rows, numbered from 0."""
        return None if units is None else np.unique(units[rows], return_inverse=True)[1]

    return {
        question: {
            answer: {
                "rows": int(rows.sum()),
                "share": int(rows.sum()) / len(lists),
                **interval_cells(per_user(target_ranks[rows], cutoffs), resamples, seed, units_of(rows)),
            }
            for answer, rows in answers.items()
            if rows.any()
        }
        for question, answers in parts.items()
    }
