"""Several quantizers on one catalog, in one table.

Inputs: `<run>/data`. Output: a table; nothing is written, `minionerec sid` builds the chosen one.

Command: `minionerec sid compare --config ml-100k.yaml [--methods rq-kmeans,rq-vae]`
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from rich.table import Table

from minionerec import artifacts
from minionerec.config import Config, SidConfig, SidMethod, run_file
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError
from minionerec.sid.build import check_catalog
from minionerec.sid.collaborative import (
    CollaborativeVectors,
    collaborative_vectors,
    consecutive_pairs,
    fuse,
    fusion_pairs,
)
from minionerec.sid.collisions import resolve
from minionerec.sid.diagnose import diagnose
from minionerec.sid.encoder import item_vectors
from minionerec.sid.quantize import fit_quantizer

COLUMNS = {
    "reconstruction_error_before": "error",
    "reconstruction_error": "error after",
    "unique_before": "SIDs",
    "unique": "SIDs after",
    "largest_group_before": "largest",
    "perplexity": "perplexity",
    "neighbours_1": "near 1",
    "neighbours_2": "near 2",
    "copurchase_1": "bought 1",
    "copurchase_2": "bought 2",
    "chance_1": "chance 1",
    "seconds": "s",
}


def compare_methods(config: Config, methods: Sequence[str] = ()) -> Table:
    """Fit each method on the run's catalog and measure it.

    Args:
        methods: names of `sid.method`; none means all, but `letter` only if `sid.collaborative_model` is set.

    Raises:
        ConfigError: a method is unknown, or its package is not installed.
        ArtifactError: the data stage has not run.
    """
    unknown = [name for name in methods if name not in get_args(SidMethod)]
    if unknown:
        raise ConfigError(f"--methods {unknown[0]}: there is no such method; choose from {', '.join(get_args(SidMethod))}.")
    artifacts.require(config.folder / "data", "minionerec data prepare --config YOUR.yaml")
    dataset = Dataset.load(config.folder / "data")
    check_catalog(dataset)
    vectors = item_vectors(dataset, config.sid, config.seed)
    pairs, fused = consecutive_pairs(dataset.train), fusion_pairs(config, dataset)
    names: list[SidMethod] = [name for name in get_args(SidMethod) if name in methods or not methods]
    if not methods and config.sid.collaborative_model is None:
        names.remove("letter")
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        chosen = with_method(config.sid, name)
        collaborative = collaborative_vectors(dataclasses.replace(config, sid=chosen), dataset)
        rows[name] = measure_method(vectors, fused, pairs, chosen, config.seed, collaborative)
    return comparison_table(
        rows, f"{run_file.name_of(config)}: {len(vectors):,} items, codebooks of {' + '.join(map(str, config.sid.sizes))}"
    )


def with_method(config: SidConfig, method: SidMethod) -> SidConfig:
    """The section with another method; one that fuses and aligns nothing asks no baseline.

    Raises:
        ConfigError: the method needs what the section does not say.
    """
    asks = method == "letter" or (method not in ("pq", "opq") and config.collaborative > 0)
    return dataclasses.replace(config, method=method, collaborative_model=config.collaborative_model if asks else None)


def measure_method(
    vectors: np.ndarray,
    train_pairs: np.ndarray,
    pairs: np.ndarray,
    config: SidConfig,
    seed: int,
    collaborative: CollaborativeVectors | None = None,
) -> dict[str, Any]:
    """Fit a method and resolve its collisions: the figures of `diagnose`, counts of distinct SIDs, and the seconds taken.

    Args:
        train_pairs: what the collaborative fusion may see, (pairs, 2).
        pairs: what co-purchase agreement is measured on, (pairs, 2).
        collaborative: what `letter` aligns with.
    """
    started = time.perf_counter()
    fitted = fit_quantizer(vectors, config, seed, fuse(vectors, train_pairs, config.fusion), collaborative)
    codes = resolve(fitted.codes, vectors, fitted.quantizer, config.collisions)
    seconds = time.perf_counter() - started
    figures = diagnose(fitted.codes, codes, vectors, fitted.quantizer, pairs, config.collisions == "item")
    unique = {"unique_before": len(np.unique(fitted.codes, axis=0)), "unique": len(np.unique(codes, axis=0))}
    return figures | unique | {"seconds": round(seconds, 1)}


def comparison_table(rows: dict[str, dict[str, Any]], title: str) -> Table:
    """One row per method; a missing figure stays empty."""
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for column in COLUMNS.values():
        table.add_column(column, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *(_cell(figures.get(key)) for key in COLUMNS))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{figure:.0f}" for figure in value)
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 1 else f"{value:.4f}".lstrip("0") or "0"
    return "" if value is None else f"{value:,}"
