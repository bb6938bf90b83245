import re
import zipfile
from pathlib import Path

import polars as pl
import pytest

from minionerec.data.bad_rows import Problems
from minionerec.data.readers import (
    MOVIELENS_GENRES,
    read_csv,
    read_letter,
    read_movielens_1m,
    read_movielens_zip,
    read_recbole,
    read_sequences,
)
from minionerec.errors import DataError
from tests.shared import shared

pytestmark = pytest.mark.fast

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def csv_folder(
    tmp_path: Path,
    interactions: str | bytes = "user,item,timestamp\nu,a,1\n",
    items: str | bytes = "item,title\na,A\n",
) -> Path:
    return write(tmp_path, interactions__csv=interactions, items__csv=items)


def u_item(item: str, title: str, *genres: str) -> str:
    return "|".join([item, title, "01-Jan-1995", "", "http://x", *("1" if g in genres else "0" for g in MOVIELENS_GENRES)])


def movielens(path: Path, data: str, items: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.data", data)
        archive.writestr("ml-100k/u.item", "\n".join(items).encode("latin-1") + b"\n")
    return path


def test_both_forms_of_movielens_agree(tmp_path):
    archive = movielens(
        tmp_path / "ml-100k.zip",
        "196\t1\t3\t881250949\n186\t2\t1\t891717742\n",
        [u_item("1", "Toy Story (1995)", "Animation", "Children's", "Comedy"), u_item("2", "Misérables, Les (1995)"),
         u_item("267", "unknown", "unknown")],
    )  # fmt: skip
    folder = write(
        tmp_path / "recbole",
        ml__inter=INTER + "196\t1\t3\t881250949\n186\t2\t1\t891717742\n",
        ml__item=ITEM
        + "1\tToy Story\t1995\tAnimation Children's Comedy\n2\tMisérables, Les\t1995\t\n267\tunknown\tV\tunknown\n",
    )
    interactions, items = read_movielens_zip(archive)
    assert interactions.rows() == [("196", "1", 881250949, 3.0), ("186", "2", 891717742, 1.0)]
    assert items.rows() == [
        ("1", "Toy Story (1995)", "Toy Story (1995). Genres: Animation, Children's, Comedy"),
        ("2", "Misérables, Les (1995)", "Misérables, Les (1995)"),
        ("267", "unknown", "unknown. Genres: unknown"),
    ]
    for ours, other in zip((interactions, items), read_recbole(folder), strict=True):
        assert ours.equals(other) and ours.schema == other.schema


def test_recbole_categories_and_quotes(tmp_path):
    folder = write(
        tmp_path / "r",
        x__inter="timestamp:float\titem_id:token\tuser_id:token\n1.5e3\ta\tu\n",
        x__item="item_id:token\tname:token_seq\tcategories:token_seq\tgenre:token_seq\n"
        "a\t6\" pipe\t['Tools & Home', 'Pipes']\tSteel Long\nb\t\"open\t\t\n",
    )
    interactions, items = read_recbole(folder)
    assert interactions.rows() == [("u", "a", 1500, None)]
    assert items.rows() == [
        ("a", '6" pipe', '6" pipe. Genres: Steel, Long. Categories: Tools & Home, Pipes', "['Tools & Home', 'Pipes']"),
        ("b", '"open', '"open', ""),
    ]


def test_recbole_without_year_or_genres(tmp_path):
    folder = write(tmp_path / "r", x__inter=INTER + "u\ta\t1\t5\n", x__item="item_id:token\ttitle:token_seq\na\tA\n")
    assert read_recbole(folder)[1].rows() == [("a", "A", "A")]


def test_csv(tmp_path):
    folder = csv_folder(
        tmp_path,
        b"\xef\xbb\xbfrating,user,item,timestamp\r\n5,u 1,a,10\r\n4,u 1,b,9.9\r\n\r\n",
        'item,brand,title,description\na,x,"Tube, 6"" ","Steel,\n long"\n\nb,y,Ärmel,\n',
    )
    interactions, items = read_csv(folder)
    assert interactions.rows() == [("u 1", "a", 10, 5.0), ("u 1", "b", 9, 4.0)]
    assert items.rows() == [("a", 'Tube, 6"', 'Tube, 6". Steel, long', "Steel, long", "x"), ("b", "Ärmel", "Ärmel", "", "y")]


def test_nanoseconds_keep_their_order(tmp_path):
    folder = csv_folder(tmp_path, "user,item,timestamp\nu,a,1700000000000000001\nu,a,1700000000000000000\n")
    assert read_csv(folder)[0]["timestamp"].to_list() == [1700000000000000001, 1700000000000000000]


HEAD = "user,item,timestamp\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,item\nu,a\n", r"columns user, item; expected a column timestamp"),
        ("", r"row 1: there is no header, the file is empty"),
        ("user,user,item,timestamp\n", "distinct column names"),
        (HEAD + "u,a,1\nu,a\n", r"row 3: 2 fields, expected 3 \(user, item, timestamp\)"),
        (HEAD + "u,a,1\n\nu,a,1,9\n", "row 4: 4 fields, expected 3"),
        (HEAD + "u,a,1\nu,a,yesterday\n", "row 3: timestamp 'yesterday' is not a number"),
        (HEAD + "u,a,\n", "row 2: timestamp '' is not a number"),
        ("user,item,timestamp,rating\nu,a,1,5\nu,a,2,\nu,a,3,good\n", "row 4: rating 'good' is not a number"),
        (HEAD + "u,a,nan\n", "row 2: timestamp 'nan'"),
        (HEAD + "u,a,inf\n", "row 2: timestamp 'inf'"),
        (HEAD + "u,a,1e30\n", "row 2: timestamp '1e30'"),
        (HEAD + "u,a,1\n\nu,{b},1\n", "row 4: item '{b}' is not in .*items.csv"),
        (HEAD + ",a,1\n", "row 2: the field user is empty"),
        (HEAD + "u,,1\n", "row 2: the field item_id is empty"),
        (HEAD + "u,a,1\nu\tv,a,1\n", r"row 3: user 'u\\tv' has a tab"),
        (HEAD + 'u,"a\nb",1\n', r"row 2: item_id 'a\\nb' has a tab, line break"),
        (HEAD.encode() + b"u,a,1\nu,a\xe9,1\n", "row 3: byte 0xe9 at offset 29 is not UTF-8"),
        (b"us\xe9r,item,timestamp\n", "row 1: byte 0xe9"),
        (HEAD + 'u,a,1\n"u,a,1\n', "broken quoting"),
    ],
)
def test_bad_interactions_name_file_and_row(tmp_path, content, message):
    folder = csv_folder(tmp_path / "braces{0}", content)
    with pytest.raises(DataError, match=rf"interactions\.csv.*{message}"):
        read_csv(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("item,name\na,A\n", "columns item, name; expected a column title"),
        ("item,title\na,A\nb,B\n\na,C\n", "rows 2 and 5: item 'a' is listed twice"),
        ("item,title\na,A\nb,\n", "row 3: item 'b' has no title"),
        ("item,title\na, \n", "row 2: item 'a' has no title"),
        ("item,title\n,A\n", "row 2: the item id is empty"),
        (b'item,title\na,"two\nlines"\nb,\xff\n', "row 3: byte 0xff"),
        ('item,title\na,"A\nb,B\nc,C\n', "near line 4: broken quoting"),
        ('item,title\na,"A" x\n', "near line 2: broken quoting"),
    ],
)
def test_bad_items_name_file_and_row(tmp_path, content, message):
    folder = csv_folder(tmp_path, items=content)
    with pytest.raises(DataError, match=rf"items\.csv.*{message}"):
        read_csv(folder)


def test_item_without_title_may_pass(tmp_path):
    folder = csv_folder(tmp_path, items="item,title,description\na,,words\n")
    assert read_csv(folder, "drop")[1]["title"].to_list() == [""]


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        ("user_id:token\titem_id:token\nu\ta\n", ITEM, "x.inter: columns user_id, item_id; expected a column timestamp"),
        (INTER, "item_id:token\tbrand:token\na\tA\n", "x.item: columns item_id, brand; expected a column title or movie_title"),
        (INTER + "u\ta\t1\n", ITEM, "x.inter, row 2: 3 fields, expected 4"),
        (INTER, ITEM.encode() + b"1\tMis\xe9rables\t1995\t\n", "x.item, row 2: byte 0xe9"),
        (INTER + "u\t7\t1\t1\n", ITEM + "1\tA\t1995\t\n", "x.inter, row 2: item '7' is not in"),
        (INTER, ITEM + "1\t\t1995\tWar\n", "x.item, row 2: item '1' has no title"),
    ],
)
def test_bad_recbole_files(tmp_path, inter, item, message):
    with pytest.raises(DataError, match=message):
        read_recbole(write(tmp_path / "r", x__inter=inter, x__item=item))


def test_missing_folder_files_and_archives(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        read_csv(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"exactly one interactions\.csv or interactions\.parquet, found none"):
        read_csv(tmp_path)
    with pytest.raises(DataError, match=r"exactly one \*\.inter, found a\.inter, b\.inter"):
        read_recbole(write(tmp_path / "r", a__inter=INTER, b__inter=INTER))
    write(tmp_path, no__zip=b"not a zip")
    with pytest.raises(DataError, match="not the archive with ml-100k"):
        read_movielens_zip(tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(DataError, match=r"u\.data"):
        read_movielens_zip(tmp_path / "other.zip")
    bad = movielens(tmp_path / "bad.zip", "1\t1\t3\n", [u_item("1", "A")])
    with pytest.raises(DataError, match=r"u\.data, row 1: 3 fields, expected 4"):
        read_movielens_zip(bad)


def test_bad_rows_are_skipped_counted_and_listed(tmp_path):
    content = HEAD + "u,a,1\nu,a\nu,a,soon\n,a,1\nu,a,4,5\nu,a,2\n"
    problems = Problems(skip=True)
    interactions, _ = read_csv(csv_folder(tmp_path, content), problems=problems)
    assert interactions["timestamp"].to_list() == [1, 2]
    assert [re.search(r"row (\d)", message)[1] for message in problems.messages] == ["3", "6", "5", "4"]


def test_dates_as_timestamps(tmp_path):
    rows = "u,a,1970-01-02\nu,a,1970-01-01T00:01:00Z\nu,a,1970-01-01 00:02\nu,a,7\n"
    assert read_csv(csv_folder(tmp_path, HEAD + rows))[0]["timestamp"].to_list() == [86_400, 60, 120, 7]


def test_parquet_is_as_good_as_csv(tmp_path):
    folder = csv_folder(tmp_path, HEAD + "u,a,5\nu,a,6\n")
    expected = read_csv(folder)
    pl.DataFrame({"user": ["u", "u"], "item": ["a", "a"], "timestamp": [5, 6]}).write_parquet(folder / "interactions.parquet")
    with pytest.raises(DataError, match=r"found interactions\.csv, interactions\.parquet"):
        read_csv(folder)
    (folder / "interactions.csv").unlink()
    for ours, other in zip(read_csv(folder), expected, strict=True):
        assert ours.equals(other)
    (folder / "interactions.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"interactions\.parquet: not a table"):
        read_csv(folder)


def test_movielens_1m(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::2::5::978300760\n")
        archive.writestr("ml-1m/movies.dat", "2::Jumanji: A Game (1995)::Adventure|Children's\n".encode("latin-1"))
    interactions, items = read_movielens_1m(tmp_path / "ml-1m.zip")
    assert interactions.rows() == [("1", "2", 978300760, 5.0)]
    assert items.rows() == [("2", "Jumanji: A Game (1995)", "Jumanji: A Game (1995). Genres: Adventure, Children's")]


def test_letter(tmp_path):
    write(
        tmp_path,
        Toys__inter__json='{"0": [1, 10], "1": [2]}',
        Toys__index__json='{"10": ["<a_1>"], "2": ["<a_2>"], "1": ["<a_0>"]}',
    )
    interactions, items = read_letter(tmp_path, None)
    assert interactions.select("user", "item_id").rows() == [("0", "1"), ("0", "10"), ("1", "2")]
    assert interactions["timestamp"].null_count() == 3
    assert items.rows() == [("1", "1", ""), ("2", "2", ""), ("10", "10", "")]
    write(tmp_path, Toys__item__json='{"1": {"title": "A", "description": "long"}, "2": {"title": "B"}, "10": {}}')
    with pytest.raises(DataError, match=r"Toys\.item\.json, row 3: item '10' has no title"):
        read_letter(tmp_path, None)
    assert read_letter(tmp_path, "Toys", "drop")[1].select("title", "text").rows() == [("A", "A. long"), ("B", "B"), ("", "")]
    write(tmp_path, Toys__inter__json='{"0": [1, 11]}')
    with pytest.raises(DataError, match="user '0': item '11' is not in"):
        read_letter(tmp_path, None)
    write(tmp_path, Beauty__inter__json="[]")
    with pytest.raises(DataError, match=r"found Beauty\.inter\.json, Toys\.inter\.json\. Choose one with data\.category"):
        read_letter(tmp_path, None)
    with pytest.raises(DataError, match="holds a list"):
        read_letter(tmp_path, "Beauty")


def test_sequences(tmp_path):
    path = write(tmp_path, S__txt="1 3 10 2\n\n2 3\n") / "S.txt"
    interactions, items = read_sequences(path)
    assert interactions.select("user", "item_id").rows() == [("1", "3"), ("1", "10"), ("1", "2"), ("2", "3")]
    assert items["item_id"].to_list() == ["2", "3", "10"]
    for content, message in (
        ("1 2\n3\n", "line 2: user '3' has no items"),
        ("1 2\n1 3\n", "line 2: user '1' has a line above"),
    ):
        with pytest.raises(DataError, match=message):
            read_sequences(write(tmp_path, S__txt=content) / "S.txt")


def test_bad_users_of_letter_and_sequences_are_skipped_and_listed(tmp_path):
    write(
        tmp_path, Toys__inter__json='{"0": [1, 2], "1": [], "2": [1, 9]}', Toys__index__json='{"1": ["<a_0>"], "2": ["<a_1>"]}'
    )
    problems = Problems(skip=True)
    assert read_letter(tmp_path, None, problems=problems)[0]["user"].to_list() == ["0", "0"]
    path = write(tmp_path, S__txt="1 3 10\n2\n1 4\n") / "S.txt"
    assert read_sequences(path, problems)[0]["item_id"].to_list() == ["3", "10"]
    assert [message.partition(": ")[0].rpartition(", ")[2] for message in problems.messages] == [
        *("user '1'", "user '2'"),
        *("line 2", "line 3"),
    ]


@pytest.mark.parametrize(
    ("name", "figures"), [("Beauty", (22_363, 12_101, 198_502)), ("Instruments", (24_772, 9_922, 206_153))]
)
def test_the_real_letter_files(name, figures):
    interactions, items = read_letter(shared("data/letter"), name)
    assert (interactions["user"].n_unique(), len(items), len(interactions)) == figures


def test_the_real_sequences():
    interactions, items = read_sequences(shared("data/sequential/LastFM.txt"))
    assert (interactions["user"].n_unique(), len(items), len(interactions)) == (1_090, 3_646, 52_551)
