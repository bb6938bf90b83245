"""How well variants of SFT rank items: NDCG@10 and HR@10 on valid, and minus the first variant's, with paired intervals.

A variant is a set of fields of `sft`, `model` and `sid` that override `BASE`, which trains on histories only. Each variant is
trained with every seed, one after the other, in `OUT/<variant>/seed-<n>/`; data and SIDs are made once for all variants that
share them, in `OUT/items-<digest of their settings>/`. The same command resumes: a finished training stays, an interrupted one
continues from its last checkpoint.

The valid split chooses everything. The test split is read with `--test` only, once, for the variants that were chosen. Figures
are on items (items that share a SID are tied): for all rows; without the rows whose target is one of the duplicates bought most
(the items of one title that together have the most training interactions); and for cold targets, which training never saw. A
difference is averaged over the seeds for each user; its 95 % interval resamples users, `*` marks what is beyond noise. A second
table has the same for the model mixed with `mixture.components` (none: no such table). Its weights are fitted on valid, so only
on test its figures are of unseen rows. `--rivals` adds, for both, how much every variant exceeds other recommenders' lists of
the same split: folders that `eval` or `baseline` wrote, one per recommender or one for each of its seeds.

    python benchmarks/quality.py --config industrial-tiny --out runs/quality --data.path FOLDER --threads 1   # hours
    python benchmarks/quality.py --config industrial-tiny --out runs/quality --data.path FOLDER --threads 1 --seeds 1 \
        --variants base wide --add "wide-dropout=--model.hidden_size 192 --sft.dropout 0.35"
    python benchmarks/quality.py ... --variants base dropout-.35 --test \
        --rivals markov=RUN/eval/markov sasrec=RUN1/eval/sasrec,RUN2/eval/sasrec                              # at the end

Fields behind the options hold for all variants, unless a variant sets them itself.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from setting import change_text, in_process_of_its_own, link_parts, machine, options_of_trainings, table

from minionerec import cli
from minionerec.artifacts import Manifest, write_json
from minionerec.artifacts.files import content_hash
from minionerec.config import RESAMPLES, Config
from minionerec.data.dataset import Dataset
from minionerec.data.interactions import interaction_counts
from minionerec.errors import MiniOneRecError
from minionerec.eval.compare import values_by_seed
from minionerec.eval.lists import RankedLists
from minionerec.statistics.differences import differences
from minionerec.statistics.intervals import across_seeds

METRICS, CUTOFFS = ("NDCG@10", "HR@10"), (10,)
ALONE, MIXED = "sft", "sft-mixture"  # what is evaluated
BASE = (
    "--sft.tasks [history_sid_to_sid] --sft.normalise_over catalog --sft.batch_size 32 --sft.micro_batch 32 --sft.epochs 12 "
    "--sft.evaluations 6 --sft.dropout 0.2 --sft.weight_decay 0.1 --sft.smoothing 0 --sft.best_metric NDCG@10 "
    "--model.hidden_size 128 --model.intermediate_size 512 --sid.collisions nearest-free --eval.oracle_examples 0 "
    "--eval.normalise_over catalog --mixture.components [popularity,markov,skip,item-knn]"
)
VARIANTS = {
    "base": "",
    "dropout-.1": "--sft.dropout 0.1",
    "dropout-.35": "--sft.dropout 0.35",
    "dropout-.5": "--sft.dropout 0.5",
    "smoothing-.1": "--sft.smoothing 0.1",
    "decay-.01": "--sft.weight_decay 0.01",
    "decay-.3": "--sft.weight_decay 0.3",
    "wide": "--model.hidden_size 192 --model.intermediate_size 768",
    "wide-dropout-.35": "--model.hidden_size 192 --model.intermediate_size 768 --sft.dropout 0.35",
    "mixture": "--sft.mixture.weights em --mixture.validation true",
    "mixture-.5": "--sft.mixture.weights fixed --sft.mixture.weight 0.5 --mixture.validation true",
    "items": "--sid.collisions item --sft.dropout 0.35",
}


def configuration(arguments: argparse.Namespace, folder: Path, seed: int, fields: Sequence[str]) -> Config:
    """A run's configuration; the last of equal fields counts.

    Raises:
        ConfigError: a field is unknown, or the fields contradict each other.
    """
    return cli.parse("run", ["--config", arguments.config, "--out", str(folder), "--seed", str(seed), *fields])


def make_items(arguments: argparse.Namespace, fields: Sequence[str]) -> Path:
    """The run with a variant's data and SIDs, made unless it is there.

    Raises:
        MiniOneRecError: the fields are no configuration.
        SystemExit: a stage failed.
    """
    section = configuration(arguments, arguments.out, 1, fields).section("data", "sid")
    items = arguments.out / f"items-{content_hash(section)[:8]}"
    for stage in (["data", "prepare"], ["sid"]):
        in_process_of_its_own(["-m", "minionerec", *stage, "--config", arguments.config, "--out", str(items), *fields])
    return items


def make(arguments: argparse.Namespace, folder: Path, fields: Sequence[str], items: Path) -> None:
    """Train a variant with one seed and rank the split with it, each in a process of its own; what is finished stays.

    Args:
        folder: of the run.
        fields: all of the variant, its seed among them.
        items: the run that has its data and SIDs.

    Raises:
        SystemExit: a stage failed.
    """
    options = ["--config", arguments.config, *fields]
    link_parts(items, folder, ("data", "sid"))
    in_process_of_its_own(["-m", "minionerec", "sft", "--out", str(folder), *options])
    ranked = folder / arguments.split  # a run of its own: a run keeps the lists of one split
    link_parts(folder, ranked, ("data", "sid", "sft"))
    in_process_of_its_own([__file__, "--only", "--out", str(ranked), *options, "--eval.split", arguments.split])


def rank(config: Config) -> None:
    """Rank the split with the SFT model, alone and mixed, in this process."""
    from minionerec import pipeline
    from minionerec.eval.evaluate import evaluate
    from minionerec.training.fit_mixture import fit_mixture

    pipeline.set_up(config.threads)
    evaluate(config, ALONE)
    if config.mixture.components:
        fit_mixture(config, "sft")
        evaluate(config, MIXED)


def read_lists(folder: Path, split: str, seeds: int, name: str) -> list[RankedLists]:
    """The lists of a variant, one per seed; none if it has none of this name."""
    files = [folder / f"seed-{seed}" / split / "eval" / name / "predictions.jsonl" for seed in range(1, seeds + 1)]
    return [RankedLists.read(file) for file in files] if all(file.is_file() for file in files) else []


def most_bought_duplicates(dataset: Dataset) -> list[int]:
    """The items with one title that together have the most training interactions; none if no two items have one title."""
    counts, by_title = interaction_counts(dataset), dict[str, list[int]]()
    for item, title in enumerate(dataset.catalog["title"].to_list()):
        by_title.setdefault(title, []).append(item)
    groups = [group for group in by_title.values() if len(group) > 1]
    return max(groups, key=lambda group: counts[group].sum(), default=[])


def parts_of_rows(first: RankedLists, dataset: Dataset) -> tuple[list[int], dict[str, np.ndarray]]:
    """The duplicates bought most, and by name which rows a part of a table is of, (rows,) bool; empty parts are left out."""
    duplicates = most_bought_duplicates(dataset)
    counts = interaction_counts(dataset)
    parts = {
        "all": np.ones(len(first), dtype=bool),
        "without": ~np.isin(first.targets, duplicates),
        "cold": counts[first.targets] == 0,
    }
    return duplicates, {part: rows for part, rows in parts.items() if rows.any()}


def read_rivals(texts: Sequence[str]) -> dict[str, list[RankedLists]]:
    """The lists of each rival, one per seed, from `NAME=FOLDER[,FOLDER...]`.

    Raises:
        SystemExit: a text is malformed.
        DataError: a folder has no lists, or no readable ones.
    """
    rivals = {}
    for text in texts:
        name, equals, folders = text.partition("=")
        if not name or not equals or not all(folders.split(",")) or name in rivals:
            raise SystemExit(f"--rivals {text!r}: expected NAME=FOLDER[,FOLDER...], the name new.")
        rivals[name] = [RankedLists.read(Path(folder) / "predictions.jsonl") for folder in folders.split(",")]
    return rivals


def summary(
    base: Sequence[Mapping[str, np.ndarray]],
    variant: Sequence[Mapping[str, np.ndarray]],
    rows: np.ndarray,
    units: np.ndarray | None,
    seed: int = 0,
) -> dict[str, Any]:
    """A variant's metrics on some rows, and how much they exceed those of the base.

    Args:
        base, variant: per seed, (rows,) values by metric.
        rows: (rows,) bool.
        units: (rows,) the number of each row's user; None if every user has one row.

    Returns:
        by metric `seeds` (the mean of each seed) and `change`, what `differences` says of the means over the seeds.
    """
    means = [{name: np.mean([one[name][rows] for one in seeds], axis=0) for name in METRICS} for seeds in (base, variant)]
    users = None if units is None else np.unique(units[rows], return_inverse=True)[1]
    changes = differences(*means, RESAMPLES, seed, users)
    return {name: {"seeds": means_by_seed(variant, name, rows), "change": changes[name]} for name in METRICS}


def means_by_seed(values: Sequence[Mapping[str, np.ndarray]], name: str, rows: np.ndarray) -> list[float]:
    """A metric's mean over some rows, (rows,) bool, for each seed."""
    return [float(one[name][rows].mean()) for one in values]


def results(
    arguments: argparse.Namespace,
    names: Sequence[str],
    dataset: Dataset,
    rivals: Mapping[str, Sequence[RankedLists]],
    evaluated: str,
) -> dict[str, Any]:
    """The `summary` of every variant against the first and against each rival, by part of the rows.

    Args:
        evaluated: `ALONE` or `MIXED`; variants without such lists are left out.

    Raises:
        DataError: a rival's lists are of other examples.
    """
    lists = {name: read_lists(arguments.out / name, arguments.split, arguments.seeds, evaluated) for name in names}
    lists = {name: of_variant for name, of_variant in lists.items() if of_variant}
    if not lists:
        return {"variants": {}}
    base, (first, *_) = next(iter(lists.items()))
    values = {name: values_by_seed(of_variant, first, CUTOFFS) for name, of_variant in lists.items()}
    theirs = {name: values_by_seed(of_rival, first, CUTOFFS) for name, of_rival in rivals.items()}
    duplicates, parts = parts_of_rows(first, dataset)
    return {
        "rows": {part: int(rows.sum()) for part, rows in parts.items()},
        "duplicates": duplicates,
        "variants": {
            name: {part: summary(values[base], values[name], rows, first.units()) for part, rows in parts.items()}
            for name in values
        },
        "minus rivals": {
            name: {
                rival: {part: summary(theirs[rival], values[name], rows, first.units()) for part, rows in parts.items()}
                for rival in theirs
            }
            for name in values
        },
        "rivals": {
            rival: {
                part: {name: {"seeds": means_by_seed(values_of_rival, name, rows)} for name in METRICS}
                for part, rows in parts.items()
            }
            for rival, values_of_rival in theirs.items()
        },
    }


def show(arguments: argparse.Namespace, found: Mapping[str, Any], evaluated: str) -> None:
    """Print a table with a row per variant and part of the rows; nothing without variants."""
    if not found["variants"]:
        return
    print(f"\n{evaluated}: {machine()}; {Path(arguments.config).stem}, {arguments.split} split, {arguments.seeds} seed(s)")
    counts = ", ".join(f"{part} {count}" for part, count in found["rows"].items())
    print(f"rows: {counts}; without leaves out targets {found['duplicates']}\n")
    rows = []
    for name, parts in found["variants"].items():
        manifests = [Manifest.load(arguments.out / name / f"seed-{seed}" / "sft") for seed in range(1, arguments.seeds + 1)]
        minutes = np.mean([manifest.seconds for manifest in manifests]) / 60
        for part, cells in parts.items():
            row = [name if part == "all" else "", part]
            for cell in cells.values():
                seeds = across_seeds(cell["seeds"])
                row += [f"{seeds['mean']:.4f} ({', '.join(f'{value:.4f}' for value in cell['seeds'])})"]
            row += [change_text(cell["change"]) for cell in cells.values()]
            rows.append([*row, f"{minutes:.1f}" if part == "all" else ""])
    first = next(iter(found["variants"]))
    changes = [f"{name} - {first}'s" for name in METRICS]
    table(["variant", "rows", *(f"{name}, mean (by seed)" for name in METRICS), *changes, "minutes a training"], rows)
    show_rivals(found, evaluated)


def show_rivals(found: Mapping[str, Any], evaluated: str) -> None:
    """Print a row per rival, part of the rows and variant: what the rival reaches, and how much the variant exceeds it."""
    rows = []
    for rival, parts in found["rivals"].items():
        for part, cells in parts.items():
            own = [f"{np.mean(cells[name]['seeds']):.4f}" for name in METRICS]
            for variant, minus in found["minus rivals"].items():
                rows.append(
                    [rival, part, *own, variant, *(change_text(minus[rival][part][name]["change"]) for name in METRICS)]
                )
    if rows:
        print()
        table(["rival", "rows", *METRICS, f"{evaluated} of", *(f"{name} - the rival's" for name in METRICS)], rows)


def chosen_variants(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The fields of the wanted variants, those of `--add` too.

    Raises:
        SystemExit: a variant is unknown, or an `--add` is malformed.
    """
    variants = dict(VARIANTS)
    for text in arguments.add:
        name, equals, fields = text.partition("=")
        if not equals or not name or name in VARIANTS or not name.replace("-", "").replace(".", "").isalnum():
            raise SystemExit(f"--add {text!r}: expected NAME=FIELDS, the name new and of letters, digits, '-' and '.'.")
        variants[name] = fields
    names = list(dict.fromkeys(arguments.variants or variants))
    if unknown := [name for name in names if name not in variants]:
        raise SystemExit(f"{unknown[0]!r} is no variant; there are {', '.join(variants)}.")
    return {name: shlex.split(variants[name]) for name in names}


def main(argv: list[str] | None = None) -> None:
    options = options_of_trainings(__doc__, "the runs and the tables", 3)
    options.add_argument("--variants", nargs="+", help=f"some of: {', '.join(VARIANTS)}, or names of --add; default: all")
    options.add_argument("--add", action="append", default=[], metavar="NAME=FIELDS", help="one more variant")
    options.add_argument(
        "--test", dest="split", action="store_const", const="test", default="valid", help="read the test split"
    )
    options.add_argument(
        "--rivals", nargs="+", default=[], metavar="NAME=FOLDER[,FOLDER...]", help="lists of other recommenders"
    )
    options.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    arguments, common = options.parse_known_args(argv)
    if arguments.only:  # a child; its fields are complete, and its seed is among them
        return rank(cli.parse("eval", ["--config", arguments.config, "--out", str(arguments.out), *common]))
    variants = {name: [*shlex.split(BASE), *common, *fields] for name, fields in chosen_variants(arguments).items()}
    try:
        rivals = read_rivals(arguments.rivals)
    except MiniOneRecError as error:
        raise SystemExit(f"--rivals: {error}") from None
    items: dict[str, Path] = {}
    for name, fields in variants.items():
        try:
            items[name] = make_items(arguments, fields)
        except MiniOneRecError as error:
            raise SystemExit(f"variant {name}: {error}") from None
    for seed in range(1, arguments.seeds + 1):
        for name, fields in variants.items():
            print(f"{name}, seed {seed}", flush=True)
            make(arguments, arguments.out / name / f"seed-{seed}", [*fields, "--seed", str(seed)], items[name])
    dataset = Dataset.load(next(iter(items.values())) / "data")
    found = {evaluated: results(arguments, list(variants), dataset, rivals, evaluated) for evaluated in (ALONE, MIXED)}
    for evaluated, tables in found.items():
        show(arguments, tables, evaluated)
    write_json(arguments.out / f"{arguments.split}.json", {"fields": variants, "seeds": arguments.seeds, **found})
    return None


if __name__ == "__main__":
    main()
