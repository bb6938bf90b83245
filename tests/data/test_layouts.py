"""The released code's layout and RecBole's, there and back."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from minionerec.config import Config, DataConfig
from minionerec.data import prepare, recbole, released
from minionerec.data.bad_rows import Problems
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.data.texts import readable_column
from minionerec.errors import ConfigError, DataError
from tests.examples import examples
from tests.shared import shared
from tests.small import random_dataset

COUNTS = {
    "Industrial_and_Scientific": {"items": 3686, "train": 10_393, "valid": 4532, "test": 4533, "markup": 91},
    "Office_Products": {"items": 3459, "train": 9484, "valid": 4866, "test": 4866, "markup": 61},
}


def read(folder: Path, source: str, category: str | None = None, **fields) -> Dataset:
    config = DataConfig(source=source, path=str(folder), category=category, **fields)
    return prepare.READERS[source].read(folder, config, Problems())[0]


def equal(one: Dataset, other: Dataset) -> bool:
    return one.catalog.equals(other.catalog) and all(one.split(name).equals(other.split(name)) for name in SPLITS)


@pytest.mark.parametrize("category", ["Industrial_and_Scientific", pytest.param("Office_Products", marks=pytest.mark.slow)])
def test_the_real_files_there_and_back(tmp_path, category):
    folder = shared("data/amazon")
    manifest, _ = prepare.prepare_data(
        Config(out=str(tmp_path / "run"), data=DataConfig(source="released", path=str(folder), category=category))
    )
    assert {name: manifest.metrics[name] for name in ("items", *SPLITS)}.items() <= COUNTS[category].items()
    dataset = Dataset.load(tmp_path / "run" / "data")
    stem = f"{category}_5_2016-10-2018-11"
    released.write(dataset, dataset.sids["tokens"].to_list(), stem, tmp_path / "out")
    for name in ("valid", "test"):  # the very bytes
        assert (tmp_path / "out" / name / f"{stem}.csv").read_bytes() == (folder / name / f"{stem}.csv").read_bytes()
    assert (tmp_path / "out" / "info" / f"{stem}.txt").read_bytes() == (folder / "info" / f"{stem}.txt").read_bytes()
    for kind in ("index", "item"):
        written = (tmp_path / "out" / "index" / f"{stem}.{kind}.json").read_bytes()
        assert written == (folder / "index" / f"{category}.{kind}.json").read_bytes()
    original = (folder / "train" / f"{stem}.partial.csv").read_bytes()  # written with CRLF
    assert (tmp_path / "out" / "train" / f"{stem}.csv").read_bytes() == original.replace(b"\r\n", b"\n")
    assert equal(read(tmp_path / "out", "released"), dataset)
    recbole.write(dataset, category, tmp_path / "recbole")
    readable = readable_column(dataset.catalog["title"])  # the released code's own layout alone keeps HTML in titles
    assert equal(read(tmp_path / "recbole", "recbole"), replace(dataset, catalog=dataset.catalog.with_columns(title=readable)))
    assert manifest.metrics["texts_with_markup"] == COUNTS[category]["markup"]


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), users=st.integers(3, 12), items=st.integers(4, 20))
def test_round_trips_lose_nothing(tmp_path_factory, seed, users, items):
    dataset, index = random_dataset(users, items, seed)
    folder = tmp_path_factory.mktemp("layout")
    strings = index.token_strings()
    sids = [[strings[offset + code] for offset, code in zip((0, 6, 12), row, strict=True)] for row in index.codes.tolist()]
    released.write(dataset, sids, "small", folder / "released")
    back = read(folder / "released", "released")
    details = ["description", "brand", "categories"]
    assert equal(replace(back, catalog=back.catalog.drop(details)), dataset)
    assert back.sids["tokens"].to_list() == sids
    recbole.write(dataset, "small", folder / "recbole")
    whole = read(folder / "recbole", "recbole", max_history=6)  # from the interactions, split again
    assert equal(whole, dataset) and whole.interactions.equals(dataset.interactions)
    (folder / "recbole" / "small.inter").unlink()
    assert equal(read(folder / "recbole", "recbole"), dataset)  # with the splits as they are


def test_quotes_around_titles_and_ids_survive_recboles_layout(tmp_path):
    """The song "Heroes" came back as Heroes, and a title of two quoted words as something else."""
    dataset, _ = random_dataset(users=3, items=6)
    titles = ['"Heroes"', 'say "x"', '"a" and "b"', '"c" "d"', '6" pipe', '"open']
    ids = ['"A"', '"B', 'C"', "D", "E", 'F"F']
    catalog = pl.DataFrame({"item_id": ids, "title": titles, "text": titles})
    users = {name: dataset.split(name).with_columns(user=pl.format('"{}"', "user")) for name in SPLITS}
    dataset = replace(dataset, catalog=catalog, interactions=None, **users)
    recbole.write(dataset, "small", tmp_path)
    assert equal(read(tmp_path, "recbole"), dataset)


ROW = {
    "user_id": "A1", "history_item_title": "['Lamp', \"Bob's cup\"]", "item_title": "Lamp", "history_item_id": "[0, 1]",
    "item_id": "0", "history_item_sid": "['<a_1><b_2>', '<a_1><b_3>']", "item_sid": "<a_1><b_2>",
}  # fmt: skip


def layout(folder: Path, train: list[dict] | None = None, info: str | None = None, index: dict | None = None) -> Path:
    for name in (*SPLITS, "info", "index"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    text = "<a_1><b_2>\tLamp\t0\n<a_1><b_3>\tBob's cup\t1\n" if info is None else info
    (folder / "info" / "Toys_5.txt").write_text(text)
    tokens = {"0": ["<a_1>", "<b_2>"], "1": ["<a_1>", "<b_3>"]} if index is None else index
    (folder / "index" / "Toys.index.json").write_text(json.dumps(tokens))
    items = {"0": {"title": "Lamp", "description": "['Bright', 'red']", "brand": "B"}, "1": {"title": "Bob's cup"}}
    (folder / "index" / "Toys.item.json").write_text(json.dumps(items))
    for name in SPLITS:
        with (folder / name / "Toys_5.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, released.COLUMNS)
            writer.writeheader()
            writer.writerows((train or [ROW]) if name == "train" else [ROW])
    return folder


def test_positions_grow_and_descriptions_become_prose(tmp_path):
    dataset = read(layout(tmp_path, [ROW, ROW]), "released")
    assert [dataset.split(name)["position"].to_list() for name in SPLITS] == [[2, 3], [4], [5]]
    assert dataset.catalog.row(0) == ("0", "Lamp", "Lamp. Bright red", "['Bright', 'red']", "B", "")
    assert dataset.train.row(0) == ("A1", [0, 1], 0, None, 2)
    assert read(tmp_path, "released", max_history=1).train["history"].to_list() == [[1], [1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": "7"}, "item '7' is not in the info file"),
        ({"history_item_id": "[0, 9]"}, "item '9' is not in the info file"),
        ({"history_item_id": "[]"}, "the history is empty"),
        ({"history_item_id": "__import__('os').system('true')"}, "is no list"),
        ({"history_item_id": "(0, 1)"}, r"is no list \(a tuple\)"),
        ({"item_title": "Lump"}, "item_title 'Lump', but the info file has 'Lamp'"),
        ({"item_sid": "<a_1>"}, "item_sid '<a_1>', but the index file has '<a_1><b_2>'"),
        ({"history_item_title": "['Lamp']"}, "history_item_title has 1 entries that do not agree"),
        ({"history_item_sid": "['<a_1><b_2>', open('x')]"}, "history_item_sid .* is no list"),
        ({"user_id": ""}, "the user id is empty"),
    ],
)
def test_rows_are_checked_against_info_and_index(tmp_path, change, message):
    folder = layout(tmp_path, [ROW, ROW | change])
    with pytest.raises(DataError, match=rf"train/Toys_5\.csv, row 3: .*{message}"):
        read(folder, "released")
    problems = Problems(skip=True)
    config = DataConfig(source="released", path=str(folder))
    assert len(released.read(folder, config, problems).train) == 1 and len(problems.messages) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"info": "<a_1><b_2>\tLamp\n"}, r"line 1: 2 fields, expected SID, title and item id"),
        ({"info": "<a_1><b_2>\tLamp\t0\n<a_1><b_2>\tLamp\t0\n"}, "line 2: item '0' is listed twice"),
        ({"info": "<a_9><b_2>\tLamp\t0\n"}, r"SID '<a_9><b_2>', but Toys\.index\.json has \['<a_1>', '<b_2>'\]"),
        ({"info": "<a_1><b_2>\tLamp\t0\n", "index": {"0": "<a_1>"}}, "item '0': found <a_1>, expected a list of tokens"),
    ],
)
def test_info_and_index_files_are_checked(tmp_path, broken, message):
    with pytest.raises(DataError, match=message):
        read(layout(tmp_path, **broken), "released")


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    folder = layout(tmp_path)
    (folder / "info" / "Toys_5.txt").write_bytes("<a_1><b_2>\tLamp\t0\n<a_1><b_3>\tTäschchen\t1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"Toys_5\.txt, line 2: byte 0xe4 at offset 30 is not UTF-8"):
        read(folder, "released")
    (layout(tmp_path) / "index" / "Toys.item2id").write_bytes(b"B\xff\t0\n")
    with pytest.raises(DataError, match=r"Toys\.item2id, line 1: byte 0xff"):
        read(folder, "released")


def test_a_title_may_hold_what_other_programs_take_for_the_end_of_a_line(tmp_path):
    title = "Bob's\x85 cup\u2028"
    row = ROW | {"history_item_title": repr(["Lamp", title])}
    folder = layout(tmp_path, info=f"<a_1><b_2>\tLamp\t0\n<a_1><b_3>\t{title}\t1\n")
    for name in SPLITS:
        with (folder / name / "Toys_5.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, released.COLUMNS)
            writer.writeheader()
            writer.writerow(row)
    assert read(folder, "released").catalog["title"].to_list() == ["Lamp", title]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("B0\n", "line 1: found 'B0', expected an item's id, a tab and its number"),
        ("B0\t0\n\nB1\t1\n", "line 2: found ''"),
        ("B0\t0\nB0\t1\n", "line 2: item 'B0' or its number '1' has a line above already"),
        ("B0\t0\nB1\t0\n", "line 2: item 'B1' or its number '0' has a line above already"),
    ],
)
def test_lines_that_name_items_are_checked(tmp_path, mapping, message):
    folder = layout(tmp_path)
    (folder / "index" / "Toys.item2id").write_text(mapping)
    with pytest.raises(DataError, match=rf"Toys\.item2id, {message}"):
        read(folder, "released")
    problems = Problems(skip=True)
    released.read(folder, DataConfig(source="released", path=str(folder)), problems)
    assert len(problems.messages) == 1


def test_an_item_without_a_name_must_not_have_that_of_another(tmp_path):
    folder = layout(tmp_path)
    (folder / "index" / "Toys.item2id").write_text("1\t0\n")  # item 1 has no line
    with pytest.raises(DataError, match=r"Toys\.item2id: two items would be called '1'.*Give every item a line"):
        read(folder, "released")


def test_broken_lines_of_the_info_file_are_skipped_with_their_rows(tmp_path):
    folder = layout(tmp_path, [ROW, ROW | {"history_item_title": "['Lamp']", "history_item_id": "[0]",
                                           "history_item_sid": "['<a_1><b_2>']"}],
                    info="<a_1><b_2>\tLamp\t0\n<a_1><b_3>\tBob's cup\n")  # fmt: skip
    problems = Problems(skip=True)
    dataset = released.read(folder, DataConfig(source="released", path=str(folder)), problems)
    assert dataset.catalog["item_id"].to_list() == ["0"] and len(dataset.train) == 1
    assert (
        "info/Toys_5.txt, line 2: 2 fields" in problems.messages[0] and len(problems.messages) == 4
    )  # with a row of each split


@pytest.mark.parametrize("kind", ["released", "recbole"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("timestamp", "oops", "timestamp 'oops' is not a number"),
        ("timestamp", "nan", "timestamp 'nan' is not a number"),
        ("position", "abc", "position 'abc' is not a number from 0"),
        ("position", "-1", "position '-1' is not a number from 0"),
        ("position", "3000000000", "position '3000000000' is not a number from 0"),
    ],
)
def test_times_and_positions_of_row_splits_are_numbers(tmp_path, kind, field, value, message):
    dataset, index = random_dataset()
    if kind == "released":
        released.write(dataset, [index.tokens(item) for item in range(len(index.codes))], "small", tmp_path)
        path, separator = tmp_path / "test" / "small.csv", ","
    else:
        recbole.write(dataset, "small", tmp_path)
        (tmp_path / "small.inter").unlink()
        path, separator = tmp_path / "small.test.inter", "\t"
    lines = path.read_text().splitlines()
    fields = lines[2].rsplit(separator, 2)
    fields[1 if field == "timestamp" else 2] = value
    path.write_text("\n".join([*lines[:2], separator.join(fields), *lines[3:]]) + "\n")
    with pytest.raises(DataError, match=rf"{path.name}, row 3: {message}"):
        read(tmp_path, kind)
    problems = Problems(skip=True)
    found = prepare.READERS[kind].read(tmp_path, DataConfig(source=kind, path=str(tmp_path)), problems)[0]
    assert len(found.test) == len(dataset.test) - 1 and len(problems.messages) == 1
    fields[1 if field == "timestamp" else 2] = ""  # not known
    path.write_text("\n".join([*lines[:2], separator.join(fields), *lines[3:]]) + "\n")
    assert read(tmp_path, kind).test["timestamp" if field == "timestamp" else "position"].null_count() == (field == "timestamp")


def test_missing_files(tmp_path):
    layout(tmp_path)
    (tmp_path / "test" / "Toys_5.csv").rename(tmp_path / "test" / "Toys_5.partial.csv")
    with pytest.raises(DataError, match=r"test/Toys_5\.csv: not found"):
        read(tmp_path, "released")
    (tmp_path / "info" / "Office.txt").write_text("")
    with pytest.raises(DataError, match=r"found Office\.txt, Toys_5\.txt\. Choose one with data\.category"):
        read(tmp_path, "released")
    with pytest.raises(DataError, match=r"no \*\.index\.json belongs to Office\.txt"):
        (tmp_path / "train" / "Office.csv").touch()
        (tmp_path / "valid" / "Office.csv").touch()
        (tmp_path / "test" / "Office.csv").touch()
        read(tmp_path, "released", "Office")


def test_row_splits_exclude_filters(tmp_path):
    dataset, _ = random_dataset()
    recbole.write(dataset, "small", tmp_path)
    (tmp_path / "small.inter").unlink()
    with pytest.raises(ConfigError, match=r"data\.user_k is 5, but the splits in .* are given: it would have no effect"):
        read(tmp_path, "recbole", user_k=5)
    path = tmp_path / "small.test.inter"
    path.write_text(path.read_text().replace("\ti", "\tnowhere").replace("\tnowheretem", "\titem"))
    with pytest.raises(DataError, match=r"small\.test\.inter, row 2: item 'nowhere"):
        read(tmp_path, "recbole")
    for space in (" ", "\N{NO-BREAK SPACE}"):  # where an id is cut in two when a list is read
        blank = dataset.catalog.with_columns(item_id=dataset.catalog["item_id"].replace("i0", f"i{space}0"))
        with pytest.raises(DataError, match=r"item id 'i.*0' has a blank"):
            recbole.write(replace(dataset, catalog=blank), "small", tmp_path)


def test_every_source_has_a_reader():
    names = set(get_args(get_type_hints(DataConfig)["source"]))
    assert names == {*prepare.READERS, "amazon-2018", "amazon-2023", "parquet"}  # these three are read in parts
