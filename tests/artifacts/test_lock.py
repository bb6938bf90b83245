"""Two processes and one artefact: a lock that refuses or waits, and that a killed process cannot keep."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from minionerec.artifacts import MANIFEST, Manifest, Recipe, lock
from minionerec.errors import ArtifactError, ConfigError, LockedError

pytestmark = pytest.mark.fast

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def held_by(path, **changes):
    """Write a lock file as another process would."""
    holder = dataclasses.replace(lock._this_process(), **changes)
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


def fork(action):
    """Run `action` in a process of its own; its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except LockedError:
            code = 2
        except ConfigError:
            code = 3
        finally:
            os._exit(code)
    return child


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dead_process():
    """The number of a process that has ended, and when it began."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
    began = lock._began(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return child, began


def test_a_lock_says_who_holds_it_and_goes_with_its_folder(tmp_path):
    path = tmp_path / "runs/x/sft.lock"
    with lock.hold(path, "sft"):
        holder = json.loads(path.read_text())
        assert holder["pid"] == os.getpid() and holder["host"] and holder["since"].endswith("UTC")
        assert lock.is_ours(path) and lock.other_holder(path) is None
        with lock.hold(path, "sft"):
            assert [file.name for file in path.parent.iterdir()] == ["sft.lock"]
        assert lock.is_ours(path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with lock.hold(path, "sft"):
        (path.parent / "sft").mkdir()
    assert [file.name for file in path.parent.iterdir()] == ["sft"]


def test_a_living_process_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "sft.lock"
    parent = os.getppid()
    held_by(path, pid=parent, began=lock._began(parent))
    before = path.read_text()
    with (
        pytest.raises(LockedError, match=rf"x/sft: process {parent} on .* since .*--wait.*--out DIR\.$"),
        lock.hold(path, "x/sft"),
    ):
        raise AssertionError("two processes hold the lock")
    assert path.read_text() == before and lock.other_holder(path).pid == parent and not lock.is_ours(path)


def test_a_thread_of_this_process_is_refused_too(tmp_path):
    errors = []

    def other():
        try:
            with lock.hold(tmp_path / "sft.lock", "sft"):
                errors.append(None)
        except LockedError as error:
            errors.append(error)

    with lock.hold(tmp_path / "sft.lock", "sft"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert isinstance(errors[0], LockedError)


@forks
def test_a_dead_process_holds_nothing(tmp_path):
    path = tmp_path / "sft.lock"
    pid, began = dead_process()
    held_by(path, pid=pid, began=began)
    (tmp_path / "sft.lock.0123.new").write_text(path.read_text())  # it was killed while it created the lock
    assert lock.is_abandoned(path) and lock.other_holder(path) is None
    with lock.hold(path, "sft"):
        assert lock.is_ours(path) and [file.name for file in tmp_path.iterdir()] == ["sft.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_with_the_same_number_holds_nothing(tmp_path):
    path = tmp_path / "sft.lock"
    held_by(path, pid=os.getpid(), began="an earlier boot 17")
    with lock.hold(path, "sft"):
        assert lock.is_ours(path)


def test_a_process_of_another_user_that_the_system_hides_counts_as_alive(tmp_path, monkeypatch):
    def forbidden(pid, number):
        raise PermissionError

    path = tmp_path / "sft.lock"
    held_by(path, pid=2**22 - 1)
    monkeypatch.setattr(os, "kill", forbidden)
    assert lock._began(2**22 - 1) == lock._HIDDEN
    with pytest.raises(LockedError), lock.hold(path, "sft"):
        pass


def test_another_machine_is_believed_and_the_message_says_what_to_delete(tmp_path, monkeypatch, capsys):
    path = tmp_path / "sft.lock"
    held_by(path, machine="elsewhere", host="elsewhere", pid=2**22 - 1)
    with pytest.raises(LockedError, match=rf"on elsewhere.*cannot tell whether.*delete {path}"), lock.hold(path, "sft"):
        pass
    assert path.is_file()
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: path.unlink())  # as its reader does
    with lock.hold(path, "sft", wait=True):
        assert f"if it does not, delete {path}." in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "\0\0\0", '{"pid": '])
def test_a_lock_that_was_never_written_is_broken_after_a_while(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "_HALF_WRITTEN", 0.1)
    (tmp_path / "sft.lock").write_text(content)
    with lock.hold(tmp_path / "sft.lock", "sft"):
        assert lock.is_ours(tmp_path / "sft.lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_links(tmp_path, monkeypatch, number):
    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "sft.lock"
    with lock.hold(path, "sft"):
        assert lock.is_ours(path)
    held_by(path, machine="elsewhere")
    with pytest.raises(LockedError), lock.hold(path, "sft"):
        pass


def test_a_link_whose_confirmation_was_lost_is_ours(tmp_path, monkeypatch):
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link)
    with lock.hold(tmp_path / "sft.lock", "sft"):
        assert lock.is_ours(tmp_path / "sft.lock")


def test_a_folder_that_another_process_removes_meanwhile(tmp_path, monkeypatch):
    create, calls = lock._create, []

    def removed(path, holder):
        calls.append(path)
        if len(calls) < 4:
            path.parent.rmdir()
        return create(path, holder)

    monkeypatch.setattr(lock, "_create", removed)
    with lock.hold(tmp_path / "run/sft.lock", "sft"):
        assert lock.is_ours(tmp_path / "run/sft.lock") and len(calls) == 4


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match=r"cannot be written.*--out DIR"), lock.hold(tmp_path / "file/sft.lock", "sft"):
        pass


# Artefacts --------------------------------------------------------------------------------------------------------------


def recipe(folder, seed=1, **switches):
    return Recipe("toy", folder, {}, {}, seed, **switches)


def build(chosen, seconds=0.0, begun=None):
    """Write an artefact of two files; between them time passes, in which another process may come."""
    with chosen.write() as draft:
        (draft.path / "first").write_text(str(chosen.seed))
        if begun is not None:
            begun.set()
        time.sleep(seconds)
        (draft.path / "second").write_text(str(chosen.seed))


def make(chosen, seconds=0.0, begun=None):
    return chosen.make(lambda: build(chosen, seconds, begun))


def assert_whole(folder, seed):
    """The artefact is one process's, and nothing else is left."""
    assert Manifest.load(folder).seed == seed
    assert {name: (folder / name).read_text() for name in ("first", "second")} == {"first": str(seed), "second": str(seed)}
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


@forks
@pytest.mark.parametrize(("seed", "switches", "code"), [(1, {}, 2), (2, {}, 2), (1, {"wait": True}, 0), (2, {"wait": True}, 3)])
def test_the_second_of_two_processes_is_refused_or_waits(tmp_path, monkeypatch, seed, switches, code):
    monkeypatch.setattr(lock, "_POLL", 0.02)
    begun = multiprocessing.get_context("fork").Event()
    first = fork(lambda: make(recipe(tmp_path / "toy"), 0.3, begun))
    begun.wait()
    chosen = recipe(tmp_path / "toy", seed, **switches)
    made_now = []
    second = fork(lambda: made_now.append(make(chosen)[1]) or (made_now[0] and os._exit(9)))
    # Refused (2); waited and found it up to date (0); waited and would have to replace another seed's (3).
    assert (exit_code(first), exit_code(second)) == (0, code)
    assert_whole(tmp_path / "toy", 1)


@forks
def test_many_processes_at_once_make_one_artefact(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.01)
    for _ in range(5):
        children = {seed: fork(lambda seed=seed: make(recipe(tmp_path / "toy", seed, replace=True), 0.02)) for seed in range(6)}
        codes = {seed: exit_code(child) for seed, child in children.items()}
        assert set(codes.values()) <= {0, 2} and 0 in codes.values()
        seed = Manifest.load(tmp_path / "toy").seed
        assert codes[seed] == 0
        assert_whole(tmp_path / "toy", seed)


@forks
def test_many_processes_at_once_break_the_lock_of_a_dead_one_and_wait_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.01)
    pid, began = dead_process()
    for number in range(5):
        folder = tmp_path / str(number) / "toy"
        folder.parent.mkdir()
        held_by(recipe(folder).lock, pid=pid, began=began)
        counter = tmp_path / f"{number}.count"

        def count(chosen, counter=counter):
            build(chosen, 0.01)
            with counter.open("a") as stream:
                stream.write("x")

        children = [
            fork(lambda folder=folder: (chosen := recipe(folder, wait=True)).make(lambda: count(chosen))) for _ in range(6)
        ]
        assert [exit_code(child) for child in children] == [0] * 6
        assert counter.read_text() == "x"
        assert_whole(folder, 1)


@forks
def test_a_killed_process_leaves_a_lock_that_the_next_one_breaks(tmp_path):
    begun = multiprocessing.get_context("fork").Event()
    first = fork(lambda: make(recipe(tmp_path / "toy"), 60, begun))
    begun.wait()
    os.kill(first, signal.SIGKILL)
    assert exit_code(first) == -signal.SIGKILL
    assert sorted(file.name for file in tmp_path.iterdir()) == ["toy.lock", "toy.partial"]
    assert make(recipe(tmp_path / "toy"))[1]
    assert_whole(tmp_path / "toy", 1)


def test_a_lock_that_somebody_removed_is_noticed_before_the_artefact_counts(tmp_path):
    chosen = recipe(tmp_path / "toy")

    def disturbed():
        with chosen.write() as draft:
            (draft.path / "first").write_text("mine")
            chosen.lock.unlink()
            held_by(chosen.lock, machine="elsewhere")

    with pytest.raises(ArtifactError, match=r"toy\.lock: somebody removed this lock.*not kept"):
        chosen.make(disturbed)
    assert not (tmp_path / "toy").exists() and chosen.lock.is_file()  # it is the other process's


def test_a_finished_artefact_is_read_whoever_holds_the_lock(tmp_path):
    made, _ = make(recipe(tmp_path / "toy"))
    held_by(recipe(tmp_path / "toy").lock, machine="elsewhere")
    assert make(recipe(tmp_path / "toy")) == (made, False)
    with pytest.raises(LockedError):
        make(recipe(tmp_path / "toy", 2))
    assert (tmp_path / "toy" / MANIFEST).is_file()
