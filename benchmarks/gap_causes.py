"""What each mistake of the reference costs, alone: HR@10 and NDCG@10 minus the clean pipeline's, with paired intervals.

Every mistake is a switch of the configuration. The script trains the clean pipeline with every seed, turns one switch on at a
time and trains again what the switch touches (all, RL alone, or nothing but the evaluation), evaluates all on the same users,
and prints the differences. A difference is a user's mean over the seeds; its 95 % interval resamples users, p is that of a
paired permutation test. Between seeds: the standard deviation of the seeds' differences in NDCG@10.

Each run lives in `OUT/<arm>/seed-<n>/`. What is finished is not made again and what was interrupted goes on, so the same
command resumes. `OUT/gap_causes.json` holds the figures; the report's checklist shows those of
`minionerec/report/gap_causes.json`.

    python benchmarks/gap_causes.py --config industrial-tiny --out runs/gap --data.path FOLDER
    python benchmarks/gap_causes.py --config industrial-tiny --out runs/gap --data.path FOLDER --seeds 1 --quirks beams-10

Fields behind the options hold for all runs. On the reference's files with a partial train split, call it partial: effects there
compare the pipeline with itself, not with the published table.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from setting import difference_text, machine, positive, table

from minionerec import pipeline
from minionerec.artifacts import read_json, write_json
from minionerec.cli import parse
from minionerec.eval.compare import align
from minionerec.eval.intervals import Interval, across_seeds, beyond_noise, paired, permutation
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import per_user, ranks

METRICS = ("HR@10", "NDCG@10")
RESAMPLES = 10_000


@dataclass(frozen=True)
class Arm:
    """One run per seed.

    Attributes:
        fields: over the common ones.
        parent: the arm whose data, SIDs and models it takes over as far as `own` does not make them; None for none.
        own: the stages it makes itself, before it is evaluated.
    """

    fields: str = ""
    parent: str | None = None
    own: tuple[str, ...] = ()

    @property
    def recommender(self) -> str:
        """What is evaluated."""
        return "rl" if self.fields.startswith("--rl.") else "sft"


TRAINED = ("data prepare", "sid", "sft")
_REFERENCE = "--prompts.style alpaca --prompts.wording reference"
_RL = "--rl.evaluations 0"
ARMS = {
    "clean": Arm(own=TRAINED),
    "reference-prompts": Arm(_REFERENCE, own=TRAINED),
    "eval-sentence": Arm(f"{_REFERENCE} --prompts.eval_style reference", "reference-prompts"),
    "answer-in-prompt": Arm("--sft.answer_in_prompt true", own=TRAINED),
    "vocabulary": Arm("--sft.normalise vocabulary --eval.normalise vocabulary", own=TRAINED),
    "beams-10": Arm("--eval.num_beams 10", "clean"),
    "beams-20": Arm("--eval.num_beams 20", "clean"),
    "rl": Arm(_RL, "clean", ("rl",)),
    "rl-last-row": Arm(f"{_RL} --rl.targets last_row", "clean", ("rl",)),
    "rl-reference-targets": Arm(f"{_RL} --rl.targets reference", "clean", ("rl",)),
}
QUIRKS = {  # the arm with the mistake, and the one without
    "prompt mismatch": ("eval-sentence", "reference-prompts"),
    "prompts of the reference, asked as trained": ("reference-prompts", "clean"),
    "prompts of the reference, with the mismatch": ("eval-sentence", "clean"),
    "answer in the prompt": ("answer-in-prompt", "clean"),
    "wrong reward targets": ("rl-last-row", "rl"),
    "validation labels in training rewards": ("rl-reference-targets", "rl-last-row"),
    "probabilities over the whole vocabulary": ("vocabulary", "clean"),
    "20 beams": ("beams-20", "clean"),
    "10 beams": ("beams-10", "clean"),
}


def make(arm: str, folder: Path, seed: int, arguments: argparse.Namespace, common: Sequence[str]) -> None:
    """Make an arm's run of one seed, each stage in a process of its own; what is current stays.

    Raises:
        SystemExit: a stage failed.
    """
    chosen = ARMS[arm]
    folder.mkdir(parents=True, exist_ok=True)
    if chosen.parent is not None:
        for name in ("data", "sid", "sft"):
            link = folder / name
            if not link.is_symlink():
                link.symlink_to((arguments.out / chosen.parent / f"seed-{seed}" / name).resolve(), target_is_directory=True)
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    fields = [*common, *chosen.fields.split()]
    for stage in (*chosen.own, "eval"):
        command = [sys.executable, "-m", "minionerec", *stage.split(), "--out", str(folder), "--seed", str(seed)]
        if stage == "eval":  # of the one model, nothing else
            command = [sys.executable, __file__, "--out", str(arguments.out), "--only", arm, str(seed)]
        command += ["--config", arguments.config, *fields]
        if done := subprocess.run(command, env=environment, check=False).returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done}. The same command of the whole table goes on from here.")


def decode(arguments: argparse.Namespace, arm: str, seed: str, fields: Sequence[str]) -> None:
    """Evaluate one arm's model, in this process."""
    folder = arguments.out / arm / f"seed-{seed}"
    config = parse("run", ["--config", arguments.config, "--out", str(folder), "--seed", seed, *fields])
    assert config is not None  # only --help and --print_config give none
    pipeline.set_up(config.threads)
    from minionerec.eval import predict

    predict.run(config, ARMS[arm].recommender)


def lists(arm: str, seed: int, out: Path) -> RankedLists:
    """What an arm recommends."""
    return RankedLists.read(out / arm / f"seed-{seed}" / "eval" / ARMS[arm].recommender / "predictions.jsonl")


def difference(mistaken: str, clean: str, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """How much the one arm exceeds the other: `value`, `low`, `high` and `p` by metric, and `sd` between the seeds."""
    before, after = [], []
    for seed in seeds:
        base, other = lists(clean, seed, out), lists(mistaken, seed, out)
        units = base.units()
        old, new = per_user(ranks(base)), per_user(ranks(other)[align(base, other)])
        before.append(np.stack([old[name] for name in METRICS]))
        after.append(np.stack([new[name] for name in METRICS]))
    old, new = np.mean(before, axis=0), np.mean(after, axis=0)
    found = zip(METRICS, paired(old, new, RESAMPLES, 0, units), permutation(old, new, RESAMPLES, 0, units), strict=True)
    cells = {name: {**interval._asdict(), "p": p, "noise": not beyond_noise(interval)} for name, interval, p in found}
    each = [float((b - a)[METRICS.index("NDCG@10")].mean()) for a, b in zip(before, after, strict=True)]
    return {**cells, "sd": across_seeds(each)["sd"]}


def levels(arm: str, seeds: Sequence[int], out: Path) -> dict[str, list[float]]:
    """An arm's metrics on SIDs, one value per seed."""
    found = [per_user(ranks(lists(arm, seed, out))) for seed in seeds]
    return {name: [float(values[name].mean()) for values in found] for name in METRICS}


def text(cell: dict[str, Any]) -> str:
    """A stored difference, as `difference_text` writes it."""
    return difference_text(Interval(cell["value"], cell["low"], cell["high"]), cell["p"])


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--config", required=True, help="a preset or a YAML file")
    options.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    options.add_argument("--seeds", type=positive, default=3, help="1, 2, ...")
    arms = ", ".join(dict.fromkeys(mistaken for mistaken, _ in QUIRKS.values()))
    options.add_argument("--quirks", nargs="+", help=f"arms with a mistake, some of: {arms}")
    options.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    arguments, common = options.parse_known_args(argv)
    if arguments.only:  # a child; its fields are complete
        return decode(arguments, *arguments.only, common)
    known = {mistaken for mistaken, _ in QUIRKS.values()}
    if unknown := sorted({*(arguments.quirks or [])} - known):
        raise SystemExit(f"{unknown[0]!r} is no quirk; there are {', '.join(sorted(known))}.")
    chosen = {name: pair for name, pair in QUIRKS.items() if arguments.quirks is None or pair[0] in arguments.quirks}
    needed = {arm for pair in chosen.values() for arm in pair} | {"clean"}
    needed |= {parent for arm in needed if (parent := ARMS[arm].parent)}
    seeds = range(1, arguments.seeds + 1)
    for seed in seeds:
        for arm in [arm for arm in ARMS if arm in needed]:
            print(f"{arm}, seed {seed}", flush=True)
            make(arm, arguments.out / arm / f"seed-{seed}", seed, arguments, common)

    found = {name: difference(*pair, seeds, arguments.out) for name, pair in chosen.items()}
    base = arguments.out / "clean" / "seed-1"
    examples = len(lists("clean", 1, arguments.out))
    print(f"\n{machine()}; {arguments.config}, {' '.join(common)}; {examples} examples, {len(seeds)} seed(s)\n")
    rows = [
        [arm, *(f"{np.mean(values):.4f} ({', '.join(f'{v:.4f}' for v in values)})" for values in cells.values())]
        for arm, cells in ((arm, levels(arm, seeds, arguments.out)) for arm in ARMS if arm in needed)
    ]
    table(["run", *(f"{name}, mean (by seed)" for name in METRICS)], rows)
    print()
    rows = [
        [name, f"{chosen[name][0]} - {chosen[name][1]}", *(text(cells[metric]) for metric in METRICS),
         "" if cells["sd"] is None else f"{cells['sd']:.4f}"]
        for name, cells in found.items()
    ]  # fmt: skip
    table(["quirk", "runs", *METRICS, "sd over seeds"], rows)
    data = read_json(base / "data" / "manifest.json")["metrics"]
    stored = {"config": arguments.config, "fields": list(common), "seeds": len(seeds), "examples": examples,
              "train": data["train"], "machine": machine(), "quirks": found}  # fmt: skip
    write_json(arguments.out / "gap_causes.json", stored)


if __name__ == "__main__":
    main()
