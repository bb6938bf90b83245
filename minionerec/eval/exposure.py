"""Beyond accuracy: how much of the catalog the lists show, and how evenly."""

from typing import Any

import numpy as np

from minionerec.eval.lists import Lists, RankedLists


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of how often each item is shown: 0 all items alike, towards 1 one item alone; 0 if nothing is shown.

    Args:
        counts: (items,), items that are never shown included.
    """
    ordered = np.sort(np.asarray(counts, dtype=float))
    total = ordered.sum()
    if not total:
        return 0.0
    weights = 2 * np.arange(1, len(ordered) + 1) - len(ordered) - 1
    return float((weights * ordered).sum() / (len(ordered) * total))


def diversity(predictions: Lists, k: int = 10) -> float | None:
    """Intra-list diversity of the first k SIDs: the mean over pairs of 1 - (codes they share from the start) / (codes).

    Lists with fewer than two SIDs have no pairs and are left out; None if all are.
    """
    lists = RankedLists.of(predictions)
    total, pairs_seen = 0.0, 0
    width = min(k, lists.width)
    first, second = np.triu_indices(width, 1)
    for rows in lists.chunks(4096):
        sids = lists.sids[rows, :width]
        both = (sids[:, first, 0] >= 0) & (sids[:, second, 0] >= 0)  # (rows, pairs); a position without a SID is in no pair
        count = both.sum(axis=1)
        shared = np.logical_and.accumulate(sids[:, first] == sids[:, second], axis=2).sum(axis=2)
        apart = np.where(both, 1 - shared / lists.levels, 0).sum(axis=1)
        total += float((apart[count > 0] / count[count > 0]).sum())
        pairs_seen += int((count > 0).sum())
    return total / pairs_seen if pairs_seen else None


def exposure(predictions: Lists, popularity: np.ndarray, k: int = 10) -> dict[str, Any]:
    """How much of the catalog the first k items of the lists show.

    Args:
        popularity: (items,) how often each item occurs in training interactions.

    Returns:
        `k`, at most the length of the longest list; `coverage`, the share of the catalog shown to anyone; `gini` of how often
        each item is shown; `popularity`, mean training count of a shown item, `target_popularity` the mean training count of a
        target, and `popularity_bias`, their ratio (None if it is 0 for all targets); `novelty`, mean of -log2 of a shown item's
        share of the training interactions, with one added to each count (bits); `diversity`, see `diversity`. All but `k` and
        `diversity` are None if the lists name no items.
    """
    lists = RankedLists.of(predictions)
    k = min(k, lists.width if lists.items is None else int(lists.items.lengths.max()))
    table: dict[str, Any] = {"k": k, "coverage": None, "gini": None, "popularity": None, "target_popularity": None}
    table |= {"popularity_bias": None, "novelty": None, "diversity": diversity(lists, k)}
    if lists.items is None:
        return table
    positions = np.arange(len(lists.items.values)) - np.repeat(lists.items.offsets[:-1], lists.items.lengths)
    listed_items = lists.items.values[positions < k]
    if not len(listed_items):
        return table
    counts = np.bincount(listed_items, minlength=len(popularity))
    surprise = -np.log2((popularity + 1) / (popularity + 1).sum())  # 1 added: finite for an unsold item
    of_targets = float(popularity[lists.targets].mean())
    of_listed = float(popularity[listed_items].mean())
    return table | {
        "coverage": float((counts > 0).mean()),
        "gini": gini(counts),
        "popularity": of_listed,
        "target_popularity": of_targets,
        "popularity_bias": of_listed / of_targets if of_targets else None,
        "novelty": float(surprise[listed_items].mean()),
    }
