"""SidIndex: from item to semantic ID and back, with the token strings.

Files: `index.json` (the released code's format: item index to token strings), `codes.safetensors` (codes and codebooks),
`sid.json` (dataset digest, codebook sizes, encoder, lineage).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from minionerec.artifacts import read_json, write_json
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.errors import ArtifactError, CatalogError

MANY_SHARED = 0.1  # of a catalog's items; from here on a hit on a SID says clearly less than a hit on an item
_BLOCK = 65_536  # items of `index.json` that are held as text at once
MOST_CODES = 2**24  # per level; all of them become tokens, so more is a mistake
_TOKEN = re.compile(r"<([a-z])_(0|[1-9][0-9]{0,7})>")


def token_string(level: int, code: int) -> str:
    """The token of a code.

    >>> token_string(0, 17), token_string(1, 203)
    ('<a_17>', '<b_203>')
    """
    return f"<{chr(ord('a') + level)}_{code}>"


def parse_token(token: str) -> tuple[int, int] | None:
    """Level and code of a token as `token_string` writes it, the code below `MOST_CODES`; None for any other text.

    >>> parse_token("<b_203>"), parse_token("lamp")
    ((1, 203), None)
    """
    match = _TOKEN.fullmatch(token)
    return (ord(match[1]) - ord("a"), int(match[2])) if match and int(match[2]) < MOST_CODES else None


def collision_warning(shared: int, items: int) -> str | None:
    """What to say of a catalog in which more than `MANY_SHARED` of the items share their SID; None of any other.

    Args:
        shared: items that share their SID with another.
        items: of the catalog.

    >>> collision_warning(shared=5, items=5)
    '100 % of the items (5 of 5) share their SID with another. On SIDs each of them counts as a hit: read metrics on items'
    """
    if shared <= MANY_SHARED * items:
        return None
    return (
        f"{100 * shared / items:.0f} % of the items ({shared:,} of {items:,}) share their SID with another. On SIDs each of "
        "them counts as a hit: read metrics on items"
    )


@dataclass(frozen=True)
class SidIndex:
    """Semantic IDs of a catalog.

    >>> index = SidIndex(np.array([[1, 0], [0, 2], [1, 0]], dtype=np.int32), codebook_sizes=(2, 3), dataset_digest="")
    >>> index.text(1)
    '<a_0><b_2>'
    >>> index.items([1, 0])  # two items share this SID
    [0, 2]
    >>> index.token_strings()
    ['<a_0>', '<a_1>', '<b_0>', '<b_1>', '<b_2>']

    Attributes:
        codes: (items, levels) int32, 0-based codes; row i is the SID of item i. A short SID is filled up with -1: with a suffix
            level, the SID of every item that needs no suffix.
        codebook_sizes: codes per level, used or not, a suffix level included.
        dataset_digest: `Dataset.digest` of the catalog that these SIDs belong to.
        codebooks: centroids per level, each (codebook size, dimensions) float32; a suffix level has none. Empty if unknown.
        encoder: names the origin of the vectors, so that items are only appended with vectors of the same kind.
        lineage: one entry per append, oldest first: digest of the index before, items before and after.

    Raises:
        CatalogError: the codes are not a matrix with a column per codebook, or one lies outside its codebook or follows a -1.
    """

    codes: np.ndarray
    codebook_sizes: tuple[int, ...]
    dataset_digest: str
    codebooks: tuple[np.ndarray, ...] = ()
    encoder: str = ""
    lineage: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.codebook_sizes) or not len(self.codes):
            raise CatalogError(f"SID codes have shape {self.codes.shape}, expected (items, {len(self.codebook_sizes)}).")
        for level, size in enumerate(self.codebook_sizes):
            column = self.codes[:, level]
            absent = (column == -1) & (level > 0)
            outside = ((column < 0) | (column >= size)) & ~absent
            if level:
                outside |= (self.codes[:, level - 1] == -1) & ~absent
            if outside.any():
                item = int(np.flatnonzero(outside)[0])
                raise CatalogError(
                    f"Item {item} has code {column[item]} at level {level}, outside 0..{size - 1}."
                    if not 0 <= column[item] < size
                    else f"Item {item} has code {column[item]} at level {level}, but none at the level above."
                )

    @cached_property
    def _items(self) -> dict[tuple[int, ...], list[int]]:
        items: dict[tuple[int, ...], list[int]] = {}
        for item, row in enumerate(self.codes.tolist()):
            items.setdefault(_shorten(row), []).append(item)
        return items

    @property
    def levels(self) -> int:
        """Codes of the longest SID."""
        return self.codes.shape[1]

    def token_strings(self) -> list[str]:
        """Every token of every level in order, used or not: (sum of codebook sizes) strings."""
        return [token_string(level, code) for level, size in enumerate(self.codebook_sizes) for code in range(size)]

    def text(self, item: int) -> str:
        """The SID of an item as prompts contain it, such as `<a_17><b_203><c_8>`."""
        return "".join(self.tokens(item))

    def tokens(self, item: int) -> list[str]:
        """The tokens of an item's SID, as many as it has codes."""
        return [token_string(level, code) for level, code in enumerate(self.codes[item].tolist()) if code >= 0]

    def items(self, codes: Sequence[int]) -> list[int]:
        """The items that have a SID, in catalog order, or none. A short SID may be given with or without its -1."""
        return self._items.get(_shorten(codes), [])

    def collisions(self) -> int:
        """How many items share their SID with another item."""
        _, counts = np.unique(self.codes, axis=0, return_counts=True)
        return int(counts[counts > 1].sum())

    def check_ends(self) -> None:
        """Refuse SIDs that nothing ends, for what writes a SID without an end token.

        Raises:
            CatalogError: the SID of an item is the beginning of another's, so the other could never have a higher score.
        """
        if (self.codes >= 0).all():
            return
        for item, row in enumerate(self.codes.tolist()):
            sid = _shorten(row)
            short = next((self._items[sid[:end]][0] for end in range(1, len(sid)) if sid[:end] in self._items), None)
            if short is not None:
                raise CatalogError(
                    f"The SID of item {short}, {self.text(short)}, is the beginning of that of item {item}, {self.text(item)}. "
                    "A model ends an answer with its last code, so the longer one could never come first. Give the shorter one "
                    "a further code where these SIDs come from, or let minionerec make SIDs (--sid.shipped false)."
                )

    def save(self, folder: Path) -> None:
        """Write the three files into an existing folder."""
        with (folder / "index.json").open("w", encoding="utf-8", newline="\n") as stream:
            stream.write("{")
            for start in range(0, len(self.codes), _BLOCK):
                block = range(start, min(start + _BLOCK, len(self.codes)))
                rows = json.dumps({str(item): self.tokens(item) for item in block})
                stream.write((", " if start else "") + rows[1:-1])
            stream.write("}\n")
        arrays = {"codes": np.ascontiguousarray(self.codes, dtype=np.int32)}
        for level, codebook in enumerate(self.codebooks):
            arrays[f"codebook_{level}"] = np.ascontiguousarray(codebook, dtype=np.float32)
        save_file(arrays, folder / "codes.safetensors")
        write_json(
            folder / "sid.json",
            {
                "dataset_digest": self.dataset_digest,
                "codebook_sizes": list(self.codebook_sizes),
                "encoder": self.encoder,
                "lineage": list(self.lineage),
            },
        )

    @classmethod
    def load(cls, folder: Path, dataset: Dataset) -> "SidIndex":
        """Read the index of a dataset.

        Raises:
            ArtifactError: files are missing or damaged, or the index belongs to another dataset.
        """
        header = read_json(folder / "sid.json")
        try:
            arrays = load_file(folder / "codes.safetensors")
            codebooks = tuple(arrays[f"codebook_{level}"] for level in range(len(arrays) - 1))
            index = cls(
                arrays["codes"],
                tuple(header["codebook_sizes"]),
                header["dataset_digest"],
                codebooks,
                header["encoder"],
                tuple(header["lineage"]),
            )
        except (FileNotFoundError, KeyError, SafetensorError, CatalogError) as error:
            raise ArtifactError(f"{folder}: not a complete SID index ({error}). Run the sid stage again.") from None
        if index.dataset_digest != dataset.digest:
            raise ArtifactError(
                f"{folder}: this SID index belongs to another dataset ({len(index.codes)} items, digest "
                f"{index.dataset_digest[:12]}; the dataset has {len(dataset.catalog)} items, digest {dataset.digest[:12]}). "
                "Run the sid stage for this dataset."
            )
        if len(index.codes) != len(dataset.catalog):
            raise ArtifactError(
                f"{folder}: the index has SIDs of {len(index.codes)} items, but the dataset has {len(dataset.catalog)}. "
                "Run the sid stage again."
            )
        highest = max((_highest(dataset.split(name)) for name in SPLITS), default=-1)
        if highest >= len(index.codes):
            raise ArtifactError(
                f"{folder}: an example of the dataset holds item {highest}, which has no SID: the catalog has "
                f"{len(index.codes)} items. Run the data stage again, then the sid stage."
            )
        return index


def _highest(frame: pl.DataFrame) -> int:
    """The highest item index in the examples of a split, -1 if there are none."""
    highest = frame.select(pl.max_horizontal(pl.col("target").max(), pl.col("history").list.max().max())).item()
    return -1 if highest is None else int(highest)


def _shorten(codes: Sequence[int]) -> tuple[int, ...]:
    """A SID without the -1 that fill it up."""
    return tuple(int(code) for code in codes if code >= 0)
