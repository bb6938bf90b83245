"""Every quantizer on the 3,686 Industrial items, beside the SIDs that the released code ships, measured by the same code.

Claims: the default method has a relative error of at most .350 with 3 x 256 codes before collisions are resolved, and gives
every item its own SID for at most 2 % more; with its default sizes (the same 768 tokens, coarse first) neighbourhood
preservation and co-purchase agreement are at least those of the shipped SIDs. Co-purchase pairs are consecutive items of a user
in train (the partial one), valid and test; fusion sees train only, so agreement on valid and test is listed beside it.

Run: python benchmarks/sid_methods.py --data ../shared/data [--methods rq-kmeans-joint,rq-kmeans] [--sizes 256,256,256]
"""

import argparse
import ast
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
from memory import peak_gb
from rich.console import Console
from rich.table import Table

from minionerec.config import SidConfig, SidMethod
from minionerec.data.released import sid_tokens
from minionerec.sid.collaborative import fuse
from minionerec.sid.collisions import resolve
from minionerec.sid.compare import comparison_table, measure_method
from minionerec.sid.diagnose import structure
from minionerec.sid.index import parse_token
from minionerec.sid.quantize import fit_quantizer

NAME = "Industrial_and_Scientific"
FIGURES = ("neighbours_1", "neighbours_2", "copurchase_1", "copurchase_2", "chance_1", "chance_2")


def read_pairs(folder: Path, split: str) -> np.ndarray:
    """Consecutive different items of a split, (pairs, 2)."""
    (path,) = (folder / split).glob(f"{NAME}*.csv")
    frame = pl.read_csv(path, columns=["history_item_id", "item_id"])
    pairs = [(ast.literal_eval(history)[-1], item) for history, item in frame.iter_rows()]
    return np.array([pair for pair in pairs if pair[0] != pair[1]])


def shipped(folder: Path) -> np.ndarray:
    """The released code's SIDs, (items, 3)."""
    rows = sid_tokens(folder / "index" / f"{NAME}.index.json")
    found = [[parse_token(token) for token in rows[str(item)]] for item in range(len(rows))]
    return np.array([[token[1] for token in sid if token] for sid in found], dtype=np.int32)


def agreement(vectors: np.ndarray, pairs: dict[str, np.ndarray], sizes: list[int], amazon: Path, seed: int) -> Table:
    """Neighbours and co-purchases that share codes, of the shipped SIDs and of the default method."""
    made = Table(title="Agreement, beside the SIDs that the released code ships", title_justify="left")
    made.add_column("SIDs")
    made.add_column("pairs of")
    for figure in FIGURES:
        made.add_column(figure.replace("_", " "), justify="right")
    theirs = shipped(amazon)[: len(vectors)]
    default = SidConfig()
    level_1 = len(np.unique(theirs[:, 0]))
    ours = {"shipped": theirs}
    for name, config in {
        f"default method, {','.join(map(str, sizes))}, text only": SidConfig(codebook_sizes=sizes, collaborative=0),
        f"default method, {level_1} first codes as shipped, fused": SidConfig(codebook_sizes=[level_1, 360, 360]),
        f"the default, {','.join(map(str, default.sizes))}, fused": default,
    }.items():
        if len(vectors) >= max(config.sizes):
            fitted = fit_quantizer(vectors, config, seed, fuse(vectors, pairs["train"], config.fusion))
            ours[name] = resolve(fitted.codes, vectors, fitted.quantizer, config.collisions)
    together = np.concatenate(list(pairs.values()))
    for name, codes in ours.items():
        for split, rows_of_split in {"all": together, **pairs}.items():
            figures = structure(codes, vectors, rows_of_split)
            made.add_row(name if split == "all" else "", split, *(f"{figures[figure]:.4f}" for figure in FIGURES))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--methods", default=",".join(name for name in get_args(SidMethod) if name != "letter"))  # no baseline
    parser.add_argument("--sizes", default="256,256,256", help="codes per level of the table of methods")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--items", type=int, default=None, help="only the first items, for a quick try")
    parser.add_argument("--methods-only", action="store_true", help="leave out the default's sizes and the second table")
    chosen = parser.parse_args()

    amazon = chosen.data / "amazon"
    vectors = np.load(chosen.data / "embeddings" / "industrial_minilm_256.npy")[: chosen.items]
    pairs = {split: read_pairs(amazon, split) for split in ("train", "valid", "test")}
    pairs = {split: rows[(rows < len(vectors)).all(axis=1)] for split, rows in pairs.items()}
    together = np.concatenate(list(pairs.values()))
    sizes = [int(size) for size in chosen.sizes.split(",")]
    console = Console(width=200, highlight=False)

    rows = {}
    for method in chosen.methods.split(","):
        config = SidConfig(method=method, codebook_sizes=sizes, collaborative=0)
        rows[method] = measure_method(vectors, pairs["train"], together, config, chosen.seed)
    default = SidConfig()
    if len(vectors) >= max(default.sizes) and not chosen.methods_only:
        rows["the default, coarse first, fused"] = measure_method(vectors, pairs["train"], together, default, chosen.seed)
    console.print(
        comparison_table(rows, f"{len(vectors):,} items; methods with {chosen.sizes} codes and text only, then the default")
    )

    if not chosen.methods_only:
        console.print(agreement(vectors, pairs, sizes, amazon, chosen.seed))
    print(f"peak memory {peak_gb():.2f} GB")


if __name__ == "__main__":
    main()
