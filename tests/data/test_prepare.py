import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.artifacts import MANIFEST, Manifest, Recipe, cache_folder
from minionerec.config import Config, DataConfig
from minionerec.data import prepare, sources
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, SPLITS, Dataset
from minionerec.errors import ArtifactError, ConfigError, DataError
from tests.examples import examples

pytestmark = pytest.mark.fast

CLICKS = {"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
ITEMS = pl.DataFrame({"item_id": list("abcdef"), "title": ["A", "B", "", "D", "E", "F"]}).with_columns(text=pl.col("title"))


def frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=CLICKS, orient="row")


def slow_split(rows, max_history, minimum):
    """The split rule, row by row."""
    index = {"a": 0, "b": 1, "d": 2, "e": 3, "f": 4}  # c has no title
    seen, users, duplicates = set(), {}, 0
    for user, item, timestamp in rows:
        if item not in index:
            continue
        if (user, item, timestamp) in seen:
            duplicates += 1
            continue
        seen.add((user, item, timestamp))
        users.setdefault(user, []).append((timestamp, index[item]))
    splits = {name: [] for name in SPLITS}
    short = [user for user, clicks in users.items() if len(clicks) < minimum]
    for user, clicks in users.items():
        if user in short:
            continue
        clicks = sorted(clicks, key=lambda click: click[0])  # stable
        items = [item for _, item in clicks]
        for place in range(1, len(items)):
            name = {len(items) - 1: "test", len(items) - 2: "valid"}.get(place, "train")
            splits[name].append((user, items[max(0, place - max_history) : place], items[place], clicks[place][0], place))
    return splits, duplicates, short


@examples(100)
@given(
    rows=st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("abcdef"), st.integers(0, 5)), max_size=40),
    max_history=st.integers(1, 6),
    minimum=st.integers(3, 6),
)
def test_split_equals_the_obvious_loop(rows, max_history, minimum):
    config = DataConfig(max_history=max_history, user_k=minimum)
    splits, duplicates, short = slow_split(rows, max_history, minimum)
    if not splits["train"]:
        with pytest.raises(DataError, match=r"is left|was read"):
            prepare.build_dataset(frame(rows), ITEMS, config)
        return
    dataset, metrics = prepare.build_dataset(frame(rows), ITEMS, config)
    for name in SPLITS:
        assert dataset.split(name).rows() == splits[name]
        assert dataset.split(name).schema == SPLIT_SCHEMA
        assert metrics[name] == len(splits[name])
    assert dataset.catalog["item_id"].to_list() == ["a", "b", "d", "e", "f"] and dataset.catalog.schema == CATALOG_SCHEMA
    assert metrics["dropped_duplicates"] == duplicates and metrics["dropped_short_users"] == len(short)
    assert metrics["users"] == len(splits["test"])
    lengths = [len(row[1]) for name in SPLITS for row in splits[name]]
    assert metrics["mean_history"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-4)


def test_figures_add_up():
    rows = [("x", item, time) for time, item in enumerate("abdac")] + [("x", "a", 0), ("y", "a", 1), ("y", "b", 2)]
    dataset, metrics = prepare.build_dataset(frame(rows), ITEMS, DataConfig())
    assert metrics == {
        "users": 1,
        "items": 5,
        "interactions": 4,
        "train": 1,
        "valid": 1,
        "test": 1,
        "mean_history": 2.0,
        "items_without_interaction": 2,
        "items_read": 6,
        "interactions_read": 8,
        "dropped_items_without_text": 1,
        "dropped_interactions_unlisted": 0,
        "dropped_interactions_without_text": 1,
        "dropped_outside_window": 0,
        "dropped_duplicates": 1,
        "dropped_short_users": 1,
        "dropped_rare_items": 0,
        "dropped_short_user_interactions": 2,
    }
    assert dataset.test.rows() == [("x", [0, 1, 2], 0, 3, 3)]


def test_nothing_left():
    with pytest.raises(DataError, match=r"after the k-core \(data.user_k 3.*took the last 2 of 2"):
        prepare.build_dataset(frame([("x", "a", 1), ("x", "b", 2)]), ITEMS, DataConfig())
    with pytest.raises(DataError, match="no interaction with a listed item was read"):
        prepare.build_dataset(frame([]), ITEMS, DataConfig())
    with pytest.raises(DataError, match="No training example is left"):
        prepare.build_dataset(frame([("x", "a", 1), ("x", "b", 2), ("x", "d", 3)]), ITEMS, DataConfig())


def own_files(folder: Path) -> DataConfig:
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{user},{item},{time}\n" for user in "xy" for time, item in enumerate("abcba", 1))
    (folder / "interactions.csv").write_text("user,item,timestamp\n" + rows)
    (folder / "items.csv").write_text("item,title,description\na,A,first\nb,B,\nc,C,\nd,D,never clicked\n")
    return DataConfig(source="csv", path=str(folder))


def test_stage_writes_skips_and_notices_changes(tmp_path):
    config = Config(out=str(tmp_path / "run"), data=own_files(tmp_path / "raw"))
    manifest, made = prepare.prepare_data(config)
    assert made and manifest.stage == "data" and set(manifest.inputs) == {"interactions.csv", "items.csv"}
    assert prepare.data_recipe(config, prepare.find_inputs(config).digests).finished() == manifest
    assert manifest.metrics["items_without_interaction"] == 1 and manifest.metrics["train"] == 4
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["data"]
    again, made = prepare.prepare_data(replace(config, seed=7))  # the seed plays no part
    assert not made and again == manifest
    assert prepare.prepare_data(replace(config, data=replace(config.data, max_history=5), replace=True))[1]
    with (tmp_path / "raw" / "items.csv").open("a") as stream:
        stream.write("e,E,\n")
    config = replace(config, replace=True)
    manifest, made = prepare.prepare_data(config)
    assert made and manifest.metrics["items"] == 5
    (config.folder / "data" / "train.parquet").unlink()
    assert prepare.prepare_data(config)[1]


def test_a_dataset_is_replaced_only_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "fetch", lambda *_: pytest.fail("it asks before it downloads"))
    config = Config(out=str(tmp_path / "run"), data=own_files(tmp_path / "raw"))
    mine, _ = prepare.prepare_data(config)
    with pytest.raises(ConfigError) as forgotten:  # the default, MovieLens, in place of the user's own files
        prepare.prepare_data(replace(config, data=DataConfig()))
    assert 'data.source: "csv" there, "ml-100k" now' in str(forgotten.value)
    with pytest.raises(ConfigError, match=r"data.max_history: 20 there, 5 now"):
        prepare.prepare_data(replace(config, data=replace(config.data, max_history=5)))
    shutil.copytree(tmp_path / "raw", tmp_path / "copy")
    elsewhere = replace(config, data=replace(config.data, path=str(tmp_path / "copy")))
    assert prepare.prepare_data(elsewhere) == (mine, False)  # the same files in another place
    (tmp_path / "copy/items.csv").write_text("item,title\na,A\nb,B\nc,C\n")
    with pytest.raises(ConfigError, match=r"input items.csv: changed"):
        prepare.prepare_data(elsewhere)
    assert Manifest.load(config.folder / "data") == mine
    assert prepare.prepare_data(replace(elsewhere, replace=True))[0].metrics["items"] == 3


LAYOUTS = {
    "csv": ("interactions.csv", "items.parquet"),
    "recbole": ("x.inter", "x.item"),
    "recbole with splits": ("x.train.inter", "x.valid.inter", "x.test.inter", "x.item"),
    "released": (
        *("train/X_5.csv", "valid/X_5.csv", "test/X_5.csv", "info/X_5.txt"),
        *("index/X.index.json", "index/X.item.json", "index/X.item2id"),
    ),
    "letter": ("X.inter.json", "X.index.json", "X.item.json"),
    "sequences": ("X.txt",),
    "amazon-2018": ("X.json.gz", "meta_X.json.gz"),
    "amazon-2023": ("X.csv", "meta_X.jsonl"),
    "amazon-2023 with splits": ("X.train.csv", "X.valid.csv", "X.test.csv", "meta_X.jsonl"),
    "csv of MovieLens": ("ratings.csv", "movies.csv"),
    "mimigenrec": ("id2sid.json", "sft/train.json", "sft/valid.json", "sft/test.json"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_raw_file_counts_and_its_folder_does_not(tmp_path, layout):
    def recipe(folder: Path) -> Recipe:
        config = Config(data=DataConfig(source=layout.partition(" ")[0], path=str(folder)))
        return prepare.data_recipe(config, prepare.find_inputs(config).digests)

    for name in LAYOUTS[layout]:
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text(name)
    original = recipe(tmp_path / "raw")
    assert set(original.inputs) == set(LAYOUTS[layout])
    for name in LAYOUTS[layout]:
        (tmp_path / "raw" / name).write_text("edited")
        assert recipe(tmp_path / "raw").key != original.key
        (tmp_path / "raw" / name).write_text(name)
    assert recipe(tmp_path / "raw") == original
    shutil.move(tmp_path / "raw", tmp_path / "elsewhere")
    assert recipe(tmp_path / "elsewhere").inputs == original.inputs


def test_dataset_round_trip_and_damage(tmp_path):
    config = Config(out=str(tmp_path / "run"), data=own_files(tmp_path / "raw"))
    prepare.prepare_data(config)
    dataset = Dataset.load(config.folder / "data")
    copy = tmp_path / "copy"
    copy.mkdir()
    dataset.save(copy)
    loaded = Dataset.load(copy)
    assert loaded.digest == dataset.digest and loaded.catalog.equals(dataset.catalog)
    assert all(loaded.split(name).equals(dataset.split(name)) for name in SPLITS)
    (copy / "valid.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(ArtifactError, match=r"valid\.parquet: not a readable parquet"):
        Dataset.load(copy)
    dataset.test.drop("position").write_parquet(copy / "valid.parquet")
    with pytest.raises(ArtifactError, match=r"valid\.parquet: columns"):
        Dataset.load(copy)
    (copy / "valid.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"valid\.parquet: not found"):
        Dataset.load(copy)


def test_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    config = Config(out=str(tmp_path / "run"), data=own_files(tmp_path / "raw"))

    def full(self, folder):
        (folder / "catalog.parquet").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save", full)
        with pytest.raises(ArtifactError, match="no space left"):
            prepare.prepare_data(config)
    assert list(tmp_path.glob("run/*")) == []
    first, _ = prepare.prepare_data(config)
    (tmp_path / "raw" / "interactions.csv").write_text("user,item,timestamp\nx,a,soon\n")
    with pytest.raises(DataError, match="soon"):
        prepare.prepare_data(replace(config, replace=True))
    assert (config.folder / "data" / MANIFEST).is_file() and prepare.Manifest.load(config.folder / "data") == first


def test_missing_text_is_dropped_on_request_only(tmp_path):
    data = own_files(tmp_path / "raw")
    (tmp_path / "raw" / "items.csv").write_text("item,title\na,A\nb,B\nc,\n")
    config = Config(out=str(tmp_path / "run"), data=data)
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match="row 4: item 'c' has no title"):
            prepare.prepare_data(replace(config, data=replace(data, on_error=on_error)))
    manifest, _ = prepare.prepare_data(replace(config, data=replace(data, missing_text="drop")))
    assert manifest.metrics["dropped_items_without_text"] == 1 and manifest.metrics["dropped_interactions_without_text"] == 2


def test_movielens_from_the_cache(tmp_path, monkeypatch):
    """The real ml-100k, where it has been fetched before: GroupLens publishes these three figures."""
    cache = cache_folder() / "ml-100k"
    names = [file.name for file in (sources.SOURCES["ml-100k"].files[0], *sources.MEMBERS) if (cache / file.name).is_file()]
    if "ml-100k.zip" not in names and len(names) < len(sources.MEMBERS):
        pytest.skip(f"ml-100k is not in {cache}; `python data/prepare.py --config ml-100k.yaml` fetches it")
    monkeypatch.setattr(sources, "_fetch", lambda *_: pytest.skip(f"ml-100k in {cache} is damaged"))
    manifest, _ = prepare.prepare_data(Config(out=str(tmp_path / "run")))
    figures = {name: manifest.metrics[name] for name in ("users", "items", "interactions", "train", "valid", "test")}
    assert figures == {"users": 943, "items": 1682, "interactions": 100_000, "train": 97_171, "valid": 943, "test": 943}
    dataset = Dataset.load(tmp_path / "run" / "data")
    assert dataset.catalog.row(0)[2] == "Toy Story (1995). Genres: Animation, Children's, Comedy"


def test_a_finished_download_needs_neither_cache_nor_network(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "ml-100k.item").write_text("item_id:token\tmovie_title:token_seq\na\tA\nb\tB\n")
    rows = [f"u\t{item}\t{step}" for step, item in enumerate("abab", 1)]
    (raw / "ml-100k.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    monkeypatch.setattr(sources, "fetch", lambda *_: raw)
    config = Config(out=str(tmp_path / "run"))
    first, made = prepare.prepare_data(config)
    assert made

    def unreachable(*_):
        raise DataError("no network")

    monkeypatch.setattr(sources, "fetch", unreachable)
    assert prepare.prepare_data(config) == (first, False)
    with pytest.raises(DataError, match="no network"):
        prepare.prepare_data(replace(config, data=DataConfig(max_history=5), replace=True))
    monkeypatch.setattr(sources, "fetch", lambda *_: raw)
    with pytest.raises(ArtifactError, match="cannot be written"):
        prepare.prepare_data(replace(config, out=str(raw / "ml-100k.item" / "below a file")))


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
    (tmp_path / "half\udcff.inter.json").write_text('{"0": [1, 2, 3, 4]}')
    config = Config(out=str(tmp_path / "run"), data=DataConfig(source="letter", path=str(tmp_path)))
    with pytest.raises(DataError, match=r"the name of half\\udcff\.inter\.json is not valid UTF-8\. Rename the file\."):
        prepare.prepare_data(config)
