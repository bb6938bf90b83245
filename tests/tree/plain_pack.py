"""Packing branch by branch, with a mask that is written down: the slow and obvious way, which `tree.pack` must equal."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from minionerec.errors import ConstraintError
from minionerec.tree import NO_TOKEN
from minionerec.tree.rows import Rows


def common_tokens(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences share at their beginning."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size


@dataclass
class Row:
    """The distinct tokens of some sorted sequences, parents before children.

    Attributes:
        tokens, depths: (nodes,).
        ancestors: (nodes, nodes) bool.
        paths: per sequence its nodes, in the order of its tokens.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ancestors: np.ndarray
    paths: list[np.ndarray]

    @classmethod
    def of(cls, sequences):
        """The row of some sequences, sorted."""
        # Sorted, a sequence shares most with the one right before it: the tokens behind that beginning are new in the row.
        new_tokens = [len(tokens) - common_tokens(before, tokens) for before, tokens in pairwise([np.empty(0), *sequences])]
        size = sum(new_tokens)
        row = cls(np.empty(size, np.int64), np.empty(size, np.int64), np.zeros((size, size), bool), [])
        path, end = np.empty(0, np.int64), 0
        for tokens, new in zip(sequences, new_tokens, strict=True):
            begin, end, common = end, end + new, len(tokens) - new
            path = np.concatenate([path[:common], np.arange(begin, end)])
            row.tokens[begin:end] = tokens[common:]
            row.depths[begin:end] = np.arange(common, len(tokens))
            row.ancestors[begin:end, path[:common]] = True
            row.ancestors[begin:end, begin:end] = np.tri(new, dtype=bool)  # the new tokens are one chain
            row.paths.append(path)
        return row


def pack(branches, *, row_tokens, trie=None):
    """As `tree.pack`, branch by branch."""
    if row_tokens < 1:
        raise ConstraintError(f"row_tokens is {row_tokens}; a row holds at least 1 token.")
    if trie is not None:
        trie.check_whole()
    weights = [_weights(number, branch) for number, branch in enumerate(branches)]
    steps = [row.nonzero()[0] for row in weights]  # per branch, the positions of its labels in its completion
    if not any(map(len, steps)):
        raise ConstraintError("A batch needs at least one branch with a label.")

    # 1. The tokens to compute: each branch up to the one before its last label. The last label itself is predicted, not read,
    #    and nothing that follows it is asked for.
    sequences = [
        np.array([*branch.prompt, *branch.completion[: int(labelled.max(initial=0))]], dtype=np.int64)
        for branch, labelled in zip(branches, steps, strict=True)
    ]

    # 2. Sort them, lay them into rows, and make each row's tree.
    order = sorted(range(len(branches)), key=lambda number: sequences[number].tolist())
    shared = [common_tokens(sequences[first], sequences[second]) for first, second in pairwise(order)]
    lengths = np.array([len(sequences[number]) for number in order])
    members = [[order[rank] for rank in row] for row in Rows(lengths, np.array([0, *shared]), row_tokens).fill()]
    rows = [Row.of([sequences[number] for number in row]) for row in members]

    # 3. Write the rows into rectangles. Padding sees itself alone, so that no softmax is empty; no token sees it, and it
    #    predicts nothing.
    length = max(len(row.tokens) for row in rows)
    input_ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    allowed = np.zeros((len(rows), length, length), dtype=bool)
    allowed[:, np.arange(length), np.arange(length)] = True
    predicting = np.zeros((len(rows), length), dtype=bool)
    predictor_places: list[np.ndarray] = [np.empty(0)] * len(branches)  # per branch, row * length + column of each label's
    for number, (row_members, row) in enumerate(zip(members, rows, strict=True)):
        size = len(row.tokens)
        input_ids[number, :size], positions[number, :size] = row.tokens, row.depths
        allowed[number, :size, :size] = row.ancestors
        for branch, path in zip(row_members, row.paths, strict=True):
            columns = path[len(branches[branch].prompt) - 1 + steps[branch]]  # a label is predicted by the token before it
            predicting[number, columns] = True
            predictor_places[branch] = number * length + columns

    # 4. List the labels branch by branch, so that their order depends neither on sorting nor on rows. Branches may share a
    #    predicting token; only distinct ones are projected, so labels refer to them by their number.
    numbering = np.cumsum(predicting.reshape(-1)) - 1
    labels = [branch.completion[step] for branch, labelled in zip(branches, steps, strict=True) for step in labelled.tolist()]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(positions),
        "ancestors": torch.from_numpy(allowed)[:, None],
        "predicting": torch.from_numpy(predicting),
        "labels": torch.tensor(labels),
        "weights": torch.from_numpy(np.concatenate([row[labelled] for row, labelled in zip(weights, steps, strict=True)])),
        "predictors": torch.from_numpy(numbering[np.concatenate(predictor_places)]),
        "branches": torch.from_numpy(np.repeat(np.arange(len(branches)), [len(labelled) for labelled in steps])),
        "steps": torch.from_numpy(np.concatenate(steps)),
        "trie_nodes": _trie_nodes(branches, steps, trie),
        "longest": max(map(len, sequences)),
        "trie_depth": 0 if trie is None else trie.depth,
    }


def _weights(number, branch):
    """A branch's weights, (completion,) float32, after its checks."""
    if not len(branch.prompt) or not len(branch.completion):
        raise ConstraintError(f"Branch {number} needs at least one prompt token and one completion token.")
    if branch.weights is None:
        return np.ones(len(branch.completion), dtype=np.float32)
    if len(branch.weights) != len(branch.completion):
        raise ConstraintError(
            f"Branch {number} has {len(branch.weights)} weights for {len(branch.completion)} completion tokens."
        )
    return np.asarray(branch.weights, dtype=np.float32)


def _trie_nodes(branches, steps, trie):
    """The trie node above each label, in the order of the labels."""
    above = np.full((len(branches), max(len(branch.completion) for branch in branches)), -1, dtype=np.int64)
    sids = [number for number, branch in enumerate(branches) if branch.is_sid] if trie is not None else []
    if trie is not None and sids:
        trie.check_normalisable()
        paths = np.full((len(sids), trie.depth), NO_TOKEN, dtype=np.int64)
        for path, number in zip(paths, sids, strict=True):
            completion = branches[number].completion
            path[: len(completion)] = completion[: trie.depth]
        nodes = trie.walk(torch.from_numpy(paths)).numpy()
        for passed, number in zip(nodes, sids, strict=True):
            completion = branches[number].completion
            if len(completion) > trie.depth or passed.min() < 0:
                raise ConstraintError(f"The completion {list(completion)} of branch {number} is not a SID of the catalog.")
            above[number, : len(completion)] = [0, *passed[: len(completion) - 1]]  # the root, then what was passed before
    return torch.from_numpy(np.concatenate([row[labelled] for row, labelled in zip(above, steps, strict=True)]))
