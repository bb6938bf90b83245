"""What each mistake of the released code costs, alone: HR@10 and NDCG@10 minus the clean pipeline's, with paired intervals.

Every mistake is a switch of the configuration. The script trains the clean pipeline with every seed, turns one switch on at a
time and trains again what the switch touches (all, RL alone, or nothing but the evaluation), evaluates all on the same users,
and prints the differences. A difference is a user's mean over the seeds; its 95 % interval resamples users, p is that of a
paired permutation test. Between seeds: the standard deviation of the seeds' differences in NDCG@10.

One mistake has no switch: the generation defaults of an Instruct checkpoint, see `generation_defaults.py`. It is measured on
`--examples` of the split, with the models of the arm that is trained over the whole vocabulary, as the released code's are.

Each run lives in `OUT/<arm>/seed-<n>/`. The same command resumes: it skips what is finished and continues what was interrupted.
`OUT/gap_causes.json` holds the figures; copied unchanged to `minionerec/report/gap_causes.json`, it feeds the checklist.
`--merge FILE` takes over the figures of other mistakes from an earlier file of the same configuration.

    python benchmarks/gap_causes.py --config industrial-tiny --out runs/gap --dataset NAME --data.path FOLDER
    python benchmarks/gap_causes.py --config industrial-tiny --out runs/gap --data.path FOLDER --seeds 1 --quirks beams-10

Fields behind the options hold for all runs. On the released code's files with a partial train split, call it partial: effects
there compare the pipeline with itself, not with the published table.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from generation_defaults import DEFAULTED, DEFAULTS, METRICS, OURS, RESAMPLES, ask
from setting import change_text, in_process_of_its_own, link_parts, machine, options_of_trainings, positive, table

from minionerec import cli, pipeline
from minionerec.artifacts import Manifest, Recipe, read_json, require, write_json
from minionerec.config import Config
from minionerec.eval.compare import align
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import ranks
from minionerec.statistics.intervals import across_seeds, beyond_noise, paired, permutation
from minionerec.statistics.ranking import per_user


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
_RELEASED = "--prompts.style alpaca --prompts.wording released"
_RL = "--rl.evaluations 0"
ARMS = {
    "clean": Arm(own=TRAINED),
    "released-prompts": Arm(_RELEASED, own=TRAINED),
    "eval-sentence": Arm(f"{_RELEASED} --prompts.eval_style released", "released-prompts"),
    "answer-in-prompt": Arm("--sft.answer_in_prompt true", own=TRAINED),
    "vocabulary": Arm("--sft.normalise_over vocabulary --eval.normalise_over vocabulary", own=TRAINED),
    "beams-10": Arm("--eval.num_beams 10", "clean"),
    "beams-20": Arm("--eval.num_beams 20", "clean"),
    "rl": Arm(_RL, "clean", ("rl",)),
    "rl-last-row": Arm(f"{_RL} --rl.targets last_row", "clean", ("rl",)),
    "rl-released-targets": Arm(f"{_RL} --rl.targets released", "clean", ("rl",)),
}
QUIRKS = {  # the arm with the mistake, and the one without
    "prompt mismatch": ("eval-sentence", "released-prompts"),
    "prompts of the released code, asked as trained": ("released-prompts", "clean"),
    "prompts of the released code, with the mismatch": ("eval-sentence", "clean"),
    "answer in the prompt": ("answer-in-prompt", "clean"),
    "wrong reward targets": ("rl-last-row", "rl"),
    "validation labels in training rewards": ("rl-released-targets", "rl-last-row"),
    "probabilities over the whole vocabulary": ("vocabulary", "clean"),
    "20 beams": ("beams-20", "clean"),
    "10 beams": ("beams-10", "clean"),
}


SAMPLED, GENERATION = "generation-defaults", "generation defaults"  # what --quirks and the table call it
ASKED = (
    "vocabulary"  # the arm whose models are asked with an Instruct checkpoint's defaults: trained as the released code trains
)


def make(arm: str, seed: int, arguments: argparse.Namespace, common: Sequence[str]) -> None:
    """Make an arm's run of one seed, each stage in a process of its own; what is current stays.

    Raises:
        SystemExit: a stage failed.
    """
    definition, folder = ARMS[arm], arguments.out / arm / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if definition.parent is not None:
        link_parts(arguments.out / definition.parent / f"seed-{seed}", folder, ("data", "sid", "sft"))
    fields = ["--config", arguments.config, *common, *definition.fields.split()]
    for stage in definition.own:
        in_process_of_its_own(["-m", "minionerec", *stage.split(), "--out", str(folder), "--seed", str(seed), *fields])
    run_alone(arm, arm, seed, arguments, common)


def run_alone(job: str, arm: str, seed: int, arguments: argparse.Namespace, common: Sequence[str]) -> None:
    """Do a job on an arm's run, evaluate its one model or ask it, in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    options = ["--out", str(arguments.out), "--examples", str(arguments.examples), "--only", job, str(seed)]
    in_process_of_its_own([__file__, *options, "--config", arguments.config, *common, *ARMS[arm].fields.split()])


def run_job(arguments: argparse.Namespace, job: str, seed: str, fields: Sequence[str]) -> None:
    """The process that `run_alone` starts."""
    arm = ASKED if job == SAMPLED else job
    folder = arguments.out / arm / f"seed-{seed}"
    config = cli.parse("run", ["--config", arguments.config, "--out", str(folder), "--seed", seed, *fields])
    pipeline.set_up(config.threads)
    if job == SAMPLED:
        return sample(config, arguments.examples)
    from minionerec.eval.evaluate import evaluate

    evaluate(config, ARMS[arm].recommender)


def sample(config: Config, examples: int) -> None:
    """Store the ranks that our decoder and `generate` with the defaults give the targets, unless they are current."""
    folder = config.folder / GENERATION.replace(" ", "_")
    inputs = {"sft": require(config.folder / "sft", "minionerec sft").digest}
    settings = {**config.section("eval", "prompts"), "defaults": DEFAULTS, "examples": examples}
    recipe = Recipe(GENERATION, folder, settings, inputs, config.seed, replace=True)
    if recipe.finished() is not None:
        return
    answers = ask(config, examples, config.seed, (OURS, DEFAULTED))
    with recipe.write() as draft:
        pl.DataFrame({**answers.ranks, "unit": answers.units}).write_parquet(draft.path / "ranks.parquet")
        draft.metrics["invalid"] = answers.invalid


def read_lists(arm: str, seed: int, out: Path) -> RankedLists:
    """The lists of an arm."""
    return RankedLists.read(out / arm / f"seed-{seed}" / "eval" / ARMS[arm].recommender / "predictions.jsonl")


def _stacked(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([values[name] for name in METRICS])


def compare_arms(mistaken: str, clean: str, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """The arm with the mistake minus the clean arm, see `difference`."""
    before, after = [], []
    for seed in seeds:
        base, other = read_lists(clean, seed, out), read_lists(mistaken, seed, out)
        before.append(_stacked(per_user(ranks(base))))
        after.append(_stacked(per_user(ranks(other)[align(base, other)])))
    return difference(before, after, base.units())


def compare_defaults(seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """What the generation defaults change, see `difference`; also `examples`, and `invalid`, the share of listed texts that are
    no SID of the catalog.
    """
    before, after, invalid = [], [], []
    for seed in seeds:
        folder = out / ASKED / f"seed-{seed}" / GENERATION.replace(" ", "_")
        ranks_of_seed = pl.read_parquet(folder / "ranks.parquet", glob=False)
        before.append(_stacked(per_user(ranks_of_seed[OURS].to_numpy())))
        after.append(_stacked(per_user(ranks_of_seed[DEFAULTED].to_numpy())))
        invalid.append(Manifest.load(folder).metrics["invalid"])
    cells = difference(before, after, ranks_of_seed["unit"].to_numpy())
    return {**cells, "examples": len(ranks_of_seed), "invalid": float(np.mean(invalid))}


def difference(before: Sequence[np.ndarray], after: Sequence[np.ndarray], units: np.ndarray | None) -> dict[str, Any]:
    """How much `after` exceeds `before`: `value`, `low`, `high` and `p` by metric, and `sd` between the seeds.

    Args:
        before, after: per seed (metrics, examples), on the same examples.
    """
    old, new = np.mean(before, axis=0), np.mean(after, axis=0)
    changes = zip(METRICS, paired(old, new, RESAMPLES, 0, units), permutation(old, new, RESAMPLES, 0, units), strict=True)
    cells = {name: {**interval._asdict(), "p": p, "noise": not beyond_noise(interval, p)} for name, interval, p in changes}
    each = [float((b - a)[METRICS.index("NDCG@10")].mean()) for a, b in zip(before, after, strict=True)]
    return {**cells, "sd": across_seeds(each)["sd"]}


def metrics_by_seed(arm: str, seeds: Sequence[int], out: Path) -> dict[str, list[float]]:
    """An arm's metrics on SIDs, one value per seed."""
    by_seed = [per_user(ranks(read_lists(arm, seed, out))) for seed in seeds]
    return {name: [float(values[name].mean()) for values in by_seed] for name in METRICS}


def shown_fields(fields: Sequence[str]) -> list[str]:
    """The fields behind the options, without paths of this machine."""
    shown, skip = [], False
    for field in fields:
        if skip:
            skip = False
        elif field.partition("=")[0].endswith(".path"):
            skip = "=" not in field
        else:
            shown.append(field)
    return shown


def main(argv: list[str] | None = None) -> None:
    options = options_of_trainings(__doc__, "the runs", 3)
    quirks = list(dict.fromkeys([*(mistaken for mistaken, _ in QUIRKS.values()), SAMPLED]))
    options.add_argument("--quirks", nargs="+", help=f"arms with a mistake, some of: {', '.join(quirks)}")
    options.add_argument("--examples", type=positive, default=512, help=f"of the split, evenly spread, for {SAMPLED}")
    options.add_argument("--dataset", help="what the report calls the data (default: the configuration's name)")
    options.add_argument("--merge", type=Path, metavar="FILE", help="an earlier gap_causes.json to take other mistakes from")
    options.add_argument("--only", nargs=2, metavar=("JOB", "SEED"), help=argparse.SUPPRESS)
    arguments, common = options.parse_known_args(argv)
    if arguments.only:  # a child; its fields are complete
        return run_job(arguments, *arguments.only, common)
    if unknown := sorted({*(arguments.quirks or [])} - {*quirks}):
        raise SystemExit(f"{unknown[0]!r} is no quirk; expected one of {', '.join(sorted(quirks))}.")
    if "--print_config" in common:
        cli.main(["run", "--config", arguments.config, *common])
        return None
    cli.parse("run", ["--config", arguments.config, *common])  # refuses before anything is made
    wanted = arguments.quirks or quirks
    pairs = {name: pair for name, pair in QUIRKS.items() if pair[0] in wanted}
    needed = {arm for pair in pairs.values() for arm in pair} | ({ASKED} if SAMPLED in wanted else set())
    needed |= {parent for arm in needed if (parent := ARMS[arm].parent)}
    arms, seeds = [arm for arm in ARMS if arm in needed], range(1, arguments.seeds + 1)
    for seed in seeds:
        for arm in arms:
            print(f"{arm}, seed {seed}", flush=True)
            make(arm, seed, arguments, common)
        if SAMPLED in wanted:
            print(f"{SAMPLED}, seed {seed}", flush=True)
            run_alone(SAMPLED, ASKED, seed, arguments, common)

    differences = {name: compare_arms(*pair, seeds, arguments.out) for name, pair in pairs.items()}
    runs = {name: f"{mistaken} - {clean}" for name, (mistaken, clean) in pairs.items()}
    if SAMPLED in wanted:
        differences[GENERATION] = compare_defaults(seeds, arguments.out)
        runs[GENERATION] = f"{DEFAULTED} - {OURS}, {ASKED}, {differences[GENERATION]['examples']} examples"
    stored = {**describe(arguments, common, arms[0]), "quirks": differences}
    if arguments.merge is not None:
        stored = merged(stored, read_json(arguments.merge), arguments.merge)
    print(f"\n{machine()}; {stored['dataset']}, {' '.join(stored['fields'])}")
    print(f"{stored['examples']} examples, {len(seeds)} seed(s)\n")
    rows = [
        [arm, *(f"{np.mean(values):.4f} ({', '.join(f'{v:.4f}' for v in values)})" for values in cells.values())]
        for arm, cells in ((arm, metrics_by_seed(arm, seeds, arguments.out)) for arm in arms)
    ]
    table(["run", *(f"{name}, mean (by seed)" for name in METRICS)], rows)
    print()
    rows = [
        [
            name,
            runs[name],
            *(change_text(cells[metric]) for metric in METRICS),
            "" if cells["sd"] is None else f"{cells['sd']:.4f}",
        ]
        for name, cells in differences.items()
    ]
    table(["quirk", "runs", *METRICS, "sd over seeds"], rows)
    write_json(arguments.out / "gap_causes.json", stored)


def merged(stored: dict[str, Any], earlier: dict[str, Any], path: Path) -> dict[str, Any]:
    """The figures of now, and of an earlier file those of the mistakes that were not measured now, with their own `machine`.

    Raises:
        SystemExit: the earlier file is of another configuration.
    """
    for name in stored.keys() - {"quirks", "machine"}:
        if earlier.get(name) != stored[name]:
            raise SystemExit(f"{path}: {name} is {earlier.get(name)!r}, here it is {stored[name]!r}; the two cannot be merged.")
    others = {name: {"machine": earlier["machine"], **cells} for name, cells in earlier["quirks"].items()}
    return {**stored, "quirks": {**others, **stored["quirks"]}}


def describe(arguments: argparse.Namespace, fields: Sequence[str], arm: str) -> dict[str, Any]:
    """The data, model and machine of the stored figures, read from the runs of an arm."""
    run = arguments.out / arm / "seed-1"
    train = Manifest.load(run / "data").metrics["train"]
    parameters = Manifest.load(run / "sft").metrics["parameters"]
    name = Path(arguments.config).stem
    return {
        "dataset": f"{arguments.dataset or name} ({train:,} training rows) with a model of {parameters / 1e6:.1f} M parameters",
        "config": name,
        "fields": shown_fields(fields),
        "seeds": arguments.seeds,
        "examples": len(read_lists(arm, 1, arguments.out)),
        "train": train,
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
