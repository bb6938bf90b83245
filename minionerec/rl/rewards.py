"""Rewards: functions of a group's ranked completions, its target and its row's context, compared on token ids.

Each is a function (completions, target, context) -> G rewards, best beam first; `build` makes those that a configuration names,
with the tables that some of them need. What a reward needs travels with its row: nothing is looked up by text, so two rows
with equal prompts keep their own targets.

Where several items share a SID, a completion stands for all of them, and so does a target: a model that writes SIDs can neither
tell them apart nor be blamed for it. `rule` and the rewards made of it count the SID; `semantic` takes the mean of the items'
vectors, `collaborative` the item that scores best, `popularity` the sum of the items' purchases.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from minionerec.artifacts import content_hash, file_hash
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import baseline_digest, load_vectors
from minionerec.errors import CatalogError
from minionerec.sid.encoder import item_vectors
from minionerec.tree import NO_TOKEN

Tokens = Sequence[int]


@dataclass(frozen=True)
class Context:
    """What a row brings along beside prompt and target.

    Attributes:
        row: of the training split, the one whose history the prompt shows; None for a task without history.
    """

    row: int | None = None


Reward = Callable[[Sequence[Tokens], Tokens, Context], list[float]]
ItemsOf = Mapping[tuple[int, ...], Sequence[int]]
Value = TypeVar("Value")
_ENCODER = ("encoder", "max_text_tokens", "tfidf_dimensions")  # the fields of SidConfig that decide the item vectors


def rule(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
    """1 for the target's SID, 0 for any other.

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
    """
    hits = rule(completions, target, context)
    if not any(hits):
        return [0.0] * len(hits)
    weights = [1 / math.log2(rank + 2) for rank in range(len(hits))]
    return [0.0 if hit else -weight / sum(weights) for hit, weight in zip(hits, weights, strict=True)]


def ranking(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
    """`rule` plus `ranking_only`: the paper's reward."""
    pairs = zip(rule(completions, target, context), ranking_only(completions, target, context), strict=True)
    return [hit + penalty for hit, penalty in pairs]


def prefix(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
    """The share of levels that are right, counted from the first to the first wrong one; 1 for the target's SID only.

    Where one SID is longer than the other (a suffix level), the longer one's levels are counted.
    """

    def correct(completion: Tokens) -> int:
        same = [ours == theirs for ours, theirs in zip(completion, target, strict=False)]
        return same.index(False) if False in same else len(same)

    return [correct(completion) / max(len(completion), len(target)) for completion in completions]


def items_of(token_ids: torch.Tensor) -> dict[tuple[int, ...], list[int]]:
    """The items behind each SID, in catalog order.

    Args:
        token_ids: (items, levels), as `checkpoint.sid_token_ids` gives them.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for item, row in enumerate(token_ids.tolist()):
        found.setdefault(tuple(token for token in row if token != NO_TOKEN), []).append(item)
    return found


def semantic(vectors: np.ndarray, items: ItemsOf) -> Reward:
    """Cosine between the completion's and the target's vector: 1 for the target's SID, and near 1 for what reads like it.

    A SID's vector is the mean of its items' vectors, each of norm 1. An item whose text the encoder could not read has a zero
    vector, and cosine 0 with everything.

    Args:
        vectors: (items, dimensions), as `sid.encoder.item_vectors` gives them.
    """
    number = {sid: row for row, sid in enumerate(items)}
    means = _unit(np.stack([_unit(np.asarray(vectors[list(group)], dtype=np.float64)).mean(0) for group in items.values()]))

    def reward(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
        rows = [_at(number, completion) for completion in completions]
        return (means[rows] @ means[_at(number, target)]).tolist()

    return reward


def collaborative(states: np.ndarray, vectors: np.ndarray, bias: np.ndarray, items: ItemsOf) -> Reward:
    """What a sequential baseline thinks of the completion after the row's history, whatever the target is.

    It is the baseline's score as a standard score: minus the mean over the catalog, divided by the deviation. Alone it gives
    the same advantages as the raw score; in a sum its weight means the same for every baseline. A row without history gets 0
    everywhere.

    Args:
        states: (rows of the training split, hidden): the baseline's state after each row's history.
        vectors: (items, hidden).
        bias: (items,).
    """

    def reward(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
        if context.row is None:
            return [0.0] * len(completions)
        scores = vectors @ states[context.row] + bias
        groups = [scores[list(_at(items, completion))].max() for completion in completions]
        return ((np.array(groups) - scores.mean()) / max(scores.std(), 1e-12)).tolist()

    return reward


def popularity(counts: np.ndarray, items: ItemsOf) -> Reward:
    """A correction towards rare items: 0 for one that nobody bought, -1 for the most popular, whatever the target is.

    In between -log(1 + n) / log(1 + the largest n); meant for a small weight beside another reward.

    Args:
        counts: (items,) how often each item is a target of the training split.
    """
    bought = {sid: float(counts[list(group)].sum()) for sid, group in items.items()}
    largest = math.log1p(max(bought.values())) or 1.0

    def reward(completions: Sequence[Tokens], target: Tokens, context: Context) -> list[float]:
        return [-math.log1p(_at(bought, completion)) / largest for completion in completions]

    return reward


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _at(table: Mapping[tuple[int, ...], Value], completion: Tokens) -> Value:
    try:
        return table[tuple(completion)]
    except KeyError:
        raise CatalogError(f"The completion {list(completion)} is not a SID of the catalog; it has no reward.") from None


def _semantic(config: Config, dataset: Dataset, items: ItemsOf) -> Reward:
    return semantic(item_vectors(dataset, config.sid, config.seed), items)


def _collaborative(config: Config, dataset: Dataset, items: ItemsOf) -> Reward:
    name = config.rl.collaborative_model
    vectors = load_vectors(config.folder, name, dataset, "The reward 'collaborative'")
    return collaborative(vectors.states["train"], vectors.items, vectors.bias, items)


def _popularity(config: Config, dataset: Dataset, items: ItemsOf) -> Reward:
    return popularity(np.bincount(dataset.train["target"].to_numpy(), minlength=len(dataset.catalog)), items)


REWARDS: dict[str, Reward] = {"rule": rule, "ranking": ranking, "ranking_only": ranking_only, "prefix": prefix}
WITH_TABLES: dict[str, Callable[[Config, Dataset, ItemsOf], Reward]] = {
    "semantic": _semantic,
    "collaborative": _collaborative,
    "popularity": _popularity,
}


def build(config: Config, dataset: Dataset, token_ids: torch.Tensor) -> dict[str, Reward]:
    """The rewards that `config.rl.rewards` names, in its order.

    Raises:
        ArtifactError: the baseline of `collaborative` has no vectors, or they are not this run's.
        ConfigError, DataError: see `item_vectors`.
    """
    items = items_of(token_ids)
    return {name: REWARDS.get(name) or WITH_TABLES[name](config, dataset, items) for name in config.rl.rewards}


def sources(config: Config, data_digest: str) -> dict[str, str]:
    """Digests of what the rewards read beside the stage's other inputs, by name.

    Raises:
        ArtifactError: the run has no baseline for `collaborative`, or it was made from other data.
    """
    found = {}
    if "collaborative" in config.rl.rewards:
        name = config.rl.collaborative_model
        found[f"baselines/{name}"] = baseline_digest(config.folder, name, data_digest)
    if "semantic" in config.rl.rewards:
        own = None if config.sid.vectors is None else Path(config.sid.vectors)
        if own is None:
            found["vectors"] = content_hash({field: getattr(config.sid, field) for field in _ENCODER})
        else:
            found["vectors"] = file_hash(own) if own.is_file() else "missing"  # reading it explains what is wrong
    return found
