"""Examples of a task, tokenised once and kept as token arrays below the cache folder.

An entry is a folder `tokens/<key>/`: `tokens.npy` (tokens of all prompts and completions in a row, int32), `offsets.npy` (where
each begins: prompt, completion, prompt, ..., and the end, int64), `facts.npy` (the other fields of each example, int64), and
`sha256.json` (hashes of the three). It is written under a temporary name and renamed. Prompts and completions are views of the
memory-mapped file: the processes of a machine share its pages, and an example costs some hundred bytes, however long it is. The
key covers everything that decides the tokens: catalog, split, SIDs, tokenizer, this package's wording and code, all options. A
damaged entry is built again. `$MINIONEREC_CACHE/tokens` may be deleted at any time.
"""

import dataclasses
import hashlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tokenizers
from transformers import PreTrainedTokenizerBase, __version__

from minionerec.artifacts import cache_folder, content_hash, file_hash, read_json, write_json
from minionerec.config import PromptsConfig
from minionerec.data import texts
from minionerec.errors import ArtifactError
from minionerec.prompts.encode import TokenExample
from minionerec.sid.index import SidIndex

_FILES = ("tokens.npy", "offsets.npy", "facts.npy")
_CODE = (*Path(__file__).parent.glob("*.py"), Path(texts.__file__))  # the latter makes prose of descriptions
_BLOCK = 1 << 18  # rows of a table that are hashed at once
_NONE = -(2**62)  # stands for None among the facts
_FACTS = tuple(field for field in dataclasses.fields(TokenExample) if field.name not in ("prompt", "completion"))

log = logging.getLogger(__name__)


def cached(key: Mapping[str, Any], build: Callable[[], list[TokenExample]]) -> list[TokenExample]:
    """What `build` returns, read from the cache if it was built before with the same key.

    Args:
        key: all that decides the tokens, apart from this package's code.

    Raises:
        Whatever `build` raises; nothing is cached then.
    """
    values = {name: dataclasses.asdict(value) if isinstance(value, PromptsConfig) else value for name, value in key.items()}
    code = {path.name: file_hash(path) for path in sorted(_CODE)}
    folder = cache_folder() / "tokens" / content_hash({**values, "code": code})
    examples = _read(folder)
    if examples is None:
        examples = build()
        try:
            _write(folder, examples)
            examples = _read(folder) or examples
        except OSError as error:
            log.warning("%s: tokens are not cached (%s); set MINIONEREC_CACHE.", folder, error.strerror)
    return examples


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Identifies how a fast tokenizer splits texts; None for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    template = getattr(tokenizer, "chat_template", None)
    return content_hash([backend.to_str(), template, tokenizer.special_tokens_map, __version__, tokenizers.__version__])


def sids_digest(index: SidIndex) -> str:
    """Identifies the SIDs of all items."""
    return content_hash([hashlib.sha256(index.codes.tobytes()).hexdigest(), list(index.codebook_sizes)])


def frame_digest(frame: pl.DataFrame) -> str:
    """Identifies the content of a table, which is hashed in blocks."""
    frame, digest = frame.rechunk(), hashlib.sha256()
    for start in range(0, max(len(frame), 1), _BLOCK):
        stream = io.BytesIO()
        frame[start : start + _BLOCK].write_ipc(stream)
        digest.update(stream.getbuffer())
    return digest.hexdigest()


def _write(folder: Path, examples: list[TokenExample]) -> None:
    parts = [part for example in examples for part in (example.prompt, example.completion)]
    arrays: tuple[np.ndarray, ...] = (
        np.fromiter((token for part in parts for token in part), dtype=np.int32),
        np.cumsum([0, *map(len, parts)], dtype=np.int64),
        np.array([[_number(getattr(example, field.name)) for field in _FACTS] for example in examples], dtype=np.int64),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for name, array in zip(_FILES, arrays, strict=True):
            np.save(partial / name, array)
        write_json(partial / "sha256.json", {name: file_hash(partial / name) for name in _FILES})
        shutil.rmtree(folder, ignore_errors=True)  # damaged: an intact one would have been read
        os.rename(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if _read(folder) is None:  # otherwise another process was faster
            raise


def _number(value: int | bool | None) -> int:
    return _NONE if value is None else int(value)


def _value(number: int, kind: Any) -> Any:
    return None if number == _NONE else bool(number) if kind is bool else number


def _read(folder: Path) -> list[TokenExample] | None:
    """The examples of an entry; None if it is missing or damaged."""
    try:
        hashes = read_json(folder / "sha256.json")
        if hashes != {name: file_hash(folder / name) for name in _FILES}:
            return None
        tokens, offsets, facts = (np.load(folder / name, mmap_mode="r") for name in _FILES)
    except (OSError, ArtifactError, ValueError):
        return None
    ends, rows, mapped = offsets.tolist(), facts.tolist(), tokens.data
    return [
        TokenExample(
            prompt=mapped[ends[2 * row] : ends[2 * row + 1]],
            completion=mapped[ends[2 * row + 1] : ends[2 * row + 2]],
            **{field.name: _value(value, field.type) for field, value in zip(_FACTS, values, strict=True)},
        )
        for row, values in enumerate(rows)
    ]
