"""The leaderboard of a run's scored pairs: every metric with its interval, and each score compared with the like-rate.

Inputs: `<run>/pairs`, `<run>/scoring/*/scores.parquet`. Output: `<run>/scoring/leaderboard/leaderboard.json`, which another
run's rows of the same pairs can be merged into.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from minionerec.artifacts import MANIFEST, Manifest, Recipe, read_json, require, write_json
from minionerec.config import Config
from minionerec.data.pairs import PairSet
from minionerec.errors import ArtifactError, DataError
from minionerec.scoring.controls import CONTROLS, REFERENCE, missing
from minionerec.scoring.models import row_of, trained_models
from minionerec.statistics.pair_metrics import ScoredPairs
from minionerec.statistics.pair_results import auc_of, compare, measure
from minionerec.training.scored_pairs import FOLDER, pairs_of_split, read_scores, scored_pairs

NAME = "leaderboard"
_FILE = "leaderboard.json"
_MEASURING = ("split", "users", "ties", "resamples")  # fields of `score` that decide a row's figures, whatever made its scores


def write_leaderboard(config: Config) -> tuple[Manifest, bool]:
    """Measure every score that the run has of these pairs.

    Raises:
        ArtifactError: nothing is scored, or an artefact is damaged.
        DataError: a score is of other pairs.
    """
    names = _scored(config)

    def inputs() -> dict[str, str]:
        digests = {"pairs": require(config.folder / "pairs", "minionerec pairs prepare").digest}
        return digests | {f"{FOLDER}/{name}": Manifest.load(config.folder / FOLDER / name).digest for name in names}

    folder, replace, wait = config.folder / FOLDER / NAME, config.replace, config.wait
    recipe = Recipe(
        f"{FOLDER}/{NAME}", folder, {"score": _measuring(config)}, inputs(), config.seed, None, replace, wait, inputs
    )

    def build() -> None:
        board = _board(config, names, recipe.inputs["pairs"])
        with recipe.write() as draft:
            write_json(draft.path / _FILE, board)
            draft.metrics.update(board["split"], entries=len(board["entries"]))

    return recipe.make(build)


def _measuring(config: Config) -> dict[str, Any]:
    return {name: getattr(config.score, name) for name in _MEASURING}


def _scored(config: Config) -> list[str]:
    """What is scored in the run from the pairs as they are now, of the split and the users that the configuration names."""
    pairs = require(config.folder / "pairs", "minionerec pairs prepare").digest
    wanted = config.key_fields("score")["score"]
    outdated = {row_of(name) for name in trained_models(config)[1]}
    names = []
    for path in sorted((config.folder / FOLDER).glob(f"*/{MANIFEST}")):
        if path.parent.name in (NAME, *outdated):
            continue  # made from the others, and a damaged one is made anew; or of a model that is not asked any more
        manifest = Manifest.load(path.parent)
        current = manifest.inputs.get("pairs") == pairs and manifest.config.get("score") == wanted
        if current and manifest.seed == config.seed:
            names.append(path.parent.name)
    if not names:
        raise ArtifactError(f"{config.folder / FOLDER}: nothing is scored here. Run minionerec score.")
    return names


def _board(config: Config, names: Sequence[str], digest: str) -> dict[str, Any]:
    pairs, manifest = PairSet.load(config.folder / "pairs"), Manifest.load(config.folder / "pairs")
    rows = pairs_of_split(pairs, config)
    expected = rows.select("user", "candidate", "label")
    facts: dict[str, Mapping[str, Any]] = {}
    scores: dict[str, ScoredPairs] = {}
    for name in names:
        recorded, frame = read_scores(config.folder / FOLDER / name)
        if not frame.drop("score").equals(expected):
            where = config.folder / FOLDER / name
            raise DataError(f"{where}: holds other pairs than {config.folder / 'pairs'}. Run minionerec score again.")
        facts[name], scores[name] = recorded.metrics, scored_pairs(frame)
    entries = [_entry(config, name, scores, facts) for name in names]
    parts = _parts(pairs, rows)
    for entry in entries:
        of_part = {part: auc_of(scores[entry["name"]], own, config.score.resamples, config.seed) for part, own in parts.items()}
        entry["auc_of"] = {part: None if auc is None else auc._asdict() for part, auc in of_part.items()}
    judged = next(iter(scores.values())).judged
    split = {
        "rows": len(rows),
        "users": len(judged),
        "users_judged": int(judged.sum()),
        "likes": int(rows["label"].sum()),
        "parts": {part: int(own.sum()) for part, own in parts.items()},
        "rows_older_than_history": manifest.metrics[f"{config.score.split}_older_candidates"]
        if config.score.users is None
        else None,
    }
    return {
        "run": config.name,
        "pairs": digest,
        "rule": manifest.metrics["rule"],
        "settings": _measuring(config),
        "seed": config.seed,
        "split": split,
        "reference": REFERENCE if REFERENCE in scores else None,
        "entries": sorted(entries, key=lambda entry: -entry["metrics"]["GAUC"]["value"]),
        "left_out": {name: reason for name in CONTROLS if (reason := missing(name, pairs, config)) is not None}
        | {row_of(name): reason for name, reason in trained_models(config)[1].items()},
    }


def _parts(pairs: PairSet, rows: pl.DataFrame) -> dict[str, np.ndarray]:
    """The rows by whether the train pairs have the candidate, as a candidate or in a history."""
    had = pl.concat([pairs.train["candidate"], pairs.train["history"].explode()]).unique()
    seen = rows["candidate"].is_in(had.implode()).to_numpy()
    return {"seen": seen, "unseen": ~seen}


def _entry(
    config: Config, name: str, scores: Mapping[str, ScoredPairs], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """One score: its metrics, and how much it exceeds the reference."""
    settings: dict[str, Any] = {"resamples": config.score.resamples, "seed": config.seed, "ties": config.score.ties}
    probability = facts[name]["scale"] == "logit"
    metrics = measure(scores[name], probability=probability, **settings)
    entry = {"name": name, "label": facts[name]["label"], "kind": facts[name]["kind"], "run": config.name}
    entry["metrics"] = {metric: interval._asdict() for metric, interval in metrics.items()}
    if REFERENCE in scores and name != REFERENCE:
        both = probability and facts[REFERENCE]["scale"] == "logit"
        entry["against_reference"] = compare(scores[REFERENCE], scores[name], probability=both, **settings)
    return entry


def read_leaderboard(run: Path) -> dict[str, Any]:
    """A run's leaderboard.

    Raises:
        ArtifactError: it has none, or it is damaged.
    """
    folder = run / FOLDER / NAME
    require(folder, "minionerec score")
    board: dict[str, Any] = read_json(folder / _FILE)
    if "parts" not in board["split"]:
        raise ArtifactError(f"{folder}: an earlier version made this table. Run minionerec score --config {run} again.")
    return board


def merged(board: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A leaderboard with the models of other runs, which were measured on the same pairs in the same way; controls are its own.

    Args:
        others: leaderboards by the name of their run's folder, for messages.

    Raises:
        DataError: a run has other pairs, or was measured with other `_MEASURING` settings or another seed.
    """
    _refuse_unlike({name: board[name] for name in ("pairs", "settings", "seed")}, others)
    entries = list(board["entries"])
    for other in others.values():
        entries += [entry for entry in other["entries"] if entry["kind"] != "control"]
    return {**board, "entries": sorted(entries, key=lambda entry: -entry["metrics"]["GAUC"]["value"])}


def check_mergeable(config: Config, others: Mapping[str, Mapping[str, Any]], prepared: bool) -> None:
    """Refuse now what `merged` would refuse once everything is scored.

    Args:
        others: as `merged` takes them.
        prepared: whether the run has its pairs already; otherwise only settings and seed are compared.

    Raises:
        DataError: as `merged`.
    """
    own = {"settings": _measuring(config), "seed": config.seed}
    if prepared:
        own["pairs"] = require(config.folder / "pairs", "minionerec pairs prepare").digest
    _refuse_unlike(own, others)


def _refuse_unlike(own: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse leaderboards that differ from one's own in what `own` holds."""
    for where, other in others.items():
        if different := [name for name in own if other.get(name) != own[name]]:
            raise DataError(
                f"{where}: its leaderboard has other {' and '.join(different)} than this run's, so rows cannot stand beside "
                "each other. Prepare the same pairs (same data, pairs.* and seed) and score them with the same score.split, "
                "score.users, score.ties and score.resamples."
            )
