"""Content recommenders beside what they must beat: recipes on one run's pairs or lists, texts against ids, and what each costs.

Claim: reading texts helps with items that training has not seen, and a table of ids cannot rank those. On pairs (a preset with
`lego.task: pairs`) the rows stand beside the controls of `minionerec score`; on lists beside the run's baselines, SFT and RL,
with paired differences. The script trains every recipe in this process, one after the other; finished ones stay, and an
interrupted one resumes, so the same command may be given again. A recipe is a name, such as `naml`, or three parts, such as
`id/additive/dot`.

    python benchmarks/lego.py --config ml-100k-lego --out runs/ml-100k-lego --reference lego-id-additive-dot   # minutes
    python benchmarks/lego.py --config industrial-lego --out runs/industrial-lego --data.path FOLDER \
        --baselines sasrec markov --reference sasrec

Fields behind the options hold for all recipes; `--for-texts` and `--for-layers` name those that only some recipes read.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from setting import machine, table

from minionerec import cli, pipeline
from minionerec.config import Config
from minionerec.config.lego import RECIPES
from minionerec.data.pairs import PairSet
from minionerec.errors import ConfigError, MiniOneRecError
from minionerec.eval.pair_leaderboard import read_leaderboard
from minionerec.report.evaluated import LABELS
from minionerec.report.lego_table import cost_rows
from minionerec.report.slices import WHOLE, PartRow, slices_of_run
from minionerec.statistics.pair_results import compare
from minionerec.training.scored_pairs import read_scores, scored_pairs

RECIPES_SHOWN = (
    *("naml", "nrms", "lstur", "fastformer", "bst", "pooling/additive/dot", "id/additive/dot"),
    *("dcn", "id/pooling/dcn", "din"),
)
HIDDEN_LAYERS = ("dcn", "dcnv2", "gdcn", "deepfm", "pnn", "din", "din-reference", "dnn")


def configuration(arguments: argparse.Namespace, fields: Sequence[str], recipe: str) -> Config:
    """The configuration of a recipe."""
    if recipe in RECIPES:
        parts, own = RECIPES[recipe], ["--lego.recipe", recipe]
    else:
        item, user, interaction = parts = recipe.split("/")
        own = ["--lego.item", item, "--lego.user", user, "--lego.interaction", interaction]
    if parts[0] not in ("id", "plm"):
        own += shlex.split(arguments.for_texts)
    if parts[2] in HIDDEN_LAYERS:
        own += shlex.split(arguments.for_layers)
    return cli.parse("lego", ["--config", arguments.config, "--out", str(arguments.out), *fields, *own])


def figure(cell: Any) -> str:
    """A value with its interval."""
    return "-" if cell is None else f"{cell['value']:.4f} ({cell['low']:.4f} to {cell['high']:.4f})"


def difference(change: Any) -> str:
    """A difference with its interval; `*` marks what is beyond noise."""
    if change is None:
        return "-"
    beyond = "" if change["noise"] else "*"
    return f"{change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}){beyond}"


def costs(row: dict[str, Any] | None) -> list[str]:
    """Parameters, minutes, CPU seconds, grams CO2e and ApC of a recipe."""
    if row is None:
        return [""] * 5
    grams, points = row["grams_co2e"], row["apc"]
    return [
        f"{row['parameters']:,}",
        f"{row['minutes']:.1f}",
        f"{row['cpu_seconds']:.0f}",
        "-" if grams is None else f"{grams:.3g}",
        "-" if points is None else f"{points:,.0f}",
    ]


COSTS = ("parameters", "minutes", "CPU s", "g CO2e", "ApC")


def differences_of_pairs(config: Config, reference: str) -> dict[str, tuple[Any, Any]]:
    """By score: GAUC minus the reference's, and AUC on unseen candidates minus the reference's, paired over users."""
    train = PairSet.load(config.folder / "pairs").train
    had = pl.concat([train["candidate"], train["history"].explode()]).unique()
    scores = {}
    for entry in read_leaderboard(config.folder)["entries"]:
        scores[entry["name"]] = read_scores(config.folder / "scoring" / entry["name"])[1]
    if reference not in scores:
        raise ConfigError(f"--reference {reference}: not scored in {config.folder}; expected one of {', '.join(scores)}.")
    unseen = ~scores[reference]["candidate"].is_in(had.implode())
    settings: dict[str, Any] = {"probability": False, "resamples": config.score.resamples, "seed": config.seed}
    changes = {}
    for name, frame in scores.items():
        pairs = [
            (scored_pairs(scores[reference].filter(rows)), scored_pairs(frame.filter(rows))) for rows in (unseen | True, unseen)
        ]
        whole, part = (compare(before, after, **settings) for before, after in pairs)
        changes[name] = (None, None) if name == reference else (whole["GAUC"], part["AUC"])
    return changes


def print_pairs(config: Config, reference: str | None) -> None:
    """The leaderboard of the run, with the costs of recipes.

    Args:
        reference: a score that the others are compared with, besides the like-rate.
    """
    board = read_leaderboard(config.folder)
    spent = {f"lego-{row['title']}": row for row in cost_rows(config.folder, "pairs")}
    split, name = board["split"], board["settings"]["split"]
    print(
        f"\n{split['rows']:,} {name} pairs of {split['users']:,} users; the candidate of {split['parts']['unseen']:,} is unseen"
    )
    header = ["score", "AUC", "GAUC", f"GAUC minus {board['reference']}", "detectable", "AUC, seen", "AUC, unseen"]
    if reference is not None:
        header += [f"GAUC minus {reference}", f"AUC, unseen, minus {reference}"]
    changes = {} if reference is None else differences_of_pairs(config, reference)
    rows = []
    for entry in board["entries"]:
        change = entry.get("against_reference", {}).get("GAUC")
        least = "-" if change is None or change["detectable"] is None else f"{change['detectable']:.4f}"
        auc = entry["auc_of"]
        row = [entry["label"], figure(entry["metrics"]["AUC"]), figure(entry["metrics"]["GAUC"]), difference(change), least]
        row += [figure(auc["seen"]), figure(auc["unseen"]), *map(difference, changes.get(entry["name"], ()))]
        rows.append([*row, *costs(spent.get(entry["name"]))])
    table([*header, *COSTS], rows)


def print_lists(config: Config, reference: str | None) -> None:
    """HR@10 and NDCG@10 of all that is evaluated, on all rows and on cold targets, minus the reference's."""
    spent = {label_of(f"lego-{row['title']}"): row for row in cost_rows(config.folder, "lists")}
    parts: dict[str, dict[tuple[str, str], PartRow]] = {}
    for metric in ("NDCG@10", "HR@10"):
        sliced = slices_of_run(config.folder, metric, reference=reference, resamples=config.eval.resamples, seed=config.seed)
        parts[metric] = {(row.question, row.answer): row for row in sliced.rows}
    whole, hits = parts["NDCG@10"][WHOLE], parts["HR@10"][WHOLE]
    cold = next(row for (_, answer), row in parts["NDCG@10"].items() if answer == "cold")
    print(f"\n{whole.rows:,} rows, {cold.rows:,} with a target that training never saw (cold)")
    other = sliced.reference
    header = ["recommender", "HR@10", "NDCG@10", f"minus {other}", "NDCG@10, cold", f"minus {other}, cold", *COSTS]
    rows = []
    for label in sorted(whole.cells, key=lambda label: -whole.cells[label]["value"]):
        row = [label, figure(hits.cells[label]), figure(whole.cells[label]), difference(whole.changes.get(label))]
        rows.append([*row, figure(cold.cells[label]), difference(cold.changes.get(label)), *costs(spent.get(label))])
    table(header, rows)


def label_of(name: str) -> str:
    """How a page calls a recommender."""
    return LABELS.get(name, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES_SHOWN))
    parser.add_argument("--for-texts", default="", help="fields for recipes that learn words, such as '--lego.max_words 24'")
    parser.add_argument(
        "--for-layers", default="", help="fields for interactions with hidden layers, such as '--lego.mlp [256]'"
    )
    parser.add_argument("--baselines", nargs="*", default=[], help="on lists: baselines to train beside")
    parser.add_argument("--reference", help="a recommender, or a score, that the others are compared with")
    parser.add_argument("--no-table", action="store_true", help="train only")
    arguments, fields = parser.parse_known_args()
    try:
        configs = [configuration(arguments, fields, recipe) for recipe in arguments.recipes]  # all before the first is trained
        first = configs[0]
        pipeline.run(first, ("data", "pairs") if first.lego.task == "pairs" else ("data", "sid"))
        for baseline in arguments.baselines:
            own = ["--config", arguments.config, "--out", str(arguments.out), *fields, "--baseline.model", baseline]
            pipeline.run(cli.parse("baseline", own), ("baseline",))
        for config in configs:
            pipeline.run(config, ("lego",))
        if arguments.no_table:
            return
        print(f"\n{machine()}")
        if first.lego.task == "pairs":
            pipeline.run(first, ("score",))
            print_pairs(first, arguments.reference)
        else:
            print_lists(first, arguments.reference)
        for note in sorted({row["emissions"] or "" for row in cost_rows(first.folder, first.lego.task)} - {""}):
            print(f"Emissions {note}")
    except MiniOneRecError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    main()
