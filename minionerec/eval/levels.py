"""Where along the SID a recommendation goes wrong: accuracy per level, per prefix, what each level loses, and calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minionerec.config import CUTOFFS
from minionerec.eval.lists import Lists, RankedLists

_BINS = 10


def first_matches(predictions: Lists) -> tuple[np.ndarray, np.ndarray]:
    """The best rank at which a list agrees with the target, per level.

    Returns:
        Two arrays (rows, levels) of 0-based ranks, infinity where there is none: of the first SID with the target's code at
        that level, and of the first SID with all of the target's codes up to that level.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    lists = RankedLists.of(predictions)
    alone, together = (np.full(lists.target_sids.shape, np.inf, dtype=np.float32) for _ in range(2))
    if lists.width == 0:
        return alone, together
    for rows in lists.chunks():
        so_far = np.ones((rows.stop - rows.start, lists.width), dtype=bool)
        for level in range(lists.levels):
            match = lists.sids[rows, :, level] == lists.target_sids[rows, None, level]  # (rows, width)
            so_far &= match
            for found, table in ((match, alone), (so_far, together)):
                table[rows, level] = np.where(found.any(axis=1), found.argmax(axis=1), np.inf)
    return alone, together


def _prefixes(levels: int) -> list[str]:
    return ["+".join(f"L{level}" for level in range(1, end + 1)) for end in range(1, levels + 1)]


def level_tables(predictions: Lists, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Any]:
    """Three tables of shares of examples; any SID depth.

    A cut-off beyond a list's length takes the whole list.

    Returns:
        `independent`: per cut-off, the share with any of the top k SIDs having the target's code at `Level l`, and
        `Exact`, the whole SID. `cumulative`: per cut-off, the share with any of the top k SIDs sharing the first codes
        (`L1`, `L1+L2`, ...). `drop_off`: of the first SID alone, `L1 accuracy`, then the share of what a prefix kept that the
        next level keeps as well; None where nothing was left to keep.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    alone, together = first_matches(predictions)
    prefixes = _prefixes(alone.shape[1])
    independent, cumulative = {}, {}
    for k in cutoffs:
        shares = (alone < k).mean(axis=0).tolist()
        kept = (together < k).mean(axis=0).tolist()
        independent[str(k)] = {f"Level {level}": share for level, share in enumerate(shares, 1)}
        independent[str(k)]["Exact"] = kept[-1]
        cumulative[str(k)] = dict(zip(prefixes, kept, strict=True))
    return {
        "independent": independent,
        "cumulative": cumulative,
        "drop_off": drop_off((together < 1).mean(axis=0).tolist()),
    }


def drop_off(accuracy: Sequence[float]) -> dict[str, float | None]:
    """The drop-off table: what each level keeps of what the codes before it kept.

    Args:
        accuracy: per level, the share of examples whose first recommendation is right up to that level.
    """
    prefixes = _prefixes(len(accuracy))
    table: dict[str, float | None] = {"L1 accuracy": accuracy[0]}
    for end in range(1, len(accuracy)):
        name = f"{prefixes[end - 1]} → {prefixes[end]} retention"
        table[name] = accuracy[end] / accuracy[end - 1] if accuracy[end - 1] else None
    return table


def lost_targets(predictions: Lists) -> list[dict[str, Any]]:
    """Where lists lose their target: an example is lost at a level when its list holds the codes before it, and not its own.

    Returns:
        Per level: its number `level`; `lost`, the share of all examples lost there; `rank`, the median 1-based rank of the
        first SID that shares the codes before that level, None at level 1 and where nothing is lost. What is not lost
        anywhere is a hit.
    """
    _, together = first_matches(predictions)
    table: list[dict[str, Any]] = []
    held, before = np.ones(len(together), dtype=bool), None
    for level in range(together.shape[1]):
        found = np.isfinite(together[:, level])
        lost = held & ~found
        rank = None if before is None or not lost.any() else float(np.median(together[lost, before])) + 1
        table.append({"level": level + 1, "lost": float(lost.mean()), "rank": rank})
        held, before = found, level
    return table


def calibration(predictions: Lists) -> list[dict[str, Any]] | None:
    """Does the model know when it is right? Per level, the probability it gives its favourite prefix against how often that
    prefix is the target's.

    The probability of a prefix is the sum over the listed SIDs that share it, so that of what the list leaves out is missing:
    it is a lower bound.

    Returns:
        Per level: its number `level`; `confidence` and `accuracy`, means over examples; `error`, the expected calibration
        error (mean distance of the two over ten groups of equal size, sorted by confidence); `groups`, each group's
        confidence and accuracy. None where scores are no log-probabilities (they add up to more than 1, or there are none).
    """
    lists = RankedLists.of(predictions)
    if lists.scores is None or lists.width == 0 or not np.isfinite(lists.scores).any():
        return None
    sure = np.zeros(lists.target_sids.shape)
    right = np.zeros(lists.target_sids.shape)
    for rows in lists.chunks():
        chance = np.exp(np.nan_to_num(lists.scores[rows].astype(float), nan=-np.inf))  # (rows, width)
        if (chance.sum(axis=1) > 1 + 1e-3).any():
            return None
        prefix = np.zeros(chance.shape, dtype=np.int64)  # a number for the codes so far, within this chunk
        for level in range(lists.levels):
            codes = lists.sids[rows, :, level].astype(np.int64) + 1
            radix = int(codes.max()) + 1
            if int(prefix.max()) >= 2**62 // radix:  # smaller numbers for the same prefixes
                prefix = np.unique(prefix, return_inverse=True)[1].reshape(chance.shape)
            prefix = prefix * radix + codes
            sure[rows, level], place = _favourite(prefix, chance)
            chosen = lists.sids[rows][np.arange(len(chance)), place, : level + 1]
            right[rows, level] = (chosen == lists.target_sids[rows, : level + 1]).all(axis=1)
    return [{"level": level + 1, **calibrated(sure[:, level], right[:, level])} for level in range(lists.levels)]


def _favourite(group: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of each row with the largest sum of `chance`; both (rows, width). Returns its sum and a place that is in it."""
    rows, width = group.shape
    order = np.argsort(group, axis=1, kind="stable")
    inside = np.take_along_axis(group, order, axis=1)
    starts = np.ones(group.shape, dtype=bool)
    starts[:, 1:] = inside[:, 1:] != inside[:, :-1]
    begins = np.flatnonzero(starts)
    sums = np.add.reduceat(np.take_along_axis(chance, order, axis=1).ravel(), begins)  # one per group of each row
    first = np.searchsorted(begins, np.arange(rows) * width)  # each row's first group
    best = np.maximum.reduceat(sums, first)
    winners = np.flatnonzero(sums == np.repeat(best, np.diff([*first, len(begins)])))
    winner = winners[np.searchsorted(winners, first)]  # the first of a row's winners
    return best, order.ravel()[begins[winner]]


def calibrated(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Confidence against accuracy, over all and in ten groups of equal size; see `calibration`. Both (rows,)."""
    groups = np.array_split(np.argsort(confidence, kind="stable"), min(_BINS, len(confidence)))
    pairs = [(float(confidence[group].mean()), float(right[group].mean())) for group in groups]
    error = sum(abs(sure - hit) * len(group) for (sure, hit), group in zip(pairs, groups, strict=True)) / len(confidence)
    return {
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "error": float(error),
        "groups": [{"confidence": sure, "accuracy": hit} for sure, hit in pairs],
    }
