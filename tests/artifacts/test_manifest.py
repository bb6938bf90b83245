"""Nothing that was changed after it was written is taken for what its manifest says."""

import json
import os
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from minionerec.artifacts import MANIFEST, Manifest, Recipe, file_hash, files, require
from minionerec.errors import ArtifactError
from tests.examples import examples

pytestmark = pytest.mark.fast


def recipe(folder, **changes):
    return Recipe("toy", folder, {"sft": {"epochs": 3, "share": 0.25}}, {"data": "d" * 64}, seed=7, **changes)


def build(chosen):
    with chosen.write() as draft:
        (draft.path / "model").mkdir()
        (draft.path / "model/weights").write_bytes(bytes(range(200)))
        (draft.path / "log.jsonl").write_text('{"loss": 1.5}\n')
        draft.metrics["title"] = "Amélie"


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    chosen = recipe(tmp_path_factory.mktemp("run") / "toy")
    chosen.make(lambda: build(chosen))
    return chosen


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_any_file_is_found(artefact, data):
    name = data.draw(st.sampled_from(["model/weights", "log.jsonl", MANIFEST]))
    path = artefact.folder / name
    original, before = path.read_bytes(), Manifest.load(artefact.folder)
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    changed = bytearray(original)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        loaded = Manifest.load(artefact.folder)
    except ArtifactError as error:
        assert str(path) in str(error) and " again" in str(error)
        assert artefact.finished() is None
        with pytest.raises(ArtifactError, match="The command: minionerec toy"):
            require(artefact.folder, "minionerec toy")
    else:
        assert name == MANIFEST and loaded == before  # two spellings of one JSON value (1e-5, 1E-5) say the same
    finally:
        path.write_bytes(original)
    assert artefact.finished() == before


def test_another_runs_file_of_the_same_size_is_found_and_the_stage_makes_its_own_again(tmp_path, caplog):
    chosen = recipe(tmp_path / "toy")
    first, _ = chosen.make(lambda: build(chosen))
    (tmp_path / "toy/model/weights").write_bytes(bytes(reversed(range(200))))
    again, made_now = chosen.make(lambda: build(chosen))
    assert made_now and again.digest == first.digest and Manifest.load(tmp_path / "toy") == again
    assert "weights: its content is not what the manifest says" in caplog.text
    assert chosen.make(lambda: build(chosen)) == (again, False)


@pytest.mark.parametrize("entry", [5, {"bytes": 14}, {"sha256": "0"}, {"bytes": "14", "sha256": []}, None])
def test_a_list_of_files_that_is_none(tmp_path, entry):
    chosen = recipe(tmp_path / "toy")
    chosen.make(lambda: build(chosen))
    values = json.loads((tmp_path / "toy" / MANIFEST).read_text())
    del values["checksum"]
    (tmp_path / "toy" / MANIFEST).write_text(json.dumps({**values, "files": {"log.jsonl": entry}}))
    with pytest.raises(ArtifactError, match=r"damaged|the manifest says"):
        Manifest.load(tmp_path / "toy")


def test_manifests_of_early_runs_have_no_checksum_and_stay_current(tmp_path):
    chosen = recipe(tmp_path / "toy")
    made, _ = chosen.make(lambda: build(chosen))
    values = json.loads((tmp_path / "toy" / MANIFEST).read_text())
    del values["checksum"]
    (tmp_path / "toy" / MANIFEST).write_text(json.dumps(values))
    assert chosen.finished() == made
    (tmp_path / "toy/log.jsonl").write_text('{"loss": 0.5}\n')
    assert chosen.finished() is None


def test_a_file_is_hashed_once_unless_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("one")
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))
    monkeypatch.setattr(files, "_CLOCK_TICK", -(10**10))  # the file counts as settled
    read = []
    digest = files.hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda stream, name: read.append(name) or digest(stream, name))
    first = file_hash(path)
    assert (file_hash(path), len(read)) == (first, 1)
    path.rename(tmp_path / "folder")
    (tmp_path / "folder").rename(path)
    path.write_text("two")
    assert file_hash(path) != first
    os.utime(path, (long_ago, long_ago))  # the same size and time of change, other bytes
    assert file_hash(path) != first


def test_a_file_that_has_just_been_written_is_hashed_again(tmp_path):
    path = tmp_path / "file"
    for content in ("one", "two", "six") * 5:
        path.write_text(content)
        assert file_hash(path) == files.hashlib.sha256(content.encode()).hexdigest()


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match=r"pipe: expected a regular file"):
        files.write_json(tmp_path / "pipe", {})
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
