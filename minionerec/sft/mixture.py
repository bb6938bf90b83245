"""Training through the mixture of the model with a cache: the model learns what counts and text neighbours do not know.

The probability of a target t after a history h is p(t | h) = w_0 p_LM(t | h) + sum over c of w_c p_c(t | h), as decoding with a
cache has it (`recommend/cache`). The components c have no parameters that are trained here. The weights w depend on the bucket
of the history, which says how much the counts know of its last item. The loss of an example is -log p. Its gradient is that of
-log p_LM times the model's responsibility r = w_0 p_LM / p: an example that the cache predicts already moves the model little.

For a training example the components leave out what the example itself adds to the counts, and so does its bucket. Otherwise
the cache would know every training target, its weight would go to 1, and the model would learn nothing (deleted
interpolation, Jelinek and Mercer, 1980).

Where the weights come from. They are fitted by EM on the valid split, which neither the counts nor the model have seen, because
there the model's probabilities are what they will be for new histories. On the training split a model that has learnt its
examples by heart would get all the weight, and the loss would turn back into the plain one. Each validation has the model's
probabilities of all valid targets anyway, so a fit costs no forward pass; it is computed in float64 from a fixed start, and the
weights are part of a checkpoint, so that a resumed training continues with the same bytes. Until the first validation the model
has the whole weight: before it has learnt anything every cache is better, and the fit would tell it to learn nothing.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from minionerec.config import Config
from minionerec.data.dataset import Dataset, SplitName
from minionerec.errors import DataError
from minionerec.recommend.cache import (
    BUCKETS,
    Buckets,
    Component,
    fit_weights,
    own_interactions,
    target_probabilities,
)
from minionerec.recommend.cache.mixture import PSEUDO_COUNTS
from minionerec.recommend.mixing import components_of, keep_model
from minionerec.sid.index import SidIndex
from minionerec.tree import Branch

log = logging.getLogger(__name__)
_FIELDS = ("cached", "buckets")  # what `example_fields` adds to a batch


@dataclass(frozen=True)
class CachedBranch(Branch):
    """A branch whose completion is a SID that the cache has probabilities for.

    Attributes:
        cached: (components,) float32, the probability of the SID under each component.
        bucket: number of the history's bucket.
    """

    cached: Sequence[float] = ()
    bucket: int = 0


def example_fields(branches: Sequence[Branch]) -> dict[str, torch.Tensor]:
    """What a batch needs besides its `TreeBatch`: `cached`, (branches, components), and `buckets`, (branches,); empty without a
    cache.
    """
    cached = [branch for branch in branches if isinstance(branch, CachedBranch)]
    if not cached:
        return {}
    if len(cached) < len(branches):
        raise TypeError("Either all branches of a batch have cached probabilities or none.")
    return {
        "cached": torch.from_numpy(np.array([branch.cached for branch in cached], dtype=np.float32)),
        "buckets": torch.tensor([branch.bucket for branch in cached]),
    }


def take_example_fields(fields: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Remove what `example_fields` has added from a batch's fields; None if it has added nothing."""
    cached, buckets = (fields.pop(name, None) for name in _FIELDS)
    return None if cached is None else (cached, buckets)


@dataclass(frozen=True)
class CachedTargets:
    """What the components say about the targets of a split, looked up by row: computed once, before the first step.

    Attributes:
        probabilities: (rows, components) float32, of each row's target: of all items that have its SID.
        buckets: (rows,) int64.
    """

    probabilities: np.ndarray
    buckets: np.ndarray

    @classmethod
    def of(
        cls, components: Mapping[str, Component], buckets: Buckets, dataset: Dataset, index: SidIndex, split: SplitName
    ) -> "CachedTargets":
        """Look the targets of a split up. The rows of the train split leave themselves out."""
        frame = dataset.split(split)
        histories, targets = frame["history"].to_list(), frame["target"].to_numpy()
        own = own_interactions(dataset) if split == "train" else None
        probabilities = target_probabilities(components, histories, targets, own)
        others = [[other for other in index.items(sid) if other != item] for item, sid in enumerate(index.codes.tolist())]
        for place in range(max(map(len, others))):  # items that share the target's SID are the same leaf
            rows = np.flatnonzero([len(others[target]) > place for target in targets])
            sharing = np.array([others[target][place] for target in targets[rows]])
            left_out = None if own is None else own[rows]
            probabilities[rows] += target_probabilities(components, [histories[row] for row in rows], sharing, left_out)
        return cls(np.minimum(probabilities, 1).astype(np.float32), buckets.of(histories, own))

    def branch(self, row: int, prompt: Sequence[int], completion: Sequence[int], weights: Sequence[float] | None) -> Branch:
        """The branch of a row's example, which is a SID."""
        return CachedBranch(prompt, completion, weights, True, self.probabilities[row].tolist(), int(self.buckets[row]))


@dataclass(frozen=True)
class ScoredTargets:
    """What model and components say about the targets of some examples.

    Attributes:
        model: (examples,) float64, log-probability in nats.
        cached: (examples, components) float32, probabilities.
        buckets: (examples,) int64.
    """

    model: np.ndarray
    cached: np.ndarray
    buckets: np.ndarray

    @classmethod
    def of(cls, model: torch.Tensor, cached: torch.Tensor, buckets: torch.Tensor) -> "ScoredTargets":
        """From the tensors of a batch."""
        return cls(model.double().cpu().numpy(), cached.cpu().numpy(), buckets.cpu().numpy())

    @classmethod
    def joined(cls, parts: Sequence["ScoredTargets"]) -> "ScoredTargets":
        """All parts, one behind the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("model", "cached", "buckets")))


class TargetMixture:
    """The weights by bucket, and the probability of targets under the mixture.

    >>> mixture = TargetMixture(np.array([[0.5, 0.5], [1.0, 0.0]]))
    >>> model, cached = torch.tensor([0.2, 0.2]).log(), torch.tensor([[0.4], [0.4]])
    >>> mixture.logprobs(model, cached, torch.tensor([0, 1])).exp().tolist()  # (0.2 + 0.4) / 2; the model's alone
    [0.30000001192092896, 0.20000000298023224]

    Attributes:
        weights: (buckets, 1 + components) float64, the model's first; rows add up to 1.
        fitted: whether each validation fits the weights; else they stay as they are.
    """

    def __init__(
        self, weights: np.ndarray, fitted: bool = False, per_bucket: bool = True, pseudo_counts: float = PSEUDO_COUNTS
    ) -> None:
        """Begin with some weights.

        Args:
            per_bucket: fit weights for each bucket, otherwise one set for all.
            pseudo_counts: see `fit_weights`.
        """
        self.weights, self.fitted = weights, fitted
        self._per_bucket, self._pseudo_counts = per_bucket, pseudo_counts

    def logprobs(self, model: torch.Tensor, cached: torch.Tensor, buckets: torch.Tensor) -> torch.Tensor:
        """Log-probability of each target under the mixture, (examples,) in nats, with the gradient of `model`.

        Args:
            model: (examples,) log-probabilities of the targets by the model.
            cached: (examples, components) probabilities of the targets.
            buckets: (examples,).
        """
        weights = torch.from_numpy(self.weights).to(cached.dtype).to(model.device)[buckets]
        rest = (weights[:, 1:] * cached).sum(1)
        return torch.logaddexp(model + weights[:, 0].log().to(model.dtype), rest.log().to(model.dtype))

    def fit(self, scored: ScoredTargets) -> None:
        """Fit the weights by EM, see `fit_weights`. The model keeps a little, as it does in decoding."""
        columns = np.column_stack([np.exp(np.minimum(scored.model, 0)), scored.cached])
        self.weights = keep_model(self.fitted_weights(columns, scored.buckets))

    def fitted_weights(self, columns: np.ndarray, buckets: np.ndarray) -> np.ndarray:
        """The weights under which targets are likeliest, (buckets, columns).

        Args:
            columns: (examples, columns) probabilities of the targets.
            buckets: (examples,).
        """
        options: dict[str, Any] = {"pseudo_counts": self._pseudo_counts, "per_bucket": self._per_bucket}
        return fit_weights(columns, buckets, bucket_count=len(self.weights), **options)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, exactly."""
        return {"weights": self.weights.tolist()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`."""
        self.weights = np.array(state["weights"], dtype=float)


@dataclass(frozen=True)
class Cache:
    """What a training through the mixture needs.

    Attributes:
        components: by name, in the order of the weights.
    """

    components: Mapping[str, Component]
    mixture: TargetMixture
    train: CachedTargets
    valid: CachedTargets

    @classmethod
    def make(cls, config: Config, dataset: Dataset, index: SidIndex) -> "Cache":
        """Count, and look the targets of both splits up. Says what it took.

        Raises:
            ConfigError: the encoder of `text` cannot be loaded.
            DataError: the valid split is empty; an item has no text; or the train split has a user twice at one position, so
                that no row can be left out.
        """
        if not len(dataset.valid):
            raise DataError(
                "sft.mixture fits weights on the valid split of the run's data, which is empty. Prepare the data again with a "
                "valid split (data.split, data.parts), or set sft.mixture.weights none."
            )
        started = time.monotonic()
        components = components_of(config, dataset)
        buckets = Buckets(next(iter(components.values())).interactions)
        train, valid = (CachedTargets.of(components, buckets, dataset, index, split) for split in ("train", "valid"))
        mixture = starting_mixture(config, valid)
        megabytes = sum(part.probabilities.nbytes + part.buckets.nbytes for part in (train, valid)) / 1e6
        log.info(
            "%s looked up for %d training and %d valid targets: %.1f s, %.1f MB",
            ", ".join(components),
            len(train.buckets),
            len(valid.buckets),
            time.monotonic() - started,
            megabytes,
        )
        return cls(components, mixture, train, valid)


def starting_mixture(config: Config, valid: CachedTargets) -> TargetMixture:
    """The mixture that a training begins with: the model alone, or the fixed weight that `sft.mixture` names.

    Args:
        valid: to fit how the components share a fixed weight.
    """
    settings, weight = config.mixture, config.sft.mixture.weight
    weights = np.zeros((BUCKETS, 1 + valid.probabilities.shape[1]))
    weights[:, 0] = 1.0
    mixture = TargetMixture(weights, weight is None, settings.per_bucket, settings.pseudo_counts)
    if weight is not None:
        shares = mixture.fitted_weights(valid.probabilities, valid.buckets)
        mixture.weights = np.column_stack([np.full(BUCKETS, 1 - weight), weight * shares])
    return mixture
