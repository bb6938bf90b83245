"""Hand-made and random predictions."""

import numpy as np

from minionerec.eval.predictions import Prediction


def prediction(
    user: str, target: tuple[int, ...], *sids: tuple[int, ...], item: int = 0, items: tuple[int, ...] = ()
) -> Prediction:
    scores = [-float(place) for place in range(len(sids))]
    return Prediction(user, [1, 2], item, list(target), [list(sid) for sid in sids], list(items), scores, True)


def random_predictions(users: int = 40, levels: int = 3, length: int = 60, codes: int = 3, seed: int = 0) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    made = []
    for user in range(users):
        sids = list(dict.fromkeys(map(tuple, rng.integers(0, codes, (length, levels)).tolist())))
        items = rng.permutation(100)[:30].tolist()
        target = tuple(rng.integers(0, codes, levels).tolist())
        made.append(prediction(f"u{user}", target, *sids, item=int(rng.integers(100)), items=tuple(items)))
    return made
