"""Scores of pairs from caches (all items once, all users once) against none: every batch encodes its items and histories anew.

Claim: at least 10 times faster on a recipe that reads texts, same scores to 1e-6. The original reports 2 hours against 10
minutes. The run's recipe must be trained: `minionerec lego --config ml-100k-lego --lego.recipe naml`.

    python benchmarks/lego_cache.py --run runs/ml-100k-lego --recipe naml --batch 64
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from setting import machine, positive, repeat, table

from minionerec import cli
from minionerec.legommenders.caches import CachedScores, uncached_pairs
from minionerec.legommenders.train import load_lego


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--recipe", default="naml", help="title of a trained recipe")
    parser.add_argument("--batch", type=positive, default=64, help="pairs at once without caches")
    parser.add_argument("--seconds", type=float, default=20.0, help="each side repeats for this long, once at least")
    arguments = parser.parse_args()
    config = cli.parse("lego", ["--config", str(arguments.run)])
    torch.set_num_threads(config.threads)
    model, task, lego = load_lego(config, arguments.recipe)
    rows, device = task.examples.rows["test"], torch.device("cpu")

    def from_caches() -> np.ndarray:
        return CachedScores(model, task.examples.items, device).pairs(rows)  # a new one: its caches are empty

    cached_seconds, cached = repeat(from_caches, arguments.seconds)
    plain_seconds, plain = repeat(lambda: uncached_pairs(model, rows, arguments.batch, device), arguments.seconds)
    fast, slow = float(np.median(cached_seconds)), float(np.median(plain_seconds))
    print(f"{machine()}\n{arguments.recipe} ({lego.parts}): {len(rows):,} pairs, {task.examples.items:,} items")
    print(f"largest difference of two scores: {np.abs(cached - plain).max():.2g}")
    table(
        ["scores", "seconds", "pairs a second", "times faster"],
        [["no cache", slow, len(rows) / slow, 1.0], ["caches, empty at first", fast, len(rows) / fast, slow / fast]],
    )


if __name__ == "__main__":
    main()
