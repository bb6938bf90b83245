"""Prefix-tree batches: token sequences packed into rows in which every shared prefix is computed once.

A tree is a list of branches; branches that begin alike share those tokens. Trees are packed side by side into rows; a mask
lets each token see its ancestors only, so every branch gets the same log-probabilities as if it were alone in a padded
batch. Within a row the tokens that predict a label stand last, so that `logits_to_keep` projects hardly anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.forward import attention_bias


@dataclass(frozen=True)
class Branch:
    """One token sequence: a prompt and the completion whose tokens are labels."""

    prompt: Sequence[int]
    completion: Sequence[int]


@dataclass(frozen=True)
class TreeBatch:
    """Rows of packed trees.

    Attributes:
        input_ids, position_ids: (rows, length).
        ancestors: (rows, 1, length, length) bool, True where a token may attend.
        logits_to_keep: how many tokens at the end of each row are projected to the vocabulary.
        label_rows, label_columns: (labels,) which kept logits predict each label.
        labels: (labels,) token ids, branch by branch in the order given, each branch's completion in order.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    ancestors: torch.Tensor
    logits_to_keep: int
    label_rows: torch.Tensor
    label_columns: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> "TreeBatch":
        """Copy to a device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Any]:
        """The fields by name, as a data collator returns them."""
        return dict(vars(self))


@dataclass
class _Tree:
    """The distinct tokens of a tree, parents before children."""

    tokens: list[int]
    depths: list[int]
    parents: list[int]
    predictors: list[list[int]]  # per branch, the node that predicts each completion token

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> "_Tree":
        tree = cls([], [], [], [])
        known: dict[tuple[int, int], int] = {}  # (parent, token) -> node
        for branch in branches:
            if not branch.prompt or not branch.completion:
                raise ConstraintError("A branch needs at least one prompt token and one completion token.")
            node, path = -1, []
            # The last token is only ever a label: nothing follows it, so it is not computed.
            for depth, token in enumerate([*branch.prompt, *branch.completion[:-1]]):
                child = known.get((node, token))
                if child is None:
                    child = known[node, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.depths.append(depth)
                    tree.parents.append(node)
                node = child
                path.append(node)
            tree.predictors.append(path[len(branch.prompt) - 1 :])
        return tree

    def ancestors(self) -> np.ndarray:
        """(nodes, nodes) bool: row i marks node i and all above it."""
        size = len(self.tokens)
        matrix = np.eye(size, dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                matrix[node] |= matrix[parent]
        return matrix


def _fill_rows(sizes: Sequence[int], row_tokens: int) -> list[list[int]]:
    """First-fit decreasing: which trees share a row. A tree longer than `row_tokens` gets a row of its own."""
    rows: list[list[int]] = []
    room: list[int] = []
    for tree in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        row = next((index for index, free in enumerate(room) if free >= sizes[tree]), None)
        if row is None:
            rows.append([])
            room.append(max(row_tokens, sizes[tree]))
            row = len(rows) - 1
        rows[row].append(tree)
        room[row] -= sizes[tree]
    return rows


def pack(trees: Sequence[Sequence[Branch]], *, row_tokens: int) -> TreeBatch:
    """Pack trees into rows.

    Args:
        trees: each a list of branches that are expected to share their beginnings.
        row_tokens: rows are filled up to this many distinct tokens; one tree may exceed it.

    Raises:
        ConstraintError: no tree, or a branch without prompt or completion.
    """
    built = [_Tree.of(branches) for branches in trees]
    if not any(tree.predictors for tree in built):
        raise ConstraintError("A batch needs at least one branch.")
    rows = _fill_rows([len(tree.tokens) for tree in built], row_tokens)
    length = max(sum(len(built[tree].tokens) for tree in row) for row in rows)
    kept = max(sum(len({node for path in built[tree].predictors for node in path}) for tree in row) for row in rows)
    input_ids = np.zeros((len(rows), length), dtype=np.int64)  # padding is never seen by another token and never a label
    positions = np.zeros((len(rows), length), dtype=np.int64)
    allowed = np.zeros((len(rows), length, length), dtype=bool)
    allowed[:, np.arange(length), np.arange(length)] = True  # padding attends to itself: no empty softmax
    places: list[tuple[int, np.ndarray]] = [(0, np.empty(0, dtype=np.int64))] * len(built)
    for row, members in enumerate(rows):
        predicting = [np.zeros(len(built[tree].tokens), dtype=bool) for tree in members]
        for marks, tree in zip(predicting, members, strict=True):
            marks[[node for path in built[tree].predictors for node in path]] = True
        silent = length - sum(int(marks.sum()) for marks in predicting)
        free = length - sum(len(marks) for marks in predicting)  # padding stands on the left
        for marks, tree in zip(predicting, members, strict=True):
            place = np.empty(len(marks), dtype=np.int64)
            place[marks] = silent + np.arange(marks.sum())
            place[~marks] = free + np.arange((~marks).sum())
            silent, free = silent + int(marks.sum()), free + int((~marks).sum())
            input_ids[row, place] = built[tree].tokens
            positions[row, place] = built[tree].depths
            allowed[row, place[:, None], place] = built[tree].ancestors()
            places[tree] = (row, place)
    label_rows, label_columns, labels = [], [], []
    for branches, tree_, (row, place) in zip(trees, built, places, strict=True):
        for branch, path in zip(branches, tree_.predictors, strict=True):
            label_rows += [row] * len(path)
            label_columns += (place[path] - (length - kept)).tolist()
            labels += list(branch.completion)
    return TreeBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(positions),
        torch.from_numpy(allowed)[:, None],
        kept,
        torch.tensor(label_rows),
        torch.tensor(label_columns),
        torch.tensor(labels),
    )


def tree_logits(model: torch.nn.Module, config_of: PreTrainedModel, batch: TreeBatch) -> torch.Tensor:
    """The logits that predict each label, with gradients: (labels, vocabulary) float32.

    Args:
        model: the causal LM, possibly wrapped by DDP or DeepSpeed: its own forward is called.
        config_of: the unwrapped model, which knows the attention implementation.
    """
    output = model(
        input_ids=batch.input_ids,
        attention_mask=attention_bias(config_of, batch.ancestors),
        position_ids=batch.position_ids,
        logits_to_keep=batch.logits_to_keep,
        use_cache=False,
    )
    return output.logits[batch.label_rows, batch.label_columns].float()
