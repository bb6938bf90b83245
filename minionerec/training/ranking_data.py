"""The examples that a recommender without a language model learns from and is ranked on.

Three protocols cut, pad and rank differently; this file says how.

`recbole` and `wearec` read a file of sequences, one user a line: the user's id, then item ids from 1 in time order. `dataset`
reads the splits of a run, so that a baseline meets exactly the examples of the generative model.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minionerec.config import Config
from minionerec.data.dataset import SPLITS, Dataset, SplitName
from minionerec.data.history_rows import SPLITS_SIDE, HistoryRows, Side
from minionerec.data.interactions import training_interactions
from minionerec.data.sequences import user_sequences
from minionerec.errors import DataError


@dataclass(frozen=True)
class Protocol:
    """How a benchmark pads, ranks and stops; how it cuts examples is in `from_sequences`.

    Attributes:
        side: where padding goes.
        ranks_padding: the padding row of the item table is a candidate.
        hides_history: the scores of all items in the user's history are set to 0 (to 0 and not to -inf, as published).
        equal_is_better: an epoch as good as the best takes its place.
        decimals: early stopping compares metrics rounded to so many decimals; None compares them as they are.
        expects_ties: of candidates with one score every order counts alike; else the one with the lower id comes first.
    """

    side: Side
    ranks_padding: bool
    hides_history: bool
    equal_is_better: bool
    decimals: int | None
    expects_ties: bool


PROTOCOLS = {
    "dataset": Protocol(
        SPLITS_SIDE, ranks_padding=False, hides_history=False, equal_is_better=False, decimals=None, expects_ties=True
    ),
    "recbole": Protocol(
        "right", ranks_padding=False, hides_history=False, equal_is_better=True, decimals=4, expects_ties=False
    ),
    "wearec": Protocol(
        "left", ranks_padding=True, hides_history=True, equal_is_better=False, decimals=None, expects_ties=False
    ),
}


@dataclass(frozen=True)
class RankingData:
    """A protocol's examples in all splits.

    Attributes:
        items: items, with ids from 1 to this number.
        users: each user's name, by number.
        rows: examples by split.
        training: one row per user with training interactions: they are its history, in time order.
        protocol: how the rows are padded and ranked.
    """

    items: int
    users: list[str]
    rows: dict[SplitName, HistoryRows]
    training: HistoryRows
    protocol: Protocol


def read_sequences(path: Path) -> tuple[list[str], list[np.ndarray]]:
    """Users and their item ids in time order.

    Raises:
        DataError: the file is missing, empty or malformed, or a user has fewer than three items or one that is no id.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: not found. Expected a file of sequences, one user a line: the user's id, then item ids from 1 in time "
            "order. Name it with --baseline.sequences FILE; docs/baselines.md says who ships these files."
        )
    sequences = user_sequences(path)
    for user, items in sequences.items():
        bad_id = next((item for item in items if not item.isdecimal() or not 0 < int(item) < 2**31), None)
        if bad_id is not None:
            raise DataError(f"{path}, user {user!r}: {bad_id!r} is no item id; expected whole numbers from 1, 0 is padding.")
        if len(items) < 3:
            raise DataError(f"{path}, user {user!r}: {len(items)} items; leave-one-out needs at least 3.")
    if not sequences:
        raise DataError(f"{path}: empty; expected one user a line.")
    return list(sequences), [np.array([int(item) for item in items], np.int32) for items in sequences.values()]


def from_sequences(path: Path, protocol: str, max_history: int) -> RankingData:
    """A file of sequences, cut as `recbole` or `wearec` cuts: a user's last item is test, the one before valid.

    `recbole`: training targets are all items but the first and the last two, with up to `max_history` items before each.
    `wearec`: every prefix of the last `max_history` items before valid, its last item as target; the first has no history.

    Raises:
        DataError: the file is missing or malformed.
    """
    users, sequences = read_sequences(path)
    flat = np.concatenate(sequences)
    count = np.array([len(sequence) for sequence in sequences])
    first = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(users)), count)
    stop = np.arange(len(flat))  # every interaction as a target
    begin, after = first[owner], (first + count)[owner] - 1 - stop  # items of the user after the target
    recent = np.maximum(begin, stop - max_history)
    window = np.maximum(begin, (first + count)[owner] - 2 - max_history)  # wearec's last items before valid begin here
    train = after >= 2
    if protocol == "recbole":
        train_targets, starts = train & (stop > begin), recent
    else:
        train_targets, starts = train & (stop >= window), np.where(train, window, recent)

    def cut(targets: np.ndarray) -> HistoryRows:
        return HistoryRows(flat, starts[targets], stop[targets], flat[targets], owner[targets], begin[targets])

    training = HistoryRows(flat, first, first + count - 2, flat[first], np.arange(len(users)), first)
    return RankingData(
        items=int(flat.max()),
        users=users,
        rows={"train": cut(train_targets), "valid": cut(after == 1), "test": cut(after == 0)},
        training=training,
        protocol=PROTOCOLS[protocol],
    )


def from_dataset(dataset: Dataset, max_history: int) -> RankingData:
    """A run's own splits, row for row; item indices become ids by adding 1, histories keep their last `max_history` items.

    Raises:
        DataError: a split has no rows.
    """
    users: dict[str, int] = {}
    rows: dict[SplitName, HistoryRows] = {}
    for split in SPLITS:
        frame = dataset.split(split)
        if not len(frame):
            raise DataError(
                f"The {split} split is empty; a baseline needs rows to train on, to choose its best epoch by and to measure."
            )
        lengths = frame["history"].list.len().to_numpy().astype(np.int64)
        stop = np.cumsum(lengths)
        begin = stop - lengths
        flat = frame["history"].explode().to_numpy().astype(np.int32) + 1
        user = np.array([users.setdefault(name, len(users)) for name in frame["user"].to_list()])
        start, target = np.maximum(begin, stop - max_history), frame["target"].to_numpy() + 1
        rows[split] = HistoryRows(flat, start, stop, target, user, begin)
    return RankingData(len(dataset.catalog), list(users), rows, _training(dataset, users), PROTOCOLS["dataset"])


def _training(dataset: Dataset, users: dict[str, int]) -> HistoryRows:
    interactions = training_interactions(dataset)
    flat = interactions["item"].to_numpy() + 1
    owner = np.array([users[user] for user in interactions["user"].to_list()])
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    stop = np.append(first[1:], len(flat))
    return HistoryRows(flat, first, stop, flat[first], owner[first], first)


def longest_history(data: RankingData) -> int:
    """The most items that a row of valid or test has before its target, those included that no model reads."""
    return max(int((rows.stop - rows.seen).max()) for split, rows in data.rows.items() if split != "train")


def stored_length(top: int, config: Config, data: RankingData) -> int:
    """Items in the lists that a recommender stores for an `eval` that takes each history out of them: `top` at least."""
    return max(top, config.eval.num_beams + longest_history(data))


def choosing_rows(data: RankingData, count: int | None, seed: int) -> RankingData:
    """The data with those rows of valid that choose the best epoch: so many, drawn by the seed, in order; None for all."""
    valid = data.rows["valid"]
    if count is None or count >= len(valid):
        return data
    drawn = np.sort(np.random.default_rng([seed, len(valid)]).choice(len(valid), count, replace=False))
    return replace(data, rows={**data.rows, "valid": valid.take(drawn)})
