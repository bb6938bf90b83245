"""How long the analysis of a predictions file takes, and how much memory.

Claim: 4,533 examples x 50 predictions with 1,000 resamples in at most 5 s, one million in at most 3 minutes and 4 GB, on
2 cores. Each size runs in a fresh process: read `predictions.jsonl`, check it, all metrics with intervals on SIDs and items,
level tables, lost targets, calibration, slices by history and repetition, exposure. Predictions are synthetic (popular SIDs
more often, a tenth of all targets planted), as random ones would compress and sort unusually well.

    python benchmarks/eval_scale.py                       # both sizes; the large file takes 1.3 GB in --folder
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

ITEMS, LEVELS, CODES, WIDTH = 3686, 3, 256, 50


def write(path: Path, examples: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (ITEMS, LEVELS))
    codes[1::120] = codes[0::120][: len(codes[1::120])]  # some SIDs are shared
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, row in enumerate(codes.tolist()):
        groups.setdefault(tuple(row), []).append(item)
    sids = list(groups)
    weight = 1 / (1 + rng.permutation(len(sids)))
    scores = (-0.12 * np.arange(WIDTH) - 4).round(6).tolist()
    with path.open("w", encoding="utf-8") as stream:
        for example in range(examples):
            picked = np.argpartition(rng.exponential(size=len(sids)) / weight, WIDTH)[:WIDTH].tolist()
            target = picked[int(rng.integers(WIDTH))] if rng.random() < 0.1 else int(rng.integers(len(sids)))
            items = [item for sid in picked for item in groups[sids[sid]]]
            row = {
                "user": f"A{example}",
                "history": rng.integers(0, ITEMS, int(rng.integers(1, 11))).tolist(),
                "target": groups[sids[target]][0],
                "target_sid": sids[target],
                "sids": [sids[sid] for sid in picked],
                "items": items,
                "scores": scores,
                "exact": bool(rng.random() < 0.3),
                "sizes": [len(groups[sids[sid]]) for sid in picked],
            }
            stream.write(json.dumps(row, separators=(",", ":")) + "\n")


def analyse(path: Path, resamples: int) -> None:
    from minionerec.config import CUTOFFS
    from minionerec.eval.exposure import exposure
    from minionerec.eval.lists import RankedLists
    from minionerec.eval.metrics import measure
    from minionerec.eval.slices import parts_of_lists, slice_tables

    started = time.perf_counter()
    lists = RankedLists.read(path)
    read = time.perf_counter() - started
    found = measure(lists, CUTOFFS, resamples)
    slice_tables(lists, parts_of_lists(lists), (10,), resamples)
    exposure(lists, np.bincount(lists.targets, minlength=ITEMS))
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {"examples": len(lists), "read": read, "seconds": seconds, "cpu": used.ru_utime + used.ru_stime}
    print(json.dumps({**result, "peak": used.ru_maxrss * 1024 / 1e9, "HR@10": found["sid"]["HR@10"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[4533, 1_000_000])
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the synthetic files go (default: a temporary folder)")
    parser.add_argument("--analyse", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.analyse:
        analyse(arguments.analyse, arguments.resamples)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for examples in arguments.examples:
            path = Path(folder) / f"{examples}.jsonl"
            write(path, examples)
            command = [sys.executable, __file__, "--analyse", str(path), "--resamples", str(arguments.resamples)]
            began = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({**json.loads(done.stdout), "size": path.stat().st_size / 1e9, "all": time.perf_counter() - began})
            path.unlink()
    titles = {"examples": 10, "file GB": 8, "read s": 8, "analysis s": 11, "with start s": 13, "CPU s": 8, "peak GB": 8}
    print(*(f"{title:>{width}}" for title, width in titles.items()), " HR@10")
    for row in rows:
        hr = row["HR@10"]
        print(
            f"{row['examples']:>10,} {row['size']:>8.3f} {row['read']:>8.2f} {row['seconds']:>11.2f} {row['all']:>13.2f} "
            f"{row['cpu']:>8.2f} {row['peak']:>8.2f}  {hr['value']:.4f} [{hr['low']:.4f}, {hr['high']:.4f}]"
        )


if __name__ == "__main__":
    main()
