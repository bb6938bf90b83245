"""Training rows that SFT leaves out, so that reinforcement learning has prompts which its model has not learnt by heart."""

import hashlib
from collections import Counter
from typing import Literal

import numpy as np
import polars as pl

from minionerec.errors import DataError

Holdout = Literal["none", "users", "last"]


def is_drawn(user: str, share: float, seed: int) -> bool:
    """Whether a user is among the share that the seed draws. A larger share draws these users, too, and further ones.

    >>> [user for user in ("a", "b", "c", "d", "e", "f") if is_drawn(user, 0.5, seed=1)]
    ['c', 'e']
    """
    digest = hashlib.sha256(f"{seed} {user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def held_out_rows(train: pl.DataFrame, holdout: Holdout, share: float, seed: int) -> np.ndarray:
    """Which rows of the training split are held out, (rows,) bool.

    It depends on the users' names, not on the order of the rows, on the number of processes, or on other users.

    Args:
        train: schema `data.dataset.SPLIT_SCHEMA`.
        holdout: `users` holds out all rows of the drawn users; `last` the row with the last position of each drawn user who has
            at least two, so that the rest of the user's rows are trained; `none` nothing.
        share: of the users, that are drawn.
        seed: draws them.

    Raises:
        DataError: no row is held out, or none is left.
    """
    rows = np.zeros(len(train), dtype=bool)
    if holdout == "none":
        return rows
    names = train["user"].to_list()
    drawn = {user for user in dict.fromkeys(names) if is_drawn(user, share, seed)}
    if holdout == "users":
        rows[:] = [user in drawn for user in names]
    else:
        positions = train["position"].to_list()
        last: dict[str, int] = {}
        for row, user in enumerate(names):
            if user not in last or positions[row] >= positions[last[user]]:
                last[user] = row
        counts = Counter(names)
        rows[[row for user, row in last.items() if user in drawn and counts[user] > 1]] = True
    kept = int((~rows).sum())
    if kept == len(rows) or not kept:
        raise DataError(
            f"rl.holdout {holdout} with rl.holdout_share {share:g} holds out {len(rows) - kept} of {len(rows)} training rows: "
            "both SFT and RL need some. Choose another share (or --seed)."
        )
    return rows
