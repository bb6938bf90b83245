"""Predictions: one ranked list of SIDs per example, stored as `predictions.jsonl`, one JSON object a line.

`Prediction` is one line; `minionerec.eval.lists.RankedLists` holds a whole file as arrays.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from minionerec.config.documents import parse_json
from minionerec.errors import CatalogError, DataError
from minionerec.sid.index import SidIndex

ScoreKind = Literal["log-probability", "weighed logarithm", "minus rank"]
"""What scores are: log-probabilities of SIDs in nats, D3's weighed logarithms, or minus the 0-based rank."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was recommended to one user at one point of their sequence.

    Attributes:
        user: the user's id.
        history: item indices, oldest first.
        target: the index of the item to be found.
        target_sid: its codes, one per level; a SID with fewer codes than the longest ends in -1.
        sids: recommended SIDs, best first, distinct, each as long as `target_sid`, short ones ending in -1 as well.
        items: recommended item indices, best first.
        scores: one per SID, descending.
        exact: whether the list is provably the exact top of the catalog; of `liger`, whether its candidates provably are
            (docs/rivals.md).
        score_kind: what the scores are; None in the files of earlier versions, which did not say.
        position: the target's 0-based position in the user's sequence; None if each user has one prediction.
        sizes: how many of `items` each SID stands for: a model that writes SIDs cannot order the items of one. None if
            `items` is itself an order, or no SID of the list has two items.
        item_tie: the best 0-based rank of the target among the items, and how many items, itself included, share its score and
            so this rank and the following ones; the order of these in `items` means nothing. They may reach beyond the list's
            end, and the target may lie there. None if nothing ties with the target, or no list reaches it.
        sid_tie: the same of the target's SID among SIDs; None if its place in `sids` is its rank.
        target_id, history_ids, item_ids: the catalog's ids of `target`, `history` and `items`; None if the file has none.

    Raises:
        DataError: SIDs of unequal depth, a SID listed twice, not one score per SID, sizes that do not add up, a tie that is no
            pair, or not one id per item.
    """

    user: str
    history: list[int]
    target: int
    target_sid: list[int]
    sids: list[list[int]]
    items: list[int]
    scores: list[float]
    exact: bool
    score_kind: ScoreKind | None = None
    position: int | None = None
    sizes: list[int] | None = None
    item_tie: list[int] | None = None
    sid_tie: list[int] | None = None
    target_id: str | None = None
    history_ids: list[str] | None = None
    item_ids: list[str] | None = None

    def __post_init__(self) -> None:
        depth = len(self.target_sid)
        if not depth:
            raise DataError(f"user {self.user!r}: target_sid is empty, expected one code per level.")
        for position, sid in enumerate(self.sids):
            if len(sid) != depth:
                raise DataError(f"user {self.user!r}: sids[{position}] has {len(sid)} codes, target_sid has {depth}.")
        if len(set(map(tuple, self.sids))) != len(self.sids):
            raise DataError(f"user {self.user!r}: sids holds a SID twice; a ranked list must be distinct.")
        if len(self.scores) != len(self.sids):
            raise DataError(f"user {self.user!r}: {len(self.scores)} scores for {len(self.sids)} sids, expected one each.")
        if self.sizes is not None and (len(self.sizes) != len(self.sids) or sum(self.sizes) != len(self.items)):
            raise DataError(
                f"user {self.user!r}: {len(self.sizes)} sizes that add up to {sum(self.sizes)} for {len(self.sids)} sids and "
                f"{len(self.items)} items; expected one size per SID and their sum to be the number of items."
            )
        for name, tie in (("item_tie", self.item_tie), ("sid_tie", self.sid_tie)):
            if tie is not None and (len(tie) != 2 or tie[1] < 2):
                raise DataError(f"user {self.user!r}: {name} is {tie}, expected a rank and how many tie at it, 2 or more.")
        for name, ids, items in (("history", self.history_ids, self.history), ("item", self.item_ids, self.items)):
            if ids is not None and len(ids) != len(items):
                raise DataError(f"user {self.user!r}: {len(ids)} {name}_ids for {len(items)} items, expected one each.")


def _index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _indices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_index, value))


def _sid(value: Any) -> bool:
    """At least one code, then nothing but -1."""
    if not isinstance(value, list):
        return False
    end = next((level for level, code in enumerate(value) if code == -1), len(value))
    return end > 0 and _indices(value[:end]) and all(type(code) is int and code == -1 for code in value[end:])


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(text, str) for text in value))


_CODES = "codes, -1 only after the last"
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "user": (lambda value: isinstance(value, str), "a string"),
    "history": (_indices, "a list of item indices"),
    "target": (_index, "an item index"),
    "target_sid": (_sid, f"a list of {_CODES}"),
    "sids": (lambda value: isinstance(value, list) and all(map(_sid, value)), f"a list of lists of {_CODES}"),
    "items": (_indices, "a list of item indices"),
    "scores": (lambda value: isinstance(value, list) and all(map(_finite, value)), "a list of finite numbers"),
    "exact": (lambda value: isinstance(value, bool), "true or false"),
}
_TIE = "a rank and a number of ties"
_KINDS = get_args(ScoreKind)
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "score_kind": (lambda value: value is None or value in _KINDS, f"one of {', '.join(_KINDS)}"),
    "position": (lambda value: value is None or _index(value), "a position in the user's sequence"),
    "sizes": (lambda value: value is None or (_indices(value) and 0 not in value), "a list of numbers of items, at least 1"),
    "item_tie": (lambda value: value is None or _indices(value), _TIE),
    "sid_tie": (lambda value: value is None or _indices(value), _TIE),
    "target_id": (lambda value: value is None or isinstance(value, str), "an item's id"),
    "history_ids": (_texts, "a list of items' ids"),
    "item_ids": (_texts, "a list of items' ids"),
}


def _parse(line: str) -> Prediction:
    """The prediction on a line.

    Raises:
        DataError: it is malformed; the message does not name the line.
    """
    try:
        values = parse_json(line)
    except ValueError as error:
        raise DataError(f"not valid JSON ({error}); the file may be cut off. Run the evaluation again.") from None
    if not isinstance(values, dict):
        raise DataError(f"found {type(values).__name__}, expected one JSON object per line.")
    fields = _FIELDS | _OPTIONAL
    missing, unknown = sorted(_FIELDS.keys() - values.keys()), sorted(values.keys() - fields.keys())
    if missing or unknown:
        differences = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise DataError(f"fields {' and '.join(differences)}; expected exactly {', '.join(_FIELDS)}.")
    for name, (valid, expected) in fields.items():
        if name in values and not valid(values[name]):
            raise DataError(f"field {name} is {json.dumps(values[name])[:60]}, expected {expected}.")
    return Prediction(**values)


def read_predictions(path: Path) -> list[Prediction]:
    """Read a predictions file line by line; `RankedLists.read` reads the same file many times faster.

    Raises:
        DataError: the file cannot be read or is empty, a line is malformed (the message names it), an example appears twice,
            or SIDs differ in depth between lines.
    """
    predictions: list[Prediction] = []
    lines: dict[tuple[str, int | None], int] = {}
    try:
        with Path(path).open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    prediction = _parse(line)
                except DataError as error:
                    raise DataError(f"{path}, line {number}: {error}") from None
                example = (prediction.user, prediction.position)
                if example in lines:
                    raise DataError(
                        f"{path}, line {number}: user {prediction.user!r} is already on line {lines[example]}; "
                        "expected one line per user and position. Run the evaluation again."
                    )
                lines[example] = number
                predictions.append(prediction)
                depth, expected = len(prediction.target_sid), len(predictions[0].target_sid)
                if depth != expected:
                    raise DataError(f"{path}, line {number}: SIDs of {depth} codes, line 1 has {expected}.")
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Make it with the eval stage.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); expected a predictions.jsonl file.") from None
    if not predictions:
        raise DataError(f"{path}: empty; expected one JSON object per user. Run the evaluation again.")
    return predictions


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> int:
    """Stream predictions to disk through a temporary name; returns how many there were.

    Equal predictions give equal bytes: scores keep 6 decimals, optional fields are left out if they are None.
    """
    temporary, written = path.with_name(path.name + ".tmp"), 0
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for prediction in predictions:
            values = {field: getattr(prediction, field) for field in _FIELDS}
            values["scores"] = [round(score, 6) for score in prediction.scores]
            values |= {field: value for field in _OPTIONAL if (value := getattr(prediction, field)) is not None}
            stream.write(json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n")
            written += 1
    temporary.replace(path)
    return written


def as_predictions(
    examples: pl.DataFrame,
    rankings: Iterable[np.ndarray],
    sid_index: SidIndex,
    ids: Sequence[str] | None = None,
    exact: bool = True,
    places: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[Prediction]:
    """Item rankings as predictions: the ranking's items, their SIDs in the order of first occurrence, minus the rank as score.

    Args:
        examples: a split.
        rankings: item indices, best first, per row of the split.
        sid_index: the SIDs of the items.
        ids: the catalog's ids of the items; None leaves them out.
        exact: whether all items were ranked, so that the lists are the exact top.
        places: the 0-based rank of each row's target, the best one if items tie with it, and how many items share it and the
            following ones, both (rows,); None if rankings have no ties.

    Raises:
        CatalogError: an item lies outside the SID index.
    """
    predictions = []
    several = examples["user"].n_unique() < len(examples)
    best, ties = (np.full(len(examples), np.inf), np.ones(len(examples))) if places is None else places
    for row, (example, ranking) in enumerate(zip(examples.iter_rows(named=True), rankings, strict=True)):
        named = example if several else {**example, "position": None}
        predictions.append(as_prediction(named, ranking, sid_index, ids, exact, (best[row], int(ties[row]))))
    return predictions


def as_prediction(
    example: dict[str, Any],
    ranking: np.ndarray,
    sid_index: SidIndex,
    ids: Sequence[str] | None,
    exact: bool,
    place: tuple[float, int],
) -> Prediction:
    """One of `as_predictions`.

    Args:
        example: a row of a split; its position None if each user has one row.
        place: the target's best 0-based rank, and how many items share it and the following ones.

    Raises:
        CatalogError: an item lies outside the SID index.
    """
    outside = [item for item in (*ranking.tolist(), example["target"]) if not 0 <= item < len(sid_index.codes)]
    if outside:
        raise CatalogError(
            f"Item {outside[0]} of user {example['user']!r} has no SID: the index holds {len(sid_index.codes)} items. "
            "Run the sid stage for this dataset."
        )
    sids = dict.fromkeys(map(tuple, sid_index.codes[ranking].tolist()))  # in the order of first occurrence
    return Prediction(
        user=example["user"],
        history=example["history"],
        target=example["target"],
        target_sid=sid_index.codes[example["target"]].tolist(),
        sids=[list(sid) for sid in sids],
        items=ranking.tolist(),
        scores=[-float(rank) for rank in range(len(sids))],
        exact=exact,
        score_kind="minus rank",
        position=example["position"],
        **_ties(example["target"], ranking, sid_index, *place),
        **({} if ids is None else own_ids(ids, example["target"], example["history"], ranking.tolist())),
    )


def _ties(target: int, ranking: np.ndarray, sid_index: SidIndex, best: float, ties: int) -> dict[str, Any]:
    """The fields `item_tie` and `sid_tie` of a prediction whose target has `best` as best rank, with `ties` items at it.

    If a better item has the target's SID, that item's place is the SID's. Of items that tie beyond the list's end nothing is
    known, so each counts as a SID.
    """
    if ties < 2 or best >= len(ranking):
        return {}
    first = int(best)
    before, equal = ({*map(tuple, sid_index.codes[part].tolist())} for part in (ranking[:first], ranking[first : first + ties]))
    fields = {"item_tie": [first, ties]}
    own = tuple(sid_index.codes[target].tolist())
    if own not in before:
        sids = len(equal - before) + max(0, first + ties - len(ranking))
        if sids > 1:
            fields["sid_tie"] = [len(before), sids]
    return fields


def own_ids(ids: Sequence[str], target: int, history: Sequence[int], items: Sequence[int]) -> dict[str, Any]:
    """The fields of a prediction with the catalog's ids.

    >>> own_ids(["lamp", "cup"], 1, [0, 1], [0])
    {'target_id': 'cup', 'history_ids': ['lamp', 'cup'], 'item_ids': ['lamp']}
    """
    return {
        "target_id": ids[target],
        "history_ids": [ids[item] for item in history],
        "item_ids": [ids[item] for item in items],
    }
