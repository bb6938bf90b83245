"""What RL adds to SFT, and how much of it more SFT with another choice of checkpoint gives: four arms of equal compute.

SFT that is chosen by its lowest validation loss can stop long before its best ranking. What RL then gains may be what more
SFT, chosen by NDCG@10 on valid, gains without it. So there are four arms: SFT chosen by `loss` or by `ranking` (NDCG@10),
each with and without RL (`loss-rl`, `ranking-rl`). An arm without RL trains SFT for as many more epochs as RL's steps cost,
in planned FLOPs (`minionerec sft --dry-run`, `rl --dry-run`); nothing stops early. The SFT models that RL began with are
ranked, too (`loss-start`, `ranking-start`). If `--rl.holdout` keeps rows from SFT for RL, the arms without RL train on them
as well.

Each training lives in `OUT/<arm>/seed-<n>/`, data and SIDs in `OUT/items-<digest>/`. The same command resumes: a finished
training stays, an interrupted one continues from its last checkpoint. All choices are made on valid. The test split is read
with `--test` only, once, at the end. `--arms` trains only some arms and compares these. Figures are on items; a difference is
averaged over the seeds for each user, its 95 % interval resamples users, and `*` marks what is beyond noise.
`OUT/<split>.json` holds the figures. With `--test` and all arms that is `OUT/rl_arms.json`: copied unchanged to
`minionerec/report/rl_arms.json`, it feeds the checklist of the paper-gap report.

    python benchmarks/rl_arms.py --config industrial-tiny --out runs/rl-arms --data.path FOLDER --threads 1        # hours
    python benchmarks/rl_arms.py --config industrial-tiny --out runs/rl-arms --data.path FOLDER --threads 1 \
        --rl.holdout last --rl.holdout_share 0.5 --rl.prompts holdout --arms ranking ranking-rl                    # another OUT
    python benchmarks/rl_arms.py ... --test                                                                        # at the end

Fields behind the options hold for all arms.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gap_causes import shown_fields
from quality import configuration, make_items
from setting import change_text, in_process_of_its_own, link_parts, machine, options_of_trainings, table

from minionerec import cli
from minionerec.artifacts import Manifest, read_json, write_json
from minionerec.config import RESAMPLES, Config
from minionerec.errors import MiniOneRecError
from minionerec.eval.compare import values_by_seed
from minionerec.eval.lists import RankedLists
from minionerec.statistics.differences import differences

METRICS = ("NDCG@10", "HR@10", "HR@50")
# Nothing stops early: the compute of an arm is what it is given.
BASE = ("--sft.patience", "10000", "--rl.patience", "10000", "--eval.oracle_examples", "0", "--mixture.components", "[]")
STORED = "rl_arms.json"


@dataclass(frozen=True)
class Arm:
    """A way to spend the compute.

    Attributes:
        metric: chooses the SFT checkpoint.
        rl: whether RL has a share of the compute.
    """

    metric: str
    rl: bool


ARMS = {
    "loss": Arm("loss", False),
    "loss-rl": Arm("loss", True),
    "ranking": Arm("NDCG@10", False),
    "ranking-rl": Arm("NDCG@10", True),
}
STARTS = {"loss-start": "loss-rl", "ranking-start": "ranking-rl"}  # the SFT model of which arm
COMPARISONS = {  # the second minus the first
    "RL after SFT chosen by loss, against more SFT": ("loss", "loss-rl"),
    "RL after SFT chosen by ranking, against more SFT": ("ranking", "ranking-rl"),
    "SFT chosen by ranking instead of loss, both without RL": ("loss", "ranking"),
    "SFT chosen by ranking, against RL after SFT chosen by loss": ("loss-rl", "ranking"),
    "RL against the SFT it began with, chosen by loss": ("loss-start", "loss-rl"),
    "RL against the SFT it began with, chosen by ranking": ("ranking-start", "ranking-rl"),
}


def fields_of(arm: Arm, common: Sequence[str], longer: Mapping[str, Any] | None = None) -> list[str]:
    """An arm's fields; the last of equal fields counts.

    Args:
        longer: `epochs` and `evaluations` of SFT in place of the configuration's, in an arm without RL.
    """
    choice = ["--sft.best_metric", arm.metric]
    if arm.metric == "loss":
        choice += ["--sft.valid_examples", "null"]  # a loss is of the whole valid split
    if arm.rl:
        return [*BASE, *common, *choice]
    whole = ["--rl.holdout", "none", "--rl.holdout_share", "0.2", "--rl.prompts", "train"]  # SFT has all rows
    more = [text for name, value in (longer or {}).items() for text in (f"--sft.{name}", str(value))]
    return [*BASE, *common, *choice, *whole, *more]


def longer_sft(flops: Mapping[str, float], epochs: float, evaluations: int) -> dict[str, Any]:
    """Epochs and validations with which SFT alone costs what SFT and RL cost together.

    >>> longer_sft({"sft": 2.0, "rl": 1.0, "whole": 2.0}, epochs=10.0, evaluations=5)
    {'epochs': 15.0, 'evaluations': 8}

    Args:
        flops: planned, of `sft` and `rl` in an arm with RL, and of `whole`, SFT on all rows for the configuration's epochs.
        epochs, evaluations: the configuration's.
    """
    times = (flops["sft"] + flops["rl"]) / flops["whole"]
    return {"epochs": round(epochs * times, 3), "evaluations": math.ceil(evaluations * times)}


def planned_flops(arguments: argparse.Namespace, common: Sequence[str], items: Path) -> dict[str, float]:
    """The planned FLOPs that `longer_sft` needs, by a process of its own.

    Raises:
        SystemExit: the process failed.
    """
    folder = arguments.out / "plan"
    link_parts(items, folder, ("data", "sid"))
    in_process_of_its_own([__file__, "--only", "plan", "--config", arguments.config, "--out", str(folder), *common])
    flops: dict[str, float] = read_json(folder / "flops.json")
    return flops


def plan(arguments: argparse.Namespace, common: Sequence[str]) -> None:
    """The process that `planned_flops` starts."""
    from minionerec import pipeline
    from minionerec.rl import plan as rl_plan
    from minionerec.sft import plan as sft_plan

    first, whole = (
        configuration(arguments, arguments.out, 1, fields_of(arm, common)) for arm in (ARMS["loss-rl"], ARMS["loss"])
    )
    pipeline.set_up(first.threads)
    pipeline.quieten_libraries()
    plans = {"sft": sft_plan.plans(first), "rl": rl_plan.plans(first), "whole": sft_plan.plans(whole)}
    write_json(arguments.out / "flops.json", {name: found[0].flops for name, found in plans.items()})


def make(arguments: argparse.Namespace, name: str, seed: int, fields: Sequence[str], items: Path) -> None:
    """Train an arm with one seed and rank the split with its models, each in a process of its own; what is finished stays.

    Raises:
        SystemExit: a stage failed.
    """
    folder, arm = arguments.out / name / f"seed-{seed}", ARMS[name]
    options = ["--config", arguments.config, *fields, "--seed", str(seed)]
    link_parts(items, folder, ("data", "sid"))
    for stage in ("sft", "rl") if arm.rl else ("sft",):
        in_process_of_its_own(["-m", "minionerec", stage, "--out", str(folder), *options])
    ranked = folder / arguments.split  # a run of its own: a run keeps the lists of one split
    link_parts(folder, ranked, ("data", "sid", "sft", "rl"))
    in_process_of_its_own([__file__, "--only", "rank", "--out", str(ranked), *options, "--eval.split", arguments.split])


def rank(config: Config) -> None:
    """Rank the split with the models that a folder has, in this process."""
    from minionerec import pipeline
    from minionerec.eval.evaluate import evaluate

    pipeline.set_up(config.threads)
    for stage in ("sft", "rl"):
        if (config.folder / stage).is_dir():
            evaluate(config, stage)


def read_lists(arguments: argparse.Namespace, name: str) -> list[RankedLists]:
    """The lists of an arm, or of a model that RL began with, one per seed."""
    arm = STARTS.get(name, name)
    stage = "rl" if name in ARMS and ARMS[name].rl else "sft"
    folders = [arguments.out / arm / f"seed-{seed}" / arguments.split for seed in range(1, arguments.seeds + 1)]
    return [RankedLists.read(folder / "eval" / stage / "predictions.jsonl") for folder in folders]


def results(lists: Mapping[str, Sequence[RankedLists]], beams: int) -> dict[str, Any]:
    """The metrics of all models by seed, and the comparisons.

    Args:
        lists: by model those of its seeds, on the same examples.
        beams: the length of the lists.
    """
    first = next(iter(lists.values()))[0]
    metrics = [metric for metric in METRICS if int(metric.partition("@")[2]) <= beams]
    cutoffs = sorted({int(metric.partition("@")[2]) for metric in metrics})
    values = {name: values_by_seed(of_model, first, cutoffs) for name, of_model in lists.items()}
    means = {
        name: {metric: np.mean([seed[metric] for seed in seeds], axis=0) for metric in metrics}
        for name, seeds in values.items()
    }
    return {
        "models": {
            name: {metric: [float(seed[metric].mean()) for seed in seeds] for metric in metrics}
            for name, seeds in values.items()
        },
        "comparisons": {
            name: differences(means[before], means[after], RESAMPLES, 0, first.units())
            for name, (before, after) in COMPARISONS.items()
            if before in means and after in means
        },
    }


def describe(arguments: argparse.Namespace, common: Sequence[str], examples: int) -> dict[str, Any]:
    """The data, model, compute and machine of the figures."""
    run = arguments.out / next(name for name in arguments.arms if ARMS[name].rl) / "seed-1"
    data, sft, rl = (Manifest.load(run / stage).metrics for stage in ("data", "sft", "rl"))
    name = Path(arguments.config).stem
    model = f"{data['train']:,} training rows) with a model of {sft['parameters'] / 1e6:.1f} M parameters"
    return {
        "dataset": f"{arguments.dataset or name} ({model}",
        "config": name,
        "fields": shown_fields(common),
        "split": arguments.split,
        "seeds": arguments.seeds,
        "examples": examples,
        "rl_steps": rl["steps"],
        "machine": machine(),
    }


def show(stored: Mapping[str, Any]) -> None:
    """Print a table of the models and one of the comparisons."""
    print(f"\n{stored['machine']}; {stored['dataset']}, {' '.join(stored['fields'])}")
    print(f"{stored['split']} split, {stored['examples']} examples, {stored['seeds']} seed(s); RL: {stored['rl_steps']} steps")
    print(f"planned FLOPs: {stored['flops']}; SFT alone: {stored['longer_sft']}\n")
    rows = [
        [name, *(f"{np.mean(by_seed):.4f} ({', '.join(f'{value:.4f}' for value in by_seed)})" for by_seed in metrics.values())]
        for name, metrics in stored["models"].items()
    ]
    metrics = next(iter(stored["models"].values()))
    table(["model", *(f"{name}, mean (by seed)" for name in metrics)], rows)
    print()
    rows = [[name, *(change_text(cells[metric]) for metric in metrics)] for name, cells in stored["comparisons"].items()]
    table(["comparison", *metrics], rows)


def main(argv: list[str] | None = None) -> None:
    options = options_of_trainings(__doc__, "the runs and the tables", 3)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="one with RL at least (default: all)")
    options.add_argument("--dataset", help="what the report calls the data (default: the configuration's name)")
    options.add_argument(
        "--test", dest="split", action="store_const", const="test", default="valid", help="read the test split"
    )
    options.add_argument("--only", choices=("plan", "rank"), help=argparse.SUPPRESS)
    arguments, common = options.parse_known_args(argv)
    if arguments.only == "plan":
        return plan(arguments, common)
    if arguments.only == "rank":  # its fields are complete, and its seed is among them
        return rank(cli.parse("eval", ["--config", arguments.config, "--out", str(arguments.out), *common]))
    arguments.arms = [name for name in ARMS if name in arguments.arms]
    if not any(ARMS[name].rl for name in arguments.arms):
        options.error(f"--arms {' '.join(arguments.arms)}: name an arm with RL; the others are as long as one with RL costs.")
    try:
        config = configuration(arguments, arguments.out, 1, fields_of(ARMS["ranking-rl"], common))
        for name in arguments.arms:
            configuration(arguments, arguments.out, 1, fields_of(ARMS[name], common))
        if config.rl.prompts == "valid":
            raise SystemExit("--rl.prompts valid: the arms are chosen and compared on valid. Take --rl.holdout.")
        if config.eval.num_beams < 10:
            raise SystemExit(f"--eval.num_beams {config.eval.num_beams}: the metrics look at 10 places at least.")
        items = make_items(arguments, fields_of(ARMS[arguments.arms[0]], common))
    except MiniOneRecError as error:
        raise SystemExit(str(error)) from None
    flops = planned_flops(arguments, common, items)
    longer = longer_sft(flops, config.sft.epochs, config.sft.evaluations)
    for seed in range(1, arguments.seeds + 1):
        for name in arguments.arms:
            print(f"{name}, seed {seed}", flush=True)
            make(arguments, name, seed, fields_of(ARMS[name], common, longer), items)
    starts = [start for start, arm in STARTS.items() if arm in arguments.arms]
    lists = {name: read_lists(arguments, name) for name in (*arguments.arms, *starts)}
    described = describe(arguments, common, len(lists[arguments.arms[0]][0]))
    stored = {**described, "flops": flops, "longer_sft": longer, **results(lists, config.eval.num_beams)}
    show(stored)
    whole = arguments.split == "test" and len(arguments.arms) == len(ARMS)
    write_json(arguments.out / (STORED if whole else f"{arguments.split}.json"), stored)


if __name__ == "__main__":
    main()
