"""RL against its SFT model: HR and NDCG at 1, 3, 5, 10, 20, 50 minus SFT's for several variants, pooled over seeds.

Claims nothing by itself: it prints, for each variant, how much each metric changed on the split that the configuration
evaluates, with 95 % paired intervals (users resampled; a user's values are first averaged over the seeds), `*` where the
interval leaves out 0. A variant and seed is a run folder of its own, `OUT/VARIANT/seed-N`, whose data, SIDs and SFT model are
links to the one finished SFT run; what is finished there is skipped, so an interrupted table goes on where it stopped.

Run: python benchmarks/rl_table.py --config ml-100k --run runs/ml-100k --out runs/rl-table [--variants rule,exact] [--seeds 3]
     [--examples 4096] [--set epochs=0.5 num_generations=8]
"""

import argparse
import dataclasses
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from minionerec.cli import parse
from minionerec.config import CUTOFFS, Config, RlConfig
from minionerec.eval import predict
from minionerec.eval.compare import align
from minionerec.eval.intervals import Interval, beyond_noise, paired
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import per_user, ranks
from minionerec.pipeline import set_up
from minionerec.rl import train

# Fields of section `rl` beyond those of the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "rule": {"reward": "rule"},
    "ranking": {"reward": "ranking"},
    "sibling": {"reward": "rule", "advantages": "sibling"},
    "exact": {"reward": "rule", "objective": "exact"},
    "listwise": {"objective": "listwise", "add_target": True},
    "sdpo": {"objective": "sdpo", "add_target": True},
    "reference": {
        "reward": "ranking",
        "num_generations": 16,
        "prompts_per_step": 64,
        "learning_rate": 1e-5,
        "beta": 1e-3,
        "epochs": 2.0,
        "sync_reference": 512,
        "sync_mix": 0.6,
    },
    "ours": {"reward": "rule", "rollouts": "mixture", "add_target": True, "loss": "dr_grpo", "sft_weight": 0.1},
}


def variant_config(base: Config, fields: dict[str, Any], run: Path, folder: Path, seed: int) -> Config:
    """The configuration of one variant and seed, its folder linked to the SFT run."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ("data", "sid", "sft"):
        link = folder / stage
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(run / stage, folder))
    section = RlConfig(**{**dataclasses.asdict(base.rl), **fields})
    return dataclasses.replace(base, out=str(folder), seed=seed, rl=section)


def metrics_of(path: Path, like: RankedLists | None) -> tuple[RankedLists, np.ndarray, list[str]]:
    """A predictions file, its metrics as (metrics, rows) in the order of another's rows, and their names."""
    lists = RankedLists.read(path)
    rows = np.arange(len(lists)) if like is None else align(like, lists)
    values = per_user(ranks(lists), CUTOFFS, 1)
    names = [f"{name}@{k}" for name in ("HR", "NDCG") for k in CUTOFFS]
    return lists, np.stack([values[name][rows] for name in names]), names


def cell(change: Interval) -> str:
    """A difference in points of a hundredth, with its interval."""
    star = "*" if beyond_noise(change) else ""
    return f"{100 * change.value:+.2f}{star}\n[{100 * change.low:+.2f}, {100 * change.high:+.2f}]"


def main() -> None:
    """Train what is missing and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", required=True, help="preset or file that the SFT run was made with")
    arguments.add_argument("--run", required=True, type=Path, help="folder of the finished SFT run")
    arguments.add_argument("--out", required=True, type=Path, help="where the variants' folders go")
    arguments.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--examples", type=int, help="rl.max_examples of every variant")
    arguments.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="other fields of rl, of every variant")
    options = arguments.parse_args()
    chosen = options.variants.split(",")
    unknown = sorted(set(chosen) - set(VARIANTS))
    if unknown:
        arguments.error(f"there is no variant {unknown[0]}; choose of {', '.join(VARIANTS)}")
    if options.seeds < 1:
        arguments.error(f"--seeds is {options.seeds}; at least 1 is needed")
    if any("=" not in word for word in options.set):
        arguments.error("--set takes FIELD=VALUE")
    common = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in options.set)}
    unknown = sorted(set(common) - {field.name for field in dataclasses.fields(RlConfig)})
    if unknown:
        arguments.error(f"rl has no field {unknown[0]}")
    if options.examples:
        common["max_examples"] = options.examples

    base = parse("run", ["--config", options.config, "--out", str(options.run)])
    assert base is not None
    set_up(base.threads)
    predict.run(base, "sft")
    before, old, names = metrics_of(options.run / "eval/sft/predictions.jsonl", None)
    table = Table(title=f"RL minus SFT, points of 0.01, {len(before)} users, {options.seeds} seeds", title_justify="left")
    for heading in ("variant", *names, "seconds"):
        table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    table.add_row("SFT itself", *(f"{value:.4f}" for value in old.mean(1)), "")
    for name in chosen:
        runs, seconds = [], []
        for seed in range(1, options.seeds + 1):
            made = variant_config(base, {**VARIANTS[name], **common}, options.run, options.out / name / f"seed-{seed}", seed)
            started = time.perf_counter()
            _, fresh = train.run(made)
            if fresh:
                seconds.append(time.perf_counter() - started)
            predict.run(made, "rl")
            runs.append(metrics_of(made.folder / "eval/rl/predictions.jsonl", before)[1])
        changes = paired(old, np.mean(runs, axis=0), base.eval.resamples, base.seed, before.units())
        table.add_row(name, *map(cell, changes), f"{np.mean(seconds):.0f}" if seconds else "kept")
    console = Console(width=200)
    console.print(table)
    console.print(f"Peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB.")


if __name__ == "__main__":
    main()
