"""For whom it works: metrics on parts of the split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from minionerec.config import RESAMPLES
from minionerec.config.evaluation import FREQUENT
from minionerec.data.dataset import SPLITS, Dataset, SplitName
from minionerec.data.interactions import interaction_counts, training_interactions
from minionerec.errors import DataError
from minionerec.eval.lists import Lists, Ragged, RankedLists
from minionerec.eval.metrics import interval_cells, sid_ranks
from minionerec.sid.index import SidIndex
from minionerec.statistics.differences import differences
from minionerec.statistics.ranking import per_user

Parts = dict[str, dict[str, np.ndarray]]  # per question, per answer: (rows,) bool, the rows with this answer

_LENGTHS = {"1 item": (1, 1), "2 to 3": (2, 3), "4 to 5": (4, 5), "6 to 10": (6, 10), "more than 10": (11, 2**31)}
POPULARITY = ("head", "middle", "tail", "unseen")
EVIDENCE = ("repeat", "seen transition", "co-occurs", "seen item", "cold")
_CHUNK = 1024  # rows at once, whose histories' users are held in memory


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


def evidence(lists: RankedLists, dataset: Dataset) -> np.ndarray:
    """What training shows of each row's target, an index into `EVIDENCE`, (rows,): the first of these that holds.

    Repeat: the target is in the history. Seen transition: it followed the history's last item in training, as a Markov chain
    counts. Co-occurs: a training user has it and an item of the history, as item-kNN counts. Seen item: it occurs in training.
    Cold: it does not.

    Raises:
        DataError: the lists name no items.
    """
    if lists.items is None or lists.history is None:
        raise DataError("these predictions name no items, so what training shows of their targets is unknown.")
    interactions = training_interactions(dataset)
    counts = np.bincount(interactions["item"].to_numpy(), minlength=len(dataset.catalog))
    holds = [
        lists.repeats,
        _seen_transitions(lists.history, lists.targets, interactions),
        _co_occurs(lists.history, lists.targets, interactions),
        counts[lists.targets] > 0,
    ]
    return np.select(holds, range(len(holds)), len(holds))


def _seen_transitions(history: Ragged, targets: np.ndarray, interactions: pl.DataFrame) -> np.ndarray:
    """Whether the target followed the history's last item in training, (rows,)."""
    item, user = interactions["item"].to_numpy(), interactions["user"].rle_id().to_numpy()
    neighbours = user[1:] == user[:-1]
    filled = history.lengths > 0
    last = history.values[history.offsets[1:][filled] - 1]
    items = _items(history, targets, item)
    seen = np.zeros(len(targets), dtype=bool)
    seen[filled] = np.isin(
        last.astype(np.int64) * items + targets[filled], item[:-1][neighbours].astype(np.int64) * items + item[1:][neighbours]
    )
    return seen


def _co_occurs(history: Ragged, targets: np.ndarray, interactions: pl.DataFrame) -> np.ndarray:
    """Whether a training user has the target and another item of the history, (rows,)."""
    item, user = interactions["item"].to_numpy(), interactions["user"].rle_id().to_numpy()
    shape = (_items(history, targets, item), interactions["user"].n_unique())
    users_of_item = sparse.csr_matrix((np.ones(len(item)), (item, user)), shape=shape)
    together = np.zeros(len(targets), dtype=bool)
    for start in range(0, len(targets), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(targets)))
        cells = slice(history.offsets[rows.start], history.offsets[rows.stop])
        row, past = np.repeat(np.arange(rows.stop - start), history.lengths[rows]), history.values[cells]
        other = past != targets[rows][row]
        histories = sparse.csr_matrix((np.ones(other.sum()), (row[other], past[other])), shape=(rows.stop - start, shape[0]))
        both = (histories @ users_of_item).multiply(users_of_item[targets[rows]])  # users of the history and of the target
        together[rows] = np.asarray(both.sum(axis=1)).ravel() > 0
    return together


def _items(history: Ragged, targets: np.ndarray, trained: np.ndarray) -> int:
    """One more than the largest item index."""
    return 1 + max(int(values.max(initial=0)) for values in (history.values, targets, trained))


def most_frequent(targets: np.ndarray, count: int) -> np.ndarray:
    """The `count` items that are most often the target, ties by item index; fewer if there are fewer targets."""
    items, rows = np.unique(targets, return_counts=True)
    return items[np.argsort(-rows, kind="stable")[:count]]


def parts_of_training(lists: RankedLists, dataset: Dataset, frequent: int = FREQUENT) -> Parts:
    """What decides a comparison of recommenders: what training shows of the target, how popular it is, and which rows repeat.

    Not part of `metrics.json`: pages and the command `slices` compute these parts from the lists.

    Args:
        frequent: how many of the most frequent targets the third question sets apart.

    Raises:
        DataError: the lists name no items.
    """
    kind = evidence(lists, dataset)
    group = popularity_groups(interaction_counts(dataset))[lists.targets]
    top = np.isin(lists.targets, most_frequent(lists.targets, frequent))
    titles = dataset.catalog["title"]
    # An empty title names nothing, so two items without one are no duplicates.
    duplicate = (titles.is_duplicated() & (titles.str.strip_chars() != "")).to_numpy()[lists.targets]
    return {
        "training shows": {name: kind == number for number, name in enumerate(EVIDENCE)},
        "target popularity": {name: group == number for number, name in enumerate(POPULARITY)},
        f"the {frequent} most frequent targets": {"among them": top, "all others": ~top},
        "target's title": {"another item has it": duplicate, "its own": ~duplicate},
    }


def users_of_part(units: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """The number of each row's user, counted from 0 within some rows, as the bootstrap expects; None if rows are users."""
    return None if units is None else np.unique(units[rows], return_inverse=True)[1]


def slice_differences(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    parts: Parts,
    units: np.ndarray | None,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> dict[str, dict[str, dict[str, Any]]]:
    """How much `after` exceeds `before` on each part that has rows, per question, answer and name.

    Args:
        before, after: per name one value per row, (rows,), in the order of the parts' rows.
        units: (rows,) the number of each row's user, from 0; None if every user has one row.
        resamples, seed: of the bootstrap and the permutation test, see `statistics.differences.differences`.
    """
    return {
        question: {
            answer: differences(
                {name: values[rows] for name, values in before.items()},
                {name: values[rows] for name, values in after.items()},
                resamples,
                seed,
                users_of_part(units, rows),
            )
            for answer, rows in answers.items()
            if rows.any()
        }
        for question, answers in parts.items()
    }


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
    (best, ties), units = sid_ranks(lists), lists.units()
    return {
        question: {
            answer: {
                "rows": int(rows.sum()),
                "share": int(rows.sum()) / len(lists),
                **interval_cells(per_user(best[rows], cutoffs, ties[rows]), resamples, seed, users_of_part(units, rows)),
            }
            for answer, rows in answers.items()
            if rows.any()
        }
        for question, answers in parts.items()
    }
