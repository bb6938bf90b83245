"""A weighted sum of distributions over the catalog, whose weights are fitted on valid by EM.

The likelihood of a target is `sum over c of w[b, c] * p_c(target)`, with a row of weights for each bucket `b` of histories
(`buckets.Buckets`). Expectation: a component's responsibility for a row is its share of that sum. Maximisation: a bucket's
weights are its mean responsibilities (Jelinek and Mercer, 1980: deleted interpolation), with pseudo-counts of the weights that
are fitted to all rows together, so that a bucket with few rows stays near them. Each step raises the (penalised) likelihood,
which is concave in the weights, so the maximum is the same from every start.

Only the probability of each target is needed. A language model takes part through its column alone: see
`recommend.mixing.fitted`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.artifacts import content_hash, read_json, write_json
from minionerec.errors import ArtifactError, DataError
from minionerec.recommend.cache.buckets import BUCKETS, Buckets
from minionerec.recommend.cache.components import Component
from minionerec.recommend.cache.interactions import Histories

MODEL = "model"  # the column of a language model, which is no `Component`
PSEUDO_COUNTS = 5.0  # rows' worth of the overall weights that every bucket begins with
_ITERATIONS = 5000
_GAIN = 1e-9  # nats per row; a step that gains less is the last


def fit_weights(
    target_probabilities: np.ndarray,
    buckets: np.ndarray,
    *,
    bucket_count: int = BUCKETS,
    pseudo_counts: float = PSEUDO_COUNTS,
    per_bucket: bool = True,
) -> np.ndarray:
    """The weights under which the targets are likeliest, per bucket, or the same for all.

    A row whose target has probability 0 under every component says nothing about their weights and is left out.

    >>> chances = np.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.5], [0.5, 0.1]])
    >>> fit_weights(chances, np.zeros(4, int), bucket_count=1).round(3).tolist()
    [[0.875, 0.125]]

    Args:
        target_probabilities: (rows, components) what each component gives each row's target; of a language model this column is
            all that is known.
        buckets: (rows,) int, 0 to `bucket_count` - 1.
        pseudo_counts: how many rows with the overall weights every bucket has in addition.
        per_bucket: False gives every bucket the overall weights.

    Returns:
        (buckets, components) float64, rows add up to 1; a bucket without rows has the overall weights.

    Raises:
        DataError: shapes that do not fit, a value that is no probability, a bucket out of range, or no row with any
            probability above 0.
    """
    values = np.asarray(target_probabilities, float)
    buckets = np.asarray(buckets)
    if values.ndim != 2 or not values.shape[1] or buckets.shape != values.shape[:1]:
        raise DataError(
            f"target probabilities {values.shape}, buckets {buckets.shape}; expected (rows, components) and (rows,)."
        )
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1 + 1e-6).all()):
        row, column = np.argwhere(~((values >= 0) & (values <= 1 + 1e-6)))[0]
        raise DataError(f"Row {row}, component {column}: {values[row, column]} is no probability.")
    if len(buckets) and not (buckets.min() >= 0 and buckets.max() < bucket_count):
        raise DataError(f"Buckets from {buckets.min()} to {buckets.max()}; expected 0 to {bucket_count - 1}.")
    told = values.sum(axis=1) > 0
    if not told.any():
        raise DataError(
            f"None of {len(values)} targets has a probability above 0 under any component: no weights can be fitted."
        )
    values, buckets = values[told], buckets[told].astype(np.int64)
    uniform = np.full((1, values.shape[1]), 1 / values.shape[1])
    overall = _maximise(values, np.zeros(len(values), np.int64), uniform, np.zeros_like(uniform))
    start = np.repeat(overall, bucket_count, axis=0)
    if not per_bucket:
        return start
    return _maximise(values, buckets, start, pseudo_counts * start)


def _maximise(values: np.ndarray, buckets: np.ndarray, weights: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """EM from `weights` on, until a step gains less than `_GAIN` a row.

    Args:
        values: (rows, components), each row with a value above 0.
        prior: (buckets, components) pseudo-counts.
    """
    order = np.argsort(buckets, kind="stable")
    values, buckets = values[order], buckets[order]
    present, first = np.unique(buckets, return_index=True)
    reached = -np.inf
    for _ in range(_ITERATIONS):
        joint = values * weights[buckets]
        likelihood = joint.sum(axis=1, keepdims=True)
        objective = float(np.log(likelihood).sum() + _log_prior(weights, prior))
        if objective - reached < _GAIN * len(values):
            break
        reached = objective
        expected = prior.copy()
        expected[present] += np.add.reduceat(joint / likelihood, first, axis=0)
        mass = expected.sum(axis=1, keepdims=True)
        weights = np.where(mass > 0, expected / np.where(mass > 0, mass, 1), weights)
    return weights


def _log_prior(weights: np.ndarray, prior: np.ndarray) -> float:
    """Sum of `prior * log(weights)`, where a weight of 0 has no pseudo-count either."""
    counted = prior > 0
    return float((prior[counted] * np.log(weights[counted])).sum())


def log_likelihood(target_probabilities: np.ndarray, buckets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The log-likelihood of each row's target under the mixture, (rows,) nats; -inf if no component allows it."""
    with np.errstate(divide="ignore"):
        return np.log((np.asarray(target_probabilities) * weights[buckets]).sum(axis=1))


@dataclass(frozen=True)
class MixtureWeights:
    """Weights, and what they were fitted to.

    Attributes:
        names: of the components; `MODEL` may be among them.
        values: (buckets, components) float64, rows add up to 1.
        made_from: digests and settings by name; weights are valid for a cache made of the same alone.
    """

    names: tuple[str, ...]
    values: np.ndarray
    made_from: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write JSON, with a digest of its own content."""
        content = {"components": list(self.names), "weights": self.values.tolist(), "made_from": dict(self.made_from)}
        write_json(path, content | {"digest": content_hash(content)})

    @classmethod
    def read(cls, path: Path, made_from: Mapping[str, Any], advice: str = "Fit the weights again.") -> "MixtureWeights":
        """Read what `save` wrote.

        Args:
            made_from: what the cache is made of that the weights are for.
            advice: what to do if they are not, for the message.

        Raises:
            ArtifactError: the file is missing or damaged, or its weights were fitted with something else.
        """
        content = read_json(path)
        try:
            digest = content.pop("digest")
            names, values = tuple(content["components"]), np.array(content["weights"], float)
            recorded = dict(content["made_from"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ArtifactError(f"{path}: no weights of a mixture. {advice}") from None
        if digest != content_hash(content) or values.shape != (BUCKETS, len(names)):
            raise ArtifactError(f"{path}: damaged; its content does not match its digest. {advice}")
        differing = sorted(name for name in recorded.keys() | made_from.keys() if recorded.get(name) != made_from.get(name))
        if differing:
            raise ArtifactError(f"{path}: the weights were fitted with another {', '.join(differing)} than here. {advice}")
        return cls(names, values, recorded)


class Mixture:
    """Components, and their weights after each history.

    If the weights have a column `MODEL`, the mixture is a model's cache: after history h the whole is
    `(1 - l) * p_model + l * p_cache` with `l = share([h])` and `p_cache = probabilities([h])`.

    Attributes:
        components: by name.
        buckets: sorts histories into rows of weights.
        weights: for the components and perhaps `MODEL`, in any order.
    """

    def __init__(self, components: Mapping[str, Component], buckets: Buckets, weights: MixtureWeights) -> None:
        """Put them together.

        Raises:
            DataError: the weights are not for these components.
        """
        if set(weights.names) - {MODEL} != set(components) or MODEL in components or not components:
            raise DataError(
                f"Weights for {', '.join(weights.names)}; the mixture has {', '.join(components) or 'no component'}."
            )
        self.components, self.buckets, self.weights = dict(components), buckets, weights
        columns = [weights.names.index(name) for name in components]
        self._shares = weights.values[:, columns].sum(axis=1) if MODEL in weights.names else np.ones(len(weights.values))
        sums = weights.values[:, columns].sum(axis=1, keepdims=True)
        # A bucket in which the model has all the weight still needs a distribution, which then counts nothing.
        self._weights = np.where(sums > 0, weights.values[:, columns] / np.where(sums > 0, sums, 1), 1 / len(columns))

    def with_odds(self, times: float) -> "Mixture":
        """The cache of a model whose odds, p / (1 - p) of its weight p, are multiplied after every history; 1 changes nothing.

        The components keep their proportions to one another.
        """
        if times == 1:
            return self
        scales = np.where(np.array(self.weights.names) == MODEL, times, 1.0)
        values = self.weights.values * scales
        values /= values.sum(axis=1, keepdims=True)
        return Mixture(self.components, self.buckets, replace(self.weights, values=values))

    @classmethod
    def fit(
        cls,
        components: Mapping[str, Component],
        buckets: Buckets,
        histories: Histories,
        targets: np.ndarray,
    ) -> "Mixture":
        """Fit the weights to the targets of valid. With a language model: `recommend.mixing.fitted`.

        Args:
            histories: of the valid rows.
            targets: (rows,) item indices.

        Raises:
            DataError: there are no rows, or a value is no probability.
        """
        values = fit_weights(target_probabilities(components, histories, targets), buckets.of(histories))
        return cls(components, buckets, MixtureWeights(tuple(components), values, made_from(components)))

    def share(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The weight of all components together, (batch,) float64: 1 unless the weights have a column `MODEL`."""
        return self._shares[self.buckets.of(histories, own)]

    def weights_of(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The components' weights after each history, (batch, components) in the order of `components`; rows add up to 1."""
        return self._weights[self.buckets.of(histories, own)]

    def probabilities(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The distribution of the components together, (batch, items) float64; arguments as in `Component.probabilities`.

        A batch takes two dense arrays, 16 bytes a cell: 16 MB a history at 10^6 items.
        """
        weights = self.weights_of(histories, own)
        mixed: np.ndarray | None = None
        for number, component in enumerate(self.components.values()):
            part = component.probabilities(histories, own)
            part *= weights[:, number, None]
            mixed = part if mixed is None else np.add(mixed, part, out=mixed)
        assert mixed is not None
        return mixed

    def target_probabilities(self, histories: Histories, targets: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """What `probabilities` gives each history's target, (rows,) float64, in blocks, so that any number of rows fits."""
        columns = target_probabilities(self.components, histories, targets, own)
        return (columns * self.weights_of(histories, own)).sum(axis=1)


def target_probabilities(
    components: Mapping[str, Component],
    histories: Histories,
    targets: np.ndarray,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """What each component gives each history's target, (rows, components) float64."""
    return np.column_stack([component.target_probabilities(histories, targets, own) for component in components.values()])


def made_from(components: Mapping[str, Component]) -> dict[str, Any]:
    """What a cache is made of, as plain values: a digest of the interactions, and each component's settings."""
    interactions = next(iter(components.values())).interactions.digest
    return {"interactions": interactions, "buckets": BUCKETS} | {
        f"component {name}": component.settings for name, component in components.items()
    }
