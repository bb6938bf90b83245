"""`metrics.json`: what the eval stage measures of one recommender. The report and the command line read it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from minionerec.artifacts import read_json, write_json
from minionerec.errors import ArtifactError

_FAMILIES = ("HR", "NDCG", "MRR")


class Cell(TypedDict):
    """A metric's mean over rows and its 95 % interval."""

    value: float
    low: float
    high: float


class ItemCell(Cell):
    """A metric on items: its expectation over tied ranks with an interval, and its value at the best and worst of them."""

    best: float
    worst: float


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What is measured of one recommender's lists.

    Attributes:
        users: distinct users.
        rows: examples; more than `users` if some users have several.
        lengths: of the lists, `shortest` and `longest`. Metrics have no cut-off beyond the longest list.
        exact: the share of provably exact lists, None if unknown.
        invalid: the share of listed places that hold no SID.
        sid: per metric its mean on SIDs.
        item: per metric its mean on items; None if the lists name no items.
        per_user: as `sid`, but each user weighs the same; None if every user has one row.
        detectable: per metric the smallest true difference that this many users show, see `intervals.detectable`; None if all
            users are alike.
        levels: accuracy per SID level, see `levels.level_tables`.
        lost: where lists lose their target, see `levels.lost_targets`.
        calibration: see `levels.calibration`; None if scores are no log-probabilities.
        slices: the metrics on parts of the split, see `slices.slice_tables`; empty if not measured.
        exposure: what the lists show of the catalog, see `exposure.exposure`; None if not measured.
        search: what the beam search missed, see `search_error.summary`; None if no example was traced.
    """

    users: int
    rows: int
    lengths: dict[str, int]
    exact: float | None
    invalid: float
    sid: dict[str, Cell]
    item: dict[str, ItemCell] | None
    per_user: dict[str, Cell] | None
    detectable: dict[str, float | None]
    levels: dict[str, Any]
    lost: list[dict[str, Any]]
    calibration: list[dict[str, Any]] | None
    slices: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    exposure: dict[str, Any] | None = None
    search: dict[str, Any] | None = None

    @property
    def headline(self) -> Mapping[str, Cell]:
        """The metrics that a reader sees first: on items, so that an item that shares its SID is no hit for the others of it.

        If the lists name no items, on SIDs.
        """
        return self.item or self.sid

    @property
    def cutoffs(self) -> list[int]:
        """The cut-offs of the metrics, in ascending order."""
        return _cutoffs(self.sid)

    def as_dict(self) -> dict[str, Any]:
        """The content of the file, in its order."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def write(self, path: Path) -> None:
        """Write the file; equal metrics give equal bytes."""
        write_json(path, self.as_dict())

    @classmethod
    def read(cls, path: Path) -> "Metrics":
        """Read the `metrics.json` of an eval stage.

        Raises:
            ArtifactError: the file is missing or damaged, or another version of MiniOneRec wrote it.
        """
        values = read_json(path)
        difference = _difference(values)
        if difference:
            raise ArtifactError(
                f"{path}: {difference}, so another version of MiniOneRec wrote it. Delete {path.parent} and evaluate again."
            )
        return cls(**values)


def _cutoffs(cells: Mapping[str, Any]) -> list[int]:
    return sorted({int(k) for name in cells if (k := name.partition("@")[2]).isdigit()})


def _difference(values: Any) -> str | None:
    """How the content of a file differs from what this version writes; None if it does not."""
    if not isinstance(values, Mapping):
        return f"found {type(values).__name__}, expected an object"
    names = [field.name for field in dataclasses.fields(Metrics)]
    missing = [name for name in names if name not in values]
    cutoffs = _cutoffs(values.get("sid") or {}) or [1]
    for section in ("sid", "item"):
        expected = [f"{family}@{k}" for family in _FAMILIES for k in cutoffs]
        missing += [f"{section}.{metric}" for metric in expected if metric not in (values.get(section) or {})]
    if values.get("search") and "num_beams" not in values["search"]:
        missing.append("search.num_beams")
    if missing:
        return f"{missing[0]} is missing"
    unknown = sorted(values.keys() - set(names))
    return f"{unknown[0]} is unknown" if unknown else None
