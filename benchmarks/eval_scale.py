"""How long the analysis of a predictions file takes, and how much memory.

Claim: 4,533 examples x 50 predictions with 1,000 resamples in at most 5 s, one million in at most 3 minutes and 4 GB, on
2 cores. Each size runs in a fresh process and does what the eval stage does once it has decoded: read `predictions.jsonl`,
check every line, that it is this split's and that it is this catalog's; all metrics with intervals on SIDs and items, also
per user; level tables, lost targets, calibration; slices by history, popularity, time, SID and user; exposure. Predictions are
synthetic (popular SIDs more often, a tenth of all targets planted), as random ones would compress and sort unusually well; a
tenth of the users have two rows, some SIDs several items.

    python benchmarks/eval_scale.py                       # both sizes; the large file takes 1.4 GB in --folder
    python benchmarks/eval_scale.py --examples 1000       # small
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from memory import peak_gb

from minionerec.config import RESAMPLES, Config, EvalConfig
from minionerec.data.dataset import SPLIT_SCHEMA, Dataset
from minionerec.sid.index import SidIndex

ITEMS, LEVELS, CODES, WIDTH = 3686, 3, 256, 50


def write(folder: Path, examples: int, seed: int = 0) -> None:
    """Write a dataset, its SIDs and `predictions.jsonl` of its test split."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (ITEMS, LEVELS)).astype(np.int32)
    codes[1::120] = codes[0::120][: len(codes[1::120])]  # some SIDs are shared
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, row in enumerate(codes.tolist()):
        groups.setdefault(tuple(row), []).append(item)
    sids = list(groups)
    weight = 1 / (1 + rng.permutation(len(sids)))
    texts = [json.dumps(sid, separators=(",", ":")) for sid in sids]  # most of a line's time, were it done each time
    scores = json.dumps((-0.12 * np.arange(WIDTH) - 4).round(6).tolist(), separators=(",", ":"))
    rows: dict[str, list] = {name: [] for name in SPLIT_SCHEMA}
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as stream:
        for example in range(examples):
            picked = np.argpartition(rng.exponential(size=len(sids)) / weight, WIDTH)[:WIDTH].tolist()
            target = picked[int(rng.integers(WIDTH))] if rng.random() < 0.1 else int(rng.integers(len(sids)))
            second = example % 11 == 10  # of the user before
            row = {
                "user": f"A{example - second}",
                "history": rng.integers(0, ITEMS, int(rng.integers(1, 11))).tolist(),
                "target": groups[sids[target]][0],
                "position": 11 + second,
            }
            for name, value in row.items():
                rows[name].append(value)
            lists = {
                "items": [item for sid in picked for item in groups[sids[sid]]],
                "sizes": [len(groups[sids[sid]]) for sid in picked],
                "exact": bool(rng.random() < 0.3),
                "score_kind": "log-probability",
            }
            listed = ",".join([texts[sid] for sid in picked])
            rest = f'"target_sid":{texts[target]},"sids":[{listed}],"scores":{scores}}}\n'
            stream.write(f"{json.dumps({**row, **lists}, separators=(',', ':'))[:-1]},{rest}")
            rows["timestamp"].append(int(rng.integers(10)))
    test = pl.DataFrame(rows, schema=SPLIT_SCHEMA)
    earlier = test.with_columns(pl.col("position") - 2, target=pl.col("history").list.last())
    catalog = pl.DataFrame({"item_id": [str(item) for item in range(ITEMS)], "title": "", "text": ""})
    train = earlier.filter(pl.col("position") == 9).sample(fraction=0.8, seed=seed)
    dataset = Dataset(catalog, train, earlier.with_columns(pl.col("position") + 1), test)
    dataset.save(folder)
    (folder / "sid").mkdir()
    SidIndex(codes, (CODES,) * LEVELS, dataset.digest).save(folder / "sid")


def measure(folder: Path, resamples: int) -> None:
    """Analyse in this process and print what it took."""
    from minionerec.eval.evaluate import measure_predictions
    from minionerec.eval.lists import RankedLists

    dataset = Dataset.load(folder)
    index = SidIndex.load(folder / "sid", dataset)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    metrics = measure_predictions(folder, dataset, index, Config(eval=EvalConfig(resamples=resamples)))
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    peak, started = peak_gb(), time.perf_counter()
    RankedLists.read(folder / "predictions.jsonl")  # once more, alone
    read = time.perf_counter() - started
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    result = {"examples": metrics.rows, "users": metrics.users, "read": read, "seconds": seconds, "cpu": cpu}
    print(json.dumps({**result, "peak": peak, "HR@10": metrics.sid["HR@10"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[4533, 1_000_000])
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--folder", type=Path, help="where the synthetic files go (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.resamples)
        return
    titles = {"examples": 10, "users": 9, "file GB": 8, "reading s": 10, "analysis s": 11, "CPU s": 8, "start to end s": 15}
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as parent:
        for examples in arguments.examples:
            folder = Path(parent) / str(examples)
            folder.mkdir()
            write(folder, examples)
            size = (folder / "predictions.jsonl").stat().st_size / 1e9
            command = [sys.executable, __file__, "--measure", str(folder), "--resamples", str(arguments.resamples)]
            began = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({**json.loads(done.stdout), "size": size, "all": time.perf_counter() - began})
            (folder / "predictions.jsonl").unlink()
    print(f"{arguments.resamples:,} resamples")
    print(*(f"{title:>{width}}" for title, width in titles.items()), " peak GB  HR@10")
    for row in rows:
        hr = row["HR@10"]
        print(
            f"{row['examples']:>10,} {row['users']:>9,} {row['size']:>8.3f} {row['read']:>10.2f} {row['seconds']:>11.2f} "
            f"{row['cpu']:>8.2f} {row['all']:>15.2f} {row['peak']:>8.2f}  {hr['value']:.4f} [{hr['low']:.4f}, {hr['high']:.4f}]"
        )


if __name__ == "__main__":
    main()
