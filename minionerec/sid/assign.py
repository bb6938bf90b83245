"""Codes for a catalog that is larger than the sample to which its quantizer was fitted, shard by shard."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minionerec.artifacts import over_shards, shards_of
from minionerec.sid.codebooks import Quantizer

_SHARD = 65_536  # items, a multiple of the blocks that quantizers encode at once: a code must not depend on its shard


@dataclass
class _Assigner:
    """Writes the codes of some items."""

    quantizer: Quantizer
    vectors: np.ndarray
    guide: np.ndarray | None

    def __call__(self, rows: range, path: Path) -> None:
        part = slice(rows.start, rows.stop)
        with threadpool_limits(limits=1):
            codes = self.quantizer.encode(self.vectors[part], None if self.guide is None else self.guide[part])
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.save(stream, np.asarray(codes, dtype=np.int32), allow_pickle=False)
        temporary.replace(path)


def assign(quantizer: Quantizer, vectors: np.ndarray, guide: np.ndarray | None, store: Path) -> np.ndarray:
    """The codes of all items, (items, levels) int32; every process of a launch calls it.

    Args:
        vectors: (items, dimensions) float32, perhaps memory-mapped.
        guide: vectors that decide the first code, same shape; None lets the vectors themselves decide.
        store: an existing folder that keeps the shards.
    """
    shards = {store / f"codes-{rows.start:010d}.npy": rows for rows in shards_of(len(vectors), _SHARD)}
    over_shards(shards, _Assigner(quantizer, vectors, guide), "assign SIDs", "items")
    return np.concatenate([np.load(path, allow_pickle=False) for path in shards])
