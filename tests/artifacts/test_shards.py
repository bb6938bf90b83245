"""Whoever writes shards, and however often the work is interrupted, the files are the same."""

import pytest

from minionerec import pipeline
from minionerec.artifacts import over_shards, ray_engine, shards, shards_of, sharing
from minionerec.config import Config
from minionerec.distributed import Engine, use_engine
from minionerec.errors import ArtifactError, ConfigError
from tests.artifacts.toy_shards import Squares

EXPECTED = {"0.txt": "0 1 4", "1.txt": "9 16 25", "2.txt": "36 49 64", "3.txt": "81"}


def files(folder):
    return {folder / f"{number}.txt": rows for number, rows in enumerate(shards_of(10, 3))}


def written(folder):
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_any_number_of_processes_writes_the_same_files_once(tmp_path, monkeypatch, processes):
    made = []

    def make(rows, path):
        made.append(path.name)
        Squares()(rows, path)

    for place in reversed(range(processes)):  # the main process comes last and finds all that it waits for
        monkeypatch.setattr(shards, "place_in_launch", lambda place=place: (place, processes))
        monkeypatch.setattr(shards, "is_main_process", lambda place=place: place == 0)
        over_shards(files(tmp_path), make, "square", "rows")
    assert written(tmp_path) == EXPECTED
    assert made == [name for place in reversed(range(processes)) for name in list(EXPECTED)[place::processes]]


def test_an_interrupted_work_resumes_and_its_absence_is_named(tmp_path, monkeypatch):
    def killed(rows, path):
        if rows.start == 6:
            raise KeyboardInterrupt
        Squares()(rows, path)

    with pytest.raises(KeyboardInterrupt):
        over_shards(files(tmp_path), killed, "square", "rows")
    assert set(written(tmp_path)) == {"0.txt", "1.txt"}
    (tmp_path / "0.txt").write_text("damaged")
    over_shards(
        files(tmp_path), Squares(), "square", "rows", intact=lambda _, path: path.is_file() and path.read_text() != "damaged"
    )
    assert written(tmp_path) == EXPECTED
    with pytest.raises(ArtifactError, match=r"0\.txt: missing: a process did not finish its share"):
        over_shards({tmp_path / "absent" / "0.txt": range(1)}, lambda *_: None, "square", "rows")


def test_only_ray_has_workers(monkeypatch):
    with pytest.raises(ConfigError, match="engine_workers is 2, but engine is processes"):
        Config(engine_workers=2)
    config = Config(engine="ray", engine_workers=2)
    assert not {"engine", "engine_workers"} & config.recorded.keys()
    assert sharing(8) == 1
    with use_engine(Engine("ray", 3)):
        assert (sharing(8), sharing(2)) == (3, 2)


def test_a_worker_of_ray_writes_a_damaged_shard_again_and_leaves_an_intact_one(tmp_path):
    path = tmp_path / "1.txt"
    worker = ray_engine._Worker(Squares(), lambda _, path: path.is_file() and path.read_text() != "damaged")
    path.write_text("damaged")
    assert worker.write(range(3, 6), path) == 3 and path.read_text() == EXPECTED["1.txt"]
    path.write_text("whole")
    assert worker.write(range(3, 6), path) == 3 and path.read_text() == "whole"


def test_ray_without_its_package_or_under_a_launcher_is_refused(tmp_path, monkeypatch):
    from minionerec.config import extras

    with use_engine(Engine("ray")), monkeypatch.context() as patch:
        patch.setattr(extras, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"engine ray needs ray, not installed here.*minionerec\[ray\]"):
            over_shards(files(tmp_path), Squares(), "square", "rows")
        with pytest.raises(ConfigError, match="engine ray needs ray"):  # before the stage, whose draft would stay
            pipeline.run(Config(out=str(tmp_path / "run"), engine="ray"), ("data",))
        patch.setattr(ray_engine, "require_package", lambda *_: None)
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="start one process, without a launcher"):
            over_shards(files(tmp_path), Squares(), "square", "rows", collective=False)
    assert not written(tmp_path)
