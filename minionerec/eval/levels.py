"""Where along the SID a recommendation goes wrong: accuracy per level, per prefix, and what each level loses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minionerec.config import CUTOFFS
from minionerec.errors import DataError
from minionerec.eval.predictions import Prediction


def first_matches(predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """The best rank at which a list agrees with the target, per level.

    Returns:
        Two arrays (users, levels) of 0-based ranks, infinity where there is none: of the first SID with the target's code at
        that level, and of the first SID with all of the target's codes up to that level.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    depths = sorted({len(prediction.target_sid) for prediction in predictions})
    if len(depths) != 1:
        raise DataError(f"Predictions have SIDs of {depths or 'no'} codes; expected one depth and at least one user.")
    alone, together = (np.full((len(predictions), depths[0]), np.inf) for _ in range(2))
    for row, prediction in enumerate(predictions):
        if prediction.sids:
            match = np.array(prediction.sids) == np.array(prediction.target_sid)  # (ranks, levels)
            for found, table in ((match, alone), (np.logical_and.accumulate(match, axis=1), together)):
                table[row] = np.where(found.any(axis=0), found.argmax(axis=0), np.inf)
    return alone, together


def level_tables(predictions: Sequence[Prediction], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Any]:
    """Three tables of shares of users; any SID depth.

    A cut-off beyond a list's length takes the whole list.

    Returns:
        `independent`: per cut-off, the share of users with any of the top k SIDs having the target's code at `Level l`, and
        `Exact`, the whole SID. `cumulative`: per cut-off, the share with any of the top k SIDs sharing the first codes
        (`L1`, `L1+L2`, ...). `drop_off`: of the first SID alone, `L1 accuracy`, then the share of what a prefix kept that the
        next level keeps as well; None where nothing was left to keep.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    alone, together = first_matches(predictions)
    levels = range(1, alone.shape[1] + 1)
    prefixes = ["+".join(f"L{level}" for level in range(1, end + 1)) for end in levels]
    independent, cumulative = {}, {}
    for k in cutoffs:
        shares = (alone < k).mean(axis=0).tolist()
        kept = (together < k).mean(axis=0).tolist()
        independent[str(k)] = {f"Level {level}": share for level, share in zip(levels, shares, strict=True)}
        independent[str(k)]["Exact"] = kept[-1]
        cumulative[str(k)] = dict(zip(prefixes, kept, strict=True))
    top = (together < 1).mean(axis=0).tolist()
    drop_off: dict[str, float | None] = {"L1 accuracy": top[0]}
    for end in range(1, len(top)):
        name = f"{prefixes[end - 1]} → {prefixes[end]} retention"
        drop_off[name] = top[end] / top[end - 1] if top[end - 1] else None
    return {"independent": independent, "cumulative": cumulative, "drop_off": drop_off}
