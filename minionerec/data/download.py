"""Resumable downloads, checked before they get their final name, and archives unpacked member by member.

A download grows in `NAME.part`, with the server's validator (ETag or date) next to it. The next attempt asks for the rest, on
the condition that the file is still the same; a server that cannot do that sends the whole file again. One process fetches a
file; any other waits and finds it.
"""

import hashlib
import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from http.client import HTTPException, HTTPMessage
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from minionerec.artifacts.lock import hold
from minionerec.errors import DataError

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 10  # also the longest silence while downloading
ATTEMPTS = 4  # in a row without a single new byte
PIP_SECONDS = 300
MOST_BYTES = 40_000_000_000  # of a file whose size is not known; the largest raw dump of Amazon has about 10 GB
SPARE_BYTES = 500_000_000  # of the disk, left to everything else
_BLOCK = 1 << 20
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<script|<meta)", re.IGNORECASE)  # how a web page begins


class KnownFile(NamedTuple):
    """A file to be fetched; `bytes` and `checksum` (`sha256:...`, `md5:...`) are None if unknown."""

    name: str
    bytes: int | None
    checksum: str | None
    url: str = ""


class UnreachableError(Exception):
    """A place cannot be reached from here, or does not have the file; another way may work."""


def download(file: KnownFile, folder: Path) -> Path:
    """Fetch a file into a folder; an interrupted download resumes.

    Returns:
        the file, checked; at once if an intact one is in the folder.

    Raises:
        UnreachableError: the server cannot be reached or refuses, after several attempts, or a web page answers in its place.
            The bytes so far stay in `NAME.part`.
        DataError: the download is not the expected file (it is removed), or it would fill the disk.
        ArtifactError: nothing can be written there.
    """
    target = folder / file.name
    if is_intact(target, file):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with hold(target.with_name(target.name + ".lock"), f"the download of {file.name}", wait=True):
        fetched = target.is_file() and not _problem(target, file)  # by whoever held the lock before
        return target if fetched else _downloaded(file, target)


def _downloaded(file: KnownFile, target: Path) -> Path:
    part, idle = target.with_name(target.name + ".part"), 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _fetch(file, part)
            break
        except (OSError, HTTPException) as error:
            after = part.stat().st_size if part.is_file() else 0
            idle = 0 if after > before else idle + 1
            final = isinstance(error, HTTPError) and error.code < 500
            if final or idle >= ATTEMPTS or not after:
                advice = f"; {after:,} bytes are kept in {part}, run the same command again to resume" if after else ""
                raise UnreachableError(f"{str(error) or type(error).__name__}{advice}") from error
            logger.warning("%s: %s; resuming at byte %d.", file.url, error or type(error).__name__, after)
    problem = _problem(part, file)
    _validator(part).unlink(missing_ok=True)
    if problem:
        part.unlink()
        raise DataError(f"{file.url}: {problem}. It was removed. Fetch it again, or by hand.")
    return part.replace(target)


def _fetch(file: KnownFile, part: Path) -> None:
    """Fetch the rest of a file, or all of it.

    Raises:
        OSError, HTTPException: the connection failed, or ended early.
        UnreachableError: the answer is a web page.
        DataError: the file is too large for this disk, or for any file.
    """
    have = part.stat().st_size if part.is_file() else 0
    validator = _validator(part).read_text(encoding="utf-8") if _validator(part).is_file() else ""
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    try:
        response = urlopen(Request(file.url, headers=headers), timeout=CONNECT_SECONDS)
    except HTTPError as error:
        if error.code == 416:  # the range lies behind the end: what is here is no part of that file
            part.unlink(missing_ok=True)
        raise
    with response:
        begin = _begin(response.headers, have) if response.status == 206 else 0
        if begin is None:
            part.unlink()
            return _fetch(file, part)
        total = begin + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        _check_size(file, part, begin, total or begin)
        block = response.read1(_BLOCK)
        if not begin and _PAGE.match(block):
            raise UnreachableError("a web page came instead of the file; the network may ask for a login in a browser")
        _validator(part).write_text(_identity(response.headers), encoding="utf-8")
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            part.open("r+b" if begin else "wb") as out,
            Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        ):
            out.seek(begin)
            task = bar.add_task(file.name, total=total, completed=begin)
            # read1 hands over what is there, so that an interrupted connection costs nothing.
            while block:
                out.write(block)
                bar.update(task, completed=out.tell())
                if file.bytes is not None and out.tell() > file.bytes:
                    return  # too long: not the file, and no reason to fill the disk
                if total is None:
                    _check_size(file, part, out.tell(), out.tell())
                block = response.read1(_BLOCK)
            if total is not None and out.tell() < total:
                raise ConnectionError(f"the connection ended at byte {out.tell():,} of {total:,}")


def _check_size(file: KnownFile, part: Path, present: int, total: int) -> None:
    """Refuse a file that no source has, or that would fill the disk.

    Args:
        present: bytes that are on the disk.
        total: bytes of the whole file, as far as they are known.

    Raises:
        DataError: it is too large.
    """
    if file.bytes is None and total > MOST_BYTES:
        part.unlink(missing_ok=True)
        raise DataError(f"{file.url}: {total:,} bytes, expected at most {MOST_BYTES:,}. It was not kept.")
    free = shutil.disk_usage(part.parent).free
    if total - present > free - SPARE_BYTES:
        raise DataError(
            f"{part}: {total - present:,} bytes are to come, but the disk has only {free:,} free. Free some space, or set "
            "MINIONEREC_CACHE to another folder, and run the same command again."
        )


def _begin(headers: HTTPMessage, have: int) -> int | None:
    """Where the bytes of a partial answer belong; None if it does not say, or would leave a gap after the bytes here."""
    if not have:  # nothing was asked for but all of it
        return 0
    stated = re.match(r"bytes (\d+)-", headers["Content-Range"] or "")
    return int(stated[1]) if stated and int(stated[1]) <= have else None


def _identity(headers: HTTPMessage) -> str:
    etag = headers["ETag"] or ""
    return etag if etag and not etag.startswith("W/") else headers["Last-Modified"] or ""


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _problem(path: Path, file: KnownFile) -> str:
    """What is wrong with a file, as far as its size and checksum tell; empty if nothing is."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"{size} bytes, expected {file.bytes}: truncated or another file"
    if file.checksum is not None:
        kind, _, expected = file.checksum.partition(":")
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, kind).hexdigest()
        if actual != expected:
            return f"{kind} {actual}, expected {expected}: altered"
    return ""


def is_intact(path: Path, file: KnownFile) -> bool:
    """Whether the file exists with the expected size and checksum; a damaged file is named in the log."""
    if not path.is_file():
        return False
    if problem := _problem(path, file):
        logger.warning("%s: altered or incomplete (%s), fetching it again.", path, problem)
        return False
    return True


def verify(path: Path, file: KnownFile, advice: str) -> None:
    """Check a file that the user or another program provides.

    Raises:
        DataError: it does not have the expected size or checksum.
    """
    if problem := _problem(path, file):
        raise DataError(f"{path}: {problem}. It was not used. {advice}")


def download_wheel(requirement: str, wheel: KnownFile, folder: Path, advice: str, seconds: int = PIP_SECONDS) -> Path:
    """Fetch one wheel with pip, as the user has configured it, without its dependencies; nothing is installed.

    Args:
        requirement: name and version, such as `recbole==1.2.1`.
        wheel: the file that pip is expected to bring.
        advice: for the message if the wheel is not the expected one.
        seconds: pip is stopped after these.

    Raises:
        UnreachableError: pip finds no such wheel, or does not answer.
        DataError: the wheel is not what it should be.
    """
    # Only a wheel: building an sdist would run its code. Isolated (-I): a pip.py in the working folder is not run.
    command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd=folder)
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"no answer within {seconds} s") from None
    path = folder / wheel.name
    if done.returncode or not path.is_file():
        lines = (done.stderr or done.stdout or "").strip().splitlines()
        raise UnreachableError(lines[-1] if lines else f"pip ended with status {done.returncode}")
    verify(path, wheel, advice)
    return path


def unpack(archive: Path, members: Sequence[str], folder: Path) -> list[Path]:
    """Unpack the named members of a zip archive, without their folders.

    Raises:
        DataError: not a zip archive, a member is missing, or any member would leave the folder (`../`, absolute names).
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                parts = PurePosixPath(name.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
                    raise DataError(f"{archive}: the member {name!r} would be written outside the folder. It was not unpacked.")
            unpacked = []
            for member in members:
                target = folder / PurePosixPath(member).name
                target.write_bytes(opened.read(member))
                unpacked.append(target)
            return unpacked
    except (KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: not an archive with {', '.join(members)} ({error}).") from None
