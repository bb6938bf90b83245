"""Raw Amazon reviews to a Dataset: rows per second and peak memory, against the straightforward Python loop.

Claim: preparing is at least 20 times as fast as the algorithm of the released code's script, written anew below as plain
loops, on the same gzipped files with the same examples in the same order; and memory grows no faster than the rows that are
kept.

    PYTHONPATH=. python benchmarks/data_prepare.py                          # 10^5, 10^6, 10^7 reviews; the loop up to 10^6
    PYTHONPATH=. python benchmarks/data_prepare.py --rows 20000 --loop 20000

The synthetic dump has the fields of Amazon 2018, about 500 bytes a review, users and items of uneven activity, titles that
break the rules, items without metadata and repeated reviews. Each measurement is a process of its own. Seconds are CPU seconds
of that process, which other work on the machine changes little; with one thread they are the time it takes on an idle machine.
"""

import argparse
import gzip
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from memory import peak_gb

from minionerec.artifacts import Manifest
from minionerec.config import Config, DataConfig
from minionerec.data import prepare
from minionerec.data.dataset import SPLITS, Dataset

CATEGORY, USER_K, HISTORY = "Synthetic", 5, 10
WIDEN = {"window 2016-10 to 2018-11": 0, "widened from 2016-10 to 1996-10": 10**9}
_BLOCK = 200_000
_WORDS = "the a very well good bad works fits as described strong cheap tool part price quality would buy again but".split()  # noqa: SIM905 (shorter so)


def write_dump(folder: Path, rows: int, seed: int = 0) -> None:
    """Write reviews and metadata; about 40 reviews an item and 3 a user, both heavy-tailed."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    items, users = max(rows // 40, 50), max(rows // 3, 50)
    with gzip.open(folder / f"meta_{CATEGORY}.json.gz", "wt", compresslevel=1, encoding="utf-8") as stream:
        for item in range(items):
            if item % 50 == 7:
                continue  # reviewed, but not listed
            words = _WORDS[item % 11 :] + _WORDS
            title = "<span id=x>" if item % 60 == 9 else " ".join(words[: 25 if item % 40 == 3 else 6]) + f" {item}"
            described = [" ".join(words)]
            line = {"category": ["Things"], "description": described, "title": title, "brand": "B", "asin": f"B{item:09d}"}
            stream.write(json.dumps(line) + "\n")
    texts = pl.Series([" ".join(rng.choice(_WORDS, rng.integers(15, 110))) for _ in range(2000)])
    day = 86_400
    with gzip.open(folder / f"{CATEGORY}.json.gz", "wb", compresslevel=1) as stream:
        for begin in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - begin)
            user = (users * rng.random(count) ** 2.2).astype(int)
            item = (items * rng.random(count) ** 2).astype(int)
            time_ = 1_541_000_000 // day * day - (7_900 * rng.random(count) ** 3).astype(int) * day
            frame = pl.DataFrame(
                {
                    "overall": rng.integers(1, 6, count).astype(float),
                    "verified": True,
                    "reviewTime": "09 1, 2016",
                    "reviewerID": user,
                    "asin": item,
                    "reviewerName": "A. Customer",
                    "reviewText": texts.gather(rng.integers(0, len(texts), count)),
                    "summary": "Works",
                    "unixReviewTime": time_,
                }
            )
            frame = frame.with_columns(
                reviewerID="A" + pl.col("reviewerID").cast(pl.String).str.zfill(13),
                asin="B" + pl.col("asin").cast(pl.String).str.zfill(9),
            )
            repeated = frame[: count // 100]
            stream.write(
                pl.concat([frame[count // 100 :], repeated[: len(frame) // 200], repeated[: len(frame) // 200]])
                .write_ndjson()
                .encode()
            )


def loop(folder: Path, out: Path, widen_below: int) -> None:
    """The released code's algorithm, as it is usually written: dictionaries, and passes over a list of dictionaries."""
    with gzip.open(folder / f"{CATEGORY}.json.gz", "rt", encoding="utf-8") as stream:
        reviews = [json.loads(line) for line in stream]
    with gzip.open(folder / f"meta_{CATEGORY}.json.gz", "rt", encoding="utf-8") as stream:
        metadata = [json.loads(line) for line in stream]
    titles, refused = {}, set()
    for meta in metadata:
        if "title" not in meta or "<span id" in meta["title"]:
            refused.add(meta["asin"])
            continue
        title = meta["title"].replace("&quot;", '"').replace("&amp;", "&").strip(" ").strip('"')
        if len(title) > 1 and len(title.split(" ")) <= 20:
            titles[meta["asin"]] = title
        else:
            refused.add(meta["asin"])
    refused |= {review["asin"] for review in reviews if review["asin"] not in titles}
    year = 2016
    while True:
        kept = _loop_core(reviews, refused, datetime(year, 10, 1).timestamp(), datetime(2018, 11, 1).timestamp())
        if year <= 1996 or len({review["asin"] for review in kept}) >= widen_below:
            break
        year -= 1
    sequences = defaultdict(list)
    for review in kept:
        sequences[review["reviewerID"]].append((review["unixReviewTime"], review["asin"]))
    rows = []
    for user, sequence in sequences.items():
        sequence.sort(key=lambda pair: pair[0])
        items = [item for _, item in sequence]
        for place in range(1, len(items)):
            rows.append((user, items[max(0, place - HISTORY) : place], items[place], sequence[place][0]))
    rows.sort(key=lambda row: row[3])
    cuts = [0, int(len(rows) * 0.8), int(len(rows) * 0.9), len(rows)]
    out.mkdir(parents=True)
    for name, begin, end in zip(SPLITS, cuts, cuts[1:], strict=False):
        with (out / f"{name}.inter").open("w") as stream:
            for user, history, target, _ in rows[begin:end]:
                stream.write(f"{user}\t{' '.join(history)}\t{target}\n")


def _loop_core(reviews: list[dict], refused: set[str], start: float, end: float) -> list[dict]:
    gone_users, gone_items = set(), set(refused)
    while True:
        kept, users, items = [], defaultdict(int), defaultdict(int)
        for review in reviews:
            if review["unixReviewTime"] < start or review["unixReviewTime"] > end:
                continue
            if review["reviewerID"] in gone_users or review["asin"] in gone_items:
                continue
            users[review["reviewerID"]] += 1
            items[review["asin"]] += 1
            kept.append(review)
        few_users = {user for user, count in users.items() if count < USER_K}
        few_items = {item for item, count in items.items() if count < USER_K}
        if not few_users and not few_items:
            return kept
        gone_users |= few_users
        gone_items |= few_items


def ours(folder: Path, out: Path, widen_below: int) -> None:
    """The data stage."""
    data = DataConfig(
        source="amazon-2018", path=str(folder), category=CATEGORY, filters="released", user_k=USER_K, max_history=HISTORY,
        start="2016-10", end="2018-11", widen_below_items=widen_below, split="chronological",
    )  # fmt: skip
    prepare.prepare_data(Config(out=str(out), data=data))


def same(run: Path, other: Path) -> bool:
    """Whether both wrote the same examples in the same order."""
    dataset = Dataset.load(run / "data")
    ids = dataset.catalog["item_id"].to_list()
    for name in SPLITS:
        lines = (other / f"{name}.inter").read_text().splitlines()
        rows = dataset.split(name).select("user", "history", "target").iter_rows()
        if lines != [f"{user}\t{' '.join(ids[item] for item in history)}\t{ids[target]}" for user, history, target in rows]:
            return False
    return True


def _measured(method: str, folder: Path, out: Path, widen_below: int) -> tuple[float, float]:
    """Seconds and peak memory (GB) of a process of its own, without the imports' seconds."""
    command = [sys.executable, __file__, "--measure", method, "--folder", str(folder), "--out", str(out)]
    done = subprocess.run([*command, "--widen", str(widen_below)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method} failed:\n{done.stderr}")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7], help="reviews per dump")
    parser.add_argument("--loop", type=int, default=10**6, help="run the Python loop up to this many reviews")
    parser.add_argument("--measure", choices=("ours", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the dumps go (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--widen", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        started = time.process_time()
        {"ours": ours, "loop": loop}[given.measure](given.folder, given.out, given.widen)
        seconds = time.process_time() - started
        print(seconds, peak_gb())
        return
    print(f"Python {platform.python_version()}, polars {pl.__version__}, {pl.thread_pool_size()} thread(s)")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        for rows in given.rows:
            folder = Path(name) / str(rows)
            write_dump(folder / "raw", rows)
            size = (folder / "raw" / f"{CATEGORY}.json.gz").stat().st_size / 1e9
            print(f"\n{rows:,} reviews, {size:,.3f} GB gzipped")
            print(f"{'CPU seconds':34}{'kept':>10}{'ours s':>9}{'rows/s':>11}{'GB':>8}{'loop s':>9}{'GB':>8}{'ratio':>8}  same")
            for place, (label, widen) in enumerate(WIDEN.items()):
                run, other = folder / f"ours {place}", folder / f"loop {place}"
                seconds, peak = _measured("ours", folder / "raw", run, widen)
                kept = Manifest.load(run / "data").metrics["interactions"]
                line = f"{label:34}{kept:>10,}{seconds:>9.2f}{rows / seconds:>11,.0f}{peak:>8.2f}"
                if rows <= given.loop:
                    slow, most = _measured("loop", folder / "raw", other, widen)
                    line += f"{slow:>9.1f}{most:>8.2f}{slow / seconds:>8.1f}  {'yes' if same(run, other) else 'NO'}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
