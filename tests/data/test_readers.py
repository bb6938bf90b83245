import gzip
import json
import re
import tempfile
import zipfile
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import DataConfig
from minionerec.data import readers, sequences, tables, text_lines
from minionerec.data.bad_rows import Problems
from minionerec.data.checks import Frames
from minionerec.data.readers import MOVIELENS_GENRES
from minionerec.data.released import sid_tokens
from minionerec.errors import DataError
from tests.examples import examples
from tests.shared import shared

pytestmark = pytest.mark.fast

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"


def reading(read, source: str):
    """A reader that takes the settings as keywords."""

    def called(path: Path, problems: Problems | None = None, **fields) -> Frames:
        return read(path, DataConfig(source=source, path=str(path), **fields), problems or Problems())

    return called


read_csv = reading(readers.read_csv, "csv")
read_recbole = reading(readers.read_recbole, "recbole")
read_movielens_zip = reading(readers.read_movielens_zip, "ml-100k")
read_movielens_1m = reading(readers.read_movielens_1m, "ml-1m")
read_letter = reading(sequences.read_letter, "letter")
read_sequences = sequences.read_sequences


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
    assert interactions.select("user", "item_id", "rating").rows() == [("u 1", "a", 5.0), ("u 1", "b", 4.0)]
    assert interactions["timestamp"].dt.epoch("ms").to_list() == [10_000, 9_900]
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
        ("item,heading\na,A\n", r"columns item, heading; expected a column title or .*--data\.columns"),
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
    assert read_csv(folder, missing_text="drop")[1]["title"].to_list() == [""]


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
    with pytest.raises(DataError, match=r"exactly one interactions\.csv or interactions\.parquet.*; found none"):
        read_csv(tmp_path)
    with pytest.raises(DataError, match=r"exactly one \*\.inter; found a\.inter, b\.inter"):
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
    assert read_csv(csv_folder(tmp_path, HEAD + rows))[0]["timestamp"].dt.epoch("s").to_list() == [86_400, 60, 120, 7]


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
    with pytest.raises(DataError, match=r"interactions\.parquet: not a readable parquet file"):
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
    interactions, items = read_letter(tmp_path)
    assert interactions.select("user", "item_id").rows() == [("0", "1"), ("0", "10"), ("1", "2")]
    assert interactions["timestamp"].null_count() == 3
    assert items.rows() == [("1", "1", ""), ("2", "2", ""), ("10", "10", "")]
    write(tmp_path, Toys__item__json='{"1": {"title": "A", "description": "long"}, "2": {"title": "B"}, "10": {}}')
    with pytest.raises(DataError, match=r"Toys\.item\.json, row 3: item '10' has no title"):
        read_letter(tmp_path)
    assert read_letter(tmp_path, category="Toys", missing_text="drop")[1].select("title", "text").rows() == [
        ("A", "A. long"),
        ("B", "B"),
        ("", ""),
    ]
    write(tmp_path, Toys__inter__json='{"0": [1, 11]}')
    with pytest.raises(DataError, match="user '0': item '11' is not in"):
        read_letter(tmp_path)
    write(tmp_path, Beauty__inter__json="[]")
    with pytest.raises(DataError, match=r"found Beauty\.inter\.json, Toys\.inter\.json\. Choose one with data\.category"):
        read_letter(tmp_path)
    with pytest.raises(DataError, match="holds a list"):
        read_letter(tmp_path, category="Beauty")


def test_sequences(tmp_path):
    path = write(tmp_path, S__txt="1 3 10 2\n\n2 3\n") / "S.txt"
    interactions, items = read_sequences(path)
    assert interactions.select("user", "item_id").rows() == [("1", "3"), ("1", "10"), ("1", "2"), ("2", "3")]
    assert items["item_id"].to_list() == ["2", "3", "10"]
    long = "7" * 5000  # more digits than Python reads as a number
    assert read_sequences(write(tmp_path, S__txt=f"1 {long} x 3\n") / "S.txt")[1]["item_id"].to_list() == ["3", long, "x"]
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
    assert read_letter(tmp_path, problems)[0]["user"].to_list() == ["0", "0"]
    path = write(tmp_path, S__txt="1 3 10\n2\n1 4\n") / "S.txt"
    assert read_sequences(path, problems)[0]["item_id"].to_list() == ["3", "10"]
    assert [message.partition(": ")[0].rpartition(", ")[2] for message in problems.messages] == [
        *("user '1'", "user '2'"),
        *("line 2", "line 3"),
    ]


def test_ids_of_letter_and_sequences_are_checked(tmp_path):
    """An empty one, or one with a tab, got into the Dataset, from which no line-based layout could be written."""
    for content, message in (
        ('{"": ["1", "2"]}', "user '': the user id is empty"),
        ('{"u": ["1", ""]}', "user 'u': the item id is empty"),
        ('{"u\\t1": ["1"]}', r"user 'u\\t1': user id 'u\\t1' has a tab, line break"),
        ('{"u": ["1", "2\\n"]}', r"user 'u': item id '2\\n' has a tab, line break"),
    ):
        with pytest.raises(DataError, match=r"Toys\.inter\.json, " + message):
            read_letter(write(tmp_path, Toys__inter__json=content))
    with pytest.raises(DataError, match=r"S\.txt, line 2: item id '4\\x00' has a tab, line break or other control character"):
        read_sequences(write(tmp_path, S__txt="1 2 3\n2 3 4\0\n") / "S.txt")
    for item in ("", "a\tb"):
        path = write(tmp_path, Toys__index__json=json.dumps({"1": ["<a_0>"], item: ["<a_1>"]})) / "Toys.index.json"
        with pytest.raises(DataError, match=r"Toys\.index\.json, item '.*': the item id is empty or has a tab"):
            sid_tokens(path)


@pytest.mark.parametrize(
    ("name", "figures"), [("Beauty", (22_363, 12_101, 198_502)), ("Instruments", (24_772, 9_922, 206_153))]
)
def test_the_real_letter_files(name, figures):
    interactions, items = read_letter(shared("data/letter"), category=name)
    assert (interactions["user"].n_unique(), len(items), len(interactions)) == figures


def test_the_real_sequences():
    interactions, items = read_sequences(shared("data/sequential/LastFM.txt"))
    assert (interactions["user"].n_unique(), len(items), len(interactions)) == (1_090, 3_646, 52_551)


LABELLED = "user_id:token\titem_id:token\ttimestamp:float\tlabel:float\n"


def test_what_was_shown_and_not_clicked_is_no_interaction(tmp_path):
    rows = "".join(f"u\ta\t{time}\t{int(time % 5 == 0)}\n" for time in range(1, 51))
    folder = write(tmp_path / "r", x__inter=LABELLED + rows, x__item="item_id:token\ttitle:token_seq\na\tA\n")
    with pytest.raises(DataError, match=r"x\.inter: label is 0 in 40 rows, 1 in 10 rows.*--data\.positive 1"):
        read_recbole(folder)
    problems = Problems()
    assert read_recbole(folder, problems, positive=1.0)[0]["timestamp"].to_list() == list(range(5, 51, 5))
    assert problems.counts["dropped_interactions_not_positive"] == 40
    write(folder, x__inter=LABELLED + "u\ta\t1\t1\n")
    assert len(read_recbole(folder)[0]) == 1  # nothing but clicks
    write(folder, x__inter=LABELLED + "u\ta\t1\t\n")
    with pytest.raises(DataError, match=r"row 2: label '' is not a number"):
        read_recbole(folder)
    with pytest.raises(DataError, match=r"data\.positive is 1, but there is neither a label nor a rating"):
        read_csv(csv_folder(tmp_path), positive=1.0)


def test_ratings_that_are_none(tmp_path):
    rows = "user,item,timestamp,rating\nu,a,1,0\nu,a,2,3\nu,a,3,\nu,a,4,5\n"
    folder = csv_folder(tmp_path, rows)
    with pytest.raises(DataError, match=r"rating is 0 in 1 rows, 3 in 1 rows, 5 in 1 rows"):
        read_csv(folder)
    assert read_csv(folder, positive=3)[0]["rating"].to_list() == [3, 5]
    assert read_csv(folder, positive=0)[0]["timestamp"].to_list() == [1, 2, 4]
    with pytest.raises(DataError, match=r"no row has a rating of at least data\.positive 6"):
        read_csv(folder, positive=6)
    write(folder, interactions__csv="user,item,timestamp,click\nu,a,1,True\nu,a,2,False\n")
    assert read_csv(folder, positive=1)[0]["timestamp"].to_list() == [1]


@pytest.mark.parametrize("form", ["csv", "parquet", "letter", "recbole"])
def test_every_reader_gives_words_to_the_encoder(tmp_path, form):
    """Lists, HTML and marks of missing values, whatever the layout; the catalog keeps the description as it is."""
    titles = {"1": "Kid&#39;s Set", "2": "Bare", "3": "Pipe", "4": "Set"}
    descriptions = {"1": "['nice 1', '<b>new</b>']", "2": "[]", "3": "nan", "4": "None"}
    problems, own = Problems(), write(tmp_path / form)
    if form == "letter":
        details = {item: {"title": titles[item], "description": descriptions[item]} for item in titles}
        write(own, X__inter__json='{"u": [1, 2, 3, 4]}', X__item__json=json.dumps(details))
        _, items = read_letter(own, problems)
    elif form == "recbole":  # which embeds genres, not descriptions
        rows = "".join(f"{item}\t{titles[item]}\t{text}\n" for item, text in descriptions.items())
        write(own, x__inter=INTER + "u\t1\t1\t5\n", x__item="item_id:token\ttitle:token_seq\tgenres:token_seq\n" + rows)
        items = read_recbole(own, problems)[1]
        assert items["text"].to_list() == ["Kid's Set. Genres: nice 1, new", "Bare", "Pipe", "Set"]
        return
    else:
        table = pl.DataFrame({"item": list(titles), "title": titles.values(), "description": descriptions.values()})
        write(own, interactions__csv="user,item,timestamp\nu,1,1\n")
        table.write_csv(own / "items.csv") if form == "csv" else table.write_parquet(own / "items.parquet")
        _, items = read_csv(own, problems)
    assert items["text"].to_list() == ["Kid's Set. nice 1 new", "Bare", "Pipe", "Set"]
    assert items["title"].to_list() == ["Kid's Set", "Bare", "Pipe", "Set"] and problems.counts["texts_with_markup"] == 1
    assert items["description"].to_list() == list(descriptions.values())


TITLES = [st.text(st.sampled_from(letters), max_size=6).map(lambda text: f"x{text}") for letters in ('ab",\t', 'ab",\n')]


@examples(40)
@given(titles=st.one_of(*(st.lists(title, min_size=1, max_size=4) for title in TITLES)), ending=st.sampled_from(["\n", "\r\n"]))
def test_quoted_fields_of_recbole_files(titles, ending):
    """What pandas would write reads as what it was, with tabs, line breaks and quotes inside."""
    quoted = ['"' + title.replace('"', '""') + '"' for title in titles]
    lines = ["item_id:token\ttitle:token_seq\tbrand:token", *(f"{n}\t{title}\tb" for n, title in enumerate(quoted)), ""]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.item"
        path.write_text(ending.join(lines), encoding="utf-8-sig", newline="")
        table = tables.read_table(path, "x.item", "\t", typed=True)
    assert table["title"].to_list() == titles and table["row"].to_list() == list(range(2, 2 + len(titles)))


def test_quotes_that_open_nothing_stay(tmp_path):
    rows = '1\t6" pipe\tb\n2\t"open\tb\n3\t"a" and "b"\tb\n4\t"""Live"" in Rio"\tb\n5\t"\t\n6\t"two\nlines"\tb\n'
    path = write(tmp_path, x__item="item_id:token\ttitle:token_seq\tbrand:token\n" + rows) / "x.item"
    titles = tables.read_table(path, "x.item", "\t", typed=True)["title"].to_list()
    assert titles == ['6" pipe', '"open', '"a" and "b"', '"Live" in Rio', '"', "two\nlines"]
    write(tmp_path, x__item='item_id:token\ttitle:token_seq\n1\t"never\n2\n')
    with pytest.raises(DataError, match="row 3: 1 fields, expected 2"):
        tables.read_table(path, "x.item", "\t", typed=True)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_marks(tmp_path, mark):
    bom = mark.encode()
    write(tmp_path, S__txt=bom + b"1 3 10\n", X__inter__json=bom + b'{"0": [1, 2]}')
    assert read_sequences(tmp_path / "S.txt")[0]["user"].to_list() == ["1", "1"]
    assert len(read_letter(tmp_path)[0]) == 2
    csv_folder(tmp_path, bom + b"user,item,timestamp\nu,a,1\n", bom + b"item,title\na,A\n")
    assert len(read_csv(tmp_path)[0]) == 1
    write(tmp_path, x__inter=bom + INTER.encode() + b"u\ta\t1\t5\n", x__item=bom + b"item_id:token\ttitle:token\na\tA\n")
    assert len(read_recbole(tmp_path)[0]) == 1
    write(tmp_path, lines__json=bom + b'{"a": "x"}\n{"a": "y"}\n', one__json=bom + b'{"a": "x"}')
    for name, values in (("lines", ["x", "y"]), ("one", ["x"])):
        frame = next(text_lines.json_lines(tmp_path / f"{name}.json", ("a",), Problems()))
        assert frame["a"].to_list() == values


def test_parquet_with_other_types_next_to_the_wanted_ones(tmp_path):
    day = date(2020, 1, 2)
    pl.DataFrame({"user": ["u", "u"], "item": [1, 2], "timestamp": [day, day], "tags": [["a"], None], "raw": [b"\xff", b""],
                  "day": [day, None], "s": [{"a": 1}, None]}).write_parquet(tmp_path / "interactions.parquet")  # fmt: skip
    pl.DataFrame({"item": [1, 2], "title": [b"One", b"Two"], "description": [["a", "b's"], []]}).write_parquet(
        tmp_path / "items.parquet"
    )
    interactions, items = read_csv(tmp_path)
    assert interactions["timestamp"].dt.date().to_list() == [day, day]
    assert items.rows() == [("1", "One", "One. a b's", '["a", "b\'s"]'), ("2", "Two", "Two", "[]")]
    pl.DataFrame({"item": [1], "title": [{"en": "One"}]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items\.parquet: column title of type Struct.* cannot be read as text"):
        read_csv(tmp_path)


def test_long_fields(tmp_path):
    words = "word " * 300_000  # longer than Arrow's block, and than what the module csv takes
    folder = csv_folder(tmp_path, items=f'item,title,description\na,A,"{words}"\nb,B,"{"x" * 131_073}"\n')
    assert read_csv(folder)[1]["description"].str.len_chars().to_list() == [len(words) - 1, 131_073]
    lines = "line\n" * 300_000
    write(folder, items__csv=f'item,title,description\na,A,"{lines}"\n')
    assert read_csv(folder)[1]["description"][0] == " ".join(lines.split())
    write(folder, interactions__csv=b"user,item,timestamp\nu,a,1\nu,a\xff,1\n", items__csv=f"item,title\na,{'x' * 131_073}\n")
    with pytest.raises(DataError, match="row 3: byte 0xff"):
        read_csv(folder)


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "recbole"])
def test_a_column_may_be_called_row(tmp_path, form):
    """It ended in a traceback, as rows are numbered under this name."""
    table = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "row": [20, 10], "row_": ["", "x"]})
    items = pl.DataFrame({"row": [7, 8], "item": ["a", "b"], "title": ["A", "B"]})
    if form == "recbole":
        typed = [{name: f"{name}:token" for name in frame.columns} for frame in (table, items)]
        for frame, names, ending in ((table, typed[0], "inter"), (items, typed[1], "item")):
            frame.rename(names).write_csv(tmp_path / f"x.{ending}", separator="\t")
        read, mapping = readers.read_recbole, {"user": "user", "item": "item", "timestamp": "row"}
    else:
        for name, frame in (("interactions", table), ("items", items)):
            path = tmp_path / f"{name}.{form}"
            {"csv": frame.write_csv, "parquet": frame.write_parquet, "jsonl": frame.write_ndjson}[form](path)
        read, mapping = readers.read_csv, {"timestamp": "row"}
    config = DataConfig(source="recbole" if form == "recbole" else "csv", path=str(tmp_path), columns=mapping)
    assert read(tmp_path, config, Problems())[0].select("item_id", "timestamp").rows() == [("a", 20), ("b", 10)]
    config.columns["timestamp"] = "row_"
    with pytest.raises(DataError, match=r"row [12]: timestamp '' is not a number"):
        read(tmp_path, config, Problems())


def test_json_that_means_two_things_is_refused(tmp_path):
    write(tmp_path, X__inter__json='{"0": [1], "0": [2]}')
    with pytest.raises(DataError, match="'0' stands twice in one object"):
        read_letter(tmp_path)
    write(tmp_path, X__inter__json='{"0": [1]}', X__item__json=r'{"1": {"title": "half \ud83d"}}')
    with pytest.raises(DataError, match=r"X\.item\.json: not a readable JSON file .*half of a character"):
        read_letter(tmp_path)


VALUES = ("3.0", "1e3", "1e23", "2.5", "12345678901234567890", "[1, 2.0]", '{"a": 1.0}', "true", '"3.0"', '"\\ud83d\\ude00"')


@pytest.mark.parametrize("value", VALUES)
def test_a_value_in_a_line_of_json_does_not_depend_on_the_lines_around_it(tmp_path, value):
    """A chunk with a blank line is parsed line by line: there the user 3.0 was another one than in the other chunks."""
    path = tmp_path / "x.jsonl"
    seen = []
    for rest in ("", "\n\n"):
        path.write_text(f'{{"user": {value}}}\n{{"user": "a"}}\n{rest}')
        seen.append(pl.concat(list(text_lines.json_lines(path, ["user"], Problems())))["user"].to_list())
    assert seen[0] == seen[1] and len(seen[0]) == 2


def test_half_a_character_in_a_line_of_json_is_named(tmp_path):
    """It became a NUL in the title unless its chunk had a blank line."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"title": "a"}\n{"title": "cut \\ud83d here"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: .*half of a character, \\ud83d"):
        list(text_lines.json_lines(path, ["title"], Problems()))


def test_the_real_office_texts_of_letter_files(tmp_path):
    """The released item.json next to sequences, as MIMIGenRec's folders have it: no list is embedded."""
    path = shared("data/amazon/index/Office_Products.item.json")
    (tmp_path / "X.item.json").write_bytes(path.read_bytes())
    write(tmp_path, X__inter__json='{"0": [1, 2]}')
    texts = read_letter(tmp_path)[1]["text"]
    assert len(texts) == 3459 and not texts.str.contains(r"\['|&\w+;").any()


CLICKS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.integers(0, 3), st.integers(1_500_000_000_000, 1_500_000_002_000)), min_size=1
)


@examples(5)
@given(clicks=CLICKS, title=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=4))
def test_every_form_of_a_table_reads_alike(clicks, title):
    """csv, gzipped csv, parquet, lines of JSON, RecBole: the same rows give the same interactions and items."""
    titles = [f"x{title}{item}" for item in range(4)]
    interactions = pl.DataFrame(clicks, schema=["user", "item", "timestamp"], orient="row")
    interactions = interactions.with_columns(timestamp=(pl.col("timestamp") / 1000).round(3))
    items = pl.DataFrame({"item": range(4), "title": titles, "description": ["['a', 'b']", "nan", "", "<b>c</b>"]})
    frames = []
    with tempfile.TemporaryDirectory() as name:
        for form in ("csv", "csv.gz", "parquet", "jsonl", "recbole"):
            folder = Path(name) / form
            folder.mkdir()
            for kind, table in (("interactions", interactions), ("items", items)):
                path = folder / f"{kind}.{form}"
                if form == "parquet":
                    table.write_parquet(path)
                elif form == "jsonl":
                    table.write_ndjson(path)
                elif form == "recbole":
                    names = {"user": "user_id", "item": "item_id"}
                    header = [f"{names.get(column, column)}:token" for column in table.columns]
                    ending = "inter" if kind == "interactions" else "item"
                    table.rename(dict(zip(table.columns, header, strict=True))).write_csv(
                        folder / f"x.{ending}", separator="\t"
                    )
                else:
                    text = table.write_csv().encode()
                    path.write_bytes(gzip.compress(text) if form == "csv.gz" else text)
            frames.append(read_recbole(folder) if form == "recbole" else read_csv(folder))
    for ours, catalog in frames:
        assert ours.equals(frames[0][0]) and catalog.drop("text").equals(frames[0][1].drop("text"))
    texts = [catalog["text"].to_list() for _, catalog in frames]
    assert texts[0][0].endswith(". a b") and texts[1:4] == texts[:1] * 3  # RecBole's descriptions are not embedded
