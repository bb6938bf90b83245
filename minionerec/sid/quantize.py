"""Quantizers: from vectors to codes, one codebook per level. `fit_quantizer` fits any of them; all have the same interface."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from minionerec.config import SidConfig, SidMethod
from minionerec.errors import CatalogError, DataError
from minionerec.sid import joint, product, residual
from minionerec.sid.codebooks import Quantizer, sample_rows
from minionerec.sid.collaborative import CollaborativeVectors


@dataclass(frozen=True)
class Fitted:
    """A quantizer, and the codes of the catalog that it was fitted to.

    Attributes:
        quantizer: for these and for further items.
        codes: (items, levels) int32, collisions not resolved. With a balancing method these are its balanced choice, which
            need not be the nearest codes that `quantizer.encode` finds.
    """

    quantizer: Quantizer
    codes: np.ndarray


# From vectors, guide, configuration and seed to a quantizer, and to codes if the method balances them itself. `letter` also
# takes collaborative vectors.
_Method = Callable[..., tuple[Quantizer, np.ndarray | None]]


def _rqvae(vectors: np.ndarray, guide: np.ndarray, config: SidConfig, seed: int) -> tuple[Quantizer, np.ndarray | None]:
    from minionerec.sid import neural  # brings torch, which costs the other methods seconds and half a gigabyte

    return neural.fit_rqvae(vectors, guide, config, seed)


def _kmeans_plus(vectors: np.ndarray, guide: np.ndarray, config: SidConfig, seed: int) -> tuple[Quantizer, np.ndarray | None]:
    from minionerec.sid import neural

    return neural.fit_kmeans_plus(vectors, guide, config, seed)


def _letter(
    vectors: np.ndarray, guide: np.ndarray, config: SidConfig, seed: int, collaborative: CollaborativeVectors | None = None
) -> tuple[Quantizer, np.ndarray | None]:
    from minionerec.sid import letter

    return letter.fit_letter(vectors, guide, config, seed, collaborative)


def _product(vectors: np.ndarray, _: np.ndarray, config: SidConfig, seed: int) -> tuple[Quantizer, None]:
    return product.fit_product(vectors, config, seed), None


METHODS: dict[SidMethod, _Method] = {
    "rq-kmeans-joint": joint.fit_joint,
    "rq-kmeans": residual.fit_residual,
    "rq-kmeans-sinkhorn": residual.fit_residual,
    "rq-kmeans-constrained": residual.fit_residual,
    "rq-vae": _rqvae,
    "rq-kmeans-plus": _kmeans_plus,
    "letter": _letter,
    "pq": _product,
    "opq": _product,
}


def fit_quantizer(
    vectors: np.ndarray,
    config: SidConfig,
    seed: int,
    guide: np.ndarray | None = None,
    collaborative: CollaborativeVectors | None = None,
) -> Fitted:
    """Fit the configured method and encode the catalog with it. Arguments and errors are those of `fit_to_sample`."""
    quantizer, codes = fit_to_sample(vectors, config, seed, guide, collaborative)
    if codes is None:
        with threadpool_limits(limits=1):
            codes = quantizer.encode(vectors, None if guide is vectors else guide)
    return Fitted(quantizer, np.ascontiguousarray(codes, dtype=np.int32))


def fit_to_sample(
    vectors: np.ndarray,
    config: SidConfig,
    seed: int,
    guide: np.ndarray | None = None,
    collaborative: CollaborativeVectors | None = None,
) -> tuple[Quantizer, np.ndarray | None]:
    """Fit the configured method.

    A catalog of more than `config.max_training_vectors` items is fitted to a random sample of that many and is to be encoded
    afterwards, so that vectors may be memory-mapped and larger than the memory. One thread does the arithmetic whose order
    could change the result, so equal seeds give equal codes with any number of threads and processes.

    Args:
        vectors: (items, dimensions) float32.
        config: method, codebook sizes and options.
        seed: of the method's random starts.
        guide: vectors that decide the first code instead, same shape, such as `collaborative.fuse` gives.
        collaborative: the items' collaborative vectors, for `letter`.

    Returns:
        the quantizer, and the codes of the catalog if the method has chosen them.

    Raises:
        DataError: a vector is not finite or all zeros.
        CatalogError: there are fewer items than codes in a level.
        ConfigError: `pq` or `opq` has fewer dimensions than levels, the method's package is not installed, or `letter` has no
            collaborative vectors or some of another length.
        TrainingError: a neural method diverged.
    """
    check_vectors(vectors)
    check_codebooks(len(vectors), config.sizes)
    rows = sample_rows(len(vectors), config.max_training_vectors, seed)
    if guide is vectors:
        guide = None
    if len(rows) < len(vectors):
        config = dataclasses.replace(config, collisions="keep")  # distinct SIDs within a sample mean nothing
    with threadpool_limits(limits=1):
        sample = np.ascontiguousarray(vectors[rows])
        further = () if collaborative is None else (collaborative.take(rows),)
        quantizer, codes = METHODS[config.method](sample, sample if guide is None else guide[rows], config, seed, *further)
    return quantizer, codes if len(rows) == len(vectors) else None


def check_codebooks(items: int, sizes: Sequence[int]) -> None:
    """Refuse a catalog that is too small for its codebooks.

    Args:
        sizes: codes per level.

    Raises:
        CatalogError: there is one item only, or fewer items than codes in a level.
    """
    if items == 1:
        raise CatalogError(
            "The catalog has one item only, and a level has two codes at least: there is nothing to choose from. Look at the "
            "data (minionerec data describe) and its filters (data.user_k, data.item_k)."
        )
    for level, size in enumerate(sizes):
        if items < size:
            sizes_text = " + ".join(map(str, sizes))
            raise CatalogError(
                f"{items:,} items are fewer than the {size:,} codes of level {level + 1} (codebooks: {sizes_text}). "
                "Lower --sid.codebook_size, or set the levels one by one with --sid.codebook_sizes."
            )


_NOT_FINITE, _ZERO, _SCALE = "not finite (NaN or infinite)", "all zeros", "too large or too small to be squared"


def check_vectors(vectors: np.ndarray, block: int = 65536) -> None:
    """Refuse vectors that cannot be quantised.

    Raises:
        DataError: this is no float matrix, or a row is not finite, all zeros, or too long or short to be squared; the message
            names the first such rows.
    """
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise DataError(f"Item vectors are {vectors.dtype} of shape {vectors.shape}; expected float32 (items, dimensions).")
    faults: dict[str, list[np.ndarray]] = {_NOT_FINITE: [], _ZERO: [], _SCALE: []}
    for start in range(0, len(vectors), block):
        rows = np.asarray(vectors[start : start + block])
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            lengths = np.einsum("ij,ij->i", rows, rows)
        # Quantizers square distances, which are at most twice as long, in float32. Usually no row is suspect, so that vectors,
        # which may be on a disk, are read once.
        limits = np.finfo(np.float32)
        suspects = np.flatnonzero(~((lengths > limits.tiny * 16) & (lengths < limits.max / 16)))
        finite, zero = np.isfinite(rows[suspects]).all(axis=1), ~rows[suspects].any(axis=1)
        for fault, applies in ((_NOT_FINITE, ~finite), (_ZERO, zero), (_SCALE, finite & ~zero)):
            faults[fault].append(start + suspects[applies])
    for fault, rows_of_blocks in faults.items():
        items = np.concatenate(rows_of_blocks) if rows_of_blocks else np.empty(0, dtype=int)
        if len(items):
            raise DataError(
                f"The vectors of {len(items):,} items are {fault}: rows {', '.join(map(str, items[:5]))}"
                f"{', ...' if len(items) > 5 else ''} of the catalog (from 0). "
                + (
                    "Multiply all vectors by the same number, so that they are about 1 long."
                    if fault == _SCALE
                    else "Give these items more text, drop them, or choose another encoder (--sid.encoder)."
                )
            )
