import dataclasses

import numpy as np
import polars as pl
import pytest

from minionerec.data.pairs import PAIR_SCHEMA
from minionerec.errors import DataError
from minionerec.legommenders.examples import check_negatives, draw_negatives, histories, of_dataset, of_pairs
from minionerec.training.ranking_data import from_dataset
from tests.scoring.data import planted
from tests.small import random_dataset


@pytest.fixture(scope="module")
def pairs():
    return planted("genre", users=40, items=20, candidates=6)


def test_rows_are_those_of_the_pairs(pairs):
    examples = of_pairs(pairs, 4)
    for split in ("train", "valid", "test"):
        rows, frame = examples.rows[split], pairs.split(split)
        shown = histories(rows).tolist()
        assert shown == [history[-4:] for history in frame["history"].to_list()]
        assert (rows.target - 1).tolist() == frame["candidate"].to_list()
        assert examples.labels[split].tolist() == frame["label"].to_list()
        assert [examples.users[user] for user in rows.user] == frame["user"].to_list()
    for user in set(examples.rows["train"].user.tolist()):
        own = pairs.train.filter(pl.col("user") == examples.users[user])
        liked = {*own.filter(label=1)["candidate"].to_list(), *own["history"][0].to_list()}  # of the whole history
        assert examples.had[user].tolist() == sorted(liked)
        assert examples.dislikes[user].tolist() == sorted(own.filter(label=0)["candidate"].to_list())
    everything = {*pairs.train["candidate"].to_list(), *(item for own in pairs.train["history"] for item in own.to_list()[-4:])}
    assert set(np.flatnonzero(examples.trained).tolist()) == everything


def test_rows_are_those_of_the_splits():
    dataset, _ = random_dataset()
    examples = of_dataset(dataset, from_dataset(dataset, 3))
    assert histories(examples.rows["test"]).max() < len(dataset.catalog)
    first = histories(examples.rows["test"])[0]
    assert first[first >= 0].tolist() == dataset.test["history"][0].to_list()[-3:]
    assert all((labels == 1).all() for labels in examples.labels.values())
    user = examples.rows["train"].user[0]
    own = dataset.train.filter(pl.col("user") == examples.users[user])
    assert set(examples.had[user].tolist()) == {*own["target"].to_list(), own["history"][0][0]}


def test_negatives_are_distinct_dislikes_first_and_never_an_item_of_the_user(pairs):
    examples, rng = of_pairs(pairs, 6), np.random.default_rng(0)
    users = examples.rows["train"].user
    counts = np.zeros(examples.items)
    for count in (1, 4, 9):
        drawn = draw_negatives(examples, users, count, rng)
        for user, items in zip(users.tolist(), drawn.tolist(), strict=True):
            own, dislikes = set(examples.had[user].tolist()), set(examples.dislikes[user].tolist())
            assert len(set(items)) == count and not own & set(items)
            assert len(dislikes & set(items)) == min(count, len(dislikes))
        counts += np.bincount(drawn.ravel(), minlength=examples.items)
    assert counts.min() > 0  # any item can be drawn
    most = examples.items - max(len(examples.had[user]) for user in users.tolist())
    check_negatives(examples, most)
    everything = draw_negatives(examples, users, most, rng)
    assert everything.shape == (len(users), most)
    with pytest.raises(DataError, match=rf"lego.negatives is {most + 1}, but user 'u\d+' had all but {most} of the 20 items"):
        check_negatives(examples, most + 1)


def test_an_empty_history_is_named(pairs):
    row = pl.DataFrame([("new", [], 1, 1)], schema=PAIR_SCHEMA, orient="row")
    with pytest.raises(DataError, match="the test split: user 'new' has an empty history"):
        of_pairs(dataclasses.replace(pairs, test=pl.concat([pairs.test, row])), 6)
