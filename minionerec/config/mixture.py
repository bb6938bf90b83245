"""Section `mixture`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from minionerec.config.baseline import BaselineName, check_sequential
from minionerec.config.checks import bounded, check_fields
from minionerec.config.components import ComponentName
from minionerec.errors import ConfigError


@dataclass
class MixtureConfig:
    """Stage `mixture`: counts, text neighbours and a baseline, mixed into the lists of a trained model."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("validation", "choose_by", "ranked_examples", "sequential")
    """Fields that do not decide the likeliest weights, all that a training reads, and `sequential`, for which the baseline's
    digest stands among the inputs; `Config.key_fields` leaves them out. The stage `mixture` adds `choose_by` and
    `ranked_examples` to its own key."""

    components: list[ComponentName] = field(default_factory=list)
    """What is mixed in: `popularity`; `markov`, what followed the last item; `skip`, what followed one of the last five items
    within three places; `item-knn`, what the same users bought; `text`, items with a text like that of the last five (vectors
    of `sid.encoder` or `sid.vectors`); `sequential`, what a trained baseline says, see `mixture.sequential`. The others count
    the training interactions; all need `eval.normalise_over: catalog`. An empty list mixes nothing in (paper: none)."""
    sequential: BaselineName | None = None
    """The baseline behind the component `sequential`, trained on the run's own splits before (`minionerec baseline
    --baseline.model sasrec`); null for none. Counting ones and those that know items by codes are refused."""
    per_bucket: bool = True
    """Weights of their own for each of 21 kinds of history, by how often something followed its last item and how spread that
    is; otherwise one set of weights for all histories."""
    pseudo_counts: float = bounded(5.0, 0, 10**6)
    """How many examples with the overall weights each kind of history counts in addition to its own; only with `per_bucket`
    (examples)."""
    valid_examples: int | None = bounded(None, 1, 10**9)
    """Examples of the valid split, evenly spaced, that the weights are fitted to; null takes all (examples)."""
    choose_by: Literal["likelihood", "NDCG@10"] = "likelihood"
    """How much the model weighs beside the rest. `likelihood`: as much as makes the valid targets likeliest. `NDCG@10`: from
    there its odds are multiplied by 2, 1, .5, .2, .1 or .05, whichever ranks `ranked_examples` best, by 1 if none is better.
    What makes targets likely can push them down: a model that spreads its probability raises items that nothing else knows."""
    ranked_examples: int = bounded(1024, 1, 10**9)
    """Examples of the valid split, evenly spaced, that are searched for each of these, with `choose_by: NDCG@10` (examples)."""
    validation: bool = False
    """The validations of SFT and RL that rank lists rank with the mixture; its weights are then fitted anew at each validation,
    on one half of the examples for the lists of the other. A validation by loss is of the model alone."""

    @property
    def searches(self) -> bool:
        """Whether lists choose the weights: all processes search them together."""
        return self.choose_by != "likelihood"

    def __post_init__(self) -> None:
        check_fields("mixture", self)
        check_sequential("mixture", self.components, self.sequential)
        if self.validation and not self.components:
            raise ConfigError("mixture.validation is true, but mixture.components is empty: nothing is mixed in. Name some.")
        if not self.per_bucket and self.pseudo_counts != MixtureConfig.pseudo_counts:
            raise ConfigError(
                f"mixture.pseudo_counts is {self.pseudo_counts:g}, but mixture.per_bucket is false: one set of weights for all "
                "histories has no kinds of history to add examples to. Leave mixture.pseudo_counts out, or set "
                "mixture.per_bucket true."
            )
        if not self.searches and self.ranked_examples != MixtureConfig.ranked_examples:
            raise ConfigError(
                f"mixture.ranked_examples is {self.ranked_examples}, but mixture.choose_by is likelihood, for which nothing is "
                f"searched. Set mixture.ranked_examples {MixtureConfig.ranked_examples} (the default), or mixture.choose_by "
                "NDCG@10."
            )
