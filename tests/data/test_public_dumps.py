"""Public dumps under their own names of files and columns, and names of one's own."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from minionerec.config import Config, DataConfig
from minionerec.data import prepare
from minionerec.data.bad_rows import Problems
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, DataError

pytestmark = pytest.mark.fast


def write(folder: Path, **files: str | list) -> Path:
    """Texts as they are, rows as lines of JSON; `__` in a name stands for a dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content)
        data = content.encode()
        path = folder / name.replace("__", ".")
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return folder


def read(folder: Path, source: str = "csv", **fields) -> tuple[pl.DataFrame, pl.DataFrame, Problems]:
    problems, config = Problems(), DataConfig(source=source, path=str(folder), **fields)
    reader = {"csv": prepare.readers.read_csv, "recbole": prepare.readers.read_recbole}[source]
    return *reader(folder, config, problems), problems


def test_movielens(tmp_path):
    write(
        tmp_path,
        ratings__csv="userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,4,1112484676\n",
        movies__csv='movieId,title,genres\n2,"American President, The (1995)",Comedy|Drama\n29,Nothing,(no genres listed)\n',
        tags__csv="userId,movieId,tag,timestamp\n",
    )
    interactions, items, problems = read(tmp_path)
    assert interactions.rows() == [("1", "2", 1112486027, 3.5), ("1", "29", 1112484676, 4.0)]
    title = "American President, The (1995)"
    assert items.rows() == [("2", title, f"{title}. Genres: Comedy, Drama"), ("29", "Nothing", "Nothing")]
    assert problems.notes == [
        "ratings.csv: user = userId, item = movieId, timestamp = timestamp, rating = rating",
        "movies.csv: item = movieId, title = title, genres = genres",
    ]


def test_yelp(tmp_path):
    review = {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 4.0, "text": "!", "date": "2018-07-07 22:09:11"}
    business = {"business_id": "b", "name": "Caf&eacute;", "stars": 3.5, "categories": "Food, Bars", "attributes": {"a": "1"}}
    write(tmp_path, yelp_academic_dataset_review__json=[review], yelp_academic_dataset_business__json=[business])
    interactions, items, problems = read(tmp_path)
    assert interactions["timestamp"].dt.to_string("%Y-%m-%d %H:%M:%S").to_list() == ["2018-07-07 22:09:11"]
    assert interactions.drop("timestamp").rows() == [("u", "b", 4.0)]
    assert items.rows() == [("b", "Café", "Café. Categories: Food, Bars", "Food, Bars")]
    assert "user = user_id, item = business_id, timestamp = date, rating = stars" in problems.notes[0]


def test_steam(tmp_path):
    reviews = ["{u'username': u'Ann', u'product_id': u'10', u'date': u'2018-01-05'}",
               "{u'username': u'Bob', u'user_id': u'7', u'product_id': u'10', u'date': u'November 5, 2011'}"]  # fmt: skip
    games = ["{u'app_name': u'Chess', u'title': u'Chess', u'genres': [u'Strategy', u'Free to Play'], u'id': u'10'}"]
    write(tmp_path, steam_reviews__json__gz=reviews, steam_games__json__gz=games)
    interactions, items, _ = read(tmp_path)
    assert interactions["user"].to_list() == ["Ann", "Bob"]
    assert interactions["timestamp"].dt.year().to_list() == [2018, 2011]
    assert items.row(0) == ("10", "Chess", "Chess. Genres: Strategy, Free to Play")


def test_goodreads(tmp_path):
    row = {"user_id": "u", "book_id": "5", "rating": 4, "date_added": "Sun Jul 30 07:44:10 -0700 2017", "read_at": ""}
    book = {"book_id": "5", "title": "Poems", "description": "Good.", "popular_shelves": []}
    write(tmp_path, goodreads_interactions_poetry__json__gz=[row], goodreads_books_poetry__json__gz=[book])
    interactions, items, _ = read(tmp_path)
    assert interactions["timestamp"].dt.epoch("s").to_list() == [1501425850]
    assert items.rows() == [("5", "Poems", "Poems. Good.", "Good.")]
    write(tmp_path, goodreads_interactions_poetry__json__gz=[row | {"rating": 0}, row])
    with pytest.raises(DataError, match=r"rating is 0 in 1 rows, 4 in 1 rows.*--data\.positive 1"):
        read(tmp_path)
    assert len(read(tmp_path, positive=1)[0]) == 1


def test_lastfm_and_mind_in_recboles_files(tmp_path):
    write(
        tmp_path / "lastfm",
        lastfm__inter="user_id:token\tartist_id:token\tweight:float\tnow:float\n2\t51\t13883\t5\n2\t52\t11690\t6\n",
        lastfm__item="artist_id:token\tname:token_seq\turl:token\n51\tDuran Duran\thttp://x\n52\tMorcheeba\thttp://y\n",
    )
    with pytest.raises(DataError, match=r"lastfm\.inter: columns .* expected a column timestamp or .*--data\.columns"):
        read(tmp_path / "lastfm", "recbole")
    interactions, items, _ = read(tmp_path / "lastfm", "recbole", columns={"timestamp": ""})
    assert interactions.rows() == [("2", "51", None, None), ("2", "52", None, None)]
    assert items["title"].to_list() == ["Duran Duran", "Morcheeba"]
    assert read(tmp_path / "lastfm", "recbole", columns={"timestamp": "now"})[0]["timestamp"].to_list() == [5, 6]
    write(
        tmp_path / "mind",
        mind__inter="user_id:token\titem_id:token\tlabel:float\ttimestamp:token\nU1\tN1\t1\t11/15/2019 8:36:57 AM\n",
        mind__item="item_id:token\tcategory:token\ttitle:token_seq\tabstract:token_seq\nN1\tsports\tGoal\tIt is one.\n",
    )
    interactions, items, _ = read(tmp_path / "mind", "recbole")
    assert interactions["timestamp"].dt.hour().to_list() == [8] and items["text"].to_list() == ["Goal. Categories: sports"]


OWN = {"user": "visitor", "item": "sku", "timestamp": "seen", "title": "label", "description": "words", "genres": "kind"}


def test_names_of_ones_own(tmp_path):
    write(
        tmp_path,
        interactions__csv="visitor,sku,seen,user\nv,a,5,x\n",
        items__csv="sku,label,words,kind,year\na,Lamp,Bright,Light|Red,1990\n",
    )
    interactions, items, _ = read(tmp_path, columns=OWN)
    assert interactions.rows() == [("v", "a", 5, None)]
    assert items.rows() == [("a", "Lamp", "Lamp. Bright. Genres: Light, Red", "Bright")]
    write(tmp_path, items__csv="code,label\na,Lamp\n")
    assert read(tmp_path, columns={"item": "sku", "id": "code", "user": "visitor", "timestamp": "seen", "title": "label"})[
        1
    ].rows()
    write(tmp_path, items__csv="item,title\na,Lamp\n")
    assert read(tmp_path, columns={"item": "sku", "user": "visitor", "timestamp": "seen"})[1].rows() == [("a", "Lamp", "Lamp")]
    with pytest.raises(DataError, match="columns visitor, sku, seen, user; expected a column skuu"):
        read(tmp_path, columns=OWN | {"item": "skuu"})
    with pytest.raises(DataError, match="columns visitor, sku, seen, user; expected a column seem"):
        read(tmp_path, columns=OWN | {"timestamp": "seem"})


def test_an_own_file_keeps_columns_that_mean_nothing_to_itself(tmp_path):
    """`year` and `genres` next to our own names were never read; only `data.columns` gives them a meaning."""
    write(
        tmp_path,
        interactions__csv="user,item,timestamp,stars\nu,a,5,3\n",
        items__csv="item,title,genres,year\na,Lamp,Light,1990\n",
    )
    interactions, items, problems = read(tmp_path)
    assert interactions["rating"].to_list() == [None] and items.row(0) == ("a", "Lamp", "Lamp")
    assert problems.notes[1] == "items.csv: item = item, title = title; not read: genres, year"
    assert read(tmp_path, columns={"year": "year", "rating": "stars"})[1].row(0) == ("a", "Lamp (1990)", "Lamp (1990)")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": {"users": "x"}}, "data.columns names 'users'; expected one of user, item"),
        ({"columns": {"title": ""}}, "data.columns title is empty; only a timestamp may be"),
        ({"columns": {"user": "x"}, "source": "letter"}, "data.columns has no effect on data.source 'letter'"),
        ({"positive": 1.0, "source": "sequences"}, "data.positive has no effect on data.source 'sequences'"),
        ({"positive": float("nan")}, "data.positive is nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Config(data=DataConfig(**{"source": "csv", "path": "x"} | fields))


def test_the_stage_says_what_it_found(tmp_path, capsys):
    rows = "".join(f"u,{item},{time}\n" for time, item in enumerate("abcab"))
    write(tmp_path / "raw", interactions__csv=f"user,item,timestamp\n{rows}", items__csv="item,title\na,A\nb,B\nc,C\n")
    write(tmp_path / "raw", readme__md="hello")
    manifest, _ = prepare.prepare_data(
        Config(out=str(tmp_path / "run"), data=DataConfig(source="csv", path=str(tmp_path / "raw")))
    )
    assert capsys.readouterr().out.splitlines() == [
        "data: reads interactions.csv, items.csv of raw; not read: readme.md",
        "data: interactions.csv: user = user, item = item, timestamp = timestamp",
        "data: items.csv: item = item, title = title",
        "data: left out: 1 interactions without time",
    ]
    figures = manifest.metrics
    assert figures["interactions_read"] == 5 and figures["dropped_interactions_without_time"] == 1  # the row of time 0
    assert figures["interactions"] == len(Dataset.load(tmp_path / "run" / "data").interactions) == 4
