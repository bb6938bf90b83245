"""Sections `eval` and `report`."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from minionerec.config.checks import between, positive

CUTOFFS = (1, 3, 5, 10, 20, 50)
RESAMPLES = 2000  # of bootstrap intervals and permutation tests, unless another number is set
RANKING_METRICS = tuple(f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in CUTOFFS)
MOST_BEAMS = 1_000_000  # a list is a tensor of this width, however small the catalog is


@dataclass
class EvalConfig:
    """Stage `eval`: rank the catalog for every user of a split and measure."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("batch_size",)
    """Fields that decide how a result is computed, not which one; `Config.key_fields` leaves them out. Results agree up to
    rounding."""

    split: Literal["valid", "test"] = "test"
    """Which targets are predicted."""
    num_beams: int = 50
    """Beams of the constrained search, and the length of each list. A metric with a larger cut-off counts the whole list (SIDs;
    paper: 50)."""
    normalise_over: Literal["vocabulary", "catalog"] = "vocabulary"
    """What a step's probabilities add up over in the scores: all tokens, as in the paper, or the legal next ones, as a model
    trained with `sft.normalise_over: catalog` expects."""
    batch_size: int = 32
    """Prompts decoded at once (prompts)."""
    exclude_history: bool = False
    """Recommend no item of the example's history: the search runs in a view of the catalog without it, and it is removed from
    the lists of baselines (these are then shorter than `baseline.top`). The exact scores of `oracle_examples` always cover the
    whole catalog (paper: false)."""
    shard_size: int = 512
    """Examples decoded and stored at a time. An interrupted evaluation resumes after the last stored shard; processes take
    shards in turn, so the result does not depend on their number (examples)."""
    resamples: int = RESAMPLES
    """Bootstrap resamples of the 95 % intervals, users as units (count)."""
    oracle_examples: int = 128
    """Examples, evenly spaced over the split, for which the whole catalog is scored exactly. The scores show what the beam
    search missed, at which level it dropped the target, and how narrower beams would do; 0 for none (examples)."""

    def __post_init__(self) -> None:
        positive("eval", num_beams=self.num_beams, batch_size=self.batch_size, resamples=self.resamples)
        positive("eval", shard_size=self.shard_size)
        between("eval", 1, MOST_BEAMS + 1, num_beams=self.num_beams)
        between("eval", 0, math.inf, oracle_examples=self.oracle_examples)


@dataclass
class ReportConfig:
    """Stage `report`: one HTML page of the run."""

    examples: int = 10
    """Examples shown with their history and recommendations (examples)."""

    def __post_init__(self) -> None:
        between("report", 0, math.inf, examples=self.examples)
