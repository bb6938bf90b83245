"""The engine `ray`: two workers on this machine write what one process writes, also if a worker dies."""

import pytest

from minionerec import pipeline
from minionerec.artifacts import over_shards, ray_engine
from minionerec.distributed import Engine, use_engine
from minionerec.errors import DataError
from minionerec.recommend.batch import Job, recommend_users
from minionerec.recommend.recommender import Recommender
from tests import small
from tests.artifacts.test_shards import EXPECTED, files, written
from tests.artifacts.toy_shards import Squares
from tests.data import test_prepared_tables as prepared_tables

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray, started once for all tests."""
    with ray_engine._cluster(2):
        yield


@pytest.fixture(autouse=True)
def two_workers():
    with use_engine(Engine("ray", 2)):
        yield


def test_a_worker_that_dies_is_replaced_and_an_error_is_ours(tmp_path):
    with pytest.raises(DataError, match="row 6 is wrong"):
        over_shards(files(tmp_path), Squares(refuses=6), "square", "rows")
    over_shards(files(tmp_path), Squares(dies_at=6), "square", "rows")
    assert written(tmp_path) == EXPECTED and (tmp_path / "2.died").exists()


def test_prepared_tables(tmp_path, monkeypatch):
    prepared_tables.write(tmp_path / "tables", *prepared_tables.random_tables())
    prepared_tables.small_blocks(monkeypatch, 50)
    _, rays = prepared_tables.prepared(tmp_path / "ray", "parquet", tmp_path / "tables", item_k=4)
    with use_engine(Engine("processes")):
        assert rays == prepared_tables.prepared(tmp_path / "one", "parquet", tmp_path / "tables", item_k=4)[1]


def contents(run):
    """The bytes of all that a run's stages have written, but for what is about time."""
    ignored = ("manifest.json", "run.yaml", "config.json")
    found = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file() and path.name not in ignored}
    return {name: path.read_bytes() for name, path in found.items()}


def test_the_stages_write_what_one_process_writes(tmp_path):
    sections = {"sid": {"max_training_vectors": 24}, "eval": {"shard_size": 7}, "sft": {"epochs": 1}}
    runs = {}
    for engine in (Engine("processes"), Engine("ray", 2)):
        config = small.config(tmp_path / engine.name, **sections)
        config.engine, config.engine_workers = engine.name, engine.workers
        pipeline.run(config, ("data", "sid", "sft", "eval"))
        users = tmp_path / f"{engine.name}.csv"
        users.write_text("user,history\n" + "\n".join(f'{user},"i{user},i{user + 1}"' for user in range(20)))
        with use_engine(engine):
            recommend_users(Recommender.load(config.folder), Job(users), config.folder / "lists")
        runs[engine.name] = config.folder
    ours, rays = contents(runs["processes"]), contents(runs["ray"])
    compared = [name for name in ours if name.startswith(("data", "sid", "eval", "lists"))]
    assert len(compared) > 10 and {name for name in compared if ours[name] != rays.get(name)} == set()
