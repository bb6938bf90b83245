"""What matters for a recommender about a Dataset: size, time, popularity, repeats, splits and leaks, texts, semantic IDs.

`facts` gives plain values in sections; `minionerec data describe` prints them and draws the page. A share is a fraction of the
rows that its name tells; a fact that the source does not allow (no times, no ratings, no SIDs) is left out, not guessed.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from minionerec.data.dataset import SPLITS, Dataset

Facts = dict[str, dict[str, Any]]
CUTOFFS = (1, 10, 50)
_CURVE_POINTS = 100


def facts(dataset: Dataset, sids: Sequence[str] | None = None) -> Facts:
    """All facts of a dataset, by section.

    Args:
        sids: the semantic ID of each item as text, in catalog order.
    """
    sections: Facts = {
        "size": _size(dataset),
        "histories": {name: _lengths(dataset.split(name)) for name in SPLITS},
        "popularity": _popularity(dataset),
        "repeats": {name: _repeats(dataset, dataset.split(name)) for name in SPLITS},
        "splits": _splits(dataset),
        "leaks": _leaks(dataset),
        "constant predictor": _constant(dataset),
        "texts": _texts(dataset.catalog),
    }
    if times := _times(dataset):
        sections["time"] = times
    if sids is not None:
        sections["semantic IDs"] = _sids(dataset, np.array(sids, dtype=object))
    return sections


def _share(mask: pl.Series | np.ndarray) -> float | None:
    """The share of true values; None of no values, as in an empty split."""
    return float(mask.mean() or 0.0) if len(mask) else None  # type: ignore[arg-type]


def _events(dataset: Dataset) -> pl.DataFrame:
    """Every interaction of the source, once: (user, position, item, timestamp)."""
    if dataset.interactions is not None:
        return dataset.interactions.select("user", "position", "item", "timestamp")
    frames = []
    for name in SPLITS:
        frame = dataset.split(name)
        frames.append(frame.select("user", "position", item="target", timestamp="timestamp"))
        older = frame.with_columns(place=pl.int_ranges(pl.col("position") - pl.col("history").list.len(), "position"))
        older = older.select("user", position="place", item="history").explode("position", "item")
        frames.append(older.select("user", pl.col("position").cast(pl.Int32), "item", timestamp=pl.lit(None, pl.Int64)))
    return pl.concat(frames).unique(["user", "position"], keep="first", maintain_order=True)


def _size(dataset: Dataset) -> dict[str, Any]:
    events = _events(dataset)
    users, items = events["user"].n_unique(), len(dataset.catalog)
    return {
        "users": users,
        "items": items,
        "interactions": len(events),
        "sparsity": 1 - len(events.select("user", "item").unique()) / max(users * items, 1),
        **{f"{name} examples": len(dataset.split(name)) for name in SPLITS},
        **{f"{name} users": dataset.split(name)["user"].n_unique() for name in SPLITS},
    }


def _lengths(frame: pl.DataFrame) -> dict[str, Any]:
    lengths = frame["history"].list.len()
    if not len(lengths):
        return {"examples": 0}
    counts = lengths.value_counts().sort("history")
    return {
        "examples": len(lengths),
        "mean": float(lengths.cast(pl.Float64).sum()) / len(lengths),
        "median": float(lengths.median()),  # type: ignore[arg-type]
        "longest": int(lengths.max()),  # type: ignore[arg-type]
        "of length": dict(zip(counts["history"].to_list(), counts["count"].to_list(), strict=True)),
    }


def _times(dataset: Dataset) -> dict[str, Any]:
    """First and last target per split, as dates; empty if the source has no times."""
    dates: dict[str, Any] = {}
    for name in SPLITS:
        stamps = dataset.split(name)["timestamp"].drop_nulls()
        if len(stamps):
            days = pl.from_epoch(pl.Series([stamps.min(), stamps.max()], dtype=pl.Int64)).dt.strftime("%Y-%m-%d").to_list()
            dates[name] = {"first target": days[0], "last target": days[1]}
    if dates and dataset.interactions is not None:
        stamps = dataset.interactions["timestamp"].drop_nulls()
        dates["different timestamps"] = stamps.n_unique()
        dates["whole days only"] = bool((stamps % 86_400 == 0).all())
    return dates


def _popularity(dataset: Dataset) -> dict[str, Any]:
    """How unevenly interactions fall on items."""
    counts = np.bincount(_events(dataset)["item"].to_numpy(), minlength=len(dataset.catalog))
    falling = np.sort(counts)[::-1]
    total, items = max(int(falling.sum()), 1), len(falling)
    shares = np.cumsum(falling) / total
    points = np.unique(np.linspace(1, items, min(items, _CURVE_POINTS)).astype(int))
    rising = falling[::-1]
    return {
        "most popular item": int(falling[0]),
        "median item": float(np.median(counts)),
        "items never interacted with": int((counts == 0).sum()),
        "items with fewer than 5": int((counts < 5).sum()),
        "share of the top 1 %": float(shares[max(items // 100, 1) - 1]),
        "share of the top 10 %": float(shares[max(items // 10, 1) - 1]),
        "gini": float(1 - 2 * (np.cumsum(rising) / total).sum() / items + 1 / items),
        "curve": [(float(point / items), float(shares[point - 1])) for point in points],
    }


def _repeats(dataset: Dataset, frame: pl.DataFrame) -> dict[str, Any]:
    """How often the target was there before."""
    last = frame["history"].list.last()
    shares: dict[str, Any] = {
        "target in history": _share(frame.select(pl.col("history").list.contains(pl.col("target")))["history"]),
        "target is the last item": _share(frame["target"] == last),
    }
    if dataset.interactions is not None and not dataset.interactions["timestamp"].null_count():
        before = dataset.interactions.select("user", position=pl.col("position") + 1, earlier="timestamp")
        joined = frame.join(before, on=["user", "position"], how="left", maintain_order="left")
        same = (joined["timestamp"] == joined["earlier"]).fill_null(False)
        shares["target has the last item's timestamp"] = _share(same)
        shares["target is the last item, at the same time"] = _share(same & (frame["target"] == last))
    if dataset.interactions is not None and dataset.interactions["rating"].null_count() < len(dataset.interactions):
        rated = frame.join(dataset.interactions, on=["user", "position"], how="left", maintain_order="left")
        shares["target rated 2 or less"] = _share((rated["rating"] <= 2).fill_null(False))
    return shares


def _splits(dataset: Dataset) -> dict[str, Any]:
    """What valid and test share with the splits before them."""
    train, valid, test = (dataset.split(name) for name in SPLITS)
    train_items = _reach(train)
    seen = {"train": train_items, "train or valid": train_items | _reach(valid), "valid": set(valid["target"].to_list())}
    users = {name: set(dataset.split(name)["user"].to_list()) for name in SPLITS}

    def absent(frame: pl.DataFrame, column: str, earlier: set[Any]) -> float | None:
        return _share(np.array([value not in earlier for value in frame[column].to_list()]))

    histories = {tuple(history) for history in valid["history"].to_list()}
    return {
        "users in train and valid": len(users["train"] & users["valid"]),
        "users in train and test": len(users["train"] & users["test"]),
        "users in valid and test": len(users["valid"] & users["test"]),
        "valid rows of users without a train row": absent(valid, "user", users["train"]),
        "test rows of users without a train row": absent(test, "user", users["train"]),
        "test rows of users without a valid row": absent(test, "user", users["valid"]),
        "cold items among valid targets": len(set(valid["target"].to_list()) - train_items),
        "cold items among test targets": len(set(test["target"].to_list()) - train_items),
        "valid targets never seen in train": absent(valid, "target", train_items),
        "test targets never seen in train": absent(test, "target", train_items),
        "test targets never seen in train or valid": absent(test, "target", seen["train or valid"]),
        "test targets never seen in a valid row": absent(test, "target", _reach(valid)),
        "test histories that are a valid history": _share(
            np.array([tuple(row) in histories for row in test["history"].to_list()])
        ),
    }


def _reach(frame: pl.DataFrame) -> set[int]:
    """Items that occur in a split, as target or in a history."""
    return set(frame["target"].to_list()) | set(frame["history"].explode().drop_nulls().to_list())


def _leaks(dataset: Dataset) -> dict[str, Any]:
    """What a model could know before it should.

    `train rows that hold a test interaction`: history or target of a train row covers the place, in the user's sequence, of a
    test target. A later test row's history holds the user's earlier test targets by design of a split by time.
    """
    leaks: dict[str, Any] = {}
    for name in ("valid", "test"):
        places = dataset.split(name).group_by("user").agg(pl.col("position").alias("places"))
        joined = dataset.train.join(places, on="user", how="inner")
        begin = pl.col("position").cast(pl.Int64) - pl.col("history").list.len().cast(pl.Int64)
        spans = joined.select(first=begin, last="position", place="places").with_row_index("row").explode("place")
        inside = spans.filter(pl.col("place").is_between(pl.col("first"), pl.col("last")))
        leaks[f"train rows that hold a {name} interaction"] = inside["row"].n_unique()
    test = dataset.test
    began = test["timestamp"].min()
    if began is not None and dataset.train["timestamp"].null_count() == 0:
        leaks["train targets after the first test target"] = _share(dataset.train["timestamp"] > began)
    earlier: dict[str, set[int]] = {}
    later = holding = 0
    for user, history, target in test.select("user", "history", "target").iter_rows():
        if user in earlier:
            later += 1
            holding += bool(earlier[user] & set(history))
        earlier.setdefault(user, set()).add(target)
    leaks["later test rows of a user"] = later
    leaks["of these, with an earlier test target in the history"] = holding
    return leaks


def _constant(dataset: Dataset) -> dict[str, Any]:
    """Hit rates of one list for everybody, the most frequent targets of a split, on items."""
    test = dataset.test["target"].to_list()
    hit_rates = {
        f"most frequent targets of {name}": _hits(dataset.split(name)["target"].to_list(), test) for name in ("train", "valid")
    }
    return {**hit_rates, "repeat last HR@1": _share(dataset.test["target"] == dataset.test["history"].list.last())}


def _hits(values: Sequence[Any], targets: Sequence[Any]) -> dict[str, float | None]:
    """Hit rates of the most frequent values, equals in order of first appearance; no cut-off is beyond their number."""
    ranked = {value: rank for rank, (value, _) in enumerate(Counter(values).most_common(max(CUTOFFS)))}
    ranks = np.array([ranked.get(target, max(CUTOFFS)) for target in targets])
    return {f"HR@{cutoff}": _share(ranks < cutoff) for cutoff in CUTOFFS if cutoff <= len(ranked)}


def _texts(catalog: pl.DataFrame) -> dict[str, Any]:
    titles, texts = catalog["title"], catalog["text"]
    counts = {
        "items without text": int((texts == "").sum()),
        "titles that several items have": int((titles.value_counts()["count"] > 1).sum()),
        "items with such a title": int(titles.is_duplicated().sum()),
        "items with another's whole text": int(texts.filter(texts != "").is_duplicated().sum()),
        "characters of text, median": float(texts.str.len_chars().median() or 0),  # type: ignore[arg-type]
    }
    if "description" in catalog.columns:
        counts["items without description"] = int((catalog["description"] == "").sum())
    return counts


def _sids(dataset: Dataset, sids: np.ndarray) -> dict[str, Any]:
    """Collisions and what they do to figures on SIDs."""
    groups: dict[str, list[int]] = {}
    for item, sid in enumerate(sids.tolist()):
        groups.setdefault(sid, []).append(item)
    shared = {sid: items for sid, items in groups.items() if len(items) > 1}
    targets: dict[str, np.ndarray] = {name: sids[dataset.split(name)["target"].to_numpy()] for name in SPLITS}
    described = dataset.catalog.select(c for c in ("title", "description") if c in dataset.catalog.columns).rows()
    section: dict[str, Any] = {
        "different SIDs": len(groups),
        "items that share a SID": sum(map(len, shared.values())),
        "shared SIDs": len(shared),
        "most items of one SID": max(map(len, groups.values())),
        "shared SIDs whose items have the same title and description": sum(
            len({described[item] for item in items}) == 1 for items in shared.values()
        ),
    }
    for name in ("valid", "test"):
        rows = int(sum(sid in shared for sid in targets[name]))
        section[f"{name} targets in a shared SID"] = rows
        section[f"share of {name} targets in a shared SID"] = rows / max(len(targets[name]), 1)
    if len(dataset.test):
        section |= _test_sids(dataset, sids, targets, groups)
    section["titles with more than one SID"] = _several(dataset.catalog["title"].to_list(), sids)[0]
    if "description" in dataset.catalog.columns:
        texts, among = _several(dataset.catalog["description"].to_list(), sids)
        section["descriptions with more than one SID"], section["SIDs with such a description"] = texts, among
    return section


def _test_sids(
    dataset: Dataset, sids: np.ndarray, targets: dict[str, np.ndarray], groups: dict[str, list[int]]
) -> dict[str, Any]:
    test, items = targets["test"].tolist(), Counter(dataset.test["target"].to_list())
    best = sum(max(items[item] for item in group) for group in groups.values())
    top, count = Counter(test).most_common(1)[0]
    histories = [set(sids[row].tolist()) for row in dataset.test["history"].to_list()]
    last = sids[dataset.test["history"].list.last().to_numpy()]
    return {
        "item HR lost if each SID meant its most frequent test item": 1 - best / len(test),
        "most frequent test SID": top,
        "its test rows": count,
        "its share of the test rows": count / len(test),
        "its items": {dataset.catalog["item_id"][item]: items[item] for item in groups[top]},
        **{
            f"constant predictor, most frequent SIDs of {name}": _hits(targets[name].tolist(), test)
            for name in ("train", "valid")
        },
        "repeat last HR@1": _share(last == targets["test"]),
        "test target's SID in the history": _share(np.array([sid in row for sid, row in zip(test, histories, strict=True)])),
    }


def _several(texts: Sequence[str], sids: np.ndarray) -> tuple[int, int]:
    """How many texts, empty ones apart, belong to more than one SID, and how many SIDs these are."""
    sids_of_text: dict[str, set[str]] = {}
    for text, sid in zip(texts, sids.tolist(), strict=True):
        if text:
            sids_of_text.setdefault(text, set()).add(sid)
    many = [group for group in sids_of_text.values() if len(group) > 1]
    return len(many), len(set().union(*many))
