"""How fast training, decoding and k-means are next to other work, with and without the spin count that commands set.

Claim: next to one and two busy processes on two cores, SFT of the main job's model reaches at least half of its fair share with
the spin count of `minionerec.distributed.share_cores`. The fair share is the better quiet speed times the part of a core that a
thread would get: with T threads and B busy processes on C cores, min(1, C / (T + B)).

Every figure is the median over fresh processes, with and without the spin count in turn. A busy process is an endless loop in
Python. Run it on a machine without other work.

    python benchmarks/busy.py                                # about 15 minutes
    python benchmarks/busy.py --jobs sft --spins 10000 50000 # other spin counts
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

JOBS = {"sft": "steps/s", "decode": "prompts/s", "kmeans": "fits/s"}
BUSY = (0, 1, 2)
# It ends with its parent, even if that is killed.
LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6):\n        pass"
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def sft() -> Callable[[], float]:
    """A training step of the main job's model: 4 rows of 256 tokens."""
    import torch
    from setting import random_model

    torch.manual_seed(0)
    model = random_model("main", 192).train()
    optimizer = torch.optim.AdamW(model.parameters())
    rows = torch.randint(0, 1000, (4, 256))

    def step() -> float:
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1.0

    return step


def decode() -> Callable[[], float]:
    """A beam search of 50 beams after 16 prompts of 64 tokens."""
    import torch
    from setting import SIZES, industrial_codes, random_model

    from minionerec.tree import CatalogTrie, beam_search

    codes, _ = industrial_codes()
    trie = CatalogTrie.from_codes(codes + SIZES["main"]["vocabulary"])
    model = random_model("main", int(codes.max()) + 1)
    prompts = torch.randint(0, 1000, (16, 64), generator=torch.Generator().manual_seed(1))

    def search() -> float:
        beam_search(model, prompts, trie=trie, num_beams=50)
        return float(len(prompts))

    return search


def kmeans() -> Callable[[], float]:
    """Three codebooks of 64 codes for 1,682 vectors, as in the main job."""
    import numpy as np

    from minionerec.config import SidConfig
    from minionerec.sid.quantize import fit_quantizer

    vectors = np.random.default_rng(0).normal(size=(1682, 384)).astype(np.float32)
    config = SidConfig(codebook_size=64)

    def fit() -> float:
        fit_quantizer(vectors, config, 0)
        return 1.0

    return fit


def measure(job: str, seconds: float) -> float:
    """Units per second in this process, after a warm-up."""
    run = {"sft": sft, "decode": decode, "kmeans": kmeans}[job]()
    run()
    units, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        units += run()
    return units / (time.perf_counter() - began)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many endless loops run meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def in_fresh_process(job: str, spins: str, threads: int, seconds: float) -> float:
    """`measure` in a process with this spin count; `default` is the library's own."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    if spins != "default":
        environment["GOMP_SPINCOUNT"] = spins
    command = [sys.executable, __file__, "--only", job, "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def rows(jobs: Sequence[str], spins: Sequence[str], arguments: argparse.Namespace, cores: int) -> Iterator[list[str]]:
    """A row of the table for each job and spin count: speeds, and ratios to the fair share."""
    for job in jobs:
        speeds: dict[tuple[str, int], float] = {}
        for number in BUSY:
            with busy(number):
                runs: dict[str, list[float]] = {count: [] for count in spins}
                for _ in range(arguments.repeats):
                    for count in spins:
                        runs[count].append(in_fresh_process(job, count, arguments.threads, arguments.seconds))
            speeds |= {(count, number): statistics.median(values) for count, values in runs.items()}
        quiet = max(speeds[count, 0] for count in spins)
        for count in spins:
            cells = [job, count, f"{speeds[count, 0]:.2f} {JOBS[job]}"]
            for number in BUSY[1:]:
                share = quiet * min(1, cores / (arguments.threads + number))
                cells.append(f"{speeds[count, number]:.2f} = {speeds[count, number] / share:.2f} of its share")
            yield cells


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--spins", nargs="+", default=[], metavar="N", help="spin counts to compare with the default")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each figure")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each process measures")
    parser.add_argument("--threads", type=int, default=2, help="of the job")
    parser.add_argument("--only", choices=JOBS, help="measure one job in this process, and print its speed")
    arguments = parser.parse_args()
    if arguments.only:
        print(measure(arguments.only, arguments.seconds))
        return
    from minionerec.distributed import SPINS

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{cores} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f} before the first figure\n")
    print(
        "| job | GOMP_SPINCOUNT | quiet | next to one busy process | next to two |\n| --- | --- | --- | --- | --- |", flush=True
    )
    for cells in rows(arguments.jobs, ["default", *(arguments.spins or [str(SPINS)])], arguments, cores):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
