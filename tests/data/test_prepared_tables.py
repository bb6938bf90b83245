"""Tables that another engine has prepared: the bytes of the same data read in memory, and all that breaks the contract."""

import ast
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minionerec.artifacts import CHECKPOINTS
from minionerec.config import Config, DataConfig
from minionerec.data import assemble, prepare, prepared_tables
from minionerec.errors import ConfigError, DataError

DAY = 86_400
INTERACTIONS = {"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float64}


def random_tables(rows=400, seed=0):
    """Interactions in no order, with equal times, repeated rows and items that the catalog lacks; and the catalog."""
    rng = np.random.default_rng(seed)
    interactions = pl.DataFrame(
        {
            "user": [f"u{user}" for user in rng.integers(0, 40, rows) ** 2 % 37],
            "item_id": [f"i{item}" for item in rng.integers(0, 31, rows)],
            "timestamp": 1_500_000_000 + DAY * rng.integers(0, 30, rows),
            "rating": rng.integers(1, 6, rows).astype(float),
        },
        schema=INTERACTIONS,
    )
    interactions = pl.concat([interactions, interactions[:20]])
    titles = [f"thing {item}" if item % 7 else "" for item in range(30)]
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(30)], "title": titles, "description": "of <b>use</b>"})
    return interactions, items


def write(folder, interactions, items, files=3):
    """The tables as an engine writes them: folders of files, each with row groups of 50 rows."""
    for name, frame in (("interactions", interactions), ("items", items)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "_SUCCESS").touch()
        count = files if name == "interactions" else 1
        for number in range(count):
            part = frame[number * len(frame) // count : (number + 1) * len(frame) // count]
            part.write_parquet(folder / name / f"part-{number:05d}.snappy.parquet", compression="snappy", row_group_size=50)
    return folder


def prepared(folder, source, path, **fields):
    data = DataConfig(source=source, path=str(path), **{"missing_text": "drop", **fields})
    manifest, _ = prepare.prepare_data(Config(out=str(folder), data=data))
    return manifest, {path.name: path.read_bytes() for path in (folder / "data").glob("*.parquet")}


def small_blocks(monkeypatch, part_rows, piece_rows=64, block=37):
    monkeypatch.setattr(prepared_tables, "_BLOCK", block)
    monkeypatch.setattr(prepared_tables, "_PART_ROWS", part_rows)
    monkeypatch.setattr(assemble, "_PIECE_ROWS", piece_rows)


SPLITS = [
    {"item_k": 4},
    {"split": "chronological", "user_k": 4, "start": "2017-07-16"},
    {"split": "date", "valid_from": "2017-07-28", "test_from": "2017-08-03", "item_k": 5, "max_history": 3},
]


@pytest.mark.parametrize("fields", SPLITS)
def test_any_number_of_parts_has_the_bytes_of_the_same_data_in_memory(tmp_path, monkeypatch, fields):
    interactions, items = random_tables()
    (tmp_path / "csv").mkdir()
    interactions.rename({"item_id": "item"}).write_csv(tmp_path / "csv/interactions.csv")
    items.rename({"item_id": "item"}).write_csv(tmp_path / "csv/items.csv")
    manifest, expected = prepared(tmp_path / "memory", "csv", tmp_path / "csv", **fields)
    write(tmp_path / "tables", interactions, items)
    for number, (part_rows, piece_rows) in enumerate(((10**6, 10**6), (100, 64), (9, 7))):
        small_blocks(monkeypatch, part_rows, piece_rows)
        parts, found = prepared(tmp_path / str(number), "parquet", tmp_path / "tables", **fields)
        assert found == expected and len(found) == 5
        same = {**manifest.metrics, "read_as": parts.metrics["read_as"]}
        assert same.pop("dropped_interactions_without_time") == 0 and parts.metrics == same
        assert not list((tmp_path / str(number)).glob("data/checkpoints"))


def test_processes_and_a_killed_one_leave_the_same_bytes(tmp_path, monkeypatch):
    write(tmp_path / "tables", *random_tables())
    small_blocks(monkeypatch, 50)
    _, expected = prepared(tmp_path / "one", "parquet", tmp_path / "tables", item_k=4)
    made, originals = [], {kind: kind.__call__ for kind in (prepared_tables._Spread, assemble._KeepRows, assemble._MakePiece)}
    for kind, at in ((prepared_tables._Spread, 3), (assemble._KeepRows, 2), (assemble._MakePiece, 1), (None, 0)):

        def work(self, rows, path, kind=kind, at=at):
            made.append(path.name)
            if type(self) is kind and rows.start >= at:
                raise KeyboardInterrupt
            originals[type(self)](self, rows, path)

        with monkeypatch.context() as patch:
            for patched in originals:
                patch.setattr(patched, "__call__", work)
            if kind is None:
                _, found = prepared(tmp_path / "killed", "parquet", tmp_path / "tables", item_k=4)
            else:
                with pytest.raises(KeyboardInterrupt):
                    prepared(tmp_path / "killed", "parquet", tmp_path / "tables", item_k=4)
                assert list((tmp_path / "killed/data.partial" / CHECKPOINTS).iterdir())
    assert found == expected
    assert max(made.count(name) for name in made) == 2  # what was complete was not made again


def test_the_spark_job_of_the_docs_writes_the_columns_of_the_contract():
    page = (Path(__file__).parents[2] / "docs/spark.md").read_text()
    job = ast.parse(page.split("```python\n")[1].split("```")[0])
    calls = [node for node in ast.walk(job) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    selected = [
        [argument.value for argument in call.args]
        for call in calls
        if call.func.attr == "select" and len(call.args) == 3 and all(isinstance(each, ast.Constant) for each in call.args)
    ]
    assert list(prepared_tables._INTERACTIONS) in selected
    assert [*prepared_tables._ITEMS, "description"] in selected
    assert all(f"`{column}`" in page for column in (*prepared_tables._INTERACTIONS, "rating", "title"))


REFUSED = [
    ("interactions", {"user": None}, "part-00001.snappy.parquet, row 2: user is null or empty"),
    ("interactions", {"item_id": "i\t1"}, r"part-00001.snappy.parquet, row 2: item_id 'i\\t1' has a tab"),
    ("interactions", {"item_id": "i99"}, "part-00001.snappy.parquet, row 2: item 'i99' is not in items"),
    ("interactions", {"timestamp": 1_500_000_000_000}, "row 2: timestamp is 1500000000000; expected whole seconds"),
    ("interactions", {"timestamp": 0}, "row 2: timestamp is 0; expected whole seconds"),
    ("interactions", {"timestamp": None}, "row 2: timestamp is None; expected whole seconds"),
    ("interactions", {"rating": float("inf")}, "row 2: rating is inf; expected a finite number"),
    ("items", {"item_id": "i1"}, "part-00000.snappy.parquet, rows 2 and 5: item 'i1' is listed twice"),
    ("items", {"item_id": None}, "part-00000.snappy.parquet, row 5: the item id is empty"),
    ("items", {"title": None}, "part-00000.snappy.parquet, row 5: item 'i4' has no title"),
]


@pytest.mark.parametrize(("table", "change", "message"), REFUSED)
def test_a_row_that_breaks_the_contract_is_named(tmp_path, table, change, message):
    frames = dict(zip(("interactions", "items"), random_tables(120), strict=True))
    frames["items"] = pl.concat([frames["items"], pl.DataFrame({"item_id": ["i30"], "title": ["x"], "description": ["y"]})])
    frames["items"] = frames["items"].with_columns(title="t" + pl.col("title"))
    frame, row = frames[table], 140 // 3 + 1 if table == "interactions" else 4
    [(column, value)] = change.items()
    values = frame[column].to_list()
    values[row] = value
    frames[table] = frame.with_columns(pl.Series(column, values, dtype=frame[column].dtype))
    write(tmp_path / "tables", **frames)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / "run", "parquet", tmp_path / "tables", missing_text="error")
    assert not list((tmp_path / "run").glob("data*"))
    if table == "interactions" and "not in items" not in message:
        manifest, _ = prepared(tmp_path / "run", "parquet", tmp_path / "tables", missing_text="error", on_error="skip")
        assert manifest.metrics["skipped_rows"] == 1
        assert "row 2: " in (tmp_path / "run/data/skipped.txt").read_text()


def test_columns_and_files_that_break_the_contract_are_named(tmp_path):
    interactions, items = random_tables(60)
    for number, (change, message) in enumerate(
        (
            (lambda frame: frame.drop("user"), r"columns item_id, timestamp, rating; expected a column user \(string\)"),
            (lambda frame: frame.with_columns(pl.col("timestamp").cast(pl.Int32)), "column timestamp is int32, expected int64"),
            (
                lambda frame: frame.with_columns(pl.from_epoch("timestamp")),
                r"column timestamp is timestamp\[us\], expected",
            ),
            (lambda frame: frame.with_columns(rating=1), "column rating is int32, expected float or double"),
            (lambda frame: frame.with_columns(user=1), "column user is int32, expected string"),
        )
    ):
        folder = write(tmp_path / str(number), change(interactions), items)
        with pytest.raises(DataError, match=rf"part-00000\.snappy\.parquet: {message}.*docs/spark\.md has the contract"):
            prepared(tmp_path / "run", "parquet", folder)
    folder = write(tmp_path / "tables", interactions, items)
    (folder / "interactions/part-00001.snappy.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00001\.snappy\.parquet: not a readable parquet file"):
        prepared(tmp_path / "run", "parquet", folder)
    texts = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    columns = [texts, pa.array(["i1"]), pa.array([1])]
    pq.write_table(pa.table(columns, names=["user", "item_id", "timestamp"]), folder / "interactions/part-00001.snappy.parquet")
    with pytest.raises(DataError, match=r"part-00001\.snappy\.parquet: not a readable parquet file .*UTF8"):
        prepared(tmp_path / "run", "parquet", folder)
    items.write_parquet(folder / "items.parquet")  # an older table next to a new one was read as a part of it
    with pytest.raises(DataError, match=r"has items\.parquet and a folder items, expected one of them"):
        prepared(tmp_path / "run", "parquet", folder)
    (folder / "items/_temporary").mkdir()
    with pytest.raises(DataError, match="the job that writes it has not finished"):
        prepared(tmp_path / "run", "parquet", folder)
    with pytest.raises(DataError, match=r"expected interactions\.parquet, or a folder interactions of \*\.parquet"):
        prepared(tmp_path / "run", "parquet", tmp_path)
    with pytest.raises(ConfigError, match=r"data\.positive has no effect"):
        DataConfig(source="parquet", path="x", positive=1)


def test_tables_that_leave_nothing_to_learn_from_say_so(tmp_path):
    interactions, items = random_tables(60)
    single = interactions.unique("user", keep="first", maintain_order=True)
    chronological = {"split": "chronological", "user_k": 1}
    for name, rows, fields, message in (
        ("empty", interactions[:0], {}, "empty: interactions has no rows"),
        ("single", single, chronological, r"No training example is left: \d+ interactions read, .* longest user has 1"),
    ):
        with pytest.raises(DataError, match=message):
            prepared(tmp_path / f"{name}-run", "parquet", write(tmp_path / name, rows, items), **fields)
        assert not list((tmp_path / f"{name}-run").glob("data*"))
