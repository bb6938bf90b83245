import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from minionerec.artifacts import over_shards, shards, shards_of
from minionerec.errors import ArtifactError, CatalogError, ConfigError, DataError
from minionerec.recommend import batch
from minionerec.recommend.batch import Job, recommend_users
from minionerec.recommend.filters import Filters
from minionerec.recommend.users import RowReader, UserFiles

DENY = Filters(deny=["i3"])


@pytest.fixture(scope="module")
def recommender(make):
    return make(shard_size=8, batch_size=3)


@pytest.fixture(scope="module")
def users():
    """30 users with ids that are numbers, histories of 0 to 9 items, and a further column."""
    rng = np.random.default_rng(0)
    histories = [[f"i{item}" for item in rng.integers(0, 20, size)] for size in [*rng.integers(1, 10, 29), 0]]
    return pl.DataFrame({"country": ["NZ", None, "PT"] * 10, "history": histories, "user": range(1000, 1030)})


@pytest.fixture(scope="module")
def written(recommender, users, tmp_path_factory):
    """The users as a file, and their lists."""
    folder = tmp_path_factory.mktemp("users")
    users.write_parquet(folder / "users.parquet", row_group_size=7)
    recommend_users(recommender, Job(folder / "users.parquet", DENY, k=4), folder / "lists")
    return folder


def contents(folder):
    """The bytes of all parts."""
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_the_lists_of_a_file_are_those_of_the_recommender(recommender, users, written):
    lists = pl.read_parquet(written / "lists/*.parquet")
    assert sorted(contents(written / "lists")) == [f"part-{number:05d}.parquet" for number in range(4)]
    assert lists.columns == ["user", "rank", "item_id", "score", "exact", "fallback", "country"]
    assert lists["user"].unique(maintain_order=True).to_list() == users["user"].to_list() and lists["user"].dtype == pl.Int64
    online = recommender.recommend(users["history"].to_list(), k=4, filters=DENY)
    for (user, rows), ours, country in zip(lists.group_by("user", maintain_order=True), online, users["country"], strict=True):
        assert rows["item_id"].to_list() == [item.item_id for item in ours.items]
        assert rows["rank"].to_list() == [1, 2, 3, 4] and rows["exact"].to_list() == [ours.exact] * 4
        assert rows["fallback"].to_list() == [ours.fallback] * 4 and rows["country"].to_list() == [country] * 4
        np.testing.assert_allclose(rows["score"].to_list(), [item.score for item in ours.items], atol=1e-5)
        assert (user[0] == 1029) == (ours.fallback == "popularity")
    manifest = json.loads((written / "lists/manifest.json").read_text())
    cut = sum(len(history) > 6 for history in users["history"].to_list())
    exact = sum(ours.exact for ours in online)
    expected = {"users": 30, "items": 120, "exact": exact, "short": 0, "fallbacks": 1, "cut": cut, "skipped": 0}
    assert manifest["metrics"] == expected and cut > 0
    assert manifest["config"]["recommend"]["filters"]["deny"] == ["i3"] and set(manifest["inputs"]) == {"users"}


@pytest.mark.parametrize("written_as", ["csv", "folder", "text"])
def test_the_form_of_the_file_does_not_matter(recommender, users, written, tmp_path, written_as):
    path = tmp_path / "users.csv"
    if written_as == "csv":
        users.with_columns(pl.col("history").list.join(", ")).write_csv(path)
    elif written_as == "text":
        path = tmp_path / "users.parquet"
        texts = [json.dumps(history) for history in users["history"].to_list()]
        users.with_columns(pl.Series("history", texts)).write_parquet(path)
    else:
        path = tmp_path / "several"
        path.mkdir()
        for number, rows in enumerate((users[:13], users[13:14], users[14:])):
            rows.write_parquet(path / f"{number}.parquet")
    recommend_users(recommender, Job(path, DENY, k=4), tmp_path / "lists")
    lists, expected = (pl.read_parquet(folder / "lists/*.parquet") for folder in (tmp_path, written))
    if written_as == "csv":  # everything else in it is text, and nothing is null
        expected = expected.with_columns(pl.col("user").cast(pl.String), pl.col("country").fill_null(""))
    assert lists.equals(expected)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["write_table 2", "replace 3", "link 1", "link 4"])
def test_killed_anywhere_the_next_run_writes_the_same_bytes(recommender, written, tmp_path, monkeypatch, at):
    function, nth = at.split()
    target = {"write_table": batch.pq, "replace": batch.Path, "link": batch.os}[function]
    original, calls = getattr(target, function), []

    def killed(*arguments, **options):
        of_a_part = ".parquet" in str(arguments[function == "write_table"])
        calls.extend([arguments] * of_a_part)
        if of_a_part and len(calls) == int(nth):
            raise Killed
        return original(*arguments, **options)

    job = Job(written / "users.parquet", DENY, k=4)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target, function, killed)
        recommend_users(recommender, job, tmp_path / "lists")
    assert not (tmp_path / "lists").exists()
    asked = []
    monkeypatch.setattr(recommender, "answer", lambda requests, search: asked.extend(requests) or answer(requests, search))
    answer = type(recommender).answer.__get__(recommender)
    manifest, fresh = recommend_users(recommender, job, tmp_path / "lists")
    assert fresh and len(asked) == {"write_table 2": 22, "replace 3": 14, "link 1": 0, "link 4": 0}[at]
    assert contents(tmp_path / "lists") == contents(written / "lists")
    assert not recommend_users(recommender, job, tmp_path / "lists")[1]
    assert manifest.metrics["users"] == 30


def test_two_processes_write_what_one_writes(recommender, written, tmp_path, monkeypatch):
    """Each rank in turn; tests/eval has a real launch of the function that divides the shards."""
    job = Job(written / "users.parquet", DENY, k=4)
    for rank in (1, 0):
        monkeypatch.setattr(shards, "place_in_launch", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(shards, "is_main_process", lambda rank=rank: rank == 0)
        job_run = batch._Run(recommender, job, recommender.widths(4), UserFiles(job.users))
        parts = {tmp_path / f"part-{number:05d}.parquet": rows for number, rows in enumerate(shards_of(30, 8))}
        over_shards(parts, job_run.write_part, "recommend", "users")
        assert len(contents(tmp_path)) == (2 if rank else 4)
    assert contents(tmp_path) == contents(written / "lists")


def test_a_part_that_is_missing_or_damaged_is_named(recommender, written, tmp_path, monkeypatch):
    def damaged(self, rows, path):
        path.write_bytes(b"PAR1") if self._job.k == 4 else None

    monkeypatch.setattr(batch._Run, "write_part", damaged)
    for k, message in ((4, "part-00000.parquet: damaged"), (5, "part-00000.parquet: missing: a process did not finish")):
        with pytest.raises(ArtifactError, match=message):
            recommend_users(recommender, Job(written / "users.parquet", DENY, k=k), tmp_path / str(k))


def test_the_cost_is_estimated_before_anything_is_written(recommender, users, tmp_path):
    pl.concat([users] * 10).write_parquet(tmp_path / "users.parquet")
    printed = []

    def say(text):
        printed.append(text)
        raise Killed

    with pytest.raises(Killed):
        recommend_users(recommender, Job(tmp_path / "users.parquet", DENY), tmp_path / "lists", say=say)
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]
    assert printed[0].startswith("300 users in 38 shards, lists of 10, 14 beams: about") and "ms per user" in printed[0]


def test_other_lists_are_not_replaced_unasked(recommender, written):
    job = Job(written / "users.parquet", k=4)
    with pytest.raises(ConfigError, match=r"(?s)recommend\.filters\.deny.*pass --replace"):
        recommend_users(recommender, job, written / "lists")


def test_lists_of_other_numbers_or_of_a_changed_set_are_others(recommender, written, monkeypatch):
    job = Job(written / "users.parquet", Filters(named=["in_stock"]))
    sets = [{}, {"in_stock": np.arange(20) < 9}, {"in_stock": np.arange(20) < 8}]
    keys = set()
    for named in sets:
        monkeypatch.setattr(recommender.items, "named", named)
        keys.add(batch._recipe(recommender, job, recommender.widths(), written, False).key)
    half = SimpleNamespace(config=recommender.config, items=recommender.items, digests={}, model=SimpleNamespace(dtype="half"))
    keys.add(batch._recipe(half, job, recommender.widths(), written, False).key)
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        ({"user": ["a"], "items": [["i1"]]}, DataError, "expected one column history, found the columns user, items"),
        ({"user": ["a"], "history": [["i1"]], "rank": [1]}, DataError, "rename the column rank"),
        (
            {"user": ["a"], "history": [[1.5]]},
            DataError,
            "row 1, user 'a': the history is '.1.5.'; expected a list",
        ),
        (
            {"user": ["a", "b"], "history": ["i1", '["i2"']},
            DataError,
            "row 2, user 'b': the history .* begins like a JSON",
        ),
        ({"user": ["b"], "history": [[7]]}, DataError, "row 1, user 'b': the catalog has no item '7'"),  # no index
        ({"user": [], "history": []}, DataError, "holds no user"),
        ({"user": [1, 2], "history": [["i1"], ["i1", "cup"]]}, DataError, "row 2, user 2: the catalog has no item 'cup'"),
        (
            {"user": [1], "history": [[f"i{n}" for n in range(20)]]},
            CatalogError,
            "row 1, user 1: The filters leave no item",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(recommender, tmp_path, frame, error, message):
    schema = dict.fromkeys(frame, pl.String) if not frame["user"] else None
    pl.DataFrame(frame, schema=schema).write_parquet(tmp_path / "users.parquet")
    filters = Filters(exclude_history=True)
    with pytest.raises(error, match=message):
        recommend_users(recommender, Job(tmp_path / "users.parquet", filters), tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


def test_files_that_are_none(tmp_path):
    for path, message in (
        (tmp_path / "users.parquet", "found none"),
        (tmp_path, "found none"),
        (tmp_path / "a.txt", "expected a .parquet or .csv file"),
    ):
        with pytest.raises(DataError, match=message):
            UserFiles(path)
    (tmp_path / "users.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"users\.parquet: cannot be read"):
        UserFiles(tmp_path / "users.parquet")
    (tmp_path / "users.csv").write_text("user,history\n")
    with pytest.raises(DataError, match=r"holds \.parquet and \.csv files"):
        UserFiles(tmp_path)


def test_skipping_ahead_holds_no_rows(tmp_path):
    pl.DataFrame({"user": range(20_000), "history": ["i1"] * 20_000}).write_parquet(tmp_path / "users.parquet")
    files = UserFiles(tmp_path / "users.parquet")
    assert len(files) == 20_000
    wanted = [range(5, 9), range(9, 11), range(4090, 4100), range(15_000, 15_002), range(19_999, 20_000), range(7, 8)]
    reader = RowReader(files)
    for rows in wanted:
        assert reader.take(rows)["user"].to_pylist() == list(rows)
