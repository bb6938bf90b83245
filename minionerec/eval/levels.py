"""Where along the SID a recommendation goes wrong: accuracy per level, per prefix, what each level loses, and calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minionerec.config import CUTOFFS
from minionerec.eval.lists import Lists, RankedLists

_BINS = 10


def first_matches(predictions: Lists) -> tuple[np.ndarray, np.ndarray]:
    """The best rank at which a list agrees with the target, per level.

    Beyond its end a short SID agrees with every other SID that has ended: both have no code. A position that holds no SID
    agrees with nothing.

    Returns:
        Two arrays (rows, levels) of 0-based ranks, infinity if there is none: of the first SID with the target's code at
        that level, and of the first SID with all of the target's codes up to that level.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    lists = RankedLists.of(predictions)
    alone, together = (np.full(lists.target_sids.shape, np.inf, dtype=np.float32) for _ in range(2))
    if lists.width == 0:
        return alone, together
    for rows in lists.chunks():
        is_sid = lists.sids[rows, :, 0] >= 0  # (rows, width), as all masks below
        prefix_match = np.ones(is_sid.shape, dtype=bool)
        for level in range(lists.levels):
            code_match = (lists.sids[rows, :, level] == lists.target_sids[rows, None, level]) & is_sid
            prefix_match &= code_match
            for match, table in ((code_match, alone), (prefix_match, together)):
                table[rows, level] = np.where(match.any(axis=1), match.argmax(axis=1), np.inf)  # argmax: the first match
    return alone, together


def _prefixes(levels: int) -> list[str]:
    """Names of the prefixes of a SID: `L1`, `L1+L2`, ..."""
    return ["+".join(f"L{level}" for level in range(1, end + 1)) for end in range(1, levels + 1)]


def level_tables(predictions: Lists, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Any]:
    """Three tables of shares of examples; any SID depth.

    A cut-off beyond a list's length takes the whole list.

    Returns:
        `independent`: per cut-off, the share of examples with the target's code at `Level l` in any of the top k SIDs (or no
        code, like the target, if SIDs differ in length), and `Exact`, the whole SID. `cumulative`: per cut-off, the share with
        the target's first codes (`L1`, `L1+L2`, ...) in any of the top k SIDs. `drop_off`: see `drop_off`.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    alone, together = first_matches(predictions)
    prefixes = _prefixes(alone.shape[1])
    independent, cumulative = {}, {}
    for k in cutoffs:
        code_shares = (alone < k).mean(axis=0).tolist()
        prefix_shares = (together < k).mean(axis=0).tolist()
        independent[str(k)] = {f"Level {level}": share for level, share in enumerate(code_shares, 1)}
        independent[str(k)]["Exact"] = prefix_shares[-1]
        cumulative[str(k)] = dict(zip(prefixes, prefix_shares, strict=True))
    return {
        "independent": independent,
        "cumulative": cumulative,
        "drop_off": drop_off((together < 1).mean(axis=0).tolist()),
    }


def drop_off(accuracy: Sequence[float]) -> dict[str, float | None]:
    """Of the first recommendations that are right so far, the share that the next level leaves right.

    Args:
        accuracy: per level, the share of examples whose first recommendation is right up to that level.

    Returns:
        `L1 accuracy`, then the retention of each further level; None if no recommendation was right before it.
    """
    prefixes = _prefixes(len(accuracy))
    table: dict[str, float | None] = {"L1 accuracy": accuracy[0]}
    for end in range(1, len(accuracy)):
        name = f"{prefixes[end - 1]} → {prefixes[end]} retention"
        table[name] = accuracy[end] / accuracy[end - 1] if accuracy[end - 1] else None
    return table


def right_so_far(cumulative: Mapping[str, Mapping[str, float]], rows: int) -> list[int]:
    """How many first recommendations each share of `drop_off` is of: all, then those that are right up to the level before.

    >>> right_so_far({"1": {"L1": 0.5, "L1+L2": 0.25}}, rows=40)
    [40, 20]
    """
    return [rows, *(round(share * rows) for share in list(cumulative["1"].values())[:-1])]


def lost_targets(predictions: Lists) -> list[dict[str, Any]]:
    """The level at which lists lose their target: the list has the target's codes before that level, but not at it.

    Returns:
        Per level: its number `level`; `lost`, the share of all examples lost there; `rank`, the median 1-based rank of the
        first SID that shares the codes before that level, None at level 1 and if nothing is lost. An example that is lost at
        no level is a hit.
    """
    _, together = first_matches(predictions)
    table: list[dict[str, Any]] = []
    held, before = np.ones(len(together), dtype=bool), None
    for level in range(together.shape[1]):
        listed = np.isfinite(together[:, level])
        lost = held & ~listed
        rank = None if before is None or not lost.any() else float(np.median(together[lost, before])) + 1
        table.append({"level": level + 1, "lost": float(lost.mean()), "rank": rank})
        held, before = listed, level
    return table


def calibration(predictions: Lists) -> list[dict[str, Any]] | None:
    """Does the model know when it is right? Per level, the probability of its favourite prefix, and how often it is right.

    The probability of a prefix is the sum over the listed SIDs that share it. SIDs that are not in the list are missing, so it
    is a lower bound.

    Returns:
        Per level: its number `level`; `confidence` and `accuracy`, means over examples; `error`, the expected calibration
        error (mean distance of the two over ten groups of equal size, sorted by confidence); `groups`, each group's
        confidence and accuracy. None if scores are no log-probabilities, see `why_uncalibrated`.
    """
    lists = RankedLists.of(predictions)
    if lists.scores is None or why_uncalibrated(lists) is not None:
        return None
    confidence = np.zeros(lists.target_sids.shape)
    right = np.zeros(lists.target_sids.shape)
    for rows in lists.chunks():
        chance = np.exp(np.nan_to_num(lists.scores[rows].astype(float), nan=-np.inf))  # (rows, width)
        prefix = np.zeros(chance.shape, dtype=np.int64)  # one number per prefix: its codes as digits
        for level in range(lists.levels):
            codes = lists.sids[rows, :, level].astype(np.int64) + 1  # 0 for a code that a short SID lacks
            radix = int(codes.max()) + 1
            if int(prefix.max()) >= 2**62 // radix:  # the next digit would overflow: number the prefixes from 0 again
                prefix = np.unique(prefix, return_inverse=True)[1].reshape(chance.shape)
            prefix = prefix * radix + codes
            confidence[rows, level], position = _favourite(prefix, chance)
            favourite = lists.sids[rows][np.arange(len(chance)), position, : level + 1]
            right[rows, level] = (favourite == lists.target_sids[rows, : level + 1]).all(axis=1)
    return [{"level": level + 1, **calibrated(confidence[:, level], right[:, level])} for level in range(lists.levels)]


def why_uncalibrated(lists: RankedLists) -> str | None:
    """Why some lists have no `calibration`; None if they have one."""
    if lists.scores is None:
        return "the file has no scores"
    if lists.width == 0:
        return "the lists are empty"
    if lists.score_kind is None:
        return (
            "the file does not say whether its scores are log-probabilities, because an earlier version wrote it; delete the "
            "folder of the evaluation and run minionerec eval again"
        )
    return None if lists.score_kind == "log-probability" else f"scores are {lists.score_kind}s, no log-probabilities"


def _favourite(group: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group with the largest sum of `chance`, for each row.

    All rows are treated as one array of groups end to end: a loop over rows would take minutes for a large file.

    Args:
        group: (rows, width) numbers of the groups.
        chance: (rows, width).

    Returns:
        The group's sum (rows,) and a position in the row that belongs to the group (rows,).
    """
    rows, width = group.shape
    # 1. Sort each row, so that a group is a run of neighbours; `begins` holds where the runs begin in the flat array.
    order = np.argsort(group, axis=1, kind="stable")
    sorted_groups = np.take_along_axis(group, order, axis=1)
    is_start = np.ones(group.shape, dtype=bool)
    is_start[:, 1:] = sorted_groups[:, 1:] != sorted_groups[:, :-1]
    begins = np.flatnonzero(is_start)
    # 2. Sum each run, and take the largest sum of each row.
    sums = np.add.reduceat(np.take_along_axis(chance, order, axis=1).ravel(), begins)
    first_run = np.searchsorted(begins, np.arange(rows) * width)  # each row's first run
    best = np.maximum.reduceat(sums, first_run)
    # 3. The first run of each row that has this sum; its first position in the row as it was before the sorting.
    winners = np.flatnonzero(sums == np.repeat(best, np.diff([*first_run, len(begins)])))
    winner = winners[np.searchsorted(winners, first_run)]
    return best, order.ravel()[begins[winner]]


def calibrated(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Confidence compared with accuracy, over all rows and in ten groups of equal size.

    Args:
        confidence: (rows,) probabilities.
        right: (rows,) 1 if the prediction is right, else 0.

    Returns:
        one row of `calibration`, without its level.
    """
    groups = np.array_split(np.argsort(confidence, kind="stable"), min(_BINS, len(confidence)))
    pairs = [(float(confidence[group].mean()), float(right[group].mean())) for group in groups]
    error = sum(abs(mean - share) * len(group) for (mean, share), group in zip(pairs, groups, strict=True)) / len(confidence)
    return {
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "error": float(error),
        "groups": [{"confidence": mean, "accuracy": share} for mean, share in pairs],
    }
