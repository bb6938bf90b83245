"""Rewards: functions of a group's ranked completions and its target, compared on token ids.

The target travels with the row; nothing is looked up by text. `ranks` run from 0, the best beam of a group, to G - 1.
"""

import math
from collections.abc import Callable, Sequence

Tokens = Sequence[int]


def rule(completions: Sequence[Tokens], target: Tokens) -> list[float]:
    """1 for the target's SID, 0 for any other.

    Args:
        completions: one group, best beam first: G token sequences.
        target: the token ids of the target's SID.

    Returns:
        G rewards.
    """
    return [float(list(completion) == list(target)) for completion in completions]


def ranking_only(completions: Sequence[Tokens], target: Tokens) -> list[float]:
    """Punish the misses of a group that holds a hit, the higher ranked the more (MiniOneRec, ndcg reward).

    The miss at rank i gets -(1 / log2(i + 2)), divided by the sum of these weights over the whole group; a hit gets 0. A
    group without a hit gets 0 everywhere: there is nothing to compare.
    """
    hits = rule(completions, target)
    if not any(hits):
        return [0.0] * len(hits)
    weights = [1 / math.log2(rank + 2) for rank in range(len(hits))]
    return [0.0 if hit else -weight / sum(weights) for hit, weight in zip(hits, weights, strict=True)]


def ranking(completions: Sequence[Tokens], target: Tokens) -> list[float]:
    """`rule` plus `ranking_only`: the paper's reward."""
    pairs = zip(rule(completions, target), ranking_only(completions, target), strict=True)
    return [hit + penalty for hit, penalty in pairs]


REWARDS: dict[str, Callable[[Sequence[Tokens], Tokens], list[float]]] = {
    "rule": rule,
    "ranking_only": ranking_only,
    "ranking": ranking,
}
