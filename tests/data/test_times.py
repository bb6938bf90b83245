"""Timestamps to their last digit: order, duplicates, zones, units."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import DataConfig
from minionerec.data import readers, times
from minionerec.data.bad_rows import Problems
from minionerec.data.prepare import build_dataset
from minionerec.errors import DataError
from tests.examples import examples

pytestmark = pytest.mark.fast


def exact(stamps: pl.Series) -> list[Decimal]:
    """Seconds since 1970."""
    unit = times.unit_of(stamps, "x")
    return [Decimal(value) / unit for value in stamps.to_physical().to_list()]


@examples(15)
@given(
    values=st.lists(st.decimals(1_000_000_000, 2_000_000_000, places=9) | st.decimals(1, 9, places=2), min_size=1, max_size=8),
    places=st.integers(0, 9),
)
def test_numbers_keep_every_digit(values, places):
    values = [round(value, places) for value in values]
    assert exact(times.read(pl.Series([f"{value:f}" for value in values]))) == values


@examples(15)
@given(
    moments=st.lists(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)), min_size=1, max_size=6),
    minutes=st.integers(-14 * 60, 14 * 60),
    separator=st.sampled_from("T "),
)
def test_dates_are_the_same_moment_in_every_zone(moments, minutes, separator):
    zone = timezone(timedelta(minutes=minutes))
    here = [moment.replace(tzinfo=UTC).astimezone(zone).isoformat(separator) for moment in moments]
    expected = [(moment - datetime(1970, 1, 1)) // timedelta(microseconds=1) for moment in moments]
    assert [value * 10**6 for value in exact(times.read(pl.Series(here)))] == expected
    assert times.read(pl.Series([f"{moment.isoformat()}Z" for moment in moments])).dt.epoch("us").to_list() == expected


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2016-10-31", "2016-10-31T00:00:00"),
        ("2016/10/31 9:05", "2016-10-31T09:05:00"),
        ("2016-10-31 12:00:00 UTC", "2016-10-31T12:00:00"),
        ("11/15/2019 8:36:57 AM", "2019-11-15T08:36:57"),  # MIND
        ("11/15/2019 12:36:57 PM", "2019-11-15T12:36:57"),
        ("Sun Jul 30 07:44:10 -0700 2017", "2017-07-30T14:44:10"),  # Goodreads
        ("Posted November 5, 2011.", "2011-11-05T00:00:00"),  # Steam
        ("9999-12-31", "9999-12-31T00:00:00"),  # no milliseconds, however large
    ],
)
def test_dates_of_public_data(text, moment):
    assert times.read(pl.Series([text])).to_list() == [datetime.fromisoformat(moment)]


def test_what_is_no_time_is_null():
    texts = [
        "",
        "nan",
        "inf",
        "1e30",
        "yesterday",
        "2019-13-01",
        "03/04/2019",
        "2019-01-01 25:00",
        "2019-01-01 12:00+99:99",
        "5 6",
    ]
    assert times.read(pl.Series(texts)).to_list() == [None] * len(texts)


def test_other_numbers():
    assert times.read(pl.Series(["1.5e3", "5.0"])).to_list() == [1500, 5]
    assert exact(times.read(pl.Series(["1.593878904238e9"]))) == [Decimal("1593878904.238")]
    assert times.read(pl.Series(["1700000000000000001", "5"])).to_list() == [1700000000000000001, 5]
    assert exact(times.read(pl.Series(["1593878904238.5"]))) == [Decimal("1593878904.2385")]
    assert (times.read(pl.Series(["-1.5", "-0.5", "2.5"])).to_physical() > 0).to_list() == [False, False, True]
    with pytest.raises(DataError, match="seconds and milliseconds mixed"):
        times.read(pl.Series(["1593878904.5", "1593878904238"]), "x")
    with pytest.raises(
        DataError, match=r"x: timestamps from 20190701 to 20190822 look like dates without separators.*2019-07-01"
    ):
        times.unit_of(pl.Series([20190701, 20190822]), "x")


CLICKS = [(5, ".138"), (4, ".438"), (3, ".638"), (2, ".938"), (1, "4.238"), (1, ".538")]  # newest row is not first


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "text", "parquet", "zoned parquet", "recbole"])
def test_fractions_decide_order_and_duplicates(tmp_path, form):
    """Two views of item 1 within one second are two views, and the order is that of the clicks."""
    base = datetime(2020, 7, 4, 16, 8, 23)
    moments = [base + timedelta(seconds=float(fraction) - (3 if fraction == "4.238" else 0)) for _, fraction in CLICKS]
    stamps = [f"{moment.replace(tzinfo=UTC).timestamp():.3f}" for moment in moments]
    items = [str(item) for item, _ in CLICKS]
    frame = pl.DataFrame({"user": "u", "item": items, "timestamp": stamps})
    if form == "milliseconds":
        frame = frame.with_columns(pl.col("timestamp").str.replace(".", "", literal=True))
    elif form == "text":
        frame = frame.with_columns(timestamp=pl.Series([moment.isoformat(" ", "milliseconds") for moment in moments]))
    elif "parquet" in form:
        frame = frame.with_columns(timestamp=pl.Series(moments))
        if form.startswith("zoned"):
            column = pl.col("timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Kolkata")
            frame = frame.with_columns(column)
    config = DataConfig(source="recbole" if form == "recbole" else "csv", path=str(tmp_path))
    if form == "recbole":
        frame.rename({"user": "user_id:token", "item": "item_id:token", "timestamp": "timestamp:float"}).write_csv(
            tmp_path / "x.inter", separator="\t"
        )
        (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{n}\tT{n}\n" for n in range(1, 6)))
        read = readers.read_recbole
    else:
        (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"{n},T{n}\n" for n in range(1, 6)))
        read = readers.read_csv
        if "parquet" in form:
            frame.write_parquet(tmp_path / "interactions.parquet")
        else:
            frame.write_csv(tmp_path / "interactions.csv")
    dataset, figures = build_dataset(*read(tmp_path, config, Problems()), config)
    assert [dataset.catalog["item_id"][item] for item in dataset.interactions["item"]] == ["5", "4", "1", "3", "2", "1"]
    assert figures["dropped_duplicates"] == 0
    seconds = int(base.replace(tzinfo=UTC).timestamp())
    assert dataset.interactions["timestamp"].to_list() == [seconds] * 5 + [seconds + 1]


@pytest.mark.parametrize("unknown", ["-62135596800000", "-1", "0", "-0.5"])
def test_times_at_or_below_zero_are_unknown(tmp_path, unknown, caplog):
    rows = "".join(f"u,{item},{1_600_000_000_000 + n}\n" for n, item in enumerate("aba"))
    (tmp_path / "interactions.csv").write_text(f"user,item,timestamp\nu,b,{unknown}\n{rows}")
    (tmp_path / "items.csv").write_text("item,title\na,A\nb,B\n")
    problems, config = Problems(), DataConfig(source="csv", path=str(tmp_path))
    interactions, _ = readers.read_csv(tmp_path, config, problems)
    assert interactions["item_id"].to_list() == ["a", "b", "a"] and problems.counts["dropped_interactions_without_time"] == 1
    assert "1 rows have a time at or below 0" in caplog.text
    (tmp_path / "interactions.csv").write_text(f"user,item,timestamp\nu,b,{unknown}\n")
    with pytest.raises(DataError, match=r"all 1 timestamps are at or below 0.*--data\.columns"):
        readers.read_csv(tmp_path, config, problems)
    config = DataConfig(source="csv", path=str(tmp_path), columns={"timestamp": ""})
    assert readers.read_csv(tmp_path, config, problems)[0]["timestamp"].to_list() == [None]
