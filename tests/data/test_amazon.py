"""A synthetic dump with known answers, and everything that can be wrong with one."""

import gzip
import json
import os
import re
import time
from itertools import zip_longest
from pathlib import Path

import polars as pl
import pytest

from minionerec.artifacts import CHECKPOINTS, Manifest
from minionerec.config import Config, DataConfig
from minionerec.data import prepare, text_lines
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.errors import DataError

pytestmark = pytest.mark.fast

DAY, FIRST = 86_400, 1_500_000_000 // 86_400 * 86_400
META = [
    {
        "asin": "A",
        "title": ' "Drill &amp; bit" ',
        "description": ["Steel", "long"],
        "brand": "B",
        "category": ["Tools", "Drills"],
    },
    {"asin": "B", "title": "Lamp"},
    {"asin": "C", "title": "word " * 20 + "word"},  # 21 words
    {"asin": "D", "title": "x"},
    {"asin": "E", "title": "a <span id=1>"},
    {"asin": "F"},
    {"asin": "G", "title": "word " * 19 + "word"},  # 20 words
    {"asin": "B", "title": "Lamp, new name"},
]


def review(user, item, day, stars=5.0):
    fields = {"overall": stars, "reviewerID": user, "asin": item, "unixReviewTime": FIRST + DAY * day}
    return fields | {"reviewText": 'A "quoted" {text}'}


REVIEWS = [
    *(review("u", item, day) for day, item in enumerate("ABGAB")),
    review("u", "A", 0),  # repeated
    *(review("v", item, day, 2.0) for day, item in enumerate("BAG", 1)),
    review("v", "C", 9),  # no title that passes
    review("v", "Z", 9),  # no metadata
    review("w", "A", 3),  # too few
]


def dump(folder: Path, reviews=REVIEWS, meta=META, pack=gzip.compress, encode=json.dumps) -> DataConfig:
    folder.mkdir(exist_ok=True)
    ending = ".gz" if pack is gzip.compress else ""
    for name, rows in ((f"Tools.json{ending}", reviews), (f"meta_Tools.json{ending}", meta)):
        text = "".join(row if isinstance(row, str) else encode(row) + "\n" for row in rows)
        (folder / name).write_bytes(pack(text.encode()))
    return DataConfig(source="amazon-2018", path=str(folder), item_k=0)


def run(tmp_path: Path, data: DataConfig) -> tuple[Dataset, dict]:
    manifest, made = prepare.prepare_data(Config(out=str(tmp_path / "run"), data=data, replace=True))
    assert made and not list((tmp_path / "run").glob("data.*"))
    return Dataset.load(tmp_path / "run" / "data"), manifest.metrics


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
@pytest.mark.parametrize("encode", [json.dumps, repr], ids=["json", "python literals"])
def test_known_answers(tmp_path, pack, encode):
    dataset, metrics = run(tmp_path, dump(tmp_path / "raw", pack=pack, encode=encode))
    assert dataset.catalog.select("item_id", "title", "text", "brand", "categories").rows() == [
        ("A", "Drill & bit", "Drill & bit. Steel long", "B", "Tools, Drills"),
        ("B", "Lamp, new name", "Lamp, new name", "", ""),
        ("G", META[6]["title"], META[6]["title"], "", ""),
    ]
    expected = {
        "items_read": 7,
        "interactions_read": 12,
        "dropped_items_without_text": 4,
        "dropped_interactions_unlisted": 1,
        "dropped_interactions_without_text": 1,
        "dropped_outside_window": 0,
        "dropped_duplicates": 1,
        "dropped_short_users": 1,
        "skipped_rows": 0,
    }
    assert {name: metrics[name] for name in expected} == expected


def test_filters_by_name(tmp_path):
    dataset, metrics = run(tmp_path, dump(tmp_path / "raw"))
    assert dataset.catalog["item_id"].to_list() == ["A", "B", "G"]
    assert dataset.interactions.select("user", "item").rows() == [
        *(("u", item) for item in (0, 1, 2, 0, 1)),
        *(("v", item) for item in (1, 0, 2)),
    ]
    assert dataset.test.rows() == [("u", [0, 1, 2, 0], 1, FIRST + 4 * DAY, 4), ("v", [1, 0], 2, FIRST + 3 * DAY, 2)]
    assert dataset.interactions["rating"].to_list() == [5.0] * 5 + [2.0] * 3
    assert metrics["dropped_short_users"] == 1 and metrics["dropped_short_user_interactions"] == 1
    assert metrics["interactions"] == 8


def test_unknown_times_low_ratings_and_markup_are_counted(tmp_path):
    reviews = [*REVIEWS, *(review("u", "A", 0) | {"unixReviewTime": time} for time in (0, -1, -62135596800))]
    meta = [META[0] | {"title": "Caf&eacute; <b>drill</b>", "description": ["['Steel', 'long']"]}, *META[1:]]
    dataset, metrics = run(tmp_path, dump(tmp_path / "raw", reviews, meta))
    assert dataset.catalog.select("title", "text").row(0) == ("Café drill", "Café drill. Steel long")
    assert metrics["dropped_interactions_without_time"] == 3 and metrics["texts_with_markup"] == 1
    assert metrics["interactions_read"] == len(reviews) and metrics["interactions"] == 8
    data = DataConfig(**{**vars(dump(tmp_path / "raw")), "positive": 3.0})
    dataset, metrics = run(tmp_path, data)
    assert metrics["dropped_interactions_not_positive"] == 3 and set(dataset.interactions["rating"]) == {
        5.0
    }  # v gave two stars


def test_a_rating_that_is_nan_is_unknown(tmp_path):
    """It counted as higher than `positive`, whatever that was; an infinite one passed as well."""
    reviews = [*REVIEWS, review("v", "A", 7) | {"overall": float("nan")}]
    data = dump(tmp_path / "raw", reviews)
    assert run(tmp_path, data)[0].interactions["rating"].null_count() == 1
    _, metrics = run(tmp_path, DataConfig(**{**vars(data), "positive": 3.0}))
    assert metrics["dropped_interactions_not_positive"] == 4
    with pytest.raises(DataError, match=r"line 13: overall 'Infinity' is not a number"):
        run(tmp_path, dump(tmp_path / "raw", [*REVIEWS, review("v", "A", 7) | {"overall": float("inf")}]))


def test_the_released_keeps_repeated_rows_and_uses_user_k_for_items(tmp_path):
    data = dump(tmp_path / "raw")
    chosen = {"filters": "released", "item_k": None, "split": "chronological", "parts": [1, 0, 0]}
    dataset, metrics = run(tmp_path, DataConfig(**{**vars(data), **chosen}))
    # Without G, which two people have, v has only two interactions and goes, then B.
    assert metrics["dropped_duplicates"] == 0 and metrics["dropped_rare_items"] == 2
    assert dataset.catalog["item_id"].to_list() == ["A"] and metrics["interactions"] == 3


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be changed here")
def test_local_time_only_under_the_released(tmp_path, monkeypatch):
    midnight = 1_475_280_000  # 2016-10-01, UTC
    reviews = [review("u", "A", 0) | {"unixReviewTime": midnight + hour * 3600} for hour in (-3, -1, 0, 1, 2, 3)]
    data = dump(tmp_path / "raw", reviews)
    monkeypatch.setitem(os.environ, "TZ", "UTC-2")  # two hours ahead of UTC
    time.tzset()
    try:
        counts = []
        for filters in ("named", "released"):
            fields = {**vars(data), "filters": filters, "start": "2016-10", "item_k": None}
            counts.append(run(tmp_path, DataConfig(**fields))[1]["dropped_outside_window"])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert counts == [2, 1]


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv"])
def test_the_release_of_2023(tmp_path, ending):
    """Other names, milliseconds, and the description in two fields; ratings may come as CSV."""
    raw = tmp_path / "raw"
    raw.mkdir()
    stamps = [FIRST * 1000 + 5 * n for n in range(4)]
    rows = [("u", item, 4.0, stamp) for item, stamp in zip("ABAB", reversed(stamps), strict=True)]
    if ending == "csv":
        text = "user_id,parent_asin,rating,timestamp\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows)
        (raw / "Tools.csv").write_text(text)
    else:
        names = ("user_id", "parent_asin", "rating", "timestamp")
        text = "".join(json.dumps(dict(zip(names, row, strict=True)) | {"asin": "other"}) + "\n" for row in rows)
        (raw / "Tools.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    meta = {"title": "Drill", "features": ["sharp"], "description": ["Steel."], "store": "S", "categories": ["T"]}
    text = "".join(json.dumps(meta | {"parent_asin": name}) + "\n" for name in "AB")
    (raw / "meta_Tools.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    dataset, _ = run(tmp_path, DataConfig(source="amazon-2023", path=str(raw), item_k=0))
    assert dataset.catalog.row(0) == ("A", "Drill", "Drill. sharp Steel.", "sharp Steel.", "S", "T")
    assert dataset.interactions["item"].to_list() == [1, 0, 1, 0]  # by milliseconds, all in one second
    assert dataset.interactions["timestamp"].to_list() == [FIRST] * 4


def test_many_small_chunks_and_files_change_nothing(tmp_path, monkeypatch):
    data = dump(tmp_path / "raw", REVIEWS + [review(f"x{n % 7}", "AB"[n % 2], n) for n in range(60)])
    whole, figures = run(tmp_path, data)
    monkeypatch.setattr(text_lines, "CHUNK", 300)
    monkeypatch.setattr(prepare.amazon, "_PART_BYTES", 2000)
    manifest, made = prepare.prepare_data(Config(out=str(tmp_path / "small"), data=data))
    split = Dataset.load(tmp_path / "small" / "data")
    assert made and manifest.metrics == figures and manifest.digest == Manifest.load(tmp_path / "run" / "data").digest
    assert all(split.split(name).equals(whole.split(name)) for name in SPLITS) and split.catalog.equals(whole.catalog)


def test_truncated_and_damaged_archives(tmp_path):
    data = dump(tmp_path / "raw", REVIEWS * 50)
    path = tmp_path / "raw" / "Tools.json.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:200] + b"\0\0\0\0" + whole[204:], b"no gzip at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"Tools\.json\.gz: cannot be read beyond line \d+ .*fetch it again"):
            run(tmp_path, data)
        assert not list(tmp_path.glob("run/*"))


BROKEN = {
    '{"overall": 5.0, "reviewerID": "u", "as\n': "neither JSON nor a Python literal",
    "[1, 2]\n": "a list, expected an object",
    "nonsense\n": "neither JSON nor a Python literal",
    json.dumps({"reviewerID": "u", "unixReviewTime": 5}) + "\n": "no asin",
    json.dumps(review("", "A", 1)) + "\n": "no reviewerID",
    json.dumps(review("u\tv", "A", 1)) + "\n": "has a tab",
    json.dumps(review("u", "A", 1) | {"unixReviewTime": "soon"}) + "\n": "unixReviewTime 'soon' is not a number",
    json.dumps(review("u", "A", 1) | {"unixReviewTime": None}) + "\n": "unixReviewTime None is not a number",
    json.dumps(review("u", "A", 1) | {"unixReviewTime": 5.5}) + "\n": "'5.5' is not a number; expected a whole one",
    json.dumps(review("u", "A", 1) | {"overall": "many"}) + "\n": "overall 'many' is not a number",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_stops_with_its_number(tmp_path, line):
    data = dump(tmp_path / "raw", [*REVIEWS[:4], line, *REVIEWS[4:]])
    with pytest.raises(DataError, match=rf"Tools\.json\.gz, line 5: .*{re.escape(BROKEN[line])}.*--data\.on_error skip"):
        run(tmp_path, data)


def test_broken_lines_are_skipped_counted_and_listed(tmp_path):
    clean, _ = run(tmp_path, dump(tmp_path / "raw"))
    mixed = [row for pair in zip_longest(BROKEN, REVIEWS, fillvalue="") for row in pair if row]
    data = dump(tmp_path / "raw", mixed, [*META, "{broken\n"])
    dataset, metrics = run(tmp_path, DataConfig(**{**vars(data), "on_error": "skip"}))
    listed = (tmp_path / "run" / "data" / "skipped.txt").read_text().splitlines()
    assert metrics["skipped_rows"] == len(listed) == len(BROKEN) + 1
    numbers = sorted(int(re.search(r"Tools\.json\.gz, line (\d+)", line)[1]) for line in listed if "meta_" not in line)
    assert numbers == [*range(1, 2 * len(BROKEN), 2)]
    assert all(dataset.split(name).equals(clean.split(name)) for name in SPLITS)


def test_broken_rows_of_a_ratings_file(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [
        b"user_id,parent_asin,rating,timestamp",
        *(b'u,"A",5,%d' % (FIRST + n) for n in range(4)),
        b"u,A,5",
        b"u\xff,A,5,7",
        b"",
    ]
    (raw / "Tools.csv").write_bytes(b"\n".join(rows))
    (raw / "meta_Tools.jsonl").write_text('{"parent_asin": "A", "title": "Drill"}\n')
    data = DataConfig(source="amazon-2023", path=str(raw), item_k=0)
    with pytest.raises(DataError, match=r"Tools\.csv, line 6: 3 fields, expected 4"):
        run(tmp_path, data)
    dataset, metrics = run(tmp_path, DataConfig(**{**vars(data), "on_error": "skip"}))
    assert len(dataset.interactions) == 4 and metrics["skipped_rows"] == 2
    assert "line 7: has a byte that is not UTF-8" in (tmp_path / "run" / "data" / "skipped.txt").read_text()
    (raw / "Tools.csv").write_text("user,parent_asin\n")
    with pytest.raises(DataError, match="line 1: columns user, parent_asin; expected user_id, timestamp, rating among them"):
        run(tmp_path, data)


QUOTED = {
    b'u,"A",5': "3 fields, expected 4",
    b'u,"A,5,7': "broken quoting",
    b'"u"x,A,5,7': "broken quoting",
    b'u,"A",5,7,8': "5 fields, expected 4",
    b'"u,A,5,7"': "1 fields, expected 4",
}


@pytest.mark.parametrize("line", QUOTED)
def test_a_broken_row_with_quotes_is_named_and_costs_no_other(tmp_path, line):
    raw = tmp_path / "raw"
    raw.mkdir()
    good = [b'u"x"y,"A",5,%d' % FIRST, *(b'"u""x""y",A,5,%d' % (FIRST + n) for n in range(1, 4))]
    rows = [b"user_id,parent_asin,rating,timestamp", *good[:2], line, *good[2:]]
    (raw / "Tools.csv").write_bytes(b"\r\n".join(rows))
    (raw / "meta_Tools.jsonl").write_text('{"parent_asin": "A", "title": "Drill"}\n')
    data = DataConfig(source="amazon-2023", path=str(raw), item_k=0)
    with pytest.raises(DataError, match=rf"Tools\.csv, line 4: {QUOTED[line]}"):
        run(tmp_path, data)
    dataset, metrics = run(tmp_path, DataConfig(**{**vars(data), "on_error": "skip"}))
    assert dataset.interactions["user"].to_list() == ['u"x"y'] * 4 and metrics["skipped_rows"] == 1
    assert dataset.interactions["timestamp"].to_list() == [FIRST + n for n in range(4)]


def test_numbers_as_text_and_blank_lines(tmp_path):
    clean, _ = run(tmp_path, dump(tmp_path / "raw"))
    texts = [json.dumps(row | {"unixReviewTime": str(row["unixReviewTime"])}) + "\n\n" for row in REVIEWS]
    dataset, _ = run(tmp_path, dump(tmp_path / "raw", texts))
    assert dataset.interactions.equals(clean.interactions)


def test_without_title_rules_missing_metadata_is_an_error_or_dropped(tmp_path):
    data = dump(tmp_path / "raw", meta=[row for row in META if row.get("title")])
    fields = {**vars(data), "title_rules": False}
    with pytest.raises(DataError, match=r"line 11: item 'Z' is not in .*meta_Tools"):
        run(tmp_path, DataConfig(**fields))
    _, metrics = run(tmp_path, DataConfig(**{**fields, "missing_text": "drop"}))
    assert metrics["dropped_interactions_unlisted"] == 1 and metrics["dropped_items_without_text"] == 0


def test_missing_and_ambiguous_files(tmp_path):
    data = dump(tmp_path / "raw")
    (tmp_path / "raw" / "Tools_5.json.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected one file of reviews.*Tools\.json\.gz, Tools_5\.json\.gz"):
        run(tmp_path, data)
    (tmp_path / "raw" / "Tools_5.json.gz").unlink()
    with pytest.raises(DataError, match=r"expected one file of reviews of Toys.*found none"):
        run(tmp_path, DataConfig(**{**vars(data), "category": "Toys"}))
    (tmp_path / "raw" / "meta_Tools.json.gz").unlink()
    with pytest.raises(DataError, match="expected one file of metadata"):
        run(tmp_path, data)
    with pytest.raises(DataError, match="not a folder"):
        run(tmp_path, DataConfig(source="amazon-2018", path=str(tmp_path / "nowhere")))


def test_what_a_killed_process_left_is_removed(tmp_path):
    scratch = tmp_path / "run/data.partial" / CHECKPOINTS
    scratch.mkdir(parents=True)
    pl.DataFrame({"item_id": ["old"]}).write_parquet(scratch / "meta-99999.parquet")
    dataset, _ = run(tmp_path, dump(tmp_path / "raw"))
    assert "old" not in dataset.catalog["item_id"].to_list()
