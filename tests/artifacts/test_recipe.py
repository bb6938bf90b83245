import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import save_file

from minionerec import artifacts
from minionerec.artifacts import (
    CHECKPOINTS,
    MANIFEST,
    Manifest,
    Recipe,
    cache_folder,
    check_disk_space,
    content_hash,
    file_hash,
    folder_digest,
    read_json,
    require,
    write_json,
)
from minionerec.errors import ArtifactError, ConfigError
from tests.artifacts.toy_artifact import is_current, names, recipe, write, writing
from tests.examples import examples
from tests.launch import ROOT


def test_manifest_round_trip(tmp_path):
    manifest = write(tmp_path / "runs/x/sid", "k", "héllo")
    assert (manifest.stage, manifest.key, manifest.seed) == ("toy", recipe(tmp_path, "k").key, 1)
    assert (manifest.config, manifest.inputs) == ({"levels": 3, "settings": "k"}, {"data": "d"})
    assert manifest.metrics == {"items": 5}
    assert manifest.files == {"deep/a.txt": {"bytes": 6, "sha256": file_hash(tmp_path / "runs/x/sid/deep/a.txt")}}
    assert manifest.versions["polars"] == pl.__version__
    assert is_current(tmp_path / "runs/x/sid", "k") and not is_current(tmp_path / "runs/x/sid", "other")
    assert names(tmp_path / "runs/x") == ["sid"] and names(tmp_path / "runs/x/sid") == ["deep", MANIFEST]


CHANGES = {
    "a field": ({"config": {"levels": 2, "settings": "k"}}, ["levels: 3 there, 2 now"]),
    "fields": (
        {"config": {"sft": {"epochs": 1}, "settings": "k" * 80}},
        [
            "sft.epochs: not recorded there, 1 now",
            f'settings: "k" there, "{"k" * 59}... now',
            "levels: 3 there, not recorded now",
        ],
    ),
    "the seed": ({"seed": 2}, ["seed: 1 there, 2 now"]),
    "an input": ({"inputs": {"data": "e"}}, ["input data: changed"]),
    "other inputs": ({"inputs": {"sid": "s"}}, ["input sid: not used there", "input data: not used now"]),
    "a field of the key": ({"key_fields": {"levels": 2}, "config": {"levels": 2, "settings": "j"}}, ["levels: 3 there, 2 now"]),
    "a field that is unset": (
        {"key_fields": {"levels": 3}, "config": {"levels": 3, "settings": None}},
        ['settings: "k" there, null now'],
    ),
    "many fields": (
        {"config": {"levels": 3, "settings": "k", "rl": {str(number): number for number in range(10)}}},
        [f"rl.{number}: not recorded there, {number} now" for number in range(8)] + ["and 2 more"],
    ),
}


def differing(error):
    """The lines of a refusal that say what differs."""
    return [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_artefact_of_another_recipe_is_replaced_only_on_request(tmp_path, change):
    changes, lines = CHANGES[change]
    manifest = write(tmp_path / "sid", "k")
    other = recipe(tmp_path / "sid", "k", **{**changes, "replace": False})
    with pytest.raises(ConfigError, match=r"(?s)sid is finished, but.*Nothing was changed.*--replace.*--name") as refused:
        other.finished()
    assert differing(refused) == lines
    assert Manifest.load(tmp_path / "sid") == manifest and names(tmp_path) == ["sid"]
    assert dataclasses.replace(other, replace=True).finished() is None
    assert recipe(tmp_path / "sid", "k", replace=False).finished() == manifest


def test_what_is_cheap_or_damaged_or_of_another_revision_is_replaced_without_a_question(tmp_path, monkeypatch):
    with Recipe("eval/sft", tmp_path / "eval", {"eval": 1}, {}, 0).write():
        pass
    assert Recipe("eval/sft", tmp_path / "eval", {"eval": 2}, {}, 0).finished() is None
    write(tmp_path / "sid", "k")
    monkeypatch.setitem(artifacts.REVISIONS, "toy", 1)
    assert recipe(tmp_path / "sid", "k", replace=False).finished() is None
    (tmp_path / "sid/deep/a.txt").unlink()
    assert recipe(tmp_path / "sid", "other", replace=False).finished() is None


def test_a_revision_is_of_a_whole_stage_or_of_one_of_its_artefacts(tmp_path, monkeypatch):
    def key(stage):
        return Recipe(stage, tmp_path, {"baseline": 1}, {}, 0).key

    names = ("baselines/sasrec", "baselines/markov", "baselines")
    plain = {name: key(name) for name in names}
    monkeypatch.setitem(artifacts.REVISIONS, "baselines/sasrec", 2)
    assert {name: key(name) == plain[name] for name in names} == {"baselines/sasrec": False, names[1]: True, names[2]: True}
    monkeypatch.setitem(artifacts.REVISIONS, "baselines", 1)
    assert key("baselines/markov") == plain["baselines/markov"] + "-1" == key("baselines")
    assert key("baselines/sasrec") == plain["baselines/sasrec"] + "-1.2"


def test_a_folder_of_other_files_or_a_file_is_never_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    mine = recipe(tmp_path / "data", "k", replace=False)
    assert mine.finished() is None  # an empty folder is nothing to lose
    (tmp_path / "data/interactions.csv").write_text("mine")
    for stage in ("toy", "report"):
        for replace in (False, True):
            with pytest.raises(ConfigError, match=rf"found other files. Stage {stage} would delete what it did not make"):
                dataclasses.replace(mine, stage=stage, replace=replace).finished()
    assert names(tmp_path / "data") == ["interactions.csv"]
    (tmp_path / "file").write_text("mine")
    for replace in (False, True):
        with pytest.raises(ConfigError, match="found a file"):
            recipe(tmp_path / "file", "k", replace=replace).finished()
    assert (tmp_path / "file").read_text() == "mine"


def test_checkpoints_of_another_recipe_are_discarded_only_on_request(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "sft", "k", resumable=True) as draft:
        (draft.path / CHECKPOINTS).mkdir()
        (draft.path / CHECKPOINTS / "step.txt").write_text("5")
        raise KeyboardInterrupt
    other = recipe(tmp_path / "sft", "other", replace=False)
    with pytest.raises(
        ConfigError, match=r"(?s)sft.partial holds checkpoints.*To resume it, give its values; otherwise pass --replace to disc"
    ) as refused:
        other.finished()
    assert differing(refused) == ['settings: "k" there, "other" now']
    assert recipe(tmp_path / "sft", "k", replace=False).finished() is None  # resumed
    assert dataclasses.replace(other, replace=True).finished() is None
    (tmp_path / "sft.partial/recipe.json").write_text("{")
    with pytest.raises(ConfigError, match="settings: not recorded there"):
        other.finished()
    assert recipe(tmp_path / "sft", "k", replace=False).finished() is None
    (tmp_path / "sft.partial/checkpoints/step.txt").unlink()
    assert other.finished() is None


def test_settings_seed_inputs_and_stage_decide_the_key_and_nothing_else(tmp_path, monkeypatch):
    first = recipe(tmp_path / "a", "k")
    other = dataclasses.replace(first, folder=tmp_path / "b", replace=False, key_fields=dict(first.config), config={"more": 1})
    assert other.key == first.key
    for change in ({"seed": 2}, {"inputs": {}}, {"config": {"levels": 4}}, {"key_fields": {"levels": 3}}):
        assert dataclasses.replace(first, **change).key != first.key
    monkeypatch.setitem(artifacts.REVISIONS, "toy", 1)
    assert first.key != other.key.removesuffix("-1") == other.key[:64]


def test_digest_is_of_the_content_alone(tmp_path):
    first = write(tmp_path / "a", "k", "same")
    assert write(tmp_path / "b", "other key", "same").digest == first.digest
    assert write(tmp_path / "b", "k", "changed").digest != first.digest


def test_a_newer_artifact_replaces_the_older_one_whole(tmp_path):
    with writing(tmp_path / "sid", "old") as draft:
        (draft.path / "only_old.txt").write_text("old")
    write(tmp_path / "sid", "new")
    assert names(tmp_path) == ["sid"] and names(tmp_path / "sid") == ["deep", MANIFEST]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_exception_inside_leaves_nothing_or_the_older_one(tmp_path, older, error):
    if older:
        write(tmp_path / "sid", "old")
    with pytest.raises(type(error)), writing(tmp_path / "sid", "new") as draft:
        (draft.path / "half.txt").write_text("half")
        raise error
    assert names(tmp_path) == (["sid"] if older else [])
    assert is_current(tmp_path / "sid", "old") == older


@pytest.mark.parametrize(("key", "kept"), [("k", True), ("other", False)])
def test_a_resumable_partial_is_kept_for_its_own_key_only(tmp_path, key, kept):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "sft", "k", resumable=True) as draft:
        (draft.path / CHECKPOINTS).mkdir()
        (draft.path / CHECKPOINTS / "step.txt").write_text("5")
        (draft.path / "model").mkdir()
        (draft.path / "log.jsonl.tmp").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["sft.partial"]
    with writing(tmp_path / "sft", key, resumable=True) as draft:
        assert (draft.path / CHECKPOINTS / "step.txt").exists() == kept
        assert set(names(draft.path)) <= {CHECKPOINTS, "key.txt", "recipe.json"}  # half-written outputs are not
    assert names(tmp_path) == ["sft"] and names(tmp_path / "sft") == [MANIFEST]


def test_another_revision_of_a_stage_makes_its_artefacts_and_partials_anew(tmp_path, monkeypatch):
    def interrupted() -> bool:
        """Whether it began with the checkpoints of an earlier attempt."""
        with pytest.raises(KeyboardInterrupt), writing(tmp_path / "partial", "k", resumable=True) as draft:
            resumed = (draft.path / CHECKPOINTS).is_dir()
            (draft.path / CHECKPOINTS).mkdir(exist_ok=True)
            raise KeyboardInterrupt
        return resumed

    write(tmp_path / "sid", "k")
    assert [interrupted(), interrupted()] == [False, True]
    monkeypatch.setitem(artifacts.REVISIONS, "toy", 1)
    assert not is_current(tmp_path / "sid", "k") and not interrupted()
    assert artifacts.of_another_revision(Manifest.load(tmp_path / "sid"))
    write(tmp_path / "sid", "k")
    assert is_current(tmp_path / "sid", "k") and interrupted()
    assert not artifacts.of_another_revision(Manifest.load(tmp_path / "sid"))


@pytest.mark.parametrize("marker", [b"", b"\xff\xfe", None], ids=["empty", "bytes", "missing"])
def test_a_resumable_partial_with_a_damaged_key_is_begun_anew(tmp_path, marker):
    with pytest.raises(RuntimeError), writing(tmp_path / "sft", "k", resumable=True) as draft:
        (draft.path / CHECKPOINTS).mkdir()
        raise RuntimeError
    key = tmp_path / "sft.partial/key.txt"
    key.unlink() if marker is None else key.write_bytes(marker)
    with writing(tmp_path / "sft", "k", resumable=True) as draft:
        assert names(draft.path) == ["key.txt", "recipe.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_in_the_place_of_an_artifact_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("mine")
    (tmp_path / "sid").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sid.partial").write_text("a file")
    write(tmp_path / "sid", "k")
    assert is_current(tmp_path / "sid", "k")
    assert names(tmp_path) == ["elsewhere", "sid"] and names(tmp_path / "elsewhere") == ["mine.txt"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "file gone": ("deep/a.txt", lambda path: path.unlink(), "missing, the manifest says 1 bytes"),
    "file cut": ("deep/a.txt", truncate, "0 bytes, the manifest says 1 bytes"),
    "file is a folder": ("deep/a.txt", lambda path: (path.unlink(), path.mkdir()), "missing"),
    "manifest cut": (MANIFEST, lambda path: path.write_bytes(path.read_bytes()[:40]), "not valid JSON"),
    "manifest empty": (MANIFEST, lambda path: path.write_bytes(b""), "not valid JSON"),
    "manifest of zeros": (MANIFEST, lambda path: path.write_bytes(b"\0" * 64), "not valid JSON"),
    "manifest in latin-1": (MANIFEST, lambda path: path.write_bytes(b'{"stage": "\xe9"}'), "not valid JSON"),
    "manifest a list": (MANIFEST, lambda path: path.write_text("[]"), "not a manifest of this version"),
    "manifest short": (MANIFEST, lambda path: path.write_text('{"stage": "sid"}'), "not a manifest of this version"),
    "manifest gone": (MANIFEST, lambda path: path.unlink(), "not found"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_repaired_by_the_next_run(tmp_path, damage):
    name, spoil, message = DAMAGE[damage]
    write(tmp_path / "sid", "k")
    spoil(tmp_path / "sid" / name)
    with pytest.raises(ArtifactError, match=message) as caught:
        Manifest.load(tmp_path / "sid")
    assert str(tmp_path / "sid" / name) in str(caught.value)
    with pytest.raises(ArtifactError):
        require(tmp_path / "sid", "minionerec sid")
    if damage == "manifest gone":  # nothing says any more that a stage made these files
        with pytest.raises(ConfigError, match="move this away yourself"):
            is_current(tmp_path / "sid", "k")
        (tmp_path / "sid").rename(tmp_path / "away")
    assert not is_current(tmp_path / "sid", "k")
    write(tmp_path / "sid", "k")
    assert is_current(tmp_path / "sid", "k") and set(names(tmp_path)) <= {"sid", "away"}


def test_require_names_the_command(tmp_path):
    with pytest.raises(ArtifactError, match="Make it first: minionerec sid"):
        require(tmp_path / "sid", "minionerec sid")
    assert write(tmp_path / "sid", "k") == require(tmp_path / "sid", "minionerec sid")


# Disk full --------------------------------------------------------------------------------------------------------------


def test_require_refuses_what_was_made_from_other_inputs(tmp_path):
    manifest = write(tmp_path / "sid", "k")
    for fits in ({"data": "d"}, {"data": "d", "not an input of it": "x"}, {}, None):
        assert require(tmp_path / "sid", "minionerec sid", fits) == manifest
    with pytest.raises(ArtifactError, match=r"made from another data than the one in this run.*again: minionerec sid"):
        require(tmp_path / "sid", "minionerec sid", {"data": "other"})


def test_folder_digest_is_of_names_and_bytes(tmp_path):
    for name, file, content in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2"), ("e", "deep/x", "1")):
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_text(content)
    first, same, *others = (folder_digest(tmp_path / name) for name in "abcde")
    assert first == same and len({first, *others}) == 4


FULL = {
    "system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("error", FULL)
def test_disk_full(tmp_path, error, older):
    if older:
        write(tmp_path / "sid", "old")
    with pytest.raises(ArtifactError, match=r"no space left.*--out DIR") as caught, writing(tmp_path / "sid", "new") as draft:
        (draft.path / "half.txt").write_text("half")
        raise FULL[error]
    assert str(tmp_path / "sid") in str(caught.value) and caught.value.__cause__ is FULL[error]
    assert names(tmp_path) == (["sid"] if older else []) and is_current(tmp_path / "sid", "old") == older


def test_checkpoints_outlive_a_failure_at_the_very_end(tmp_path, monkeypatch):
    def full(path, value):
        if path.name == MANIFEST:
            raise FULL["system"]
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="no space left"):
        patch.setattr("minionerec.artifacts.manifest.write_json", full)
        write(tmp_path / "sft", "k", resumable=True)
    with writing(tmp_path / "sft", "k", resumable=True) as draft:
        assert (draft.path / CHECKPOINTS / "step.txt").read_text() == "5"
    assert names(tmp_path / "sft") == [MANIFEST]


def test_disk_full_while_the_folder_is_made(tmp_path, monkeypatch):
    def full(*_, **__):
        raise FULL["system"]

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    with pytest.raises(ArtifactError, match="no space left"), writing(tmp_path / "sid", "k"):
        raise AssertionError("nothing to write into")


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="Input/output"), writing(tmp_path / "sid", "k"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 64 KiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let us mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


BIG = np.random.default_rng(0).integers(0, 2**62, 50_000)
WRITERS = {
    "bytes": lambda folder: (folder / "big").write_bytes(BIG.tobytes()),
    "json": lambda folder: write_json(folder / "big", BIG.tolist()),
    "safetensors": lambda folder: save_file({"big": BIG}, folder / "big"),
    "parquet": lambda folder: pl.DataFrame({"big": BIG}).write_parquet(folder / "big"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_is_really_full(tiny_disk, writer):
    write(tiny_disk / "sid", "old")
    with pytest.raises(ArtifactError, match="no space left"), writing(tiny_disk / "sid", "new") as draft:
        WRITERS[writer](draft.path)
    assert names(tiny_disk) == ["sid"] and is_current(tiny_disk / "sid", "old")


def test_a_disk_that_is_full_when_the_manifest_is_written(tiny_disk):
    write(tiny_disk / "sid", "old")
    with pytest.raises(ArtifactError, match="no space left"), writing(tiny_disk / "sid", "new") as draft:
        draft.metrics["long"] = "x" * 10_000
        with pytest.raises(OSError, match="No space left"), (draft.path / "big").open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 512)  # not a byte is left, and the stage does not notice
    assert names(tiny_disk) == ["sid"] and is_current(tiny_disk / "sid", "old")


def test_check_space_asks_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    asked = []
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(5_000_000))
    check_disk_space(tmp_path / "runs/x/sft", 5_000_000)
    with pytest.raises(ArtifactError, match=r"sft: needs about 6 MB, but only 5 MB are free.*--out DIR"):
        check_disk_space(tmp_path / "runs/x/sft", 6_000_000)
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize("place", ["file", "file/run/sid"])
def test_a_place_that_cannot_be_a_folder(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match=r"cannot be written.*--out DIR"), writing(tmp_path / place / "sid", "k"):
        raise AssertionError("nothing to write into")
    assert (tmp_path / "file").read_text() == "mine"


# Killed anywhere --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 6])
@pytest.mark.parametrize("case", ["kill", "kill older resumable", "interrupt older"])
def test_stopped_at_any_step_the_next_run_finishes(tmp_path, case, stride):
    """In a process of its own, which forks many times and is therefore small. With a stride the cases share the steps."""
    how, *options = case.split()
    first = 1 + len(options) * 2 % stride
    command = [sys.executable, "-m", "tests.artifacts.stopped", str(tmp_path), how, str(stride), str(first), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


WORDS = st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)


@examples(100)
@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_content_hash_ignores_dictionary_order(values):
    def reverse(value):
        if isinstance(value, dict):
            return {name: reverse(value[name]) for name in reversed(value)}
        return [reverse(inner) for inner in value] if isinstance(value, list) else value

    assert content_hash(reverse(values)) == content_hash(values) != content_hash([values])


def test_json_round_trip_and_errors(tmp_path):
    write_json(tmp_path / "a.json", {"title": "Léon ✓", "n": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"title": "Léon ✓", "n": [1, 2.5, None]}
    assert names(tmp_path) == ["a.json"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert read_json(tmp_path / "a.json")["n"] == [1, 2.5, None]
    with pytest.raises(ArtifactError, match=r"nothing\.json: not found"):
        read_json(tmp_path / "nothing.json")


def test_only_the_main_process_writes_together(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "sid.partial").mkdir()  # made by rank 0
    with writing(tmp_path / "sid", "k", collective=True) as draft:
        (draft.path / "shard.txt").write_text("mine")
    assert names(tmp_path) == ["sid.partial"] and names(tmp_path / "sid.partial") == ["shard.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="paths of Linux and macOS")
def test_cache_folder(monkeypatch):
    monkeypatch.delenv("MINIONEREC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    wanted = {"HOME": "/x/.cache/minionerec", "XDG_CACHE_HOME": "/x/minionerec", "MINIONEREC_CACHE": "/x"}
    for name, expected in wanted.items():
        monkeypatch.setenv(name, "/x")
        assert cache_folder().as_posix() == expected


def test_versions_name_what_is_missing(monkeypatch):
    monkeypatch.setattr("minionerec.artifacts.manifest._PACKAGES", ("numpy", "no-such-package"))
    installed = artifacts.versions()
    assert installed["numpy"] == np.__version__ and installed["no-such-package"] == "not installed"
