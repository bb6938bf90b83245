import polars as pl
import pytest

from minionerec.config import DataConfig
from minionerec.data.interactions import interaction_counts
from minionerec.data.prepare import build_dataset
from tests.small import SEQUENCES, leave_one_out

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("max_history", [1, 2, 20])
def test_counts_are_of_all_but_the_last_two_whatever_the_history_length(max_history):
    # short: 4; long: 2 3 2 2; mid: 4 3
    assert interaction_counts(leave_one_out(SEQUENCES, 6, max_history)).tolist() == [0, 0, 3, 2, 2, 0]


def test_under_a_split_by_time_users_that_came_later_count_nothing():
    times = {"old": {1: 0, 2: 1, 3: 2, 4: 3}, "late": {5: 4, 6: 5, 9: 4}, "last": {8: 3, 10: 1, 11: 1}}
    interactions = pl.DataFrame(
        [(user, str(item), time) for user, items in times.items() for time, item in items.items()],
        schema={"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
        orient="row",
    )
    ids = [str(item) for item in range(6)]
    catalog = pl.DataFrame({"item_id": ids, "title": ids, "text": ids})
    data, _ = build_dataset(interactions, catalog, DataConfig(user_k=3, split="chronological", parts=[3, 2, 2]))
    assert data.train["user"].unique().to_list() == ["old"] and data.valid["user"].to_list() == ["late", "late"]
    assert interaction_counts(data).tolist() == [1, 1, 1, 1, 0, 0]
