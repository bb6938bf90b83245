"""How seconds and memory of every stage grow with the data: 10^5, 10^6 and 10^7 interactions through the whole pipeline.

Claims: ten times the data take at most about ten times as long in every stage, and no stage holds a log as Python objects;
preparing 10^7 interactions takes under 2 GB. The data are synthetic and written in blocks: users and items of uneven activity,
8 interactions a user and 10 an item, so 10^6 items at the largest. `data` prepares parquet tables in parts; `sid` quantises
vectors of 64 dimensions around 2,000 centres; `sft` trains a model of 4 layers, 64 wide, on as many examples as 1 % of the
interactions; `eval` decodes about 10^4 examples of the test split with 10 beams and measures them, and popularity's lists;
`trie` loads the run, builds the trie again, narrows it to a random half of the items and asks for 64 lists in it; `report`
writes the page. Each stage runs in a process of its own, whose peak memory, imports included, is shown.

    python benchmarks/scale.py                                    # 10^5, 10^6, 10^7
    python benchmarks/scale.py --interactions 20000 --stages data sid
    python benchmarks/scale.py --interactions 10000000 --folder F --stages sft   # a single stage, after those before it
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from memory import peak_gb
from sid_scale import write_vectors

STAGES = ("data", "sid", "sft", "eval", "trie", "report")
_BLOCK = 10**6
_DIMENSIONS, _EVALUATED, _BEAMS = 64, 10**4, 10


def write_tables(folder: Path, interactions: int, seed: int = 0) -> None:
    """Write the tables of `data.source parquet`, and item vectors."""
    rng = np.random.default_rng(seed)
    (folder / "raw/interactions").mkdir(parents=True)
    users, items = max(interactions // 8, 50), max(interactions // 10, 50)
    for number, begin in enumerate(range(0, interactions, _BLOCK)):
        count = min(_BLOCK, interactions - begin)
        frame = pl.DataFrame(
            {
                "user": (users * rng.random(count) ** 1.5).astype(int),
                "item_id": (items * rng.random(count) ** 2).astype(int),
                "timestamp": 1_500_000_000 + rng.integers(0, 10**8, count),
            }
        )
        names = [pl.format("{}{}", pl.lit(name[0].upper()), pl.col(name)).alias(name) for name in ("user", "item_id")]
        frame.with_columns(names).write_parquet(folder / f"raw/interactions/part-{number:05d}.parquet")
    number = pl.int_range(items, eager=True)
    words = pl.Series(["lamp", "chair", "table", "cup", "spoon", "knife", "bowl", "vase"])
    pl.DataFrame({"number": number}).select(
        item_id=pl.format("I{}", "number"), title=pl.format("{} {}", words.gather(number % 8), pl.col("number") % 1000)
    ).write_parquet(folder / "raw/items.parquet")
    write_vectors(folder / "vectors.npy", items, _DIMENSIONS)


def settings(folder: Path, interactions: int) -> dict[str, Any]:
    """The configuration of a size."""
    return {
        "name": f"scale-{interactions}",
        "out": str(folder / "run"),
        "threads": 1,
        "data": {
            "source": "parquet",
            "path": str(folder / "raw"),
            "split": "chronological",
            "parts": [max(round(0.87 * interactions / _EVALUATED) - 2, 1), 1, 1],
        },
        "sid": {
            "vectors": str(folder / "vectors.npy"),
            "codebook_size": 256 if interactions >= 10**5 else 16,
            "iterations": 10,
            "collaborative": 0.35,
        },
        "model": {"hidden_size": 64, "intermediate_size": 128, "layers": 4, "heads": 4, "vocabulary": 1000},
        "sft": {
            "tasks": ["history_sid_to_sid"],
            "max_examples": max(interactions // 100, 256),  # two batches at least
            "epochs": 1,
            "evaluations": 1,
            "batch_size": 128,
            "micro_batch": 64,
        },
        "eval": {"num_beams": _BEAMS, "oracle_examples": 0, "batch_size": 64},
    }


def run_stage(stage: str, folder: Path) -> dict[str, Any]:
    """Run a stage in this process; returns its seconds, imports not counted, its peak memory, and facts."""
    from minionerec import cli, pipeline

    file = str(folder / "scale.yaml")
    config = cli.parse("run", ["--config", file])
    assert config is not None
    pipeline.set_up(config.threads)
    facts: dict[str, Any] = {}
    began = time.perf_counter()
    if stage == "eval":
        from minionerec.eval.evaluate import evaluate

        pipeline.quieten_libraries()
        for name in ("sft", "popularity"):
            manifest, _ = evaluate(config, name)
            facts[name] = manifest.metrics["HR@10"]
    elif stage == "trie":
        facts = filtered_lists(Path(str(config.out)))
    elif code := cli.main([*({"data": ["data", "prepare"]}.get(stage, [stage])), "--config", file]):
        raise SystemExit(code)
    return {"seconds": time.perf_counter() - began, "peak": peak_gb(), **facts}


def filtered_lists(run: Path) -> dict[str, Any]:
    """Time the trie of a run, and lists in a random half of its catalog."""
    from minionerec import Recommender
    from minionerec.tree import CatalogTrie

    began = time.perf_counter()
    recommender = Recommender.load(run)
    loaded = time.perf_counter()
    trie = CatalogTrie.from_codes(recommender.prompts.sid_tokens)
    built = time.perf_counter()
    ids = recommender.items.ids
    allowed = [ids[item] for item in np.flatnonzero(np.random.default_rng(0).random(len(ids)) < 0.5)]
    histories = [[ids[item]] for item in np.random.default_rng(1).integers(0, len(ids), 64)]
    recommender.name_items("half", allowed)  # a list for each request, `allow`, would be read for each
    lists = recommender.recommend(histories, k=10, named=["half"])
    half = set(allowed)
    if any(item.item_id not in half for one in lists for item in one.items):
        raise SystemExit("A list holds an item that its filter hides.")
    asked = time.perf_counter()
    return {"load": loaded - began, "trie": built - loaded, "lists": asked - built, "bytes": trie.nbytes / len(ids)}


def measured(stage: str, folder: Path) -> dict[str, Any]:
    """`run_stage` in a fresh process."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, __file__, "--measure", stage, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{stage} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--folder", type=Path, help="keeps the data and the runs (default: a temporary folder)")
    parser.add_argument("--measure", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.measure:
        print(json.dumps(run_stage(given.measure, given.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        for interactions in given.interactions:
            folder = (given.folder or Path(temporary)) / str(interactions)
            if not (folder / "scale.yaml").is_file():
                began = time.perf_counter()
                write_tables(folder, interactions)
                (folder / "scale.yaml").write_text(yaml.safe_dump(settings(folder, interactions)), encoding="utf-8")
                print(f"{interactions:>11,} written    {time.perf_counter() - began:9.1f} s", flush=True)
            for stage in given.stages:
                figures = measured(stage, folder)
                facts = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name not in ("seconds", "peak"))
                print(
                    f"{interactions:>11,} {stage:10} {figures['seconds']:9.1f} s {figures['peak']:7.2f} GB  {facts}", flush=True
                )


if __name__ == "__main__":
    main()
