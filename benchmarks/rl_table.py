"""What RL does to an SFT model, by reward and setting: HR and NDCG minus the SFT model's, with paired intervals.

Claim: from one finished SFT run, our settings are no worse than SFT at any cut-off and better at NDCG@10; the released code's
settings lift the first places and lower the last ones. The script trains every variant with every seed from that one model,
evaluates all on the same users, and prints the differences. It never writes into the run it starts from.

A variant is a set of fields that override the `rl` section of the configuration; `config` changes nothing. Every variant is
checked before the first is trained. Each is a run of its own in `OUT/<variant>/seed-<n>/`, whose data, SIDs and SFT model are
links. A finished variant is not made again, and an interrupted one resumes from its last checkpoint, so run the same command
again after an interruption.

A difference is averaged over the seeds for each user; its 95 % interval resamples users. `*` marks intervals without 0. Between
seeds: the standard deviation of the difference of NDCG@10, None for one seed.

    python benchmarks/rl_table.py runs/ml-100k --config ml-100k --out runs/rl-table --seeds 3          # a night
    python benchmarks/rl_table.py runs/ml-100k --config ml-100k --out runs/rl-small --seeds 1 --variants rule ranking \
        --rl.max_examples 256                                                                          # minutes
    python benchmarks/rl_table.py ... --add "wide=--rl.sft_weight 0.5 --rl.num_generations 32"          # your own variant

Fields after the options hold for all variants, unless a variant sets them itself. The collaborative variant needs a baseline
in the run: `minionerec baseline --baseline.model sasrec`.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from setting import change_text, in_process_of_its_own, link_parts, machine, positive, table

from minionerec import cli
from minionerec.artifacts import MANIFEST, Manifest, write_json
from minionerec.config import Config
from minionerec.errors import ConfigError, MiniOneRecError
from minionerec.eval.compare import align, shared_cutoffs
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import ranks
from minionerec.statistics import differences as statistics
from minionerec.statistics.intervals import across_seeds
from minionerec.statistics.ranking import per_user

LINKED = ("data", "sid", "sft", "baselines")
FAMILIES = ("HR", "NDCG")
_PAPER = "--rl.num_generations 16 --rl.prompts_per_step 64 --rl.micro_batch_prompts 16 --rl.beta 1e-3 --rl.epochs 2 "
_PAPER += "--rl.rewards '{ranking: 1}' --rl.normalise_over vocabulary --rl.sync_reference 512 --rl.evaluations 0"
VARIANTS = {
    "config": "",
    "released": f"{_PAPER} --rl.learning_rate 1e-5",  # chosen for 1.5 B parameters: a tiny model hardly moves
    "released-lr": _PAPER,  # with the configuration's own learning rate
    "rule": "--rl.rewards '{rule: 1}'",
    "ranking": "--rl.rewards '{ranking: 1}'",
    "prefix": "--rl.rewards '{prefix: 1}'",
    "semantic": "--rl.rewards '{semantic: 1}'",
    "collaborative": "--rl.rewards '{collaborative: 1}'",
    "sibling": "--rl.rewards '{ranking: 1}' --rl.advantages sibling",
    "exact": "--rl.rewards '{rule: 1}' --rl.objective exact --rl.normalise_over catalog",
    "listwise": "--rl.rewards '{rule: 1}' --rl.objective listwise --rl.add_target true",
    "sdpo": "--rl.rewards '{rule: 1}' --rl.objective sdpo --rl.add_target true",
    "catalog": "--rl.rewards '{ranking: 1}' --rl.normalise_over catalog",
    "sft-mixed": "--rl.rewards '{ranking: 1}' --rl.sft_weight 0.5",
}


def configuration(name: str, folder: Path, seed: int, flags: Sequence[str]) -> Config:
    """A run's configuration from a preset or file, overridden by fields; the last of equal fields counts.

    Raises:
        ConfigError: a field is unknown, of another section than `rl` and `eval`, or the fields contradict each other.
    """
    for flag in flags:
        if flag.startswith("--") and not flag.startswith(("--rl.", "--eval.", "--print_config")):
            raise ConfigError(f"{flag}: variants differ in fields of rl and eval only; all else is the run's, in --config.")
    return cli.parse("run", ["--config", name, "--out", str(folder), "--seed", str(seed), *flags])


def make(config: Config, stage: str) -> None:
    """Train, if the stage is `rl`, and decode the split, in this process; finished parts stay."""
    from minionerec import pipeline
    from minionerec.eval.evaluate import evaluate

    if stage == "rl":
        pipeline.run(config, ("rl",))
    else:
        pipeline.set_up(config.threads)
    evaluate(config, stage)


def differences(
    sft: RankedLists, variants: Mapping[str, Sequence[RankedLists]], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """How much each variant exceeds SFT, per metric.

    Args:
        sft: the SFT model's lists.
        variants: per variant the lists of its seeds, on the same examples.

    Returns:
        per variant `metrics`, what `statistics.differences` says of each metric whose cut-off all lists reach, and `seeds`,
        what `across_seeds` says of the differences of NDCG@10.

    Raises:
        DataError: the lists are of other examples.
    """
    by_variant = {}
    for variant, runs in variants.items():
        cutoffs = min((shared_cutoffs(sft, lists) for lists in runs), key=len)
        before = per_user(ranks(sft), cutoffs)
        after = [per_user(ranks(lists)[align(sft, lists)], cutoffs) for lists in runs]
        old = {name: values for name, values in before.items() if name.startswith(FAMILIES)}
        new = {name: np.mean([values[name] for values in after], axis=0) for name in old}
        each = [float((values["NDCG@10"] - before["NDCG@10"]).mean()) for values in after]
        changes = statistics.differences(old, new, resamples, seed, sft.units())
        by_variant[variant] = {"metrics": changes, "seeds": across_seeds(each)}
    return by_variant


def verdict(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """At which metrics a variant is better or worse than SFT beyond noise, in words."""
    better = [name for name, change in metrics.items() if not change["noise"] and change["value"] > 0]
    worse = [name for name, change in metrics.items() if not change["noise"] and change["value"] < 0]
    return f"better at {', '.join(better) or 'nothing'}; worse at {', '.join(worse) or 'nothing'}"


def show(sft: RankedLists, results: Mapping[str, Mapping[str, Any]], trained: Mapping[str, Sequence[Manifest]]) -> None:
    """Print a table of HR and one of NDCG, the differences beyond noise, and the time that each variant took.

    Args:
        results: of `differences`.
    """
    metrics = min((result["metrics"] for result in results.values()), key=len)
    for family in FAMILIES:
        names = [name for name in metrics if name.startswith(family)]
        cutoffs = [int(name.partition("@")[2]) for name in names]
        before = {name: float(values.mean()) for name, values in per_user(ranks(sft), cutoffs).items()}
        rows = [["SFT", *(f"{before[name]:.4f}" for name in names)]]
        for variant, result in results.items():
            rows.append([f"{variant} - SFT", *(change_text(result["metrics"][name]) for name in names)])
        print()
        table(["", *names], rows)
    print()
    rows = []
    for variant, result in results.items():
        manifests = trained[variant]
        sd = result["seeds"]["sd"]
        steps = [manifest.metrics.get("best_step", manifest.metrics["steps"]) for manifest in manifests]
        minutes = sum(manifest.seconds for manifest in manifests) / 60
        cells = ["None" if sd is None else f"{sd:.4f}", str(manifests[0].metrics["steps"]), ", ".join(map(str, steps))]
        rows.append([variant, verdict(result["metrics"]), *cells, f"{minutes:.1f}"])
    header = ["variant", "beyond noise", "NDCG@10, sd over seeds", "steps", "step kept, by seed", "minutes, all seeds"]
    table(header, rows)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("run", type=Path, help="folder of a run with a finished SFT model; it is only read")
    options.add_argument("--config", required=True, help="the run's configuration: a preset or a YAML file")
    options.add_argument("--out", type=Path, required=True, help="where the variants and table.json are kept")
    options.add_argument("--seeds", type=positive, default=3, help="RL seeds per variant: 1, 2, ...")
    options.add_argument("--variants", nargs="+", help=f"some of: {', '.join(VARIANTS)}, or names of --add; default: all")
    options.add_argument("--add", action="append", default=[], metavar="NAME=FIELDS", help="one more variant")
    options.add_argument("--only", nargs=2, metavar=("FOLDER", "SEED"), help=argparse.SUPPRESS)
    arguments, common = options.parse_known_args(argv)
    if arguments.only:  # a child; its fields are complete
        folder, seed = arguments.out / arguments.only[0], int(arguments.only[1])
        return make(configuration(arguments.config, folder, seed, common), "sft" if folder.name == "sft" else "rl")

    variants = dict(VARIANTS)
    for text in arguments.add:
        name, equals, fields = text.partition("=")
        if not equals or not name or name in ("sft", *VARIANTS) or not name.replace("-", "").isalnum():
            raise SystemExit(f"--add {text!r}: expected NAME=FIELDS, the name new and of letters, digits and '-'.")
        variants[name] = fields
    wanted = list(dict.fromkeys(arguments.variants or variants))
    if unknown := [name for name in wanted if name not in variants]:
        raise SystemExit(f"{unknown[0]!r} is no variant; there are {', '.join(variants)}.")
    seeds = range(1, arguments.seeds + 1)
    jobs = {(name, seed): Path(name) / f"seed-{seed}" for name in wanted for seed in seeds}
    flags = {name: [*common, *shlex.split(variants[name])] for name in wanted}
    configs: dict[str, Config] = {}
    for name, fields in {"all variants": common, **{f"variant {name}": flags[name] for name in wanted}}.items():
        try:
            configs[name] = configuration(arguments.config, arguments.out, 1, fields)
        except MiniOneRecError as error:
            raise SystemExit(f"{name}: {error}") from None
    config = configs["all variants"]
    if "--print_config" in common:
        cli.main(["run", "--config", arguments.config, "--out", str(arguments.out), *common])
        return None

    run = arguments.run
    if not (run / "sft" / MANIFEST).is_file():
        raise SystemExit(f"{run}/sft: no finished SFT model here; make it first: minionerec sft --config NAME --out {run}")
    script = [__file__, str(run), "--config", arguments.config, "--out", str(arguments.out)]
    link_parts(run, arguments.out / "sft", LINKED)
    in_process_of_its_own([*script, *common, "--only", "sft", "1"])
    for (name, seed), folder in jobs.items():
        print(f"{name}, seed {seed}", flush=True)
        link_parts(run, arguments.out / folder, LINKED)
        in_process_of_its_own([*script, *flags[name], "--only", str(folder), str(seed)])

    sft = RankedLists.read(arguments.out / "sft" / "eval" / "sft" / "predictions.jsonl")
    lists: dict[str, list[RankedLists]] = {name: [] for name in wanted}
    trained: dict[str, list[Manifest]] = {name: [] for name in wanted}
    for (name, _), folder in jobs.items():
        lists[name].append(RankedLists.read(arguments.out / folder / "eval" / "rl" / "predictions.jsonl"))
        trained[name].append(Manifest.load(arguments.out / folder / "rl"))
    results = differences(sft, lists, config.eval.resamples, config.seed)
    print(f"\n{machine()}; {arguments.run.name}, {config.eval.split} split, {len(sft)} examples")
    print(f"{config.eval.num_beams} beams, {len(seeds)} seed(s) per variant")
    show(sft, results, trained)
    stored = {
        name: {
            "fields": flags[name],
            **result,
        }
        for name, result in results.items()
    }
    write_json(arguments.out / "table.json", stored)


if __name__ == "__main__":
    main()
