"""Whether several SID sets in one model rank items better: one set against K sets in one model, for equal compute, on valid.

A SID set is a quantization of the catalog with a seed of its own: set 1, 2, ... In a model of K sets every user is a training
example once per set, history and target in codes that no other set has. `sft` trains it as it is, on a dataset in which item i
of n is there K times, as k * n + i. p_k(item) is the product over the item's codes in set k, after the history in codes of set
k, each normalised over the codes that set k has there. Items are ranked by p_k of one set, or by the mean of p_k over the sets,
which costs K times the computation. There are these trainings:

- `one`: set 1, for the configuration's epochs; `one-<K>x`: for K times as many, as many steps as K sets take;
- `<K>-sets`: all in one model, each in as many epochs as in `one`;
- with `--models`, `only-2`, ..., `only-<K>`: each further set alone, for the mean of K models: averaging without sharing.

A set's list is what the beam search finds. A mean is taken for all items of the sets' lists, with the exact p in every set. An
item that no list has is below what the searches pruned; the share of rows whose first ten items are thereby proven is printed.

    python benchmarks/sid_sets.py --config industrial-tiny --out runs/sets --data.path FOLDER --sid.vectors FILE.npy --threads 1
    python benchmarks/sid_sets.py ... --sets 3      # the same OUT: what is there stays

Figures are NDCG@10 and HR@10 on items of valid, history kept: for all rows, without the duplicates bought most, and for cold
targets (`quality.py`). Differences are averaged over the seeds for each user, 95 % intervals resample users, `*` marks what is
beyond noise. `one, by eval` is what `minionerec eval` says of `one`; the two must agree. Each training is in
`OUT/<training>/seed-<n>/`; the same command resumes. `OUT/<K>-sets.json` holds the figures. Fields behind the options hold for
all trainings.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from quality import BASE, METRICS, configuration, parts_of_rows, summary
from setting import change_text, in_process_of_its_own, link_parts, machine, options_of_trainings, positive, table

from minionerec.artifacts import Manifest, content_hash, write_json
from minionerec.data import released
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.errors import MiniOneRecError
from minionerec.eval.compare import values_by_seed
from minionerec.eval.evaluate import evaluate
from minionerec.eval.lists import RankedLists
from minionerec.recommend.recommender import Recommender
from minionerec.sid.index import SidIndex, token_string
from minionerec.statistics.ranking import per_user
from minionerec.tree import CatalogTrie, score_leaves

CUTOFFS, PLACES = (10,), 10
EVALUATED = "one, by eval"
Values = list[Mapping[str, np.ndarray]]  # per seed, (rows,) by metric


@dataclass(frozen=True)
class Training:
    """The numbers of its SID sets, and how many times the configuration's epochs it takes."""

    sets: tuple[int, ...]
    times: int = 1


def trainings_of(count: int, models: bool) -> dict[str, Training]:
    """The trainings that a table of so many sets needs, with or without those for the mean of as many models.

    >>> list(trainings_of(2, models=True))
    ['one', '2-sets', 'one-2x', 'only-2']
    """
    numbers = tuple(range(1, count + 1))
    others = {f"only-{number}": Training((number,)) for number in numbers[1:] if models}
    return {"one": Training((1,)), f"{count}-sets": Training(numbers), f"one-{count}x": Training((1,), count), **others}


def groups_of(count: int, models: bool) -> dict[str, list[tuple[str, str, int]]]:
    """What is ranked together, by the name of its mean: names of the single sets, their training and their place in it."""
    together, apart = f"{count}-sets", [f"only-{number}" for number in range(2, count + 1)]
    return {
        f"mean of {count} models" if models else "one": [(name, name, 0) for name in ("one", *(apart if models else ()))],
        f"one-{count}x": [(f"one-{count}x", f"one-{count}x", 0)],
        f"{together}, mean": [(f"{together}, set {place + 1} alone", together, place) for place in range(count)],
    }


def in_sets(dataset: Dataset, indexes: Sequence[SidIndex]) -> tuple[Dataset, list[list[str]]]:
    """The dataset in which item i of n is there once per set, as k * n + i, and so is every user; set after set.

    Args:
        indexes: the sets' SIDs, of as many levels each.

    Returns:
        the dataset, and the tokens of each of its items: a set's codes follow those of the sets before it, at every level.
    """
    items = len(dataset.catalog)

    def repeated(frame: pl.DataFrame) -> pl.DataFrame:
        return pl.concat(
            frame.with_columns(
                user=pl.col("user") + f" in set {place}",
                history=pl.col("history").list.eval(pl.element() + place * items),
                target=pl.col("target") + place * items,
            )
            for place in range(len(indexes))
        )

    names = [str(number) for number in range(len(indexes) * items)]
    catalog = pl.concat([dataset.catalog] * len(indexes)).with_columns(item_id=pl.Series(names, dtype=pl.String))
    sizes = np.array([index.codebook_sizes for index in indexes])
    before = sizes.cumsum(0) - sizes
    tokens = [
        [token_string(level, code + int(first)) for level, (code, first) in enumerate(zip(codes, firsts, strict=True))]
        for index, firsts in zip(indexes, before, strict=True)
        for codes in index.codes.tolist()
    ]
    return Dataset(catalog, *(repeated(dataset.split(name)) for name in SPLITS)), tokens


def likeness(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Of the pairs of items with one code in the first set, the share that has one code in the second; and of all pairs.

    >>> likeness(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 6]))
    (0.5, 0.5)
    """

    def pairs(codes: np.ndarray) -> int:
        counts = np.unique(codes, axis=0, return_counts=True)[1]
        return int((counts * (counts - 1)).sum())

    items = len(first)
    return pairs(np.stack([first, second], 1)) / pairs(first), pairs(second) / (items * (items - 1))


@dataclass(frozen=True)
class SetOfModel:
    """One SID set of a model that was trained on a dataset of `in_sets`.

    Attributes:
        place: of the set among those of the model.
        sets: of the model.
    """

    recommender: Recommender
    place: int
    sets: int

    @cached_property
    def trie(self) -> CatalogTrie:
        """The trie of the set alone, whose items are numbered as in the catalog: codes are normalised among the set's own."""
        tokens = self.recommender.prompts.sid_tokens
        items = len(tokens) // self.sets
        return CatalogTrie.from_codes(tokens[self.place * items : (self.place + 1) * items], self.recommender.model.device)

    @cached_property
    def histories(self) -> list[list[int]]:
        """The histories of valid in codes of the set."""
        histories = self.recommender.prompts.dataset.valid["history"]
        rows = len(histories) // self.sets
        return histories.slice(self.place * rows, rows).to_list()

    def search(self, rows: slice, beams: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The beam search's lists after some histories.

        Returns:
            items, (rows, beams), -1 in empty places; their log-probabilities; and the highest that an item outside the list can
            have, (rows,).

        Raises:
            SystemExit: items share a SID.
        """
        trie = self.trie
        if len(trie) < len(trie.leaf_of_item):
            raise SystemExit("Some items share a SID. Take other --sid.collisions.")
        found = self.recommender.search(self.histories[rows], num_beams=beams, normalise_over="catalog", trie=trie)
        item_of_leaf = torch.cat([trie.items_by_leaf[0].long(), torch.tensor([-1])])  # -1 finds the last
        return item_of_leaf[found.leaves].numpy(), found.scores.double().numpy(), found.best_pruned.double().numpy()

    def score(self, rows: slice, items: np.ndarray) -> np.ndarray:
        """The exact log-probabilities of some items after each history, (rows, items) like `items`; -inf where these are -1."""
        leaves = torch.where(torch.from_numpy(items) < 0, -1, self.trie.leaf_of_item[items].long())
        model = self.recommender.model
        prompts = self.recommender.encode(self.histories[rows])
        return score_leaves(model, *prompts, trie=self.trie, leaves=leaves, normalise_over="catalog").double().numpy()


class Ranked(NamedTuple):
    """0-based ranks of the targets, infinity for a miss: (sets, rows) by each set alone, (rows,) by the mean of the sets.

    `proven`, (rows,) bool: the mean's first ten items are those of the whole catalog.
    """

    alone: np.ndarray
    mean: np.ndarray
    proven: np.ndarray


def ranks_of(items: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """0-based rank of each row's target among its items, (rows,); infinity if it is not among them. Equal items share the best.

    Args:
        items: (rows, any), -1 in empty places.
        scores: of the same shape, probabilities or their logarithms.
        targets: (rows,) items.
    """
    listed = items == targets[:, None]
    own = np.where(listed, scores, -np.inf).max(1, keepdims=True)
    return np.where(listed.any(1), (scores > own).sum(1), np.inf)


def union_of(lists: Sequence[np.ndarray]) -> np.ndarray:
    """Each row's items, once each, (rows, most); -1 in empty places.

    >>> union_of([np.array([[3, 1], [2, 0]]), np.array([[1, 3], [4, -1]])]).tolist()
    [[-1, 1, 3], [0, 2, 4]]
    """
    items = np.sort(np.concatenate(lists, 1), 1)
    items[:, 1:][items[:, 1:] == items[:, :-1]] = -1
    items.sort(1)
    return items[:, (items < 0).sum(1).min() :]


def rank_together(sets: Sequence[SetOfModel], targets: np.ndarray, beams: int, batch_size: int) -> Ranked:
    """Rank valid by each set alone and by the mean of p over the sets.

    Args:
        targets: (rows,) items.
        beams: of a search.
        batch_size: histories computed at once.
    """
    alone, means, proven = np.empty((len(sets), len(targets))), np.empty(len(targets)), np.empty(len(targets), dtype=bool)
    for start in range(0, len(targets), batch_size):
        rows = slice(start, start + batch_size)
        found = [of_model.search(rows, beams) for of_model in sets]
        alone[:, rows] = [ranks_of(items, scores, targets[rows]) for items, scores, _ in found]
        if len(sets) == 1:
            means[rows], proven[rows] = alone[0, rows], np.sort(found[0][1])[:, -PLACES:].min(1) >= found[0][2]
            continue
        items = union_of([listed for listed, *_ in found])
        chances = np.mean([np.exp(of_model.score(rows, items)) for of_model in sets], axis=0)
        means[rows] = ranks_of(items, chances, targets[rows])
        outside = np.mean([np.exp(highest) for *_, highest in found], axis=0)
        proven[rows] = np.sort(chances)[:, -PLACES:].min(1) >= outside
    return Ranked(alone, means, proven)


def make_sets(arguments: argparse.Namespace, common: Sequence[str]) -> tuple[Dataset, list[SidIndex]]:
    """The data and the SID sets, each made in a process of its own unless it is there.

    Raises:
        SystemExit: a stage failed.
    """
    options = ["--config", arguments.config, *common, "--sid.shipped", "false"]
    data = arguments.out / "items"
    in_process_of_its_own(["-m", "minionerec", "data", "prepare", "--out", str(data), *options])
    dataset, indexes = Dataset.load(data / "data"), []
    for number in range(1, arguments.sets + 1):
        folder = arguments.out / f"set-{number}"
        link_parts(data, folder, ("data",))
        in_process_of_its_own(["-m", "minionerec", "sid", "--out", str(folder), *options, "--seed", str(number)])
        indexes.append(SidIndex.load(folder / "sid", dataset))
    return dataset, indexes


def fields_of(arguments: argparse.Namespace, name: str, seed: int, common: Sequence[str]) -> list[str]:
    """A training's fields; the last of equal fields counts."""
    training = trainings_of(arguments.sets, arguments.models)[name]
    epochs = configuration(arguments, arguments.out, 1, common).sft.epochs * training.times
    raw = items_folder(arguments, training) / "raw"
    data = ["--data.source", "released", "--data.category", "sets", "--data.path", str(raw)]
    sids = ["--sid.shipped", "true", "--sid.collisions", "keep", "--sid.vectors", "null"]
    return [*common, *data, *sids, "--sft.epochs", str(epochs), "--seed", str(seed)]


def items_folder(arguments: argparse.Namespace, training: Training) -> Path:
    """The run with a training's data and SIDs."""
    return arguments.out / f"items-{'-'.join(map(str, training.sets))}"


def make(
    arguments: argparse.Namespace, name: str, seed: int, common: Sequence[str], dataset: Dataset, indexes: Sequence[SidIndex]
) -> None:
    """Train, in a process of its own; what is finished stays.

    Args:
        dataset, indexes: as `make_sets` returns them.

    Raises:
        SystemExit: a stage failed.
    """
    training = trainings_of(arguments.sets, arguments.models)[name]
    items, folder = items_folder(arguments, training), arguments.out / name / f"seed-{seed}"
    released.write(*in_sets(dataset, [indexes[number - 1] for number in training.sets]), "sets", items / "raw")
    options = ["--config", arguments.config, *fields_of(arguments, name, seed, common)]
    for stage in (["data", "prepare"], ["sid"]):
        in_process_of_its_own(["-m", "minionerec", *stage, "--out", str(items), *options])
    link_parts(items, folder, ("data", "sid"))
    in_process_of_its_own(["-m", "minionerec", "sft", "--out", str(folder), *options])


def ranked(
    arguments: argparse.Namespace, group: Sequence[tuple[str, str, int]], seed: int, targets: np.ndarray, beams: int
) -> Ranked:
    """`rank_together` of a group of `groups_of`, kept in `OUT/ranks`."""
    folders = [arguments.out / training / f"seed-{seed}" for _, training, _ in group]
    digests = {folder: Manifest.load(folder / "sft").digest for folder in folders}
    made_from = [[digests[folder], place, beams] for folder, (_, _, place) in zip(folders, group, strict=True)]
    path = arguments.out / "ranks" / f"{content_hash(made_from)[:16]}.npz"
    if not path.is_file():
        counts = [len(trainings_of(arguments.sets, arguments.models)[training].sets) for _, training, _ in group]
        models = {folder: Recommender.load(folder, "sft", mixture=False) for folder in dict.fromkeys(folders)}
        parts = [
            SetOfModel(models[folder], place, count)
            for folder, (_, _, place), count in zip(folders, group, counts, strict=True)
        ]
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".draft.npz")
        np.savez(draft, **rank_together(parts, targets, beams, models[folders[0]].config.batch_size)._asdict())
        draft.replace(path)
    return Ranked(**np.load(path))


def results(arguments: argparse.Namespace, common: Sequence[str], dataset: Dataset) -> dict[str, Any]:
    """By ranking and part of the rows, the metrics and how much they exceed those of `one` and of `one-<K>x`."""
    targets, seeds = dataset.valid["target"].to_numpy(), range(1, arguments.seeds + 1)
    lists = []
    for seed in seeds:
        folder = arguments.out / "one" / f"seed-{seed}"
        config = configuration(arguments, folder, seed, fields_of(arguments, "one", seed, common))
        evaluate(config, "sft")
        lists.append(RankedLists.read(folder / "eval/sft/predictions.jsonl"))
    values: dict[str, Values] = {EVALUATED: list(values_by_seed(lists, lists[0], CUTOFFS))}
    proven = {}
    for name, group in groups_of(arguments.sets, arguments.models).items():
        found = [ranked(arguments, group, seed, targets, config.eval.num_beams) for seed in seeds]
        for number, (alone, *_) in enumerate(group):
            values[alone] = [per_user(one.alone[number], CUTOFFS) for one in found]
        values[name] = [per_user(one.mean, CUTOFFS) for one in found]
        proven[name] = float(np.mean([one.proven for one in found]))
    duplicates, parts = parts_of_rows(lists[0], dataset)
    bases = ("one", f"one-{arguments.sets}x")
    units = lists[0].units()
    return {
        "rows": {part: int(rows.sum()) for part, rows in parts.items()},
        "duplicates": duplicates,
        "proven": proven,
        "rankings": {
            name: {
                part: {base: summary(values[base], of_ranking, rows, units) for base in bases} for part, rows in parts.items()
            }
            for name, of_ranking in values.items()
        },
    }


def show(arguments: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Print what the sets and the trainings are, and a table with a row per ranking and part of the rows."""
    print(f"\n{machine()}; {Path(arguments.config).stem}, valid split, {arguments.seeds} seed(s)")
    counts = ", ".join(f"{part} {count}" for part, count in found["rows"].items())
    print(f"rows: {counts}; without leaves out targets {found['duplicates']}")
    same, chance = found["likeness"]
    print(f"of the pairs of items with one first code in set 1, {same:.2f} have one in set 2; of all pairs, {chance:.3f}")
    print("first ten items proven: " + ", ".join(f"{name} {share:.4f}" for name, share in found["proven"].items()))
    for name in trainings_of(arguments.sets, arguments.models):
        made = [Manifest.load(arguments.out / name / f"seed-{seed}/sft") for seed in range(1, arguments.seeds + 1)]
        steps, parameters = (f"{made[0].metrics[figure]:,} {figure}" for figure in ("steps", "parameters"))
        print(f"{name}: {steps}, {parameters}, {np.mean([manifest.seconds for manifest in made]) / 60:.1f} minutes")
    print()
    rows = []
    for name, parts in found["rankings"].items():
        for part, against in parts.items():
            row = [name if part == "all" else "", part]
            for cell in next(iter(against.values())).values():
                row.append(f"{np.mean(cell['seeds']):.4f} ({', '.join(f'{value:.4f}' for value in cell['seeds'])})")
            rows.append([*row, *(change_text(cells[metric]["change"]) for metric in METRICS for cells in against.values())])
    changes = [f"{metric} - {base}'s" for metric in METRICS for base in ("one", f"one-{arguments.sets}x")]
    table(["ranked by", "rows", *(f"{metric}, mean (by seed)" for metric in METRICS), *changes], rows)


def main(argv: list[str] | None = None) -> None:
    options = options_of_trainings(__doc__, "the runs and the table", 1)
    options.add_argument("--sets", type=positive, default=2, help="K, two or more")
    options.add_argument("--models", action="store_true", help="also the mean of K models of a set each")
    arguments, given = options.parse_known_args(argv)
    common = [*shlex.split(BASE), *given, "--eval.split", "valid"]
    try:
        config = configuration(arguments, arguments.out, 1, common)
    except MiniOneRecError as error:
        raise SystemExit(str(error)) from None
    if arguments.sets < 2:
        raise SystemExit("--sets 1: one set is what the others are compared with; expected 2 or more.")
    if config.eval.exclude_history or config.sft.normalise_over != "catalog":
        raise SystemExit("Here histories stay in the lists (eval.exclude_history) and losses are over the catalog.")
    torch.set_num_threads(config.threads)
    dataset, indexes = make_sets(arguments, common)
    for seed in range(1, arguments.seeds + 1):
        for name in trainings_of(arguments.sets, arguments.models):
            print(f"{name}, seed {seed}", flush=True)
            make(arguments, name, seed, common, dataset, indexes)
    alike = likeness(*(index.codes[:, 0] for index in indexes[:2]))
    found = {"fields": common, "seeds": arguments.seeds, "likeness": alike, **results(arguments, common, dataset)}
    show(arguments, found)
    write_json(arguments.out / f"{arguments.sets}-sets.json", found)


if __name__ == "__main__":
    main()
