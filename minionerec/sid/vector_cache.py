"""Vectors that took long to compute, kept in the cache folder as `.npy` files, each with its SHA-256 beside it."""

import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from minionerec.artifacts import file_hash, replace_text

log = logging.getLogger(__name__)


def read_cache(path: Path, rows: int) -> np.ndarray | None:
    """The cached vectors, memory-mapped; None if there are none, or they are damaged or of another shape."""
    if not path.is_file():
        return None
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: damaged (%s); computing them again", path, error)
        return None
    if vectors.ndim != 2 or len(vectors) != rows or vectors.dtype != np.float32:
        log.warning("%s: holds %s %s, expected %d rows; computing them again", path, vectors.shape, vectors.dtype, rows)
        return None
    try:
        intact = _checksum(path).read_text(encoding="utf-8") == file_hash(path)
    except (OSError, ValueError):
        intact = False
    if not intact:
        log.warning("%s: its content does not match %s; computing them again", path, _checksum(path).name)
        return None
    return vectors


def _checksum(path: Path) -> Path:
    """The file with the SHA-256 of cached vectors."""
    return path.with_name(f"{path.name}.sha256")


def write_cache(path: Path, vectors: np.ndarray) -> None:
    """Keep vectors for `read_cache`; a disk that cannot be written costs no more than a warning."""
    try:
        store_vectors(path, vectors)
    except OSError as error:  # the cache only saves time: a full or read-only disk there must not cost the run
        log.warning("%s: not cached (%s)", path, error)


def store_vectors(path: Path, vectors: np.ndarray) -> None:
    """Write vectors, and first their checksum: whoever finds them under their name finds both.

    Raises:
        OSError: the disk cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.save(stream, vectors, allow_pickle=False)
        replace_text(_checksum(path), file_hash(temporary))
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
