"""Hit rate and NDCG of ranked lists with one target per user, on SIDs and on items."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from minionerec.config import CUTOFFS
from minionerec.errors import DataError
from minionerec.eval.intervals import intervals
from minionerec.eval.levels import level_tables
from minionerec.eval.predictions import Prediction


def ranks(predictions: Sequence[Prediction], on: Literal["sid", "item"] = "sid") -> np.ndarray:
    """0-based rank of each user's target, (users,) float; infinity where the list does not hold it.

    On `sid`, items that share the target's SID count as the target; on `item`, they do not.

    Raises:
        DataError: no predictions.
    """
    if not predictions:
        raise DataError("There are no predictions to measure; expected one per user.")
    found = np.full(len(predictions), np.inf)
    for row, prediction in enumerate(predictions):
        ranked: list[Any] = prediction.sids if on == "sid" else prediction.items
        target = prediction.target_sid if on == "sid" else prediction.target
        if target in ranked:
            found[row] = ranked.index(target)
    return found


def hits(ranks: np.ndarray, k: int) -> np.ndarray:
    """1.0 where the target is among the first k, else 0.0, (users,).

    A k beyond the list's length is defined: it asks whether the target is anywhere in the list. A negative rank is a miss, as
    infinity is.
    """
    ranks = np.asarray(ranks)
    return ((ranks >= 0) & (ranks < k)).astype(float)


def gains(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k per user, (users,): 1 / log2(rank + 2) where the target is among the first k, else 0.

    With one target per user the ideal gain is 1, so nothing is left to normalise.
    """
    return hits(ranks, k) / np.log2(np.maximum(ranks, 0) + 2.0)


def hit_rate(ranks: np.ndarray, k: int) -> float:
    """HR@k: share of users whose target is among the first k. `ranks` as `ranks` returns them."""
    return float(hits(ranks, k).mean())


def ndcg(ranks: np.ndarray, k: int) -> float:
    """NDCG@k: mean over users of `gains`. `ranks` as `ranks` returns them."""
    return float(gains(ranks, k).mean())


def per_user(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """Each metric's value per user, (users,), by name: all `HR@k`, then all `NDCG@k`."""
    return {f"HR@{k}": hits(ranks, k) for k in cutoffs} | {f"NDCG@{k}": gains(ranks, k) for k in cutoffs}


def _with_intervals(ranks: np.ndarray, cutoffs: Sequence[int], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    values = per_user(ranks, cutoffs)
    found = intervals(np.stack(list(values.values())), resamples, seed)
    return {name: interval._asdict() for name, interval in zip(values, found, strict=True)}


def measure(
    predictions: Sequence[Prediction], cutoffs: Sequence[int] = CUTOFFS, resamples: int = 2000, seed: int = 42
) -> dict[str, Any]:
    """Everything in `metrics.json`.

    Returns:
        `users`; `exact`, the share of provably exact lists; `sid` and `item`, each metric's `value`, `low` and `high` (95 %);
        `levels`, see `level_tables`.

    Raises:
        DataError: no predictions, or SIDs of unequal depth.
    """
    return {
        "users": len(predictions),
        "exact": sum(prediction.exact for prediction in predictions) / max(len(predictions), 1),
        "sid": _with_intervals(ranks(predictions, "sid"), cutoffs, resamples, seed),
        "item": _with_intervals(ranks(predictions, "item"), cutoffs, resamples, seed),
        "levels": level_tables(predictions, cutoffs),
    }
