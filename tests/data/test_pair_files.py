import polars as pl
import pytest

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.config import DataConfig, PairsConfig
from minionerec.data.bad_rows import Problems
from minionerec.data.pair_files import read_mind, read_recbench
from minionerec.data.pairs import PairSet
from minionerec.errors import ConfigError, DataError

pytestmark = pytest.mark.fast

NEWS = [f"N{n}\tsports\tgolf\tHeadline {n}\tAbstract {n}\thttps://x\t[]\t[]" for n in range(8)]
BEHAVIORS = [
    "1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0 N5-0",
    "2\tU1\t11/12/2019 9:05:58 AM\tN1 N2 N3\tN4-1 N5-0 N6-0",
    "3\tU2\t11/12/2019 9:05:58 AM\tN7\tN0-0 N1-1",
    "4\tU3\t11/12/2019 9:05:58 AM\t\tN0-0 N1-1",
    "5\tU4\t11/12/2019 9:05:58 AM\tN7\tN0-0 N1-0",
]


def mind(folder, behaviors=BEHAVIORS, news=NEWS):
    (folder / "news.tsv").write_text("\n".join(news) + "\n")
    (folder / "behaviors.tsv").write_text("\n".join(behaviors) + "\n")
    return folder


def read(folder, **fields):
    config = PairsConfig(source="mind", path=str(folder), **fields)
    return read_mind(folder, config, DataConfig(), 0, Problems())


def rows_of(frame, user):
    return sorted(frame.filter(user=user).select("candidate", "label").iter_rows())


def test_mind_is_what_was_shown_and_the_first_history(tmp_path):
    catalog, drawn, figures = read(mind(tmp_path))
    test = drawn.splits["test"]
    assert rows_of(test, "U1") == [(3, 1), (4, 1), (5, 0), (6, 0)]  # N4 was clicked in the end
    assert rows_of(test, "U2") == [(0, 0), (1, 1)] and set(test["user"]) == {"U1", "U2"}
    assert set(map(tuple, test.filter(user="U1")["history"])) == {(1, 2)}
    assert catalog.columns == ["item_id", "title", "text", "description", "categories"] and catalog["title"][3] == "Headline 3"
    assert figures == {
        "users_read": 4,
        "users_without_history": 1,
        "rows_shown_again": 2,
        "dropped_interactions_unlisted": 0,
        "users_qualified": 2,
        "users_with_one_label": 1,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"behaviors": ["1\tU1\tt\tN1\tN3 N4"]}, "behaviors.tsv, row 1: 'N3' is no item with a label"),
        ({"behaviors": ["1\tU1\tt\tN1\tN3-2"]}, "row 1: 'N3-2' is no item with a label"),
        ({"behaviors": ["1\tU1\tt\tN1\tN99-1 N3-0"]}, "item 'N99' of user 'U1' is not in"),
        ({"behaviors": ["1\tU1\tt\tN99\tN1-1 N3-0"]}, "behaviors.tsv, row 1: item 'N99' of user 'U1' is not in"),
        ({"behaviors": ["1\tU1\tN1\tN1-1 N3-0"]}, "row 1: 4 fields, expected 5"),
        ({"behaviors": ["1\t\tt\tN1\tN1-1 N3-0"]}, "row 1: the user id is empty"),
        ({"behaviors": ["1\tU\x001\tt\tN1\tN1-1 N3-0"]}, "row 1: user 'U\\x001' has a tab, line break or other control"),
        ({"behaviors": []}, "behaviors.tsv: the file is empty. Expected rows of impression, user, time, history, impressions"),
        ({"behaviors": ["1\tU1\tt\tN1\tN3-1"]}, "pairs.rule impressions: no user has a history and candidates of both labels"),
        ({"news": [NEWS[0], NEWS[0]]}, "item 'N0' is listed twice"),
        ({"news": ["N0\tsports\tgolf\t\t\t\t\t"]}, "item 'N0' has no title"),
    ],
)
def test_mistakes_in_mind_name_file_and_row(tmp_path, change, message):
    with pytest.raises(DataError) as error:
        read(mind(tmp_path, **change))
    assert message in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"no behaviors.tsv here; MIND's folder has behaviors.tsv and news.tsv"):
        read(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        read(tmp_path / "x")
    for name in ("items", "users"):
        pl.DataFrame({"a": [1]}).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"no interactions.parquet"):
        read_recbench(tmp_path, PairsConfig(source="recbench", path="x"), DataConfig(), 0, Problems())


def recbench(folder, names=("movieId", "userId", "his", "click"), **tables):
    """RecBench's files under the column names of one of its data sets."""
    item, user, history, label = names
    pl.DataFrame({item: range(6), "title": [f"Film {n}" for n in range(6)]}).write_parquet(folder / "items.parquet")
    histories = {user: ["a", "b", "c", "d"], history: [[0, 1], [2], [3], [4]]}
    pl.DataFrame(histories).write_parquet(folder / "users.parquet")
    for name, rows in tables.items():
        pl.DataFrame(rows, schema=[user, item, label], orient="row").write_parquet(folder / f"{name}.parquet")
    return folder


ROWS = [(user, item, int(item > 3)) for user in "abcd" for item in (5, 4, 2, 3)]


@pytest.mark.parametrize(
    "names", [("movieId", "userId", "his", "click"), ("nid", "uid", "history", "click"), ("asin", "reviewerID", "his", "label")]
)
def test_recbench_without_splits_is_walked(tmp_path, names):
    folder = recbench(tmp_path, names, interactions=ROWS)
    config = PairsConfig(source="recbench", path=str(folder), test_share=0.5, per_label=1, valid_share=0.0)
    catalog, drawn, figures = read_recbench(folder, config, DataConfig(), 0, Problems())
    assert [len(drawn.splits[name]) for name in ("train", "valid", "test")] == [4, 0, 4] and figures["users_qualified"] == 4
    assert catalog["item_id"].to_list() == ["0", "1", "2", "3", "4", "5"]


def test_a_list_of_valid_users_that_names_nobody_is_refused(tmp_path):
    folder = recbench(tmp_path, test=ROWS[:4], finetune=ROWS[4:])
    for listed, told in (
        ("x\ny\n", r"none of its 2 users is in .*finetune.parquet \(the first is 'x'; there such as 'b'\)"),
        ("\n", "it is empty"),
    ):
        (folder / "valid_user_set_0.1.txt").write_text(listed)
        with pytest.raises(DataError, match=told):
            read_recbench(folder, PairsConfig(source="recbench", path=str(folder)), DataConfig(), 0, Problems())


@pytest.mark.parametrize(
    ("rows", "histories", "told"),
    [
        ([*ROWS, (None, 1, 1)], None, "interactions.parquet, row 17: the user id is empty"),
        ([*ROWS, ("a", None, 1)], None, "interactions.parquet, row 17: the item id is empty"),
        (ROWS, {"userId": ["a", None], "his": [[0], [1]]}, "users.parquet, row 2: the user id is empty"),
        (ROWS, {"userId": ["a", "b"], "his": [[0], [1, None]]}, "users.parquet, row 2: his has an item that is null"),
    ],
)
def test_ids_that_are_null_are_named(tmp_path, rows, histories, told):
    folder = recbench(tmp_path, interactions=rows)
    if histories:
        pl.DataFrame(histories).write_parquet(folder / "users.parquet")
    with pytest.raises(DataError, match=told):
        read_recbench(folder, PairsConfig(source="recbench", path=str(folder)), DataConfig(), 0, Problems())


def test_recbench_with_splits_is_taken_as_it_is(tmp_path):
    test, tuned = ROWS[:3], [*ROWS[4:12], ("d", 5, 1)]
    folder = recbench(tmp_path, test=test, finetune=tuned)
    (folder / "valid_user_set_0.1.txt").write_text("c\n")
    config = PairsConfig(source="recbench", path=str(folder))
    _, drawn, _ = read_recbench(folder, config, DataConfig(), 0, Problems())
    assert rows_of(drawn.splits["test"], "a") == [(2, 0), (4, 1), (5, 1)]
    assert set(drawn.splits["valid"]["user"]) == {"c"} and set(drawn.splits["train"]["user"]) == {"b", "d"}
    assert rows_of(drawn.splits["train"], "d") == [(5, 1)]  # a user of one label stays: the split is given
    assert drawn.counts(6).rows() == [(0, 0, 0), (0, 0, 0), (1, 1, 2), (0, 0, 1), (2, 2, 2), (2, 2, 2)]  # b and d; c is valid
    assert drawn.order.rows() == [("b", "train"), ("d", "train"), ("c", "valid"), ("a", "test")]
    with pytest.raises(ConfigError, match=r"pairs.per_label is 3, but the splits in .* are given"):
        read_recbench(folder, PairsConfig(source="recbench", path="x", per_label=3), DataConfig(), 0, Problems())
    (folder / "valid_user_set_0.1.txt").unlink()
    _, drawn, _ = read_recbench(folder, PairsConfig(source="recbench", path="x", valid_share=0.4), DataConfig(), 0, Problems())
    assert drawn.splits["valid"]["user"].n_unique() == 1


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"test": ROWS[:4], "finetune": ROWS[2:8]}, "user 'a' is in test.parquet and in finetune.parquet"),
        ({"interactions": [("a", 1, 2)]}, "interactions.parquet, row 1: label '2' is neither 0 nor 1"),
        ({"interactions": [("z", 1, 1)]}, "interactions.parquet, row 1: user 'z' is not among the listed users"),
        ({"interactions": [("a", 77, 1)]}, "interactions.parquet, row 1: item '77' of user 'a' is not in"),
    ],
)
def test_mistakes_in_recbench(tmp_path, tables, message):
    folder = recbench(tmp_path, **tables)
    with pytest.raises(DataError) as error:
        read_recbench(folder, PairsConfig(source="recbench", path="x"), DataConfig(), 0, Problems())
    assert message in str(error.value)


def test_columns_and_lists_are_checked(tmp_path):
    folder = recbench(tmp_path, interactions=ROWS)
    pl.DataFrame({"userId": ["a", "a"], "his": [[0], [1]]}).write_parquet(folder / "users.parquet")
    config = PairsConfig(source="recbench", path="x")
    with pytest.raises(DataError, match=r"users.parquet: user 'a' is listed twice"):
        read_recbench(folder, config, DataConfig(), 0, Problems())
    pl.DataFrame({"userId": list("abcd"), "his": [[0], [1], [77], [2]]}).write_parquet(folder / "users.parquet")
    with pytest.raises(DataError, match=r"users.parquet, row 3: item '77' of user 'c' is not in .*items.parquet"):
        read_recbench(folder, config, DataConfig(), 0, Problems())
    pl.DataFrame({"userId": ["a"], "his": ["0 1"]}).write_parquet(folder / "users.parquet")
    with pytest.raises(DataError, match="expected a column his or history or histories with lists of items"):
        read_recbench(folder, config, DataConfig(), 0, Problems())


def test_the_command_reads_files_without_a_dataset(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    arguments = ["--pairs.source", "mind", "--pairs.path", str(mind(raw)), "--out", str(tmp_path / "run")]
    assert main(["pairs", "prepare", *arguments]) == 0
    assert not (tmp_path / "run" / "data").exists() and len(PairSet.load(tmp_path / "run" / "pairs").test) == 6
    mind(raw, behaviors=["1\tU1\tt\tN1\tN99-1 N3-0 N4-1", *BEHAVIORS[2:]])
    assert main(["pairs", "prepare", *arguments]) == 2
    assert "input behaviors.tsv: changed" in capsys.readouterr().err
    assert main(["pairs", "prepare", *arguments, "--replace", "--data.missing_text", "drop"]) == 0
    assert rows_of(PairSet.load(tmp_path / "run" / "pairs").test, "U1") == [(3, 0), (4, 1)]
    assert Manifest.load(tmp_path / "run" / "pairs").metrics["dropped_interactions_unlisted"] == 1
    mind(
        raw, ["1\tU1\tt\tN1\tN2-1 N3-0 N4-1", *BEHAVIORS[2:]], [NEWS[0], NEWS[1], NEWS[2].replace("Headline 2", ""), *NEWS[3:]]
    )
    assert main(["pairs", "prepare", *arguments, "--replace", "--data.missing_text", "drop"]) == 0
    pairs, figures = PairSet.load(tmp_path / "run" / "pairs"), Manifest.load(tmp_path / "run" / "pairs").metrics
    assert "" not in pairs.catalog["title"].to_list() and rows_of(pairs.test, "U1") == [(2, 0), (3, 1)]  # N3 and N4
    assert figures["dropped_items_without_text"] == figures["dropped_interactions_unlisted"] == 1
