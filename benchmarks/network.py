"""How many bytes two processes exchange in a training step, next to what `minionerec sft --dry-run --machines` plans.

Two processes on this machine train over its loopback interface, as two machines would over a network. The kernel counts the
bytes that pass it. A short and a longer training are compared, so what start, validation and end exchange cancels out. Other
programs that use the loopback interface meanwhile are counted, too, unless the benchmark has an interface of its own (second
command, Linux, as root).

    python benchmarks/network.py --config ml-100k --out runs/network      # after data prepare and sid with the same options
    unshare --net sh -c 'ip link set lo up; python benchmarks/network.py --config ml-100k --out runs/network'
"""

import argparse
import tempfile
from pathlib import Path

import psutil
from setting import in_process_of_its_own, link_parts, machine, positive, table

from minionerec import cli
from minionerec.artifacts import Manifest
from minionerec.config import Config
from minionerec.sft import plan as sft_plan
from minionerec.training.network import exchanged

PROCESSES = 2
WAYS = {"DDP": [], "ZeRO-2": ["--config_file", "sft/zero2.yaml"]}
# Equal in both trainings: one validation at the end of each, whatever it exchanges.
FIELDS = ["--sft.evaluations", "1", "--sft.epochs", "1", "--sft.best_metric", "loss"]


def loopback_bytes() -> int:
    """Bytes that have passed the loopback interface since the machine's start."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def train(run: Path, folder: Path, launcher: list[str], options: list[str]) -> tuple[int, int]:
    """Train and return the steps and the bytes that passed.

    Args:
        run: has the data and the SIDs.
    """
    link_parts(run, folder, ("data", "sid"))
    before = loopback_bytes()
    launch = ["-m", "accelerate.commands.launch", *launcher, "--num_processes", str(PROCESSES), "--num_machines", "1"]
    in_process_of_its_own([*launch, "--mixed_precision", "no", "sft/train.py", "--out", str(folder), *options])
    return Manifest.load(folder / "sft").metrics["steps"], loopback_bytes() - before


def planned(config: Config, zero2: bool) -> int:
    """Bytes that each process sends in a step."""
    plans = {plan.devices.zero2: plan for plan in sft_plan.plans(config, PROCESSES)}
    return sum(exchanged(plans[zero2]).values())


def main() -> None:
    """Measure both ways to distribute and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="preset, file or run folder")
    parser.add_argument("--out", type=Path, required=True, help="the run with data and SIDs")
    parser.add_argument("--examples", type=positive, default=1000, help="training examples of the short training")
    arguments, fields = parser.parse_known_args()
    rows = []
    for way, launcher in WAYS.items():
        counts = []
        for times in (1, 3):
            options = ["--config", arguments.config, *FIELDS, "--sft.max_examples", str(times * arguments.examples), *fields]
            with tempfile.TemporaryDirectory() as folder:
                counts.append(train(arguments.out, Path(folder), launcher, options))
        (few, start), (many, end) = counts
        measured = (end - start) / (many - few) / PROCESSES
        config = cli.parse("sft", [*options[:2], "--out", str(arguments.out), *options[2:]])
        plan = planned(config, way == "ZeRO-2")
        rows.append((way, many - few, plan / 1e6, measured / 1e6, measured / plan))
    print(f"{machine()}; MB that each of {PROCESSES} processes sends in a step")
    table(("way", "steps", "planned", "measured", "measured / planned"), rows)


if __name__ == "__main__":
    main()
