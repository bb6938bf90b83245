"""Planted pairs: what decides a label is known, so that it is known which score must find it."""

import numpy as np
import polars as pl

from minionerec.data.pairs import COUNT_SCHEMA, PAIR_SCHEMA, PairSet

GENRES = ("war", "love", "space", "music")


def planted(kind, users=160, items=60, candidates=10, seed=0, unseen=False, valid_every=10):
    """Users with a history of 6 items and as many candidates as asked for, half of the users test.

    Args:
        kind: `genre`: a user likes one genre, and the history is of it. `item`: some items are liked by all. `none`: chance.
        valid_every: which of the other users are valid: those whose number it divides.
        unseen: candidates of test users are items that no train user has.
    """
    rng = np.random.default_rng(seed)
    genre = np.arange(items) % len(GENRES)
    good = rng.random(items) < 0.5
    rows = {"train": [], "valid": [], "test": []}
    for user in range(users):
        split = "test" if user % 2 else "valid" if user % valid_every == 0 else "train"
        taste = rng.integers(len(GENRES))
        pool = np.arange(items) if not unseen else np.arange(items // 2) + (items // 2 if split == "test" else 0)
        known = pool if split != "test" or not unseen else np.arange(items // 2)
        liked = known[genre[known] == taste] if kind == "genre" else known
        history = rng.choice(liked, 6)
        for candidate in rng.choice(pool, candidates, replace=False):
            label = {"genre": genre[candidate] == taste, "item": good[candidate], "none": rng.random() < 0.5}[kind]
            rows[split].append((f"u{user}", history.tolist(), int(candidate), int(label)))
    frames = {name: pl.DataFrame(some, schema=PAIR_SCHEMA, orient="row") for name, some in rows.items()}
    return PairSet(catalog(items), **frames, counts=counts(frames["train"], items))


def catalog(items):
    """Titles that name a genre and nothing else of use."""
    titles = [f"{GENRES[item % len(GENRES)]} story number {item}" for item in range(items)]
    return pl.DataFrame({"item_id": [f"i{item}" for item in range(items)], "title": titles, "text": titles})


def counts(train, items):
    """Item counts as the stage `pairs` has them, row by row."""
    table = np.zeros((items, 3), dtype=np.int32)
    for row in train.unique("user").iter_rows(named=True):
        for item in row["history"]:
            table[item] += 1
    for row in train.iter_rows(named=True):
        table[row["candidate"]] += (row["label"], row["label"], 1)
    return pl.DataFrame(table, schema=COUNT_SCHEMA)


def save(pairs, folder):
    """Write pairs where the stage `pairs` leaves them, as its artefact."""
    from minionerec.artifacts import Recipe

    recipe = Recipe("pairs", folder / "pairs", {"pairs": {}}, {}, 0)
    with recipe.write() as draft:
        pairs.save(draft.path)
        older = {f"{name}_older_candidates": 0 for name in ("train", "valid", "test")}
        draft.metrics.update(rule="rated", **older)
