"""What the machine around a command can do wrong: each ends in one message, without a traceback."""

import errno
import os
import pwd
import sys
from pathlib import Path

import pytest

from minionerec import pipeline
from minionerec.artifacts import cache_folder
from minionerec.cli import main, parse
from minionerec.config.checks import check_output_file
from minionerec.errors import ConfigError

pytestmark = pytest.mark.fast


@pytest.fixture
def error_of(capsys):
    """Run a command line that must fail with status 2; its message on one line."""

    def run(*arguments) -> str:
        assert main(list(arguments)) == 2
        return " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full")
@pytest.mark.parametrize("arguments", [["presets"], ["--version"]])  # of more than a buffer, and of less
def test_a_full_standard_output_is_named(error_of, monkeypatch, arguments):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "__stdout__", full)
        error = error_of(*arguments)
    assert error == "ArtifactError: standard output: cannot be written (No space left on device). Print to another place."


def test_a_closed_standard_output_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["--version"]) == 0 and main(["no-command"]) == 2


@pytest.mark.parametrize("number", ["ENAMETOOLONG", "EROFS"])
def test_errors_of_the_system_are_messages(error_of, monkeypatch, tmp_path, number):
    def fail(config):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), "/mnt/run")

    monkeypatch.setitem(pipeline.STAGES, "data", fail)
    error = error_of("data", "prepare", "--out", str(tmp_path / "run"))
    assert error.startswith(f"ArtifactError: /mnt/run: {os.strerror(getattr(errno, number)).lower()}. ")


def test_errors_of_the_code_keep_their_traceback(monkeypatch, tmp_path):
    def fail(config):
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setitem(pipeline.STAGES, "data", fail)
    with pytest.raises(ConnectionResetError):
        main(["data", "prepare", "--out", str(tmp_path / "run")])


@pytest.fixture
def homeless(monkeypatch):
    """A process without HOME and without an entry in the list of users, as in many containers."""

    def nobody(*_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwnam", nobody)
    for name in ("HOME", "MINIONEREC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_no_home_folder(homeless, error_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for arguments in (["data", "get", "ml-1m"], ["data", "prepare"]):
        assert "(set MINIONEREC_CACHE to another) is ~/.cache, but this machine knows no home folder ~" in error_of(*arguments)
    assert "out is ~/runs/x, but this machine knows no home folder ~. Write the whole path." in error_of(
        "run", "--out=~/runs/x"
    )
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse("run", ["--out", "~/runs/x", "--data.path", "~/raw", "--sid.vectors", "~/v.npy", "--name", "a~b"])
    assert (config.out, config.data.path, config.sid.vectors) == tuple(
        f"{tmp_path}/{end}" for end in ("runs/x", "raw", "v.npy")
    )
    assert parse("run", ["--sid.encoder", "./model/"]).sid.encoder == "./model/"  # what has no tilde stays as it is


@pytest.mark.parametrize("word", ["z" * 300, "half\udcff", "a\0b"])
def test_no_word_is_too_strange(error_of, word):
    for arguments in (
        [word],
        ["run", "--config", word],
        ["data", "export", "--layout", "recbole", "--to", "x", "--name", word],
        ["gap", "--out", "x", "--runs", word],
    ):
        assert error_of(*arguments).startswith("ConfigError: ")


def test_only_regular_files_are_written(error_of, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, kind in ((os.devnull, "a device or pipe"), (str(pipe), "a device or pipe"), (str(tmp_path), "a folder")):
        with pytest.raises(ConfigError, match=f"--json {path} is {kind}"):
            check_output_file("--json", Path(path))
    assert f"--html {os.devnull} is a device or pipe" in error_of("data", "describe", "--html", os.devnull)
    (tmp_path / "old.json").write_text("{}")
    for name in ("old.json", "new.json"):
        check_output_file("--json", tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_output_file("--json", tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["levels", "--path", "x", "--resamples", "1"], "--resamples is 1; it must be from 40 to 100,000."),
        (["levels", "--path", "x", "--cutoffs", "5", "0"], "--cutoffs is 0; it must be from 1 to 1,000,000."),
        (["gap", "--out", "x", "--seed", "-1"], "--seed is -1; it must be from 0 to 4,294,967,295."),
        (["sft", "--dry-run", "--gpu-memory", "0"], "--gpu-memory is 0.0; it must be above 0 and at most 1,000,000."),
    ],
)
def test_options_of_commands_have_bounds_too(error_of, arguments, message):
    assert message in error_of(*arguments)


@pytest.mark.parametrize(("threads", "used"), [(1, "1"), (4, "4"), (5, "2"), (1024, "2")])
def test_more_threads_than_the_cores_can_run_are_lowered(monkeypatch, caplog, threads, used):
    monkeypatch.setattr(pipeline, "available_cores", lambda: 2)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    pipeline.set_up(threads)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["POLARS_MAX_THREADS"] == used
    assert (f"threads {threads} is lowered to 2, the cores of this machine" in caplog.text) == (used != str(threads))


def test_a_chosen_number_of_threads_is_that_of_all_libraries(monkeypatch):
    """Torch takes MKL's: two processes with two threads each once spun for a hundred seconds instead of computing for nine."""
    names = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torch's launcher sets it
    for name in names:
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    pipeline.set_up(2)
    assert [os.environ[name] for name in names] == ["1"] * 3
