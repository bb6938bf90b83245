"""Rewards: functions of a group's ranked completions, its target and its row's context.

A reward is a function (completions, target, context) that returns G numbers, one per completion; the completions come best beam
first. SIDs are compared on token ids, without padding. `build_rewards` makes the rewards that a configuration names, with the
tables that some of them need. What a reward needs travels with its row, so two rows with equal prompts keep their own targets.

Items may share a SID. A completion then stands for all of them, and so does a target: a model that writes SIDs can neither tell
these items apart nor be blamed for it. `rule` and the rewards built on it compare SIDs; `semantic` takes the mean of the items'
vectors, `collaborative` the item that scores best, `popularity` the sum of the items' purchases.

To add a reward, write its function here, enter it in `REWARDS` (or in `WITH_TABLES`, if it reads a table) and add its name to
`RewardName` in config/rl.py. This module imports neither torch nor transformers, so its tests start at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minionerec.artifacts import content_hash, file_hash
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import baseline_digest, load_vectors
from minionerec.errors import CatalogError
from minionerec.sid.encoder import item_vectors

Tokens = Sequence[int]


@dataclass(frozen=True)
class Context:
    """What a row and its group bring along, apart from the token ids.

    Attributes:
        train_row: the row of the training split whose history the prompt shows; None for a task without history.
        leaves: the number of each completion's SID in the trie, to look it up in a table.
        target_leaf: the number of the target's SID.
    """

    train_row: int | None = None
    leaves: Sequence[int] = ()
    target_leaf: int = -1


Reward = Callable[[Sequence[Tokens], Tokens, Context], list[float]]
ItemsOfSid = Sequence[Sequence[int]]  # the items of each SID, by its number in the trie
_ENCODER = ("encoder", "max_text_tokens", "tfidf_dimensions")  # the fields of SidConfig that decide the item vectors


def rule(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
    """1 for the target's SID, 0 for any other.

    >>> rule([[4, 9], [4, 7], [2, 7]], target=[4, 7], context=Context())
    [0.0, 1.0, 0.0]

    Args:
        completions: one group, best beam first: G token sequences.
        target: the token ids of the target's SID.

    Returns:
        G rewards.
    """
    return [float(list(completion) == list(target)) for completion in completions]


def ranking_only(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
    """Punish the misses of a group that holds a hit, the higher ranked the more (MiniOneRec, ndcg reward).

    The miss at rank i, from 0, gets -(1 / log2(i + 2)), divided by the sum of these weights over the whole group; a hit gets 0.
    A group without a hit gets 0 everywhere: there is nothing to compare.

    >>> rewards = ranking_only([[4, 9], [4, 7], [2, 7]], target=[4, 7], context=Context())
    >>> [round(reward, 3) for reward in rewards]
    [-0.469, 0.0, -0.235]
    """
    hits = rule(completions, target, context)
    if not any(hits):
        return [0.0] * len(hits)
    weights = [1 / math.log2(rank + 2) for rank in range(len(hits))]
    return [0.0 if hit else -weight / sum(weights) for hit, weight in zip(hits, weights, strict=True)]


def ranking(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
    """`rule` plus `ranking_only`: the paper's reward.

    >>> rewards = ranking([[4, 9], [4, 7], [2, 7]], target=[4, 7], context=Context())
    >>> [round(reward, 3) for reward in rewards]
    [-0.469, 1.0, -0.235]
    """
    pairs = zip(rule(completions, target, context), ranking_only(completions, target, context), strict=True)
    return [hit + penalty for hit, penalty in pairs]


def prefix(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
    """The share of levels that are right, counted from the first to the first wrong one; 1 for the target's SID only.

    If one SID is longer than the other (it has a suffix), the levels of the longer one are counted.

    >>> prefix([[4, 9], [4, 7], [2, 7]], target=[4, 7], context=Context())
    [0.5, 1.0, 0.0]
    """

    def correct_levels(completion: Tokens) -> int:
        matches = [token == wanted for token, wanted in zip(completion, target, strict=False)]
        return matches.index(False) if False in matches else len(matches)

    return [correct_levels(completion) / max(len(completion), len(target)) for completion in completions]


def semantic(vectors: np.ndarray, items: ItemsOfSid) -> Reward:
    """Cosine between the completion's and the target's vector: 1 for the target's SID, near 1 for items that read like it.

    A SID's vector is the mean of its items' vectors, each of norm 1. An item whose text the encoder could not read has a zero
    vector, and cosine 0 with everything.

    >>> reward = semantic(np.array([[1.0, 0.0], [0.6, 0.8]]), items=[[0], [1]])
    >>> reward([[2, 7], [4, 7]], target=[4, 7], context=Context(leaves=[0, 1], target_leaf=1))
    [0.6, 1.0]

    Args:
        vectors: (items, dimensions), as `sid.encoder.item_vectors` gives them.
    """
    means = _unit(np.stack([_unit(np.asarray(vectors[list(group)], dtype=np.float64)).mean(0) for group in items]))

    def reward(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
        return (means[_leaves(completions, context)] @ means[context.target_leaf]).tolist()

    return reward


def collaborative(states: np.ndarray, vectors: np.ndarray, bias: np.ndarray, items: ItemsOfSid) -> Reward:
    """What a sequential baseline thinks of the completion after the row's history, whatever the target is.

    The baseline's score becomes a standard score: minus the mean over the catalog, divided by the deviation. Alone it gives
    the same advantages as the raw score; in a sum its weight means the same for every baseline. A row without history gets 0
    everywhere.

    >>> states = np.array([[1.0, 0.0]])  # after the history of training row 0
    >>> reward = collaborative(states, np.array([[3.0, 0.0], [1.0, 5.0]]), np.zeros(2), items=[[0], [1]])
    >>> reward([[2, 7], [4, 7]], target=[4, 7], context=Context(train_row=0, leaves=[0, 1], target_leaf=1))
    [1.0, -1.0]

    Args:
        states: (rows of the training split, hidden): the baseline's state after each row's history.
        vectors: (items, hidden).
        bias: (items,).
    """

    def reward(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
        if context.train_row is None:
            return [0.0] * len(completions)
        scores = vectors @ states[context.train_row] + bias
        best = [scores[list(items[leaf])].max() for leaf in _leaves(completions, context)]  # of the items that share the SID
        return ((np.array(best) - scores.mean()) / max(scores.std(), 1e-12)).tolist()

    return reward


def popularity(counts: np.ndarray, items: ItemsOfSid) -> Reward:
    """A correction towards rare items: 0 for one that nobody bought, -1 for the most popular, whatever the target is.

    In between -log(1 + n) / log(1 + the largest n); meant for a small weight next to another reward.

    >>> reward = popularity(np.array([0, 1, 7]), items=[[0], [1], [2]])
    >>> completions = [[2, 7], [4, 7], [4, 9]]
    >>> [round(value, 3) for value in reward(completions, target=[4, 7], context=Context(leaves=[0, 1, 2], target_leaf=1))]
    [-0.0, -0.333, -1.0]

    Args:
        counts: (items,) how often each item is a target of the training split. Targets, not interactions: an item in the
            midst of a history was never asked for.
    """
    bought = [float(counts[list(group)].sum()) for group in items]
    largest = math.log1p(max(bought)) or 1.0

    def reward(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
        return [-math.log1p(bought[leaf]) / largest for leaf in _leaves(completions, context)]

    return reward


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _leaves(completions: Sequence[Tokens], context: Context) -> list[int]:
    """The number of each completion's SID; a completion without one has no place in a table."""
    for completion, leaf in zip(completions, context.leaves, strict=True):
        if leaf < 0:
            raise CatalogError(f"The completion {list(completion)} is not a SID of the catalog; it has no reward.")
    return list(context.leaves)


def _semantic(config: Config, dataset: Dataset, items: ItemsOfSid) -> Reward:
    return semantic(item_vectors(dataset, config.sid, config.seed), items)


def _collaborative(config: Config, dataset: Dataset, items: ItemsOfSid) -> Reward:
    name = config.rl.collaborative_model
    vectors = load_vectors(config.folder, name, dataset, "The reward 'collaborative'")
    return collaborative(vectors.states["train"], vectors.items, vectors.bias, items)


def _popularity(config: Config, dataset: Dataset, items: ItemsOfSid) -> Reward:
    return popularity(np.bincount(dataset.train["target"].to_numpy(), minlength=len(dataset.catalog)), items)


REWARDS: dict[str, Reward] = {
    "rule": rule,
    "ranking": ranking,
    "ranking_only": ranking_only,
    "prefix": prefix,
}
WITH_TABLES: dict[str, Callable[[Config, Dataset, ItemsOfSid], Reward]] = {
    "semantic": _semantic,
    "collaborative": _collaborative,
    "popularity": _popularity,
}


def build_rewards(config: Config, dataset: Dataset, items: ItemsOfSid) -> dict[str, Reward]:
    """The rewards that `config.rl.rewards` names, in its order.

    Args:
        items: the items of each SID, by its number in the trie (`CatalogTrie.items`).

    Raises:
        ArtifactError: the baseline of `collaborative` has no vectors, or they are not this run's.
        DataError: the item vectors of `semantic` cannot be read or made.
    """
    return {name: REWARDS.get(name) or WITH_TABLES[name](config, dataset, items) for name in config.rl.rewards}


def reward_sources(config: Config, data_digest: str) -> dict[str, str]:
    """Digests of what the rewards read in addition to the stage's other inputs, by name.

    Raises:
        ArtifactError: the run has no baseline for `collaborative`, or it was made from other data.
    """
    digests = {}
    if "collaborative" in config.rl.rewards:
        name = config.rl.collaborative_model
        digests[f"baselines/{name}"] = baseline_digest(config.folder, name, data_digest)
    if "semantic" in config.rl.rewards:
        if config.sid.vectors is None:
            digests["vectors"] = content_hash({field: getattr(config.sid, field) for field in _ENCODER})
        else:
            path = Path(config.sid.vectors)
            digests["vectors"] = file_hash(path) if path.is_file() else "missing"  # reading it explains what is wrong
    return digests
