"""Hand-made and random predictions, and a small catalog with distinct and with shared SIDs."""

import numpy as np

from minionerec.eval.predictions import Prediction
from minionerec.sid.index import SidIndex
from tests import small

DATASET, DISTINCT = small.random_dataset(users=12, items=20)


def shared_sids() -> SidIndex:
    """Every third item has the SID of the item before it."""
    codes = DISTINCT.codes.copy()
    codes[2::3] = codes[1::3][: len(codes[2::3])]
    return SidIndex(codes, DISTINCT.codebook_sizes, DATASET.digest)


INDICES = {"distinct": DISTINCT, "shared": shared_sids()}


def prediction(
    user: str, target: tuple[int, ...], *sids: tuple[int, ...], item: int = 0, items: tuple[int, ...] = ()
) -> Prediction:
    scores = [-float(rank) for rank in range(len(sids))]
    return Prediction(user, [1, 2], item, list(target), [list(sid) for sid in sids], list(items), scores, True, "minus rank")


def random_predictions(users: int = 40, levels: int = 3, length: int = 60, codes: int = 3, seed: int = 0) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    predictions = []
    for user in range(users):
        sids = list(dict.fromkeys(map(tuple, rng.integers(0, codes, (length, levels)).tolist())))
        items = rng.permutation(100)[:30].tolist()
        target = tuple(rng.integers(0, codes, levels).tolist())
        predictions.append(prediction(f"u{user}", target, *sids, item=int(rng.integers(100)), items=tuple(items)))
    return predictions
