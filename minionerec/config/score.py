"""Section `score`."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from minionerec.config.checks import bounded, check_fields, cut, path
from minionerec.config.evaluation import RESAMPLES, RESAMPLES_BOUNDS, Dtype
from minionerec.errors import ConfigError

_ONLY_WITH_MODEL = ("dtype", "wording", "system", "before_history", "before_candidate", "suffix", "max_tokens")
_SIZES = ("row_tokens", "batch_users", "shard_users")  # decide how scores are computed, not which


@dataclass
class ScoreConfig:
    """Command `score`: a score for every pair of a split, and the table of all scores."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("ties", "resamples", "model", *_ONLY_WITH_MODEL, *_SIZES)
    """Fields that decide no control: those of the table, and those of the model, whose scores have them in their own keys."""

    split: Literal["valid", "test"] = "test"
    """Which pairs are scored."""
    users: int | None = bounded(None, 1, 10**9)
    """Score the pairs of so many users only, the first of the random order; null: all (users)."""
    ties: Literal["expected", "last"] = "expected"
    """How a user's candidates with equal scores are ranked: `expected` is the mean over their orders; `last` puts dislikes
    first, as RecBench's files do. AUC and GAUC count such a pair one half in both."""
    resamples: int = bounded(RESAMPLES, RESAMPLES_BOUNDS.low, RESAMPLES_BOUNDS.high)
    """Bootstrap resamples of the 95 % intervals, and permutations of the tests, users as units (count)."""

    model: str | None = path()
    """A causal LM to ask as it is, by its YES against its NO: a folder, a GGUF file, `smollm2-135m` after `minionerec model get
    smollm2-135m`, or a hub name; null: controls alone."""
    dtype: Dtype = "float32"
    """Number format of the model's weights and of what is computed with them, up to the logits."""
    wording: Literal["simple", "chat"] = "simple"
    """Our sentences for plain models, or the longer ones for models that follow instructions (`chat`)."""
    system: str | None = None
    """Your own sentence in place of the first one, which says what to do; `\\n` stands for a line break, here and below. null:
    that of `wording`."""
    before_history: str | None = None
    """Your own words before the numbered items of the history; null: ours."""
    before_candidate: str | None = None
    """Your own words between the history and the candidate; null: ours."""
    suffix: str | None = None
    """Your own words before the answer; null: ours."""
    max_tokens: int | None = bounded(None, 1, 10**7)
    """Longest prompt. The oldest items of a longer one go first, for all candidates of a user alike, then the second half of
    every title. null: what the model can read (tokens)."""
    row_tokens: int = bounded(1024, 1, 10**7)
    """Distinct tokens that are computed in one row; one user's may be more (tokens)."""
    batch_users: int = bounded(8, 1, 100_000)
    """Users whose pairs are computed at once (users)."""
    shard_users: int = bounded(64, 1, 10**7)
    """Users that are scored and stored at a time. An interrupted command resumes after the last stored shard; processes take
    shards in turn (users)."""

    def __post_init__(self) -> None:
        check_fields("score", self)
        if self.model is None:
            default = {field.name: field.default for field in dataclasses.fields(self)}
            for name in _ONLY_WITH_MODEL:
                if (value := getattr(self, name)) != default[name]:
                    raise ConfigError(
                        f"score.{name} is {cut(value)!r}, but score.model is not set: nothing is asked. Leave it out."
                    )
