"""Files that are whole and are what they say: hashes, JSON, writing that survives a power cut, room on the disk."""

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from minionerec.config.checks import checked_path
from minionerec.errors import ArtifactError

# Hashes of this process, by what a change of the file changes, so that a run of several stages reads each file once.
_hashes: dict[tuple[int, ...], str] = {}
_CLOCK_TICK = 100_000_000  # ns; two changes of a file within a tick of the file system's clock (10 ms at most) look like one


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of dictionary order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes. A file that has not changed since this process hashed it is not read again."""
    with path.open("rb") as stream:
        began, before = time.time_ns(), os.fstat(stream.fileno())
        identity = (before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        if identity in _hashes:
            return _hashes[identity]
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A file without a number is not recognised again; one that changed a moment ago may change once more within the tick.
    if before.st_ino and began - max(before.st_mtime_ns, before.st_ctime_ns) > _CLOCK_TICK:
        _hashes[identity] = digest
    return digest


def folder_digest(folder: Path) -> str:
    """Identifies the content of a folder that is not an artefact: SHA-256 over the names and bytes of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return content_hash({path.relative_to(folder).as_posix(): file_hash(path) for path in files})


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 file through a temporary name: neither a reader nor a power cut ever finds it half-written.

    Raises:
        ArtifactError: something else than a regular file is there, such as a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: expected a regular file or nothing there, found something else. Choose another file.")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write UTF-8 JSON; neither a reader nor a power cut ever finds it half-written."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read UTF-8 JSON.

    Raises:
        ArtifactError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: not found.") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}). Run the stage that writes it again.") from None


def share(path: Path) -> None:
    """Give a file the permissions of any new file: safetensors writes for the owner alone."""
    umask = os.umask(0)  # which cannot be read otherwise
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def sync(path: Path) -> None:
    """Have the system write a file's bytes, or the names in a folder, to the disk itself."""
    folder, windows = path.is_dir(), sys.platform == "win32"
    if folder and windows:
        return  # which cannot sync folders
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no names to sync
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def disk_full(error: BaseException) -> bool:
    """Whether an error says that no space is left. Libraries with a native core keep only the text of the system's error."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def no_space(folder: Path) -> ArtifactError:
    """What to raise if the disk became full while an artefact was written."""
    return ArtifactError(
        f"{folder}: no space left on the disk. Nothing unfinished was kept in place of a finished artefact. Free some space or "
        "choose another place with --out DIR, then run the same command again."
    )


_ROOM = "Free some space or choose another place with --out DIR."


def check_disk_space(folder: Path, needed: int, advice: str = _ROOM) -> None:
    """Refuse to start when the disk cannot hold what a stage will write.

    Args:
        folder: where it will be written; it, or its nearest existing parent, tells the free space.
        needed: bytes.
        advice: what to do, for the message.

    Raises:
        ArtifactError: fewer bytes are free.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ArtifactError(
            f"{folder}: needs about {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free on that disk. {advice}"
        )


def cache_folder() -> Path:
    """Where downloads and text embeddings are kept between runs: `$MINIONEREC_CACHE`, else the user's cache folder.

    Raises:
        ConfigError: there is no home folder and neither variable is set, or one of them is no path.
    """
    folder = os.environ.get("MINIONEREC_CACHE")
    if folder:
        return Path(checked_path("MINIONEREC_CACHE", folder))
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return Path(checked_path("the cache folder (set MINIONEREC_CACHE to another)", base or "~/.cache")) / "minionerec"
