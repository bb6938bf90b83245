"""Results of scored pairs: every metric with its interval, and two scores of the same pairs compared.

Users are the units. Means over users, and the loss, go through `intervals`. AUC and F1 are no means: whole users are resampled,
by how often each is drawn. Two scores are compared on the same resamples. An interval of a difference is that of the resamples;
its p-value for AUC and F1 takes the difference as normal, with the standard deviation of the resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from minionerec.statistics.differences import differences
from minionerec.statistics.intervals import POWER, Interval, beyond_noise, intervals
from minionerec.statistics.pair_metrics import CUTOFFS, ScoredPairs, Ties, auc, f1, log_loss, per_user

_POOLED: dict[str, Callable[..., np.ndarray]] = {"AUC": auc, "F1": f1}
_BATCH_BYTES = 64e6  # of counts held at once
NEEDS_PROBABILITY = ("F1", "LogLoss")  # metrics that only a score which is the logit of a probability has


def metric_names(cutoffs: Sequence[int] = CUTOFFS) -> tuple[str, ...]:
    """All metrics in the order of tables."""
    at = [tuple(f"{name}@{k}" for k in cutoffs) for name in ("NDCG", "Recall", "HitRatio")]
    return ("AUC", "GAUC", *at[0], "LRAP", "MRR-mean", "MRR-first", *at[1], *at[2], "F1", "LogLoss")


def measure(
    pairs: ScoredPairs,
    *,
    probability: bool,
    resamples: int,
    seed: int,
    cutoffs: Sequence[int] = CUTOFFS,
    ties: Ties = "expected",
) -> dict[str, Interval]:
    """Every metric of a score with its 95 % interval, users as units.

    Args:
        probability: the scores are logits of probabilities; otherwise `NEEDS_PROBABILITY` are left out.
        resamples, seed: of the bootstrap.
        cutoffs: k of NDCG@k and others.
        ties: see `pair_metrics`.
    """
    users = per_user(pairs, cutoffs, ties)
    found = dict(zip(users, intervals(np.stack(list(users.values())), resamples, seed), strict=True))
    if probability:
        found["LogLoss"] = intervals(log_loss(pairs)[None], resamples, seed, pairs.users)[0]
    for name, values in _pooled(pairs, probability, resamples, seed).items():
        low, high = np.nanpercentile(values[1:], [2.5, 97.5])
        found[name] = Interval(float(values[0]), float(low), float(high))
    return {name: found[name] for name in metric_names(cutoffs) if name in found}


def auc_of(pairs: ScoredPairs, rows: np.ndarray, resamples: int, seed: int) -> Interval | None:
    """AUC over some of the pairs with its 95 % interval, users as units; None if they do not have both labels.

    Args:
        rows: which, (rows,) bool.
    """
    users, labels = np.unique(pairs.users[rows], return_inverse=True)[1], pairs.labels[rows]
    if len(np.unique(labels)) < 2:
        return None
    values = _pooled(ScoredPairs(users, labels, pairs.scores[rows]), False, resamples, seed)["AUC"]
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Interval(float(values[0]), float(low), float(high))


def compare(
    before: ScoredPairs, after: ScoredPairs, *, probability: bool, resamples: int, seed: int, ties: Ties = "expected"
) -> dict[str, dict[str, Any]]:
    """How much `after` exceeds `before` on the same pairs, per metric; as `statistics.differences` has it.

    Args:
        before, after: rows in the same order.
        probability: both scores are logits of probabilities.
        resamples, seed, ties: see `measure`.
    """
    changes = differences(per_user(before, CUTOFFS, ties), per_user(after, CUTOFFS, ties), resamples, seed, None)
    if probability:
        losses = ({"LogLoss": log_loss(before)}, {"LogLoss": log_loss(after)})
        changes |= differences(losses[0], losses[1], resamples, seed, before.users)
    first, second = (_pooled(pairs, probability, resamples, seed) for pairs in (before, after))
    changes |= {name: _difference(second[name] - first[name]) for name in first}
    return {name: changes[name] for name in metric_names() if name in changes}


def _pooled(pairs: ScoredPairs, probability: bool, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """AUC and F1, (1 + resamples,): of the pairs themselves, then of each resample; equal seeds draw the same users."""
    users, rng = int(pairs.users.max()) + 1, np.random.default_rng(seed)
    named = {name: metric for name, metric in _POOLED.items() if probability or name not in NEEDS_PROBABILITY}
    values = {name: [metric(pairs)] for name, metric in named.items()}
    batch = max(1, int(_BATCH_BYTES / 8 / len(pairs.users)))
    for start in range(0, resamples, batch):
        weights = rng.multinomial(users, np.full(users, 1 / users), size=min(batch, resamples - start))
        for name, metric in named.items():
            values[name].append(metric(pairs, weights))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def _difference(values: np.ndarray) -> dict[str, Any]:
    """A difference, its interval and test, from the difference itself and that of each resample, (1 + resamples,)."""
    value, resampled = float(values[0]), values[1:]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    error = float(np.nanstd(resampled))
    p = float(2 * stats.norm.sf(abs(value) / error)) if error else 1.0
    interval = Interval(value, float(low), float(high))
    detectable = POWER * error if error else None
    return {**interval._asdict(), "p": p, "detectable": detectable, "noise": not beyond_noise(interval, p)}
