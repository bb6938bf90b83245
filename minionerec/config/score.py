"""Section `score`."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from minionerec.config.checks import bounded, check_fields, cut, path
from minionerec.config.evaluation import RESAMPLES, RESAMPLES_BOUNDS, Dtype
from minionerec.errors import ConfigError

_ASKED = ("wording", "system", "suffix")  # fields that decide a prompt, and no text whose vector is made
_READ = ("before_history", "before_candidate", "max_tokens")  # fields that decide either
_SIZES = ("row_tokens", "batch_users", "shard_users")  # decide how scores are computed, not which


@dataclass
class ScoreConfig:
    """Command `score`: a score for every pair of a split, and the table of all scores."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = (
        "ties",
        "resamples",
        "model",
        "encoder",
        "pooling",
        "dtype",
        *_ASKED,
        *_READ,
        *_SIZES,
    )
    """Fields that decide no control: those of the table, and those of the models, whose scores have them in their own keys."""

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
    smollm2-135m`, or a hub name; null: none is asked."""
    encoder: str | None = path()
    """A text encoder: the score is the similarity of a vector of the candidate's title with one of the history's titles.
    `minilm`, or the folder or hub name of a sentence-transformers model; with `pooling` any causal LM, named as in `model`.
    null: none."""
    pooling: Literal["own", "last", "mean"] = "own"
    """How `encoder` makes a text's vector. `own`: as a sentence encoder does; of a causal LM the last layer's state of the
    `last` token, or the `mean` over all tokens."""
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
    """Distinct tokens that are computed in one row. One prompt may be longer; then each candidate computes the history again
    (tokens)."""
    batch_users: int = bounded(8, 1, 100_000)
    """Users whose pairs are computed at once (users)."""
    shard_users: int = bounded(64, 1, 10**7)
    """Users that are scored and stored at a time. An interrupted command resumes after the last stored shard; processes take
    shards in turn (users)."""

    def __post_init__(self) -> None:
        check_fields("score", self)
        default = {field.name: field.default for field in dataclasses.fields(self)}
        causal = self.encoder if self.pooling != "own" else None
        for names, needed, missing in (
            (_ASKED, self.model, "score.model is not set: nothing is asked"),
            (_READ, self.model or self.encoder, "neither score.model nor score.encoder is set: no text is read"),
            (("pooling",), self.encoder, "score.encoder is not set: no vectors are made"),
            (("dtype",), self.model or causal, "score.model is not set, and score.encoder is no causal LM"),
        ):
            for name in names if needed is None else ():
                if (value := getattr(self, name)) != default[name]:
                    raise ConfigError(f"score.{name} is {cut(value)!r}, but {missing}. Leave it out.")
