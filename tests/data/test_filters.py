from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import DataConfig
from minionerec.data import prepare, times
from minionerec.data.filters import Part, encode, k_core, select
from minionerec.errors import DataError
from tests.examples import examples

pytestmark = pytest.mark.fast


def slow_k_core(pairs, user_k, item_k):
    """One row at a time."""
    left = list(range(len(pairs)))
    while True:
        users, items = (Counter(pairs[row][side] for row in left) for side in (0, 1))
        stays = [row for row in left if users[pairs[row][0]] >= user_k and items[pairs[row][1]] >= item_k]
        if len(stays) == len(left):
            return left
        left = stays


@examples(120)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=80),
    user_k=st.integers(1, 5),
    item_k=st.integers(0, 5),
)
def test_k_core_equals_the_naive_loop(pairs, user_k, item_k):
    user, item = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    of_part = [np.flatnonzero(user % 2 == side) for side in (0, 1)]
    masks = [np.packbits(np.ones(len(rows), bool)) for rows in of_part]
    k_core([lambda rows=rows: (user[rows], item[rows]) for rows in of_part], masks, user_k, item_k)
    left = [rows[np.unpackbits(mask, count=len(rows)).astype(bool)] for rows, mask in zip(of_part, masks, strict=True)]
    assert np.sort(np.concatenate(left)).tolist() == slow_k_core(pairs, user_k, item_k)


@examples(40)
@given(
    rows=st.lists(st.tuples(st.sampled_from("uvwxyz"), st.integers(0, 5), st.integers(0, 9)), max_size=60),
    parts=st.integers(1, 4),
    item_k=st.integers(0, 3),
)
def test_parts_make_no_difference(rows, parts, item_k):
    """However users are spread over parts, the same rows stay, in the same order, with the same counts."""
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.Int32, "time": pl.Int64}, orient="row").with_row_index(
        "row"
    )
    frame = frame.with_columns(rating=pl.lit(None, pl.Float32))
    config = DataConfig(source="csv", path="x", user_k=3, item_k=item_k, start="1970-01-01", end="1970-01-01")

    def part(keep):
        coded, names = encode(frame.filter(keep))
        return Part(lambda: coded, lambda: names)

    def result(count):
        made = [
            part((pl.col("user").replace_strict(dict(zip("uvwxyz", range(6), strict=True))) % count) == n) for n in range(count)
        ]
        try:
            kept = select(made, 1, config, "rows")
        except DataError as error:
            return str(error)
        counts = {name: value for name, value in kept.counts.items() if name != "span"}
        rows_kept = pl.concat([kept.kept(number, part) for number, part in enumerate(made)]).sort("first", maintain_order=True)
        return rows_kept.rows(), kept.items.tolist(), kept.rows, counts

    assert result(parts) == result(1)


def interactions(rows):
    schema = {"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def items(*names):
    return pl.DataFrame({"item_id": names, "title": names, "text": names})


DAY = 86_400


def csv_config(**fields):
    return DataConfig(source="csv", path="x", **fields)


def test_window_is_inclusive_at_both_ends_and_in_utc():
    start, end = times.instant("2016-10", "start"), times.instant("2016-11", "end")
    assert end - start == 31 * DAY
    rows = [("u", "a", time) for time in (start - 1, start, start + 1, end - 1, end, end + 1)]
    dataset, metrics = prepare.build_dataset(interactions(rows), items("a"), csv_config(start="2016-10", end="2016-11"))
    assert metrics["dropped_outside_window"] == 2 and metrics["interactions"] == 4
    assert dataset.interactions["timestamp"].to_list() == [start, start + 1, end - 1, end]


def test_the_window_widens_year_by_year_until_items_suffice():
    stamps = {year: times.instant(f"{year}-06", "start") for year in (1999, 2014, 2015, 2016)}
    rows = [("u", f"i{year}", stamps[year] + n) for year in sorted(stamps) for n in range(2)]
    names = [f"i{year}" for year in stamps]
    for wanted, items_left, start, years in (
        (0, 1, None, None),
        (2, 2, "2015-01", 1),
        (4, 4, "1999-01", 17),
        (9, 4, "1996-01", 20),
    ):
        config = csv_config(
            start="2016-01", widen_below_items=wanted, item_k=1, user_k=1, split="chronological", parts=[1, 0, 0]
        )
        dataset, metrics = prepare.build_dataset(interactions(rows), items(*names), config)
        assert len(dataset.catalog) == items_left
        assert (metrics.get("window_start"), metrics.get("widened_years")) == (start, years)
    assert times.year_earlier("2016-02-29") == "2015-02-28"


def test_item_k_drops_items_from_the_catalog_and_zero_keeps_them():
    rows = [("u", item, time) for time, item in enumerate("aabbc")]
    whole, _ = prepare.build_dataset(interactions(rows), items(*"abcd"), csv_config())
    assert whole.catalog["item_id"].to_list() == list("abcd")
    core, metrics = prepare.build_dataset(interactions(rows), items(*"abcd"), csv_config(item_k=2))
    assert core.catalog["item_id"].to_list() == list("ab") and core.test.rows() == [("u", [0, 0, 1], 1, 3, 3)]
    assert metrics["dropped_rare_items"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"start": "2001-01"},
            r"after the window from 2001-01 to the end .*all 3 lie outside; they go from 1970-01-0. to 1970-01-0",
        ),
        ({"end": "1969-01"}, "after the window from the beginning to 1969-01"),
        ({"user_k": 4}, r"after the k-core \(data.user_k 4, data.item_k 0\): it took the last 3 of 3"),
        ({"item_k": 2}, "it took the last 3 of 3"),
    ],
)
def test_an_empty_result_names_the_filter(fields, message):
    rows = [("u", item, DAY * time) for time, item in enumerate("abc", 1)]
    with pytest.raises(DataError, match=message):
        prepare.build_dataset(interactions(rows), items(*"abc"), csv_config(**fields))


def test_duplicates_stay_only_on_request():
    rows = [("u", "a", 1), ("u", "a", 1), ("u", "b", 2), ("u", "a", 3), ("u", "b", 4)]
    assert prepare.build_dataset(interactions(rows), items(*"ab"), csv_config())[1]["dropped_duplicates"] == 1
    kept, metrics = prepare.build_dataset(interactions(rows), items(*"ab"), csv_config(deduplicate=False))
    assert metrics["dropped_duplicates"] == 0 and metrics["interactions"] == 5 and len(kept.train) == 2


@pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9])
def test_milliseconds_and_finer_are_recognised_and_keep_their_order(factor):
    rows = [("u", item, 1_600_000_000 * factor + place) for place, item in zip((3, 1, 2, 0), "abcd", strict=True)]
    dataset, _ = prepare.build_dataset(interactions(rows), items(*"abcd"), csv_config())
    assert dataset.interactions["item"].to_list() == [3, 1, 2, 0]
    expected = [1_600_000_000 + (place if factor == 1 else 0) for place in range(4)]
    assert dataset.interactions["timestamp"].to_list() == expected


def test_mixed_units_are_refused():
    rows = [("u", "a", 1_600_000_000), ("u", "a", 1_600_000_000_000)]
    with pytest.raises(DataError, match="seconds and milliseconds mixed"):
        prepare.build_dataset(interactions(rows), items("a"), csv_config())


def slow_chronological(rows, parts, max_history):
    users: dict[str, list[tuple[int, str]]] = {}
    for user, item, time in rows:
        users.setdefault(user, []).append((time, item))
    examples = []
    for user, clicks in users.items():
        clicks.sort(key=lambda click: click[0])
        for place in range(1, len(clicks)):
            before = [item for _, item in clicks[max(0, place - max_history) : place]]
            examples.append((user, before, clicks[place][1], clicks[place][0]))
    examples.sort(key=lambda row: row[3])
    first, second = len(examples) * parts[0] // sum(parts), len(examples) * (parts[0] + parts[1]) // sum(parts)
    return examples[:first], examples[first:second], examples[second:]


@examples(50)
@given(
    rows=st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(1, 9)), min_size=1, max_size=40),
    parts=st.sampled_from([[8, 1, 1], [1, 1, 1], [3, 0, 1]]),
)
def test_chronological_split_equals_the_obvious_loop(rows, parts):
    config = csv_config(split="chronological", parts=parts, user_k=1, max_history=3, deduplicate=False)
    expected = slow_chronological(rows, parts, 3)
    if not expected[0]:
        with pytest.raises(DataError, match="No training example is left"):
            prepare.build_dataset(interactions(rows), items(*"abcd"), config)
        return
    dataset, _ = prepare.build_dataset(interactions(rows), items(*"abcd"), config)
    for name, wanted in zip(("train", "valid", "test"), expected, strict=True):
        found = dataset.split(name).select("user", "history", "target", "timestamp").rows()
        assert [(user, ["abcd"[i] for i in history], "abcd"[target], time) for user, history, target, time in found] == wanted


def test_split_by_date():
    rows = [("u", "abc"[month % 3], times.instant(f"2018-{month:02}", "start")) for month in range(1, 9)]
    config = csv_config(split="date", valid_from="2018-04", test_from="2018-07-01")
    dataset, _ = prepare.build_dataset(interactions(rows), items(*"abc"), config)
    assert [dataset.split(name)["position"].to_list() for name in ("train", "valid", "test")] == [[1, 2], [3, 4, 5], [6, 7]]


def test_sources_without_times_refuse_what_needs_them():
    rows = pl.DataFrame(
        {"user": ["u"] * 4, "item_id": list("abab"), "timestamp": [None] * 4}, schema_overrides={"timestamp": pl.Int64}
    )
    dataset, metrics = prepare.build_dataset(rows, items(*"ab"), csv_config())
    assert dataset.test.rows() == [("u", [0, 1, 0], 1, None, 3)] and metrics["dropped_duplicates"] == 0
    for fields in ({"split": "chronological"}, {"start": "2018-01"}):
        with pytest.raises(DataError, match="has no timestamps"):
            prepare.build_dataset(rows, items(*"ab"), csv_config(**fields))
