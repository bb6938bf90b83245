"""Section `pairs`."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from minionerec.config.checks import bounded, bounded_list, check_fields, path
from minionerec.errors import ConfigError

PairRule = Literal["rated", "purchases", "impressions"]
_RULES_OF = {"dataset": ("rated", "purchases"), "csv": ("rated",), "mind": ("impressions",), "recbench": ("impressions",)}
_ONLY_FOR = {  # fields that only some rules read
    "positive": ("rated",),
    "neutral": ("rated",),
    "last_positives": ("rated", "purchases"),
    "random_negatives": ("purchases",),
    "order": ("rated",),
}
_NEUTRAL = [3.0]
_SAMPLING = ("per_label", "test_rows", "train_rows", "test_share")


@dataclass
class PairsConfig:
    """Stage `pairs`: user, history, candidate and label, of a Dataset or of files that have labels."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("path",)  # the content of the files decides, wherever they lie

    source: Literal["dataset", "csv", "mind", "recbench"] = "dataset"
    """Where pairs come from: the run's Dataset; your own files with a `label` of 0 or 1, or a rating, named as in `data.source
    csv`; MIND's `news.tsv` and `behaviors.tsv`; RecBench's parquet files. All but the first need `path`."""
    path: str | None = path()
    """Folder of the files, unless pairs come from the Dataset."""
    rule: Literal["auto", "rated", "purchases", "impressions"] = "auto"
    """What decides a label. `rated`: ratings above `positive` are likes, others dislikes; a user's last likes and all dislikes
    are candidates. `purchases`: the last items against random ones. `impressions`: what was shown, clicked or not (`mind`,
    `recbench`). `auto`: rated if the Dataset has ratings, else purchases."""
    positive: float = bounded(3.0, -1_000_000, 1_000_000)
    """`rated`: a rating above this is a like (RecBench: 3)."""
    neutral: list[float] = bounded_list(_NEUTRAL, -1_000_000, 1_000_000)
    """`rated`: ratings that are neither; such rows are left out and counted (RecBench: 3)."""
    last_positives: int = bounded(2, 1, 1000)
    """`rated`, `purchases`: how many of a user's last likes, or items, become candidates. What came before is the history
    (items; RecBench: 2)."""
    random_negatives: int = bounded(2, 1, 10_000)
    """`purchases`: items that the user never had, drawn uniformly (items; RecBench: 2)."""
    per_label: int = bounded(10, 1, 10**6)
    """Most candidates of each label that a user gives, drawn without replacement (rows; RecBench: 10)."""
    test_rows: int = bounded(20_000, 1, 10**9)
    """Users are taken in a random order, whole, until they have given this many test rows (rows; RecBench: 20,000)."""
    train_rows: int = bounded(100_000, 0, 10**9)
    """The users that follow are taken until they have given this many rows for train and valid; 0: none (rows; RecBench:
    100,000)."""
    test_share: float | None = bounded(None, 0, 1, above=True)
    """Share of the users that are test, in place of `test_rows`; for small data (fraction)."""
    valid_share: float = bounded(0.1, 0, 1, below=True)
    """Share of the users behind the test users that are valid instead of train (fraction; RecBench: 0.1)."""
    history: int = bounded(20, 1, 100_000)
    """Most recent items kept in a history (items; RecBench stores 100 and shows 20)."""
    order: Literal["reference", "past_only"] = "reference"
    """`rated`: `reference` takes all dislikes of a user, as RecBench does, also those that are older than the newest item of
    the history; `past_only` leaves these out, so that a history shows nothing of a candidate's future."""

    def __post_init__(self) -> None:
        check_fields("pairs", self)
        if (self.path is None) != (self.source == "dataset"):
            needs = (
                "needs pairs.path, the folder of its files" if self.path is None else "reads the run's Dataset, no pairs.path"
            )
            raise ConfigError(f"pairs.source {self.source!r} {needs}.")
        if self.rule not in ("auto", *_RULES_OF[self.source]):
            raise ConfigError(
                f"pairs.rule is {self.rule}, which pairs.source {self.source!r} cannot have; it has "
                f"{' or '.join(_RULES_OF[self.source])}."
            )
        likes = [rating for rating in self.neutral if rating > self.positive]
        if likes:
            raise ConfigError(
                f"pairs.neutral names {likes[0]:g}, which is above pairs.positive {self.positive:g} and so a like. Leave it "
                "out, or raise pairs.positive."
            )
        if self.test_share is not None:
            self._refuse_changed(("test_rows",), "pairs.test_share is set")
        if self.rule != "auto" or self.source != "dataset":
            self.refuse_unread(self.rule if self.rule != "auto" else _RULES_OF[self.source][0])

    def refuse_unread(self, rule: str) -> None:
        """Refuse fields that a rule does not read.

        Args:
            rule: the one that `auto` has become, or `rule`.

        Raises:
            ConfigError: such a field is set to something else than its default.
        """
        self._refuse_changed([name for name, rules in _ONLY_FOR.items() if rule not in rules], f"the rule is {rule}")

    def refuse_threshold(self, reason: str) -> None:
        """Refuse what makes a label of a rating, for files that have labels.

        Raises:
            ConfigError: such a field is set to something else than its default.
        """
        self._refuse_changed(("positive", "neutral"), reason)

    def refuse_sampling(self, reason: str) -> None:
        """Refuse what decides which users are drawn, for files that have their splits already.

        Raises:
            ConfigError: such a field is set to something else than its default.
        """
        self._refuse_changed(_SAMPLING, reason)

    def _refuse_changed(self, names: Collection[str], reason: str) -> None:
        default = {field.name: field.default for field in dataclasses.fields(self)} | {"neutral": _NEUTRAL}
        for name in names:
            if (value := getattr(self, name)) != default[name]:
                raise ConfigError(f"pairs.{name} is {value}, but {reason}: it would have no effect. Leave it out.")
