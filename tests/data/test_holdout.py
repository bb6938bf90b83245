import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.data.dataset import SPLIT_SCHEMA
from minionerec.data.holdout import held_out_rows, is_drawn
from minionerec.errors import DataError
from tests.examples import examples

pytestmark = pytest.mark.fast


def training_rows(users):
    """As many rows as each user has, at positions 1, 2, ..., in a mixed order."""
    rows = [(f"u{user}", [0], 1, 0, position) for user, count in enumerate(users) for position in range(1, count + 1)]
    return pl.DataFrame(rows, schema=SPLIT_SCHEMA, orient="row").sample(fraction=1.0, shuffle=True, seed=3)


SOME = st.lists(st.integers(1, 4), min_size=30, max_size=60)


@examples(100)
@given(SOME, st.integers(0, 99))
def test_all_rows_of_drawn_users_and_of_no_other(users, seed):
    train = training_rows(users)
    held = train.filter(held_out_rows(train, "users", 0.5, seed))
    assert set(held["user"]) == {user for user in train["user"] if is_drawn(user, 0.5, seed)}
    assert not set(held["user"]) & set(train.join(held, on=["user", "position"], how="anti")["user"])


@examples(100)
@given(SOME, st.integers(0, 99))
def test_the_last_row_of_each_user_who_has_several(users, seed):
    train = training_rows([*users, 2])
    held = train.filter(held_out_rows(train, "last", 1.0, seed))
    expected = {(f"u{user}", count) for user, count in enumerate([*users, 2]) if count > 1}
    assert set(zip(held["user"], held["position"], strict=True)) == expected


@examples(100)
@given(st.text(min_size=1), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_a_larger_share_draws_the_users_of_a_smaller_one(user, share, other, seed):
    assert is_drawn(user, min(share, other), seed) <= is_drawn(user, max(share, other), seed)
    assert is_drawn(user, 1.0, seed)


def test_the_draw_depends_on_the_seed_and_not_on_other_users():
    train = training_rows([3] * 200)
    rows = held_out_rows(train, "users", 0.3, 1)
    assert 120 < rows.sum() < 240  # of 600
    assert (rows != held_out_rows(train, "users", 0.3, 2)).any()
    half = train.filter(pl.col("user").str.len_chars() < 3)
    assert held_out_rows(half, "users", 0.3, 1).tolist() == rows[train["user"].str.len_chars().to_numpy() < 3].tolist()
    assert not held_out_rows(train, "none", 0.3, 1).any()


def test_nothing_for_one_of_the_two_stages():
    with pytest.raises(DataError, match=r"rl.holdout last with rl.holdout_share 1 holds out 0 of 5 training rows"):
        held_out_rows(training_rows([1] * 5), "last", 1.0, 0)
