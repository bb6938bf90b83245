import polars as pl
import pytest

from minionerec.baselines.floors import popularity, repeat_last, training_counts
from minionerec.config import DataConfig
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, Dataset
from minionerec.data.prepare import build

SEQUENCES = {"short": [4, 0, 1], "long": [2, 3, 2, 2, 0, 1], "mid": [4, 3, 1, 1]}


def make(sequences, items: int, max_history: int) -> Dataset:
    rows = {"train": [], "valid": [], "test": []}
    for user, sequence in sequences.items():
        for position in range(1, len(sequence)):
            split = {len(sequence) - 1: "test", len(sequence) - 2: "valid"}.get(position, "train")
            history = sequence[max(0, position - max_history) : position]
            rows[split].append((user, history, sequence[position], 0, position))
    ids = [str(item) for item in range(items)]
    catalog = pl.DataFrame({"item_id": ids, "title": ids, "text": ids}, schema=CATALOG_SCHEMA)
    return Dataset(catalog, **{name: pl.DataFrame(some, schema=SPLIT_SCHEMA, orient="row") for name, some in rows.items()})


@pytest.mark.parametrize("max_history", [1, 2, 20])
def test_counts_are_of_all_but_the_last_two_whatever_the_history_length(max_history):
    # short: 4; long: 2 3 2 2; mid: 4 3
    assert training_counts(make(SEQUENCES, 6, max_history)).tolist() == [0, 0, 3, 2, 2, 0]


def test_under_a_split_by_time_users_that_came_later_count_nothing():
    times = {"old": {1: 0, 2: 1, 3: 2, 4: 3}, "late": {5: 4, 6: 5, 9: 4}, "last": {8: 3, 10: 1, 11: 1}}
    interactions = pl.DataFrame(
        [(user, str(item), time) for user, items in times.items() for time, item in items.items()],
        schema={"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
        orient="row",
    )
    ids = [str(item) for item in range(6)]
    catalog = pl.DataFrame({"item_id": ids, "title": ids, "text": ids})
    data, _ = build(interactions, catalog, DataConfig(user_k=3, split="chronological", parts=[3, 2, 2]))
    assert data.train["user"].unique().to_list() == ["old"] and data.valid["user"].to_list() == ["late", "late"]
    assert training_counts(data).tolist() == [1, 1, 1, 1, 0, 0]


def test_popularity_ranks_by_count_then_index_for_every_row():
    data = make(SEQUENCES, 6, 20)
    found = popularity(data, 50)
    assert [ranking.tolist() for ranking in found] == [[2, 3, 4, 0, 1, 5]] * 3
    assert popularity(data, 2)[0].tolist() == [2, 3]
    assert len(popularity(data, 2, split="train")) == len(data.train)


def test_repeat_last_is_recent_first_and_distinct():
    data = make(SEQUENCES, 6, 20)
    assert [ranking.tolist() for ranking in repeat_last(data.test, 50)] == [[0, 4], [0, 2, 3], [1, 3, 4]]
    assert [ranking.tolist() for ranking in repeat_last(data.test, 1)] == [[0], [0], [1]]
