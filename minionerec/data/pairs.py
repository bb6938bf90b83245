"""Pairs: (user, history, candidate, label), made from interactions by a rule and drawn by one walk over the users.

The rules `rated` and `purchases` are those of RecBench (Liu et al., 2025), as its repository has them; `data/pair_files.py`
reads files that bring labels. The walk takes users in one random order: first the test users, then those of train and valid. So
no user is in two splits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from minionerec.config.pairs import PairRule, PairsConfig
from minionerec.data.dataset import SPLITS, Dataset, SplitName, catalog_schema
from minionerec.data.parquet import read_parquet
from minionerec.errors import ArtifactError, DataError

COUNT_SCHEMA = pl.Schema({"had": pl.Int32(), "likes": pl.Int32(), "labelled": pl.Int32()})
PAIR_SCHEMA = pl.Schema({"user": pl.String(), "history": pl.List(pl.Int32()), "candidate": pl.Int32(), "label": pl.Int8()})
_User = TypeVar("_User")  # a name, or a number
_ADVICE = "Run minionerec pairs prepare again (--replace if it says that it is up to date)."


@dataclass(frozen=True)
class PairSet:
    """A catalog and labelled pairs in three splits that share no user.

    Attributes:
        catalog: as a Dataset has it.
        train, valid, test: schema `PAIR_SCHEMA`; `history` holds item indices, oldest first, `candidate` is an item's index,
            `label` 1 or 0. A user's rows stand together, users in the order in which they were drawn.
        counts: what the train users have done with each item, one row per item, schema `COUNT_SCHEMA`: how often they `had` it,
            and among what is `labelled`, the `likes`. Nothing is drawn or cut here: all that the source says of these users.
    """

    catalog: pl.DataFrame
    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    counts: pl.DataFrame

    def split(self, name: SplitName) -> pl.DataFrame:
        """The rows of one split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def save(self, folder: Path) -> None:
        """Write the parquet files into an existing folder."""
        for name in ("catalog", *SPLITS, "counts"):
            getattr(self, name).write_parquet(folder / f"{name}.parquet")

    @classmethod
    def load(cls, folder: Path) -> "PairSet":
        """Read a folder that `save` wrote.

        Raises:
            ArtifactError: a file is missing, is not parquet, or has other columns.
        """
        names = ("catalog", *SPLITS, "counts")
        frames = {name: read_parquet(folder / f"{name}.parquet", ArtifactError, _ADVICE) for name in names}
        for name, frame in frames.items():
            expected = {"catalog": catalog_schema(frame), "counts": COUNT_SCHEMA}.get(name, PAIR_SCHEMA)
            if frame.schema != expected:
                raise ArtifactError(
                    f"{folder / name}.parquet: columns {dict(frame.schema)}, expected {dict(expected)}. {_ADVICE}"
                )
        return cls(**frames)


@dataclass(frozen=True)
class Candidates:
    """What a rule makes of a source: the users that have both labels, with all their candidates, before any is drawn.

    Attributes:
        users: (users,) their names.
        histories: (users,) lists of item indices, oldest first.
        rows: user (its number, ascending), candidate, label, and `older`: the candidate stands before the newest item of the
            history in the user's sequence; False if that is not known.
        evidence: user (its name), item, label (null if there is none), had (bool: the user had the item, and was not only shown
            it); everything that the source says of all users.
        figures: what the rule left out, for the manifest.
    """

    users: pl.Series
    histories: pl.Series
    rows: pl.DataFrame
    evidence: pl.DataFrame
    figures: dict[str, int] = field(default_factory=dict)


def rule_of(dataset: Dataset, config: PairsConfig) -> PairRule:
    """The rule for a Dataset; `auto` is `rated` if it has ratings.

    Raises:
        ConfigError: a field is set that the rule does not read.
    """
    known = dataset.interactions is not None and dataset.interactions["rating"].null_count() < len(dataset.interactions)
    rule: PairRule = ("rated" if known else "purchases") if config.rule == "auto" else config.rule
    config.refuse_unread(rule)
    return rule


def rated(interactions: pl.DataFrame | None, config: PairsConfig) -> Candidates:
    """Likes and dislikes: a user's last likes and all dislikes are candidates, the likes before are the history.

    An item that a user has rated several times has the last of these ratings. Users need both labels, and a like before the
    last `pairs.last_positives`.

    Args:
        interactions: user, position, item, rating, sorted by user, then position; None if there are none.

    Raises:
        DataError: there are no ratings, or no user qualifies; the message says what is missing.
    """
    where = "pairs.rule rated"
    if interactions is None or not len(rows := interactions.drop_nulls("rating")):
        raise DataError(f"{where}: the data has no ratings. Set pairs.rule purchases, or prepare data that has them.")
    unrated = len(interactions) - len(rows)
    rows = rows.unique(["user", "item"], keep="last", maintain_order=True)
    known = rows.filter(~pl.col("rating").is_in(config.neutral))
    known = known.with_columns(label=(pl.col("rating") > config.positive).cast(pl.Int8))
    if known["label"].n_unique() != 2:
        low, high = (float(value) for value in rows.select(low=pl.min("rating"), high=pl.max("rating")).row(0))
        raise DataError(
            f"{where}: ratings from {low:g} to {high:g} are not both likes (above pairs.positive {config.positive:g}) and "
            "dislikes. Choose another pairs.positive; and leave out data.positive, which drops low ratings."
        )
    from_end = pl.col("position").rank("ordinal", descending=True).over("user", "label")
    held_out = (pl.col("label") == 0) | (from_end <= config.last_positives)
    known = known.with_columns(is_candidate=held_out)
    history = known.filter(~pl.col("is_candidate")).group_by("user", maintain_order=True)
    histories = history.agg(history=pl.col("item").tail(config.history), newest=pl.col("position").last())
    candidates = known.filter("is_candidate").join(histories, on="user", maintain_order="left")
    candidates = candidates.with_columns(older=pl.col("position") < pl.col("newest"))
    dislikes = candidates.filter(pl.col("label") == 0)
    figures = {
        "rows_without_rating": unrated,
        "rows_rated_again": len(interactions) - unrated - len(rows),
        "rows_neutral": len(rows) - len(known),
        "dislikes": len(dislikes),
        "dislikes_older_than_history": int(dislikes["older"].sum()),
    }
    if config.order == "past_only":
        candidates = candidates.filter(~pl.col("older") | (pl.col("label") == 1))
    figures["users_read"] = interactions["user"].n_unique()
    chosen = candidates.select("user", candidate="item", label="label", older="older")
    labels = known.select("user", "item", "label")
    evidence = interactions.select("user", "item").unique(maintain_order=True).with_columns(had=pl.lit(True))
    evidence = evidence.join(labels, on=["user", "item"], how="left").select("user", "item", "label", "had")
    return qualified(histories.select("user", "history"), chosen, evidence, where, figures)


def purchases(dataset: Dataset, config: PairsConfig, seed: int) -> Candidates:
    """A user's last items against random ones that the user never had; the items before are the history.

    Raises:
        DataError: no user has more items than `pairs.last_positives`.
    """
    where = "pairs.rule purchases"
    rows = sequences(dataset)
    users = pl.concat([dataset.split(name)["user"] for name in SPLITS]).n_unique()
    from_end = pl.col("position").rank("ordinal", descending=True).over("user")
    rows = rows.with_columns(is_candidate=from_end <= config.last_positives)
    history = rows.filter(~pl.col("is_candidate")).group_by("user", maintain_order=True)
    histories = history.agg(history=pl.col("item").tail(config.history))
    positives = rows.filter("is_candidate").join(histories.select("user"), on="user", how="semi", maintain_order="left")
    owned = rows.join(histories.select("user"), on="user", how="semi", maintain_order="left")
    negatives = _never_had(owned, len(dataset.catalog), config.random_negatives, seed)
    schema = {"user": pl.String, "candidate": pl.Int32, "label": pl.Int8}
    chosen = [
        positives.select("user", candidate="item", label=pl.lit(1, pl.Int8)),
        negatives.with_columns(label=pl.lit(0, pl.Int8)),
    ]
    both = pl.concat([frame.cast(schema) for frame in chosen]).with_columns(older=pl.lit(False))  # type: ignore[arg-type]
    bought = rows.select("user", "item", label=pl.lit(1, pl.Int8), had=pl.lit(True))
    random = negatives.select("user", item="candidate", label=pl.lit(0, pl.Int8), had=pl.lit(False))
    evidence = pl.concat([bought, random])
    figures = {"users_read": rows["user"].n_unique(), "users_with_gaps": users - rows["user"].n_unique()}
    return qualified(histories, both, evidence, where, figures)


def _never_had(owned: pl.DataFrame, items: int, count: int, seed: int) -> pl.DataFrame:
    """`count` distinct items for each user that are not among the user's, uniformly; fewer if there are not as many."""
    rng = np.random.default_rng([seed, 1])
    drawn: list[tuple[str, int]] = []
    for (user,), rows in owned.group_by("user", maintain_order=True):
        had = np.unique(rows["item"].to_numpy())
        wanted = min(count, items - len(had))
        # The k-th item that is not in `had`, in ascending order, is k plus the number of items in `had` before it.
        places = rng.choice(items - len(had), size=wanted, replace=False)
        free = places + np.searchsorted(had - np.arange(len(had)), places, side="right")
        drawn += [(str(user), item) for item in free.tolist()]
    return pl.DataFrame(drawn, schema={"user": pl.String, "candidate": pl.Int32}, orient="row")


def sequences(dataset: Dataset) -> pl.DataFrame:
    """Every known interaction (user, position, item), users one after the other, each by position.

    If the source gives examples and not the interactions behind them, they are what the examples show. Users whose examples
    contradict one another about a position are left out: some of their examples are missing.
    """
    if dataset.interactions is not None:
        return dataset.interactions.select("user", "position", "item")
    examples = pl.concat([dataset.split(name) for name in SPLITS])
    first = pl.col("position") - pl.col("history").list.len().cast(pl.Int32)
    places = pl.int_ranges(first, pl.col("position") + 1, dtype=pl.Int32)
    items = pl.concat_list("history", pl.col("target").cast(pl.Int32))
    rows = examples.select("user", position=places, item=items).explode("position", "item")
    rows = rows.unique(["user", "position", "item"])
    gaps = rows.filter(pl.struct("user", "position").is_duplicated())
    return rows.join(gaps, on="user", how="anti").sort("user", "position")


def qualified(
    histories: pl.DataFrame, candidates: pl.DataFrame, evidence: pl.DataFrame, where: str, figures: dict[str, int]
) -> Candidates:
    """The users that have a history and candidates of both labels.

    Args:
        histories: user, history; one row a user, histories not empty.
        candidates: user, candidate, label, older.
        evidence: see `Candidates`.
        where: the rule, for the message.
        figures: get the users that were left out.

    Raises:
        DataError: no user is left.
    """
    labels = candidates.group_by("user").agg(kinds=pl.col("label").n_unique())
    both = labels.filter(pl.col("kinds") == 2)
    users = histories.join(both, on="user", how="semi", maintain_order="left").sort("user")
    figures["users_qualified"], figures["users_with_one_label"] = len(users), len(labels) - len(both)
    if not len(users):
        raise DataError(
            f"{where}: no user has a history and candidates of both labels; {len(histories):,} users have a history, "
            f"{len(labels) - len(both):,} have candidates of one label only."
        )
    numbers = users.select("user", number=pl.int_range(pl.len(), dtype=pl.Int32))
    rows = candidates.join(numbers, on="user", maintain_order="left").sort("number", maintain_order=True)
    rows = rows.select(user="number", candidate="candidate", label=pl.col("label").cast(pl.Int8), older="older")
    return Candidates(users["user"], users["history"], rows, evidence, figures)


@dataclass(frozen=True)
class Drawn:
    """The pairs that a walk has drawn.

    Attributes:
        splits: rows of `PAIR_SCHEMA` by split.
        order: every user (user, split) in the order of the walk; the split is null for users that it did not reach.
        older: by split, how many rows have a candidate that is older than the newest item of their history.
        evidence: of the train users, see `Candidates`.
    """

    splits: dict[SplitName, pl.DataFrame]
    order: pl.DataFrame
    older: dict[SplitName, int]
    evidence: pl.DataFrame

    def counts(self, items: int) -> pl.DataFrame:
        """What the train users have done with each item of a catalog of this size, see `PairSet.counts`."""
        grouped = self.evidence.group_by("item").agg(
            had=pl.col("had").sum(), likes=(pl.col("label") == 1).sum(), labelled=pl.col("label").count()
        )
        every = pl.DataFrame({"item": pl.int_range(items, dtype=pl.Int32, eager=True)})
        counted = every.join(grouped, on="item", how="left", maintain_order="left").fill_null(0)
        return counted.select("had", "likes", "labelled").cast(dict(COUNT_SCHEMA))  # type: ignore[arg-type]


def draw(candidates: Candidates, config: PairsConfig, seed: int) -> Drawn:
    """Walk over the users in a random order: first test, then train and valid, whole users, few rows of each label."""
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(candidates.users))
    walk = _walk(candidates, order, config.per_label, rng)
    share = config.test_share
    most_users = len(order) if share is None else max(1, round(share * len(order)))
    test = _take(walk, config.test_rows if share is None else None, most_users)
    rest = _take(walk, config.train_rows, len(order))
    chosen = valid_users(list(rest), config.valid_share, rng)
    parts: dict[SplitName, dict[int, np.ndarray]] = {
        "train": {user: rows for user, rows in rest.items() if user not in chosen},
        "valid": {user: rows for user, rows in rest.items() if user in chosen},
        "test": test,
    }
    split_of = {user: name for name, users in parts.items() for user in users}
    names = [split_of.get(user) for user in order.tolist()]
    walked = pl.DataFrame({"user": candidates.users.gather(order), "split": pl.Series(names, dtype=pl.String)})
    taken = {name: np.concatenate([np.empty(0, np.int64), *users.values()]) for name, users in parts.items()}
    frames = {name: _pairs(candidates, rows) for name, rows in taken.items()}
    older = {name: int(candidates.rows["older"].gather(rows).sum()) for name, rows in taken.items()}
    of_train = pl.DataFrame({"user": candidates.users.gather(list(parts["train"]))}, schema={"user": pl.String})
    return Drawn(frames, walked, older, candidates.evidence.join(of_train, on="user", how="semi"))


def valid_users(users: Sequence[_User], share: float, rng: np.random.Generator) -> set[_User]:
    """A random share of the users; at least one is left for train."""
    count = max(min(round(share * len(users)), len(users) - 1), 0)
    return {users[place] for place in rng.permutation(len(users))[:count].tolist()}


def _walk(
    candidates: Candidates, order: np.ndarray, per_label: int, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray]]:
    """Each user of the order with the rows drawn of that user: likes, then dislikes, each in the order of the rows."""
    starts = np.searchsorted(candidates.rows["user"].to_numpy(), np.arange(len(order) + 1))
    labels = candidates.rows["label"].to_numpy()
    for user in order.tolist():
        rows = np.arange(starts[user], starts[user + 1])
        parts = [rows[labels[rows] == label] for label in (1, 0)]
        few = [part if len(part) <= per_label else np.sort(rng.choice(part, per_label, replace=False)) for part in parts]
        yield user, np.concatenate(few)


def _take(walk: Iterator[tuple[int, np.ndarray]], rows: int | None, users: int) -> dict[int, np.ndarray]:
    """Whole users of the walk until they have so many rows, or are so many; the walk stays where it is for the next call."""
    taken: dict[int, np.ndarray] = {}
    count = 0
    while len(taken) < users and (rows is None or count < rows):
        if (following := next(walk, None)) is None:
            break
        taken[following[0]] = following[1]
        count += len(following[1])
    return taken


def _pairs(candidates: Candidates, rows: np.ndarray) -> pl.DataFrame:
    chosen = candidates.rows[rows]
    return pl.DataFrame(
        {
            "user": candidates.users.gather(chosen["user"]),
            "history": candidates.histories.gather(chosen["user"]),
            "candidate": chosen["candidate"],
            "label": chosen["label"],
        },
        schema=PAIR_SCHEMA,
    )
