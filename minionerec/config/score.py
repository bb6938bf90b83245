"""Section `score`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from minionerec.config.checks import bounded, check_fields
from minionerec.config.evaluation import RESAMPLES, RESAMPLES_BOUNDS


@dataclass
class ScoreConfig:
    """Command `score`: a score for every pair of a split, and the table of all scores."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("ties", "resamples")  # of scores; the table has them in its key

    split: Literal["valid", "test"] = "test"
    """Which pairs are scored."""
    users: int | None = bounded(None, 1, 10**9)
    """Score the pairs of so many users only, the first of the random order; null: all (users)."""
    ties: Literal["expected", "last"] = "expected"
    """How a user's candidates with equal scores are ranked: `expected` is the mean over their orders; `last` puts dislikes
    first, as RecBench's files do. AUC and GAUC count such a pair one half in both."""
    resamples: int = bounded(RESAMPLES, RESAMPLES_BOUNDS.low, RESAMPLES_BOUNDS.high)
    """Bootstrap resamples of the 95 % intervals, and permutations of the tests, users as units (count)."""

    def __post_init__(self) -> None:
        check_fields("score", self)
