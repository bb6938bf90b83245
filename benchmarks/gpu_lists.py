"""The product's last step in `bash benchmarks/gpu.sh`: metrics of both models; lists by graphs and by launches, in float32.

python benchmarks/gpu_lists.py RUN [--users 512] [--out lists.json]      # a run that has sft or rl
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from setting import machine, positive, table, write_json

from minionerec.recommend.recommender import Recommender
from minionerec.tree import SearchGraphs
from minionerec.tree.capture import CallRecorder

METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@10", "HR@50")


def metrics(run: Path) -> list[list[Any]]:
    """A row per evaluated model, on SIDs and on items."""
    rows = []
    for path in sorted(run.glob("eval/*/metrics.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        for over in ("sid", "item"):
            means = measured[over] or {}
            cells = [f"{means[name]['value']:.4f}" if name in means else "-" for name in METRICS]
            rows.append([f"{path.parent.name}, {over}s", *cells])
    return rows


def lists(run: Path, users: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """The same users asked by graphs and by launches: seconds of either way, and whether the lists are the same.

    Args:
        keep: takes what is known so far, after each pass.
    """
    recommender = Recommender.load(run, dtype="float32")  # a shorter format rounds other buckets otherwise
    histories = recommender.prompts.dataset.test["history"].to_list()[:users]
    batch = recommender.config.batch_size
    graphs = recommender.graphs or SearchGraphs(recommender.model, CallRecorder())
    found: dict[str, Any] = {"users": len(histories), "batch": batch, "dtype": "float32"}
    answers = {}
    for name, chosen, first in (("graphs", graphs, histories), ("launches", None, histories[:batch])):
        recommender.graphs = chosen
        recommender.recommend(first, k=None)  # the first calls of kernels; graphs record every bucket that will come
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        answers[name] = recommender.recommend(histories, k=None)
        found[name] = time.perf_counter() - started
        keep(found)
    same = [
        [item.index for item in ours.items] == [item.index for item in theirs.items]
        for ours, theirs in zip(answers["graphs"], answers["launches"], strict=True)
    ]
    keep({**found, "recorded": graphs.recorded, "replayed": graphs.replayed, "same_lists": sum(same) / len(same)})


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--users", type=positive, default=512)
    options.add_argument("--out", type=Path, help="a JSON file for all figures, written after each pass")
    arguments = options.parse_args(argv)
    rows = metrics(arguments.run)
    table(["model", *METRICS], rows)
    write_json(arguments.out, {"metrics": rows})

    def keep(found: dict[str, Any]) -> None:
        """Print and write what is known so far."""
        write_json(arguments.out, {"metrics": rows, "lists": found})
        spent = ", ".join(f"{found[name]:.2f} s by {name}" for name in ("graphs", "launches") if name in found)
        if "recorded" in found:
            spent += f" ({found['recorded']} recorded); {found['same_lists']:.1%} of the lists are equal"
        print(f"{machine()}; {found['users']} users, batch {found['batch']}, float32: {spent}", flush=True)

    lists(arguments.run, arguments.users, keep)


if __name__ == "__main__":
    main()
