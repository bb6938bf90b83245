"""Splits that are given: interactions a row, lists next to LETTER's files, MIMIGenRec's finished data."""

import gzip
import json
from pathlib import Path

import pytest

from minionerec.config import Config, DataConfig
from minionerec.data import prepare
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.errors import ConfigError, DataError

pytestmark = pytest.mark.fast


def prepared(tmp_path: Path, source: str, **fields) -> tuple[Dataset, dict]:
    config = DataConfig(source=source, path=str(tmp_path / "raw"), **fields)
    manifest, _ = prepare.prepare_data(Config(out=str(tmp_path / "run"), data=config, replace=True))
    return Dataset.load(tmp_path / "run" / "data"), manifest.metrics


def examples(dataset: Dataset) -> dict[str, list[tuple]]:
    """By split: user, history and target as item ids, position."""
    ids = dataset.catalog["item_id"]
    return {
        name: [
            (user, [ids[item] for item in history], ids[target], position)
            for user, history, target, _, position in dataset.split(name).iter_rows()
        ]
        for name in SPLITS
    }


TIME = 1_600_000_000_000
ROWS = {  # by split: user, item, time; the train rows are not in order
    "train": [("u", "B", 2), ("u", "A", 1), ("u", "A", 3), ("v", "B", 1)],
    "valid": [("u", "C", 4), ("w", "A", 5)],
    "test": [("u", "B", 4), ("v", "C", 9)],
}
EXPECTED = {
    "train": [("u", ["A"], "B", 1), ("u", ["A", "B"], "A", 2)],
    "valid": [("u", ["A", "B", "A"], "C", 3)],
    "test": [("u", ["A", "B", "A", "C"], "B", 4), ("v", ["B"], "C", 1)],
}


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_splits_of_amazon_2023(tmp_path, ending):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, rows in ROWS.items():
        text = "user_id,parent_asin,rating,timestamp\n" + "".join(f"{u},{i},5.0,{TIME + t}\n" for u, i, t in rows)
        path = raw / f"Toys.{split}.csv{ending}"
        path.write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    meta = [{"parent_asin": item, "title": f"Title {item}", "features": ["x &amp; y"]} for item in "CABD"]
    (raw / "meta_Toys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in meta))
    dataset, figures = prepared(tmp_path, "amazon-2023")
    assert examples(dataset) == EXPECTED and dataset.catalog["item_id"].to_list() == ["C", "A", "B"]
    assert dataset.catalog["text"][0] == "Title C. x & y" and figures["texts_with_markup"] == 3
    assert figures["dropped_examples_without_history"] == 1  # w's first row
    assert dataset.test["timestamp"].to_list() == [TIME // 1000] * 2 and len(dataset.interactions) == 8
    with pytest.raises(ConfigError, match=r"data\.user_k is 5, but the splits in .* are given"):
        prepared(tmp_path, "amazon-2023", user_k=5)
    (raw / "meta_Toys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in meta[1:]))
    with pytest.raises(DataError, match=r"Toys\.valid\.csv.*, row 2: item 'C' is not in .*jsonl, or has no title there"):
        prepared(tmp_path, "amazon-2023")
    dataset, figures = prepared(tmp_path, "amazon-2023", missing_text="drop")
    assert figures["dropped_interactions_unlisted"] == 2 and not len(dataset.valid)
    path = raw / f"Toys.test.csv{ending}"
    if ending:
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DataError, match=r"Toys\.test\.csv\.gz: a truncated or damaged archive"):
            prepared(tmp_path, "amazon-2023", missing_text="drop")
    path.unlink()
    with pytest.raises(DataError, match=r"Toys\.test\.csv.*: not found"):
        prepared(tmp_path, "amazon-2023")


def test_recboles_split_files_with_one_interaction_a_row(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, rows in ROWS.items():
        text = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{TIME + t}\n" for u, i, t in rows)
        (raw / f"x.{split}.inter").write_text(text)
    (raw / "x.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{item}\tT {item}\n" for item in "ABC"))
    assert examples(prepared(tmp_path, "recbole")[0]) == EXPECTED


def test_splits_that_do_not_follow_time_are_refused(tmp_path):
    """As RecBole draws them with `RS`: the history of a test row would hold what its user did later."""
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = {"train": [("A", 1), ("B", 5), ("C", 6)], "valid": [("A", 7)], "test": [("B", 3)]}
    (raw / "x.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{item}\tT {item}\n" for item in "ABC"))

    def write(time: int) -> None:
        for split, lines in (rows | {"test": [("B", time)]}).items():
            text = "user_id:token\titem_id:token\ttimestamp:float\nv\tA\t9\n" + "".join(f"u\t{i}\t{t}\n" for i, t in lines)
            (raw / f"x.{split}.inter").write_text(text)

    for time in (3, 6):
        write(time)
        with pytest.raises(
            DataError, match=r"test\.inter, row 3: is earlier than row 3 of x\.valid\.inter, of the same user 'u'"
        ):
            prepared(tmp_path, "recbole")
    write(7)  # equal times are in the order of the files
    assert examples(prepared(tmp_path, "recbole")[0])["test"][0] == ("u", ["A", "B", "C", "A"], "B", 4)


@pytest.mark.parametrize("lists", [False, True])
def test_items_without_title_leave_given_splits_as_well(tmp_path, lists):
    """With `missing_text: drop` they stayed in the catalog, with an empty title."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.item").write_text("item_id:token\ttitle:token_seq\nA\tT A\nB\tnan\nC\tT C\nD\tT D\n")
    header = (
        "user_id:token\titem_id_list:token_seq\titem_id:token" if lists else "user_id:token\titem_id:token\ttimestamp:float"
    )
    rows = {"train": "u\tA C\tA\nu\tA B\tC", "valid": "u\tA C A\tD", "test": "u\tA\tB\nu\tA C A D\tC"}
    if not lists:
        rows = {"train": "u\tA\t1\nu\tB\t2\nu\tC\t3\nu\tA\t4", "valid": "u\tD\t5", "test": "u\tC\t6\nu\tB\t7"}
    for split, text in rows.items():
        (raw / f"x.{split}.inter").write_text(f"{header}\n{text}\n")
    with pytest.raises(DataError, match=r"x\.item, row 3: item 'B' has no title"):
        prepared(tmp_path, "recbole")
    dataset, figures = prepared(tmp_path, "recbole", missing_text="drop")
    assert dataset.catalog["item_id"].to_list() == ["A", "C", "D"]
    assert examples(dataset)["train"][-1] == ("u", ["A", "C"], "A", 2)
    assert examples(dataset)["test"] == [("u", ["A", "C", "A", "D"], "C", 4)]
    name = "dropped_examples_unlisted" if lists else "dropped_interactions_unlisted"
    assert figures[name] == 2 and figures["dropped_items_without_text"] == 1


RATINGS = {"2018": "B000000001,U{0},5.0,{1}\n", "2014": "U{0},B000000001,5.0,{1}\n"}


@pytest.mark.parametrize("release", RATINGS)
def test_amazons_ratings_without_a_header(tmp_path, release):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [RATINGS[release].format("1234567890", 1_500_000_000 + day * 86_400) for day in range(4)]
    (raw / ("Toys.csv" if release == "2018" else "ratings_Toys.csv")).write_text("".join(rows))
    (raw / "meta_Toys.json").write_text(json.dumps({"asin": "B000000001", "title": "Drill"}) + "\n")
    dataset, figures = prepared(tmp_path, "amazon-2018", item_k=0)
    assert figures["interactions"] == 4 and dataset.interactions["user"].unique().to_list() == ["U1234567890"]
    path = next(raw.glob("*Toys.csv"))
    path.write_text("B000000001,U123456789,5.0,1500000000\n")
    with pytest.raises(DataError, match=r"line 1: neither 'B000000001' nor 'U123456789' is clearly the item.*Put a line above"):
        prepared(tmp_path, "amazon-2018")


INDEX = {"0": ["<a_1>", "<b_1>"], "1": ["<a_1>", "<b_2>"], "2": ["<a_2>", "<b_1>"], "10": ["<a_1>", "<b_2>"]}


def letter(raw: Path) -> None:
    raw.mkdir(exist_ok=True)
    (raw / "X.index.json").write_text(json.dumps(INDEX))
    items = {item: {"title": f"Thing {item}", "description": f"['nice {item}']"} for item in INDEX}
    (raw / "X.item.json").write_text(json.dumps(items))
    (raw / "X.inter.json").write_text(json.dumps({"7": [0, 1, 2, 10, 0]}))


def test_splits_next_to_letter_files_are_used(tmp_path, capsys):
    """MIMIGenRec's folder before its last step."""
    letter(tmp_path / "raw")
    dataset, _ = prepared(tmp_path, "letter")
    assert len(dataset.interactions) == 5
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for split, row in (("train", "7\t0 1\t2"), ("valid", "7\t0 1 2\t10"), ("test", "8\t2\t0")):
        (tmp_path / "raw" / f"X.{split}.inter").write_text(f"{header}{row}\n")
    dataset, _ = prepared(tmp_path, "letter")
    assert examples(dataset) == {
        "train": [("7", ["0", "1"], "2", 2)],
        "valid": [("7", ["0", "1", "2"], "10", 3)],
        "test": [("8", ["2"], "0", 1)],
    }
    assert dataset.catalog["text"][0] == "Thing 0. nice 0" and dataset.interactions is None
    assert dataset.sids["tokens"].to_list() == list(INDEX.values())
    assert "splits of X.train.inter, X.valid.inter, X.test.inter; not read: X.inter.json" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"data\.split is chronological, but the splits in .* are given"):
        prepared(tmp_path, "letter", split="chronological")
    (tmp_path / "raw" / "X.valid.inter").unlink()
    with pytest.raises(DataError, match=r"X\.valid\.inter not found, next to the other splits"):
        prepared(tmp_path, "letter")


def mimigenrec(raw: Path) -> None:
    (raw / "sft").mkdir(parents=True)
    (raw / "id2sid.json").write_text(json.dumps(INDEX))
    history = "The user has interacted with items {} in chronological order. Can you predict the next possible item?"
    train = [
        (history.format("<a_1><b_1>, <a_1><b_2>"), "<a_2><b_1>"),
        (history.format("<a_1><b_1>"), "<a_2><b_1>"),
        ('What is the title of item "<a_1><b_1>"?', "Lamp"),
        ("Which item has the title: Cup?", "<a_1><b_2>"),
        ("Which item has the title: Cup, <a_9>new?", "<a_1><b_2>"),
        ("The user has sequentially interacted with items <a_1><b_1>. Tell me the title of the item", "Cup"),
    ]
    asked = "Can you predict the next possible item, given the following chronological interaction history: {}"
    splits = {
        "train": train,
        "valid": [(asked.format("<a_2><b_1>"), "<a_1><b_1>\n")],
        "test": [(asked.format("<a_1><b_1>"), "<a_1><b_2>")],
    }
    for name, rows in splits.items():
        records = [{"system": "s", "instruction": "i", "input": question, "output": answer} for question, answer in rows]
        (raw / "sft" / f"{name}.json").write_text(json.dumps(records), encoding="utf-8-sig")


def test_mimigenrecs_finished_data(tmp_path):
    mimigenrec(tmp_path / "raw" / "Toys")
    dataset, figures = prepared(tmp_path, "mimigenrec", category="Toys")
    assert examples(dataset) == {
        "train": [("train-1", ["0", "1"], "2", 3), ("train-2", ["0"], "2", 2)],
        "valid": [("valid-1", ["2"], "0", 2)],
        "test": [("test-1", ["0"], "1", 2)],
    }
    assert dataset.catalog["title"].to_list() == ["Lamp", "Cup", "2", "Cup, <a_9>new"]  # the two of one SID in their order
    assert dataset.sids["tokens"].to_list() == list(INDEX.values())
    assert figures["examples_of_shared_sids"] == 2 and figures["records_of_other_tasks"] == 1
    path = tmp_path / "raw" / "Toys" / "sft" / "valid.json"
    path.write_text(json.dumps([{"input": "<a_1><b_1>", "output": "<a_7><b_7>"}, 5]))
    with pytest.raises(DataError, match=r"valid\.json, record 1: no item of id2sid\.json has the SID <a_7><b_7>"):
        prepared(tmp_path, "mimigenrec", category="Toys")
    assert prepared(tmp_path, "mimigenrec", category="Toys", on_error="skip")[1]["skipped_rows"] == 2
    with pytest.raises(DataError, match=r"no id2sid\.json in this folder\. Choose one of Toys with data\.category"):
        prepared(tmp_path, "mimigenrec")
    train = path.with_name("train.json")
    (path.write_text("[]"), train.write_text("[]"))
    with pytest.raises(DataError, match=r"No training example is left in the splits of the files: 0 train, 0 valid, 1 test"):
        prepared(tmp_path, "mimigenrec", category="Toys")
    path.unlink()
    with pytest.raises(DataError, match=r"valid\.json: not found\. MIMIGenRec's data are"):
        prepared(tmp_path, "mimigenrec", category="Toys")


def test_advice_that_is_given_is_accepted(tmp_path):
    """Pairs instead of lists, and users without items: the message names a setting, and the setting works."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.txt").write_text("1 1\n1 2\n2 1 2 3 4\n")
    with pytest.raises(DataError, match=r"line 2: user '1' has a line above already.*--data\.on_error skip"):
        prepared(tmp_path, "sequences")
    assert prepared(tmp_path, "sequences", on_error="skip")[1]["skipped_rows"] == 1
    (tmp_path / "raw" / "X.inter.json").write_text('{"1": [], "2": [1, 2, 3, 4], "3": [true]}')
    with pytest.raises(DataError, match=r"user '1': found \[\].*--data\.on_error skip"):
        prepared(tmp_path, "letter")
    assert prepared(tmp_path, "letter", on_error="skip")[1]["skipped_rows"] == 2


def test_a_category_chooses_among_several_data_sets(tmp_path):
    """Wherever the message says so."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("a", "b"):
        (raw / f"{name}.txt").write_text(f"{name} 1 2 3 4\n")
        rows = "".join(f"{name}\t1\t{time}\n" for time in range(1, 5))
        (raw / f"{name}.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{rows}")
        (raw / f"{name}.item").write_text("item_id:token\ttitle:token_seq\n1\tOne\n2\tTwo\n")
        row = {"user_id": name, "book_id": "1", "rating": 4}
        dates = [row | {"date_added": f"2017-07-0{day}"} for day in range(1, 5)]
        (raw / f"goodreads_interactions_{name}.json").write_text("".join(json.dumps(entry) + "\n" for entry in dates))
        (raw / f"goodreads_books_{name}.json").write_text('{"book_id": "1", "title": "One"}\n')
    for source in ("sequences", "recbole", "csv"):
        with pytest.raises(DataError, match=r"Choose one with data\.category"):
            prepared(tmp_path, source)
        dataset, _ = prepared(tmp_path, source, category="b")
        assert dataset.interactions["user"].unique().to_list() == ["b"]
    for split in SPLITS:
        (raw / f"b.{split}.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\nb\t1 1\t2\n")
    (raw / "b.inter").unlink()
    assert examples(prepared(tmp_path, "recbole", category="b")[0])["test"] == [("b", ["1", "1"], "2", 4)]
