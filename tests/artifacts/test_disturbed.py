"""How an artefact is written: on the disk before it has its name, and only if nothing disturbed it."""

import shutil

import pytest

from minionerec.artifacts import CHECKPOINTS, MANIFEST, Manifest, Recipe, recipe
from minionerec.errors import ArtifactError, ConfigError

pytestmark = pytest.mark.fast


def toy(folder, config=None, **changes):
    return Recipe("toy", folder, config or {}, {"data": "old"}, seed=1, **changes)


def write(chosen, disturb=lambda: None, *, resumable=False):
    with chosen.write(resumable=resumable) as draft:
        (draft.path / "deep").mkdir(exist_ok=True)
        (draft.path / "deep/file").write_text("content")
        (draft.path / CHECKPOINTS).mkdir(exist_ok=True)
        (draft.path / CHECKPOINTS / "step").write_text("5")
        disturb()


def test_everything_is_on_the_disk_before_it_has_its_name_and_is_cleaned_afterwards(tmp_path, monkeypatch):
    chosen, events = toy(tmp_path / "toy"), []

    def record(name, function):
        def call(path, *others):
            events.append((name, path.name))
            return function(path, *others)

        return call

    monkeypatch.setattr(recipe, "sync", record("sync", recipe.sync))
    monkeypatch.setattr(recipe, "remove", record("remove", recipe.remove))
    monkeypatch.setattr(type(tmp_path), "rename", record("rename", type(tmp_path).rename))
    monkeypatch.setattr(
        Manifest, "save", lambda self, folder, save=Manifest.save: events.append(("save", folder.name)) or save(self, folder)
    )
    chosen.make(lambda: write(chosen))
    sealing = events[events.index(("sync", "deep")) :]
    renamed = sealing.index(("rename", "toy.partial"))
    assert {("sync", "file"), ("save", "toy.partial"), ("sync", "toy.partial")} <= set(sealing[:renamed])
    assert sealing.index(("sync", "file")) < sealing.index(("save", "toy.partial")) < sealing.index(("sync", "toy.partial"))
    assert sealing[renamed + 1] == ("sync", tmp_path.name) and ("remove", CHECKPOINTS) in sealing[renamed + 1 :]
    assert ("remove", CHECKPOINTS) not in sealing[:renamed]


class Killed(BaseException):
    """Stands for a process that ends at once."""


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("step", ["_clean", "rename", "_put_in_place"])
def test_killed_while_sealing_nothing_is_made_again(tmp_path, monkeypatch, step, older):
    chosen = toy(tmp_path / "toy", replace=True)
    if older:
        before = toy(tmp_path / "toy", config={"sft": 1})
        before.make(lambda: write(before))

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(tmp_path) if step == "rename" else recipe, step, killed)
        chosen.make(lambda: write(chosen, resumable=True))

    def again():
        raise AssertionError("the artefact was made twice")

    manifest, made_now = chosen.make(again)
    assert not made_now and manifest.files.keys() == {"deep/file"}
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["deep", MANIFEST]


def test_killed_between_two_renames_the_older_artefact_comes_back(tmp_path):
    chosen = toy(tmp_path / "toy")
    first, _ = chosen.make(lambda: write(chosen))
    (tmp_path / "toy").rename(tmp_path / "toy.old")
    (tmp_path / "toy.partial").mkdir()
    assert chosen.make(lambda: write(chosen)) == (first, False)
    (tmp_path / "toy").rename(tmp_path / "toy.old")
    other = toy(tmp_path / "toy", config={"sft": 2})
    with pytest.raises(ConfigError, match="is finished, but was made from something else"):
        other.make(lambda: write(other))
    assert Manifest.load(tmp_path / "toy") == first


@pytest.mark.parametrize("resumable", [False, True])
def test_an_input_that_is_made_anew_meanwhile_is_noticed_at_the_end(tmp_path, resumable):
    current = {"data": "old"}
    chosen = toy(tmp_path / "toy", reread=lambda: current)
    with pytest.raises(ArtifactError, match=r"toy: data changed while stage toy ran.*not kept\. Run the same command again"):
        chosen.make(lambda: write(chosen, lambda: current.update(data="new"), resumable=resumable))
    assert not (tmp_path / "toy").exists() and (tmp_path / "toy.partial").exists() == resumable


def test_an_input_that_is_damaged_meanwhile_is_noticed_at_the_end(tmp_path):
    def damaged():
        raise ArtifactError("data: 5 bytes, the manifest says 6 bytes.")

    chosen = toy(tmp_path / "toy", reread=damaged)
    with pytest.raises(ArtifactError, match=r"an input changed while stage toy ran.*not kept: data: 5 bytes"):
        chosen.make(lambda: write(chosen))
    assert list(tmp_path.iterdir()) == []


def test_the_older_artefact_stays_if_an_input_changes(tmp_path):
    chosen = toy(tmp_path / "toy")
    first, _ = chosen.make(lambda: write(chosen))
    other = toy(tmp_path / "toy", key_fields={"sft": 2}, replace=True, reread=dict)
    with pytest.raises(ArtifactError, match="data changed"):
        other.make(lambda: write(other))
    assert Manifest.load(tmp_path / "toy") == first


@pytest.mark.parametrize("what", ["partial folder", "run"])
@pytest.mark.parametrize("then", ["writes", "ends", "fails elsewhere", "makes it again"])
@pytest.mark.parametrize("resumable", [False, True])
def test_a_folder_that_is_deleted_meanwhile_gives_one_clear_error(tmp_path, what, then, resumable):
    chosen = toy(tmp_path / "run/toy")

    def delete():
        shutil.rmtree(tmp_path / ("run" if what == "run" else "run/toy.partial"))
        if then == "writes":
            (tmp_path / "run/toy.partial/more").write_text("content")
        if then == "makes it again":  # as libraries do that save a checkpoint
            (tmp_path / "run/toy.partial/checkpoints/checkpoint-5").mkdir(parents=True)
        if then == "fails elsewhere":  # a library may wrap the system's error
            raise RuntimeError("unable to mmap")

    with pytest.raises(ArtifactError, match=r"run/toy.partial: somebody deleted or replaced this folder while stage toy ran"):
        chosen.make(lambda: write(chosen, delete, resumable=resumable))
    assert list(tmp_path.glob("run/*")) == []


def test_a_run_that_is_deleted_before_anything_is_written(tmp_path):
    chosen = toy(tmp_path / "run/toy")

    def build():
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run/scratch").write_text("content")

    with pytest.raises(
        ArtifactError, match=r"run: somebody deleted or replaced this folder while stage toy ran \(.*No such file"
    ):
        chosen.make(build)
    assert list(tmp_path.iterdir()) == []
