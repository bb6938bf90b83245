"""The product's last step in `bash benchmarks/gpu.sh`: metrics of both models, and evaluation by graphs against launches.

python benchmarks/gpu_lists.py RUN [--users 512] [--out lists.json]      # a run that has sft or rl
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from setting import machine, positive, table

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


def lists(run: Path, users: int) -> dict[str, Any]:
    """The same users asked with graphs and without: seconds of the second time, and whether the lists are the same."""
    recommender = Recommender.load(run, dtype="float32")  # a shorter format rounds other buckets otherwise
    histories = recommender.prompts.dataset.test["history"].to_list()[:users]
    graphs = recommender.graphs or SearchGraphs(recommender.model, CallRecorder())
    found: dict[str, Any] = {"users": len(histories), "batch": recommender.config.batch_size}
    answers = {}
    for name, chosen in (("graphs", graphs), ("launches", None)):
        recommender.graphs = chosen
        recommender.recommend(histories, k=None)  # records
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        answers[name] = recommender.recommend(histories, k=None)
        found[name] = time.perf_counter() - started
    same = [
        [item.index for item in ours.items] == [item.index for item in theirs.items]
        for ours, theirs in zip(answers["graphs"], answers["launches"], strict=True)
    ]
    return {**found, "recorded": graphs.recorded, "replayed": graphs.replayed, "same_lists": sum(same) / len(same)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--users", type=positive, default=512)
    options.add_argument("--out", type=Path)
    arguments = options.parse_args()
    rows = metrics(arguments.run)
    table(["model", *METRICS], rows)
    found = lists(arguments.run, arguments.users)
    print(
        f"{machine()}; {found['users']} users, batch {found['batch']}: {found['graphs']:.2f} s by graphs ({found['recorded']} "
        f"recorded), {found['launches']:.2f} s by launches; {found['same_lists']:.1%} of the lists are equal."
    )
    if arguments.out:
        arguments.out.write_text(json.dumps({"metrics": rows, "lists": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
