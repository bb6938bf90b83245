import dataclasses
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.data.interactions import training_interactions
from minionerec.errors import DataError
from minionerec.eval import slices
from minionerec.eval.exposure import diversity, exposure, gini
from minionerec.eval.lists import RankedLists
from minionerec.eval.predictions import as_predictions
from minionerec.eval.slices import (
    EVIDENCE,
    POPULARITY,
    evidence,
    most_frequent,
    parts_of_dataset,
    parts_of_lists,
    parts_of_training,
    popularity_groups,
    same_time,
    slice_differences,
    slice_tables,
)
from minionerec.sid.index import SidIndex
from minionerec.statistics.differences import differences
from tests import small
from tests.eval.samples import prediction
from tests.examples import examples

pytestmark = pytest.mark.fast

DATASET, INDEX = small.random_dataset(users=30)
ROWS = DATASET.test
LISTS = RankedLists.of(as_predictions(ROWS, [np.arange(15)] * len(ROWS), INDEX))
PARTS = parts_of_lists(LISTS) | parts_of_dataset(LISTS, DATASET, INDEX, "test")


@pytest.mark.parametrize("question", PARTS)
def test_every_row_is_in_exactly_one_part(question):
    assert np.stack(list(PARTS[question].values())).sum(axis=0).tolist() == [1] * len(LISTS)


def test_parts_against_the_rows():
    histories, targets = ROWS["history"].to_list(), ROWS["target"].to_list()
    repeats = [target in history for target, history in zip(targets, histories, strict=True)]
    assert PARTS["target in the history"]["repeat"].tolist() == repeats
    assert PARTS["history length"]["2 to 3"].tolist() == [len(history) in (2, 3) for history in histories]
    shared = [len(INDEX.items(INDEX.codes[target])) > 1 for target in targets]
    assert PARTS["target's SID"]["shared by several items"].tolist() == shared


def test_metrics_of_a_part_are_those_of_its_rows():
    tables = slice_tables(LISTS, PARTS, (10,), resamples=50)
    for question, answers in PARTS.items():
        for answer, rows in answers.items():
            if not rows.any():
                assert answer not in tables[question]
                continue
            hits = [
                sid in ranked
                for sid, ranked in zip(LISTS.target_sids[rows].tolist(), LISTS.sids[rows, :10].tolist(), strict=True)
            ]
            cell = tables[question][answer]
            assert cell["HR@10"]["value"] == pytest.approx(np.mean(hits))
            assert (cell["rows"], cell["share"]) == (rows.sum(), pytest.approx(rows.mean()))


def test_popularity_groups_split_interactions_in_thirds():
    counts = np.array([0, 10, 1, 1, 1, 5, 5, 5, 2, 0])
    groups = [POPULARITY[group] for group in popularity_groups(counts)]
    assert groups == ["unseen", "head", "tail", "tail", "tail", "middle", "middle", "tail", "tail", "unseen"]


def test_same_time_looks_at_the_item_before():
    assert same_time(LISTS, DATASET, "test").tolist() == [0] * len(LISTS)  # timestamps are 0, 1, 2, ...
    before = DATASET.valid.with_columns(
        pl.when(pl.col("user") == "u3").then(pl.col("timestamp") + 1).otherwise(pl.col("timestamp"))
    )
    examples = dataclasses.replace(DATASET, interactions=None)
    assert same_time(LISTS, examples, "test").tolist() == [0] * len(LISTS)
    changed = dataclasses.replace(examples, valid=before)
    assert [user for user, same in zip(LISTS.users, same_time(LISTS, changed, "test"), strict=True) if same == 1] == ["u3"]
    blind = {
        name: DATASET.split(name).with_columns(pl.lit(0, pl.Int64).alias("timestamp")) for name in ("train", "valid", "test")
    }
    assert same_time(LISTS, dataclasses.replace(examples, **blind), "test") is None


def test_same_time_of_a_second_item_is_known_from_the_interactions():
    rows = DATASET.train.filter(pl.col("position") == 1)
    lists = RankedLists.of(as_predictions(rows, [np.arange(5)] * len(rows), INDEX))
    data = dataclasses.replace(DATASET, test=rows)
    assert same_time(lists, dataclasses.replace(data, interactions=None), "test").tolist() == [-1] * len(rows)
    opens = (pl.col("position") == 0) & (pl.col("user") == rows["user"][2])
    moved = DATASET.interactions.with_columns(timestamp=pl.when(opens).then(rows["timestamp"][2]).otherwise("timestamp"))
    expected = [int(row == 2) for row in range(len(rows))]
    assert same_time(lists, dataclasses.replace(data, interactions=moved), "test").tolist() == expected


def test_gini_and_diversity_by_hand():
    assert gini(np.array([5, 5, 5])) == 0 and gini(np.zeros(3)) == 0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    example = prediction("a", (0, 0), (0, 0), (0, 1), (1, 1))
    assert diversity([example]) == pytest.approx((0.5 + 1 + 1) / 3)
    assert diversity([example], k=2) == 0.5 and diversity([prediction("a", (0,), (0,))]) is None


def test_exposure_by_hand():
    lists = [prediction("a", (0,), (0,), item=1, items=(0, 1)), prediction("b", (0,), (0,), item=0, items=(0, 2))]
    table = exposure(lists, np.array([3, 1, 0, 0]), k=2)
    assert table["coverage"] == 0.75 and table["gini"] == gini(np.array([2, 1, 1, 0]))
    assert (table["popularity"], table["target_popularity"]) == ((3 + 1 + 3 + 0) / 4, 2)
    assert table["popularity_bias"] == pytest.approx(7 / 8)
    assert table["novelty"] == pytest.approx(-(2 * np.log2(4 / 8) + np.log2(2 / 8) + np.log2(1 / 8)) / 4)


def evidence_literally(dataset, history, target):
    """The kind of a target, read off the training sequences one by one."""
    train: dict[str, list[int]] = {}
    for user, _, item in training_interactions(dataset).rows():
        train.setdefault(user, []).append(item)
    if target in history:
        return "repeat"
    if any(pair == (history[-1], target) for items in train.values() for pair in pairwise(items)):
        return "seen transition"
    if any(target in items and set(items) & set(history) for items in train.values()):
        return "co-occurs"
    return "seen item" if any(target in items for items in train.values()) else "cold"


@examples(40)
@given(st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=7), min_size=1, max_size=6), st.integers(1, 4))
def test_what_training_shows_against_the_sequences(sequences, max_history):
    data = small.leave_one_out({f"u{number}": items for number, items in enumerate(sequences)}, 8, max_history)
    lists = RankedLists.of(
        as_predictions(data.test, [np.arange(3)] * len(data.test), SidIndex(np.arange(8)[:, None], (8,), ""))
    )
    expected = [evidence_literally(data, row["history"], row["target"]) for row in data.test.iter_rows(named=True)]
    assert [EVIDENCE[kind] for kind in evidence(lists, data)] == expected


def test_the_rows_of_several_chunks_are_those_of_one(monkeypatch):
    whole = evidence(LISTS, DATASET)
    monkeypatch.setattr(slices, "_CHUNK", 4)
    assert evidence(LISTS, DATASET).tolist() == whole.tolist()


def test_frequent_targets_and_shared_titles():
    assert most_frequent(np.array([5, 3, 3, 5, 9, 1]), 3).tolist() == [3, 5, 1]
    titles = ["same", "same", "", "", " ", "own", *(f"title {item}" for item in range(6, 30))]
    data = dataclasses.replace(DATASET, catalog=DATASET.catalog.with_columns(title=pl.Series(titles)))
    parts = parts_of_training(LISTS, data, frequent=3)
    assert list(parts) == ["training shows", "target popularity", "the 3 most frequent targets", "target's title"]
    for answers in parts.values():
        assert np.stack(list(answers.values())).sum(axis=0).tolist() == [1] * len(LISTS)
    assert parts["target's title"]["another item has it"].tolist() == [target in (0, 1) for target in LISTS.targets]
    top = most_frequent(LISTS.targets, 3)
    assert parts["the 3 most frequent targets"]["among them"].tolist() == [target in top for target in LISTS.targets]


def test_differences_of_a_part_are_those_of_its_rows():
    rng = np.random.default_rng(0)
    before, after = ({"HR@10": rng.random(len(LISTS)).round(1)} for _ in range(2))
    units = np.arange(len(LISTS)) // 2
    for question, answers in slice_differences(before, after, PARTS, units, 50, 3).items():
        for answer, changes in answers.items():
            rows = PARTS[question][answer]
            users = np.unique(units[rows], return_inverse=True)[1]
            expected = differences({"HR@10": before["HR@10"][rows]}, {"HR@10": after["HR@10"][rows]}, 50, 3, users)
            assert changes == expected


def test_lists_without_items_do_not_tell():
    with pytest.raises(DataError, match="name no items"):
        evidence(dataclasses.replace(LISTS, items=None), DATASET)
