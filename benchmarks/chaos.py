"""Kills, pairs of processes, full disks, wrong settings: whether results differ, commands end in tracebacks, files are left.

    python benchmarks/chaos.py --out chaos                       # everything: 100 kills, 20 pairs, 20 disks, 200 settings
    python benchmarks/chaos.py --out chaos --kills 5 --pairs 3 --disks 3 --settings 40
    python benchmarks/chaos.py --out chaos --minutes 10          # stops after ten minutes; the same command continues

All trials are of a tiny run (60 users, 40 items, two layers). The run is first made undisturbed, stage by stage. A trial begins
with a copy of the stages before the one that it disturbs, so it takes seconds. Its results are compared with the undisturbed
ones byte by byte; pages and manifests are left out, which hold times and paths.

    kills     a stage is killed (SIGKILL) at a random moment, once or several times, and then run to its end
    pairs     two processes make the same stage at most 0.3 s apart, with equal or different seeds, half of them with --wait
    disks     the whole run on a disk that is too small, then again when it has room. As root the disk is a tmpfs; without
              that right a limit on the size of files stands for it
    settings  a value that does not fit one field of the configuration, or a file that is no configuration

Trials depend on --seed and their number alone. Each adds a line to DIR/trials-SEED.jsonl, and one that finds a fault keeps its
folder.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from wrong_settings import DOCUMENTS, bad_values, fields

from minionerec.artifacts import MANIFEST, file_hash, read_json

STAGES = {"data": ["data", "prepare"], "sid": ["sid"], "sft": ["sft"], "rl": ["rl"], "eval": ["eval"], "report": ["report"]}
COMMANDS = {"model": "sft", "prompts": "sft", "name": "data", "out": "data", "seed": "sid", "threads": "data"}  # of fields
SEEDS = (7, 8)
LEFTOVERS = (".partial", ".old", ".lock", ".tmp", ".new", ".scratch", "key.txt", "recipe.json", "checkpoints")
FAULTS = {
    "differing results": ("differs", "not what"),
    "tracebacks": ("traceback",),
    "left behind": ("left behind", "have changed"),
}
LIMIT = 240  # seconds of a command; a wrong setting has less
SETTING_LIMIT = 60
MEMORY = 12 << 30  # bytes of address space for a command with a wrong setting
_PRELOADED = [
    "datasets", "jsonargparse", "peft", "polars", "scipy.stats", "sklearn.feature_extraction.text",
    "transformers.models.qwen2.modeling_qwen2", "transformers.trainer", "trl.trainer.grpo_trainer",
]  # fmt: skip


# The run -----------------------------------------------------------------------------------------------------------------


def write_files(folder: Path, users: int = 60, items: int = 40) -> None:
    """Users who walk around a ring of items, so that there is something to learn."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    rows = ["item,title", *(f"i{item},thing number {item} of {item % 7} and {item % 5}" for item in range(items))]
    (folder / "items.csv").write_text("\n".join(rows) + "\n")
    lines = ["user,item,timestamp"]
    for user in range(users):
        item = rng.randrange(items)
        for step in range(rng.randrange(6, 12)):
            lines.append(f"u{user},i{item},{1_000_000 + step}")
            item = (item + rng.randrange(1, 3)) % items
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")


def configuration(raw: Path, out: Path, seed: int) -> dict[str, Any]:
    """A run of a few seconds, as plain values."""
    return {
        "name": "tiny",
        "out": str(out),
        "seed": seed,
        "threads": 1,
        "data": {"source": "csv", "path": str(raw), "max_history": 6},
        "sid": {"encoder": "tfidf", "levels": 3, "codebook_size": 8},
        "model": {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 2, "vocabulary": 400},
        "sft": {"history_stride": 6, "batch_size": 8, "micro_batch": 4, "row_tokens": 64, "epochs": 4, "evaluations": 4},
        "rl": {"max_examples": 32, "num_generations": 4, "prompts_per_step": 8, "micro_batch_prompts": 4, "checkpoints": 4},
        "eval": {"num_beams": 10, "batch_size": 16, "resamples": 100, "shard_size": 16},
        "report": {"examples": 2},
    }


def results(artefact: Path) -> dict[str, str]:
    """The SHA-256 of each file of an artefact that equal runs write equally."""
    files = [path for path in artefact.rglob("*") if path.is_file() and path.suffix != ".html" and path.name != MANIFEST]
    return {path.relative_to(artefact).as_posix(): file_hash(path) for path in files}


def artefacts(run: Path, stage: str) -> list[Path]:
    """The folders of a stage's finished artefacts."""
    return sorted(path.parent for path in run.glob(f"{stage}/{'*/' if stage == 'eval' else ''}{MANIFEST}"))


def leftovers(run: Path) -> list[str]:
    """What no finished run has."""
    paths = [path for path in run.rglob("*") if path.name.endswith(LEFTOVERS) or ".lock." in path.name]
    return sorted(path.relative_to(run).as_posix() for path in paths)


# Processes ---------------------------------------------------------------------------------------------------------------


def _command(arguments: list[str], log: str, limits: dict[int, int]) -> None:
    """What a forked process does: it becomes `minionerec ARGUMENTS`."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(Path(log).parent)  # a name or a folder that should be refused would go here
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    from minionerec.cli import main

    sys.exit(main(arguments))


class Process:
    """A command of ours in a process of its own; libraries are imported already, so it begins at once."""

    def __init__(self, arguments: list[str], log: Path, limits: dict[int, int] | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._process = context.Process(target=_command, args=(arguments, str(log), limits or {}))
        self._process.start()

    def end(self, seconds: float) -> int | None:
        """The exit code; None if the command was killed because it had not ended after so many seconds."""
        self._process.join(seconds)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        return code


@dataclass
class Chaos:
    """What all trials share."""

    out: Path
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def reference(self) -> Path:
        """The undisturbed run."""
        return self.out / "undisturbed" / "run"

    def config(self, folder: Path, seed: int = SEEDS[0]) -> Path:
        """A file with the configuration of a run in `folder`."""
        path = folder.parent / f"tiny-{seed}.yaml"
        path.write_text(yaml.safe_dump(configuration(self.out / "raw", folder, seed)))
        return path

    def prepare(self) -> None:
        """Make the undisturbed run, stage by stage, or read how long it took."""
        times = self.out / "seconds.json"
        if not times.is_file():
            shutil.rmtree(self.out, ignore_errors=True)
            write_files(self.out / "raw")
            self.reference.parent.mkdir(parents=True)
            Process(["--version"], self.out / "imports.log").end(LIMIT)  # the libraries are imported before anything is timed
            for stage, command in STAGES.items():
                began = time.monotonic()
                self.run(command, self.reference, self.out / "undisturbed.log")
                self.seconds[stage] = time.monotonic() - began
                print(f"undisturbed {stage}: {self.seconds[stage]:.1f} s", flush=True)
            times.write_text(json.dumps(self.seconds))
        self.seconds = read_json(times)

    def run(self, command: list[str], folder: Path, log: Path, seed: int = SEEDS[0]) -> None:
        """Run a command to its end; it must succeed."""
        code = Process([*command, "--config", str(self.config(folder, seed))], log).end(LIMIT)
        if code != 0:
            raise SystemExit(f"minionerec {' '.join(command)} ended with {code} although nothing disturbed it: {log}")

    def copy_before(self, stage: str, folder: Path) -> None:
        """Give a run the undisturbed stages before one."""
        folder.mkdir(parents=True)
        shutil.copy(self.reference / "run.yaml", folder)
        for name in list(STAGES)[: list(STAGES).index(stage)]:
            shutil.copytree(self.reference / name, folder / name)

    def alone(self, stage: str, seed: int) -> Path:
        """A run in which nothing disturbed a stage with this seed, after the undisturbed stages before it."""
        folder = self.out / f"alone-{stage}-{seed}" / "run"
        if not (folder / "done").is_file():
            shutil.rmtree(folder.parent, ignore_errors=True)
            self.copy_before(stage, folder)
            self.run(STAGES[stage], folder, folder.parent / "log", seed)
            (folder / "done").touch()
        return folder


def faults_of_logs(folder: Path) -> list[str]:
    """Tracebacks in what the commands of a trial have printed."""
    logs = {path.name: path.read_text(errors="replace") for path in sorted(folder.glob("*.log"))}
    return [f"traceback in {name}" for name, text in logs.items() if "Traceback" in text]


# Trials: each returns what it did, and its faults -------------------------------------------------------------------------


def kill(chaos: Chaos, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """Kill a stage at random moments, then run it to its end."""
    stage, run = rng.choice(list(STAGES)), folder / "run"
    chaos.copy_before(stage, run)
    arguments, moments = [*STAGES[stage], "--config", str(chaos.config(run))], []
    for attempt in range(rng.choice((1, 1, 2, 3))):
        moments.append(rng.uniform(0, chaos.seconds[stage]))
        if Process(arguments, folder / f"killed-{attempt}.log").end(moments[-1]) is not None:
            break  # it ended before
    code = Process(arguments, folder / "end.log").end(LIMIT)
    faults = [] if code == 0 else [f"the last run ended with {code}"]
    for artefact in artefacts(chaos.reference, stage):
        name = artefact.relative_to(chaos.reference)
        faults += [] if results(run / name) == results(artefact) else [f"{name} differs"]
    return f"{stage} killed after {', '.join(f'{moment:.1f}' for moment in moments)} s", faults


def pair(chaos: Chaos, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """Two processes make the same stage."""
    stage, run = rng.choice(["data", "sid", "sft", "sft", "rl", "eval"]), folder / "run"
    seeds, delay, wait = [SEEDS[0], rng.choice(SEEDS)], rng.uniform(0, 0.3), rng.random() < 0.5
    chaos.copy_before(stage, run)
    processes = []
    for number, seed in enumerate(seeds):
        options = ["--config", str(chaos.config(run, seed)), *["--wait"] * wait]
        processes.append(Process([*STAGES[stage], *options], folder / f"process-{number}.log"))
        time.sleep(delay)
    codes = [process.end(LIMIT) for process in processes]
    faults = [] if set(codes) <= {0, 2} and 0 in codes else [f"exit codes {codes}"]
    if wait and seeds[0] == seeds[1] and codes != [0, 0]:
        faults.append(f"equal commands that wait ended with {codes}")
    if stage == "data":
        seeds = [SEEDS[0]]  # it draws nothing
    for artefact in artefacts(chaos.reference, stage):
        name = artefact.relative_to(chaos.reference)
        seed = read_json(run / name / MANIFEST)["seed"] if (run / name / MANIFEST).is_file() else None
        if seed is None or results(run / name) != results(chaos.alone(stage, seed or SEEDS[0]) / name):
            faults.append(f"{name} is not what its manifest says, seed {seed}")
        recorded = yaml.safe_load((run / "run.yaml").read_text())["seed"] if (run / "run.yaml").is_file() else None
        if stage in ("sid", "sft", "rl") and recorded != seed:
            faults.append(f"run.yaml is not what {name} was made with: seed {recorded}")
    return f"{stage} twice, seeds {seeds}, {delay:.2f} s apart{', waiting' * wait}: {codes}", faults


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """A disk of `size` bytes; yields a function that makes it large, or None if this process may not mount one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk(chaos: Chaos, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """The whole run without enough room, then with it."""
    sizes = [path.stat().st_size for path in chaos.reference.rglob("*") if path.is_file()]
    share = rng.uniform(0.02, 1)
    with small_disk(folder / "disk", size := int(share * sum(sizes))) as enlarge:
        run = folder / "disk/run"
        largest = int(share * max(sizes))
        limits = {resource.RLIMIT_FSIZE: largest} if enlarge is None else {}
        arguments = ["run", "--config", str(chaos.config(folder / "run")), "--out", str(run)]
        first = Process(arguments, folder / "full.log", limits).end(LIMIT)
        faults = [] if first in (0, 2) else [f"without room it ended with {first}"]
        stages = [stage for stage in STAGES if artefacts(run, stage)]
        if enlarge is not None:
            enlarge()
        code = Process(arguments, folder / "end.log").end(LIMIT)
        faults += [] if code == 0 else [f"with room it ended with {code}"]
        for artefact in (artefact for stage in STAGES for artefact in artefacts(chaos.reference, stage)):
            name = artefact.relative_to(chaos.reference)
            faults += [] if results(run / name) == results(artefact) else [f"{name} differs"]
        faults += [f"left behind: {name}" for name in leftovers(run)] if run.is_dir() else []
        what = f"files of at most {largest:,} bytes" if enlarge is None else f"a disk of {size:,} bytes"
    return f"{what}: exit code {first} after {', '.join(stages) or 'nothing'}", faults


def setting(chaos: Chaos, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """One value of a finished run's configuration is wrong; its stage is asked for."""
    run = folder / "run"
    shutil.copytree(chaos.reference, run)
    name = rng.choice([*fields(), *["a document"] * 10])
    path = folder / "wrong.yaml"
    if name == "a document":
        stage, value = "data", rng.choice(DOCUMENTS)
        path.write_text(value, encoding="utf-8")
        arguments = ["--config", str(path), "--out", str(run), "--replace"]
    else:
        section, _, key = name.rpartition(".")
        stage, value = COMMANDS.get(section or name, section or "data"), rng.choice(bad_values(name))
        values = configuration(chaos.out / "raw", run, SEEDS[0])
        target = values.setdefault(section, {}) if section else values
        target[key] = value
        path.write_text(yaml.safe_dump(values | {"replace": True} if name != "replace" else values), encoding="utf-8")
        arguments = ["--config", str(path)]
    before = {file: file_hash(file) for file in run.rglob("*") if file.is_file()}
    began = time.monotonic()
    limits = {resource.RLIMIT_AS: MEMORY}
    code = Process([*STAGES.get(stage, [stage]), *arguments], folder / "wrong.log", limits).end(SETTING_LIMIT)
    seconds = time.monotonic() - began
    faults = [] if code in (0, 2, None) else [f"it ended with {code}"]
    if code == 2 and before != {file: file_hash(file) for file in run.rglob("*") if file.is_file()}:
        faults.append("it was refused, but files have changed")
    if code != 2:
        shutil.rmtree(run)  # what an accepted value makes is not looked at
    words = {0: "accepted", 2: "refused", None: f"still running after {SETTING_LIMIT} s"}.get(code, f"exit code {code}")
    return f"{words} in {seconds:.1f} s: {name} {str(value)[:40]!r}", faults


TRIALS = {"kills": kill, "pairs": pair, "disks": disk, "settings": setting}


def run_trial(chaos: Chaos, kind: str, number: int) -> dict[str, Any]:
    """One trial, by its number; a folder of faults is kept."""
    folder, began = chaos.out / f"{kind}-{number}", time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    what, faults = TRIALS[kind](chaos, random.Random(f"{chaos.seed} {kind} {number}"), folder)
    faults += faults_of_logs(folder)
    if (folder / "run").is_dir():
        faults += [f"left behind: {name}" for name in leftovers(folder / "run")]
    if not faults:
        shutil.rmtree(folder)
    return {"kind": kind, "number": number, "what": what, "faults": faults, "seconds": round(time.monotonic() - began, 1)}


def table(trials: list[dict[str, Any]]) -> Table:
    """Counts of each kind of trial and of fault."""
    result = Table(title="Kills, pairs, full disks, wrong settings", title_justify="left")
    for column in ("trials", "number", *FAULTS, "other faults", "what happened"):
        result.add_column(column, justify="left" if column in ("trials", "what happened") else "right")
    words = [word for marks in FAULTS.values() for word in marks]
    for kind in TRIALS:
        rows = [trial for trial in trials if trial["kind"] == kind]
        counts = [sum(_mentions(row["faults"], marks) for row in rows) for marks in FAULTS.values()]
        other = sum(any(not _mentions([fault], words) for fault in row["faults"]) for row in rows)
        happened = ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(map(_outcome, rows)).items()))
        result.add_row(kind, str(len(rows)), *map(str, counts), str(other), happened)
    return result


def _mentions(faults: Sequence[str], words: Sequence[str]) -> bool:
    return any(word in fault for word in words for fault in faults)


def _outcome(trial: dict[str, Any]) -> str:
    what = trial["what"]
    return {"settings": what.partition(" in ")[0], "pairs": what.rpartition(": ")[2]}.get(trial["kind"], "ended well")


def main() -> None:
    """Run the trials that are not done yet, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in (("kills", 100), ("pairs", 20), ("disks", 20), ("settings", 200)):
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no trial after so many minutes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    chaos, began = Chaos(arguments.out.resolve(), arguments.seed), time.monotonic()
    os.environ["MINIONEREC_CACHE"] = str(chaos.out / "cache")
    chaos.prepare()
    store = chaos.out / f"trials-{chaos.seed}.jsonl"
    trials = [json.loads(line) for line in store.read_text().splitlines()] if store.is_file() else []
    done = {(trial["kind"], trial["number"]) for trial in trials}
    waiting = [(kind, number) for kind in TRIALS for number in range(getattr(arguments, kind)) if (kind, number) not in done]
    random.Random(chaos.seed).shuffle(waiting)  # a run that is stopped early has tried all kinds
    first = time.monotonic()
    for position, (kind, number) in enumerate(waiting):
        if time.monotonic() - began > 60 * arguments.minutes:
            print(f"{len(waiting) - position} trials are left; the same command continues.")
            break
        trials.append(run_trial(chaos, kind, number))
        with store.open("a") as stream:
            stream.write(json.dumps(trials[-1]) + "\n")
        left = (time.monotonic() - first) / (position + 1) * (len(waiting) - position - 1) / 60
        faults = "; ".join(trials[-1]["faults"]) or "no fault"
        progress = f"{position + 1}/{len(waiting)} {kind} {number}"
        print(f"{progress}: {trials[-1]['what']}: {faults}; about {left:.0f} min left", flush=True)
    Console(width=160).print(table(trials))
    for trial in trials:
        if trial["faults"]:
            print(f"{trial['kind']} {trial['number']}: {trial['what']}: {'; '.join(trial['faults'])}")
    sys.exit(any(trial["faults"] for trial in trials))


if __name__ == "__main__":
    main()
