"""Lists for many users: `minionerec recommend --users` on files of two sizes, the larger one killed once on the way.

Claims: memory does not grow with the number of users; a killed run resumes after the parts that it has, and ends with the
bytes of an undisturbed one (compared on the smaller file). Histories are drawn at random from the run's catalog, of 1 to
`--longest` items. Times are those of the whole command, its start included; peak memory is that of its process.

    python benchmarks/users.py --run runs/ml-100k                  # 10,000 and 100,000 users
    python benchmarks/users.py --run runs/ml-100k --users 300 900 --k 5
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from setting import machine, positive, table


def write_users(run: Path, users: int, longest: int, path: Path) -> None:
    """A file of users with random histories."""
    ids = pl.read_parquet(run / "data/catalog.parquet", glob=False)["item_id"].to_numpy()
    rng = np.random.default_rng(0)
    histories = [ids[rng.integers(0, len(ids), size)].tolist() for size in rng.integers(1, longest + 1, users)]
    pl.DataFrame({"user": range(users), "history": histories}).write_parquet(path)


def recommend(run: Path, file: Path, out: Path, k: int, kill_after: int | None = None) -> tuple[float, float]:
    """Run the command; seconds and its peak memory in GB. It is killed as soon as it has so many parts, if that is set."""
    command = [sys.executable, "-m", "minionerec", "recommend", "--run", str(run), "--users", str(file), "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--k", str(k)], stdout=subprocess.DEVNULL)
    parts = out.with_name(f"{out.name}.partial") / "checkpoints"
    while kill_after is not None and len(list(parts.glob("*.parquet"))) < kill_after:
        if process.poll() is not None:
            raise SystemExit("The command ended before it could be killed; take more users.")
        time.sleep(0.2)
    if kill_after is not None:
        process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (0 if kill_after is None else -signal.SIGKILL):
        raise SystemExit(f"minionerec recommend ended with {process.returncode}.")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def parts_of(folder: Path) -> dict[str, bytes]:
    """The bytes of all parts."""
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--users", type=positive, nargs=2, default=[10_000, 100_000], metavar="COUNT")
    options.add_argument("--k", type=positive, default=10)
    options.add_argument("--longest", type=positive, default=20, help="items of the longest history")
    arguments = options.parse_args(argv)
    print(f"{machine()}; {arguments.run}, lists of {arguments.k}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for users, kill_after in zip(arguments.users, (None, 2), strict=True):
            file, out = Path(folder) / f"{users}.parquet", Path(folder) / f"lists-{users}"
            write_users(arguments.run, users, arguments.longest, file)
            lost = 0.0 if kill_after is None else recommend(arguments.run, file, out, arguments.k, kill_after)[0]
            seconds, peak = recommend(arguments.run, file, out, arguments.k)
            parts = pl.scan_parquet(sorted(out.glob("*.parquet")), glob=False)
            listed = parts.select(pl.col("user").n_unique(), pl.len().alias("rows")).collect()
            if listed["user"][0] != users:
                raise SystemExit(f"{users} users were asked for, {listed['user'][0]} have a list.")
            rows.append([users, "no" if kill_after is None else f"after {lost:.0f} s", seconds, users / seconds, peak])
        small = arguments.users[0]
        again = Path(folder) / "again"
        recommend(arguments.run, Path(folder) / f"{small}.parquet", again, arguments.k, kill_after=2)
        recommend(arguments.run, Path(folder) / f"{small}.parquet", again, arguments.k)
        if parts_of(again) != parts_of(Path(folder) / f"lists-{small}"):
            raise SystemExit("The killed run wrote other bytes.")
    table(["users", "killed", "seconds with the start", "users per second", "peak memory GB"], rows)


if __name__ == "__main__":
    main()
