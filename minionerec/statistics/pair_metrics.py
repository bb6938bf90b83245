"""Metrics of scores of labelled pairs: how well a score tells a user's likes from the dislikes.

Ties. Tied candidates stand in a random order, and a metric is its mean over these orders, as scikit-learn's `ndcg_score` and
AUC have it; LRAP counts all that are tied with a like as ranked above it, as scikit-learn does. RecBench sorts stably, and its
files list dislikes first, so that a tied like loses: `ties="last"` is that, for all metrics but AUC.

A user with one label has no AUC, and a list of likes alone is perfect by any score. All per-user metrics are means over the
users that have both labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.special import expit, gammaln

CUTOFFS = (1, 5, 10)
Ties = Literal["expected", "last"]


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with a score each.

    Attributes:
        users: (rows,) the number of each row's user, from 0, every number used.
        labels: (rows,) 1 or 0.
        scores: (rows,) finite; higher is a surer yes. For `log_loss` and `f1` it is the logit of the probability.
    """

    users: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @cached_property
    def judged(self) -> np.ndarray:
        """(users,) bool: has candidates of both labels."""
        likes = np.bincount(self.users, weights=self.labels)
        return (likes > 0) & (likes < np.bincount(self.users))


@dataclass(frozen=True)
class _Groups:
    """Runs of tied candidates of one user, users one after the other, best score first.

    Attributes:
        user: (groups,) number of the user.
        above: (groups,) candidates of that user with a higher score.
        size, likes: (groups,) candidates in the run, and likes among them.
        likes_above: (groups,) likes of that user with a higher score.
        totals: (users,) likes of each user.
    """

    user: np.ndarray
    above: np.ndarray
    size: np.ndarray
    likes: np.ndarray
    likes_above: np.ndarray
    totals: np.ndarray


def _groups(pairs: ScoredPairs, ties: Ties) -> _Groups:
    split_by = pairs.labels if ties == "last" else np.zeros_like(pairs.labels)  # dislikes first among equal scores
    order = np.lexsort((split_by, -pairs.scores, pairs.users))
    users, labels = pairs.users[order], pairs.labels[order].astype(np.int64)
    keys = np.stack([users, pairs.scores[order], split_by[order]])
    begins = np.flatnonzero(np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)]))
    size = np.diff(np.append(begins, len(users)))
    likes = np.add.reduceat(labels, begins)
    user = users[begins]
    first_row = np.searchsorted(users, np.arange(users.max() + 1))
    likes_before = np.cumsum(labels) - labels
    above, likes_above = begins - first_row[user], likes_before[begins] - likes_before[first_row][user]
    return _Groups(user, above, size, likes, likes_above, np.bincount(users, weights=labels).astype(np.int64))


def per_user(pairs: ScoredPairs, cutoffs: Sequence[int] = CUTOFFS, ties: Ties = "expected") -> dict[str, np.ndarray]:
    """Each metric's value per user that has both labels, (judged users,), by name.

    `GAUC`: the user's AUC (Zhu et al., 2017, without weights). `NDCG@k`: DCG over the best possible. `LRAP`: mean over likes of
    the likes at or above it, over its rank (RecBench calls it MRR). `MRR-mean`: mean reciprocal rank of all likes (what
    Legommenders calls MRR). `MRR-first`: reciprocal rank of the first like. `Recall@k`: likes among the first k, over all
    likes. `HitRatio@k`: whether a like is among the first k.
    """
    groups = _groups(pairs, ties)
    users = len(groups.totals)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(groups.user, weights=values, minlength=users)

    longest = int(np.bincount(pairs.users).max())
    ranks = np.arange(1, longest + 1)
    discounts, reciprocals = _sums(1 / np.log2(ranks + 1.0)), _sums(1.0 / ranks)
    below = groups.above + groups.size
    share = groups.likes / groups.size  # the chance of each tied place to hold a like
    likes = np.maximum(groups.totals, 1)
    metrics = {"GAUC": _user_auc(_groups(pairs, "expected"))}
    for k in cutoffs:
        gain = total(share * (discounts[np.minimum(below, k)] - discounts[np.minimum(groups.above, k)]))
        metrics[f"NDCG@{k}"] = gain / discounts[np.minimum(likes, k)]
    precision = groups.likes * (groups.likes_above + groups.likes) / below
    if ties == "last":  # the likes of a run stand one behind the other: the j-th has (likes above + j) / (above + j)
        dislikes_above = groups.above - groups.likes_above
        precision = groups.likes - share * dislikes_above * (reciprocals[below] - reciprocals[groups.above])
    metrics["LRAP"] = total(precision) / likes
    metrics["MRR-mean"] = total(share * (reciprocals[below] - reciprocals[groups.above])) / likes
    first = (groups.likes > 0) & (groups.likes_above == 0)  # the run that holds the first like; one a user
    metrics["MRR-first"] = total(np.where(first, _first_like(groups, longest), 0.0))
    for k in cutoffs:
        hits = np.minimum(below, k) - np.minimum(groups.above, k)
        metrics[f"Recall@{k}"] = total(share * hits) / likes
    for k in cutoffs:
        metrics[f"HitRatio@{k}"] = total(np.where(first, 1 - _all_missed(groups, k), 0.0))
    return {name: values[pairs.judged] for name, values in metrics.items()}


def _user_auc(groups: _Groups) -> np.ndarray:
    """Each user's AUC, (users,); 0 for a user without both labels."""
    sizes = np.bincount(groups.user, weights=groups.size)
    dislikes = sizes - groups.totals
    below = dislikes[groups.user] - (groups.above - groups.likes_above) - (groups.size - groups.likes)
    won = np.bincount(groups.user, weights=groups.likes * (below + (groups.size - groups.likes) / 2))
    return won / np.maximum(groups.totals * dislikes, 1)


def _sums(values: np.ndarray) -> np.ndarray:
    """Running sums from 0, so that the sum over places a to b is a difference of two."""
    return np.concatenate([[0.0], values.cumsum()])


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Logarithm of the binomial coefficient; minus infinity where k > n."""
    with np.errstate(invalid="ignore"):
        return np.where(k <= n, gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1), -np.inf)


def _all_missed(groups: _Groups, k: int) -> np.ndarray:
    """The chance that no like of the run is among the user's first k, (groups,): all likes fall on the places behind."""
    inside = np.clip(k - groups.above, 0, groups.size)
    return np.exp(_log_choose(groups.size - inside, groups.likes) - _log_choose(groups.size, groups.likes))


def _first_like(groups: _Groups, longest: int) -> np.ndarray:
    """The mean reciprocal rank of the best like of the run, (groups,): it is at place j if the others fall behind it."""
    mean = np.zeros(len(groups.size))
    all_places = _log_choose(groups.size, groups.likes)
    for j in range(int(groups.size.max())):
        fits = (j < groups.size) & (groups.likes > 0)
        chance = np.exp(_log_choose(np.maximum(groups.size - j - 1, 0), np.maximum(groups.likes - 1, 0)) - all_places)
        mean += np.where(fits, chance / (groups.above + j + 1), 0.0)
    return mean


def auc(pairs: ScoredPairs, weights: np.ndarray | None = None) -> np.ndarray:
    """P(score of a like > score of a dislike) + P(equal) / 2 over all rows, (resamples,); NaN if a label is missing.

    Args:
        weights: (resamples, users) how often each user counts; None: once, in one resample.
    """
    order = np.argsort(pairs.scores, kind="stable")
    labels, users, scores = pairs.labels[order], pairs.users[order], pairs.scores[order]
    begins = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    counts = np.ones((1, len(order))) if weights is None else weights[:, users].astype(float)
    likes = np.add.reduceat(counts * labels, begins, axis=1)
    dislikes = np.add.reduceat(counts * (1 - labels), begins, axis=1)
    below = dislikes.cumsum(axis=1) - dislikes
    compared = likes.sum(axis=1) * dislikes.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (likes * (below + dislikes / 2)).sum(axis=1) / compared


def f1(pairs: ScoredPairs, weights: np.ndarray | None = None) -> np.ndarray:
    """F1 of a yes at a probability of one half or more, (resamples,); 0 if nothing is a like and nothing is called one."""
    yes = (pairs.scores >= 0).astype(float)
    sums = [np.bincount(pairs.users, weights=values) for values in (yes * pairs.labels, yes, pairs.labels)]
    counts = np.ones((1, len(sums[0]))) if weights is None else weights.astype(float)
    hits, called, likes = (counts @ values for values in sums)
    return 2 * hits / np.maximum(called + likes, 1)


def log_loss(pairs: ScoredPairs) -> np.ndarray:
    """Minus the log-probability of each row's label, (rows,) nats."""
    return np.logaddexp(0.0, np.where(pairs.labels == 1, -pairs.scores, pairs.scores))


def probabilities(pairs: ScoredPairs) -> np.ndarray:
    """P(yes) of each row, (rows,)."""
    return expit(pairs.scores)


def apc(auc: float, co2e: float) -> float | None:
    """AUC per carbon, (AUC in percent - 50) / CO2e x 100 (Green AI benchmark, 2024); None at an AUC of one half or less.

    There its sign would mean nothing. How the authors of published figures measured CO2e is not known, so only rows that were
    measured alike can be compared.

    >>> round(apc(0.6295, 22), 2), apc(0.49, 22)
    (58.86, None)

    Args:
        auc: from 0 to 1.
        co2e: emissions, in any unit.
    """
    return (100 * auc - 50) / co2e * 100 if auc > 0.5 and co2e > 0 else None
