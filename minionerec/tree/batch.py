"""Prefix-tree batches: token sequences packed into rows in which every shared prefix is computed once.

Sequences are sorted, so that those that begin alike stand together, and laid into rows; each adds only the tokens that the one
before it in its row does not have. A mask lets every token see its ancestors only, so every branch gets the same
log-probabilities as if it were alone in a padded batch.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.forward import attention_bias
from minionerec.tree.trie import NO_TOKEN, CatalogTrie


@dataclass(frozen=True)
class Branch:
    """One token sequence: a prompt and the completion whose tokens are labels.

    Attributes:
        weights: of each completion token in the loss; 0 for a token that is no label. None weighs all 1. Labels in the midst
            of a prompt are written as a short prompt and a long completion with weights.
        is_sid: the completion is a path of the catalog's trie, trailing tokens included: its log-probabilities can be taken
            over the trie's children.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    weights: Sequence[float] | None = None
    is_sid: bool = False


@dataclass(frozen=True)
class TreeBatch:
    """Rows of packed sequences. Labels stand branch by branch in the order given, each branch's in order.

    Attributes:
        input_ids, position_ids: (rows, length).
        ancestors: (rows, 1, length, length) bool, True where a token may attend.
        predicting: (rows, length) bool: the tokens that predict a label, the only ones projected to the vocabulary.
        labels: (labels,) token ids.
        weights: (labels,) float32.
        predictors: (labels,) which of the predicting tokens, counted row by row, predicts each label.
        branches: (labels,) index of each label's branch.
        steps: (labels,) place of each label in its completion.
        trie_nodes: (labels,) the trie node above each label, -1 where the completion is no SID or `pack` got no trie.
        longest: tokens of the longest branch.
        trie_depth: depth of the trie that `pack` got, 0 where it got none.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    ancestors: torch.Tensor
    predicting: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    predictors: torch.Tensor
    branches: torch.Tensor
    steps: torch.Tensor
    trie_nodes: torch.Tensor
    longest: int
    trie_depth: int

    def to(self, device: torch.device | str) -> "TreeBatch":
        """Copy to a device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Any]:
        """The fields by name, as a data collator returns them."""
        return dict(vars(self))

    def by_branch(self, values: torch.Tensor, count: int, longest: int) -> torch.Tensor:
        """One value per label as a matrix (count, longest): branch, place in its completion; 0 where there is no label."""
        matrix = values.new_zeros(count, longest)
        matrix[self.branches, self.steps] = values
        return matrix


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences share at their beginning."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size


class _Rows:
    """Which sorted sequences share a row of at most `row_tokens` distinct tokens.

    The sequences are cut into pieces wherever neighbours share little, and inside a piece that is too large where they share
    least; then pieces are laid into rows, first-fit decreasing, counting what a piece shares with those in the row already.

    Args:
        lengths: (sequences,) tokens of each.
        shared: (sequences,) tokens that each shares with the one before it; 0 for the first.
    """

    def __init__(self, lengths: np.ndarray, shared: np.ndarray, row_tokens: int) -> None:
        self.shared, self.row_tokens = shared, row_tokens
        self._grown = np.concatenate([[0], np.cumsum(lengths - shared)])
        self._least = [shared]  # row r: the minimum of 2**r neighbours, so that any two sequences are compared in O(1)
        while 2 ** len(self._least) <= len(shared):
            half = 2 ** (len(self._least) - 1)
            self._least.append(np.minimum(self._least[-1][:-half], self._least[-1][half:]))

    def _size(self, start: int, stop: int) -> int:
        return int(self._grown[stop] - self._grown[start] + self.shared[start])

    def _common(self, first: int, second: int) -> int:
        """Tokens that two sequences share, first < second."""
        power = (second - first).bit_length() - 1
        return int(min(self._least[power][first + 1], self._least[power][second + 1 - 2**power]))

    def _pieces(self) -> list[tuple[int, int]]:
        """Runs of sequences, as (start, stop)."""
        cuts = [0, *(np.flatnonzero(self.shared[1:] <= self.row_tokens // 8) + 1).tolist(), len(self.shared)]
        open_, pieces = list(pairwise(cuts)), []
        while open_:
            start, stop = open_.pop()
            if stop - start == 1 or self._size(start, stop) <= self.row_tokens:
                pieces.append((start, stop))
                continue
            inner = self.shared[start + 1 : stop]
            least = np.flatnonzero(inner == inner.min()) + start + 1
            middle = int(least[np.abs(least - (start + stop) / 2).argmin()])
            open_ += [(start, middle), (middle, stop)]
        return pieces

    def fill(self) -> list[list[int]]:
        """The sequences of each row, in sorted order."""
        rows: list[list[tuple[int, int]]] = []
        room = np.empty(0, dtype=np.int64)
        for start, stop in sorted(self._pieces(), key=lambda piece: (-self._size(*piece), piece)):
            size = self._size(start, stop)
            most = max(int(self.shared[start]), int(self.shared[stop]) if stop < len(self.shared) else 0)
            for number in np.flatnonzero(room >= size - most).tolist():
                place = bisect(rows[number], (start, stop))
                before = self._common(rows[number][place - 1][1] - 1, start) if place else 0
                after = self._common(stop - 1, rows[number][place][0]) if place < len(rows[number]) else 0
                if room[number] >= size - max(before, after):
                    rows[number].insert(place, (start, stop))
                    room[number] -= size - max(before, after)
                    break
            else:
                rows.append([(start, stop)])
                room = np.append(room, self.row_tokens - size)  # negative where one sequence exceeds a row
        return [[number for piece in row for number in range(*piece)] for row in rows]


@dataclass
class _Row:
    """The distinct tokens of some sorted sequences, parents before children."""

    tokens: np.ndarray  # (nodes,)
    depths: np.ndarray  # (nodes,)
    ancestors: np.ndarray  # (nodes, nodes) bool
    paths: list[np.ndarray]  # per sequence its nodes

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> "_Row":
        fresh = [len(tokens) - _common(before, tokens) for before, tokens in pairwise([np.empty(0), *sequences])]
        size = sum(fresh)
        row = cls(np.empty(size, np.int64), np.empty(size, np.int64), np.zeros((size, size), bool), [])
        path, end = np.empty(0, np.int64), 0
        for tokens, new in zip(sequences, fresh, strict=True):
            begin, end, common = end, end + new, len(tokens) - new
            path = np.concatenate([path[:common], np.arange(begin, end)])
            row.tokens[begin:end] = tokens[common:]
            row.depths[begin:end] = np.arange(common, len(tokens))
            row.ancestors[begin:end, path[:common]] = True
            row.ancestors[begin:end, begin:end] = np.tri(new, dtype=bool)
            row.paths.append(path)
        return row


def pack(branches: Sequence[Branch], *, row_tokens: int, trie: CatalogTrie | None = None) -> TreeBatch:
    """Pack sequences into rows in which a shared prefix stands once.

    Args:
        branches: in any order; what they share is found by sorting.
        row_tokens: rows are filled up to this many distinct tokens; one sequence may exceed it.
        trie: the catalog, on the CPU, where log-probabilities over its children are wanted for the branches that are SIDs.

    Raises:
        ConstraintError: `row_tokens` is below 1, the trie is a view, no branch, none with a label, one without prompt or
            completion, as many weights as it has not
            completion tokens, or a SID that the trie does not hold; or see `CatalogTrie.check_normalisable`.
    """
    if row_tokens < 1:
        raise ConstraintError(f"row_tokens is {row_tokens}; a row holds at least 1 token.")
    if trie is not None:
        _refuse_view(trie)
    weights = [_weights(number, branch) for number, branch in enumerate(branches)]
    if not any(len(row.nonzero()[0]) for row in weights):
        raise ConstraintError("A batch needs at least one branch with a label.")
    # What stands behind the last label is not computed, nor that label itself: nothing follows it.
    sequences = [
        np.array([*branch.prompt, *branch.completion[: int(row.nonzero()[0].max(initial=0))]], dtype=np.int64)
        for branch, row in zip(branches, weights, strict=True)
    ]
    order = sorted(range(len(branches)), key=lambda number: sequences[number].tolist())
    shared = [_common(sequences[first], sequences[second]) for first, second in pairwise(order)]
    lengths = np.array([len(sequences[number]) for number in order])
    members = [[order[place] for place in row] for row in _Rows(lengths, np.array([0, *shared]), row_tokens).fill()]
    rows = [_Row.of([sequences[number] for number in row]) for row in members]

    length = max(len(row.tokens) for row in rows)
    input_ids = np.zeros((len(rows), length), dtype=np.int64)  # padding is never seen by another token and never predicts
    positions = np.zeros((len(rows), length), dtype=np.int64)
    allowed = np.zeros((len(rows), length, length), dtype=bool)
    allowed[:, np.arange(length), np.arange(length)] = True  # padding attends to itself: no empty softmax
    predicting = np.zeros((len(rows), length), dtype=bool)
    places: list[np.ndarray] = [np.empty(0)] * len(branches)  # per branch, row * length + column of each label's predictor
    for number, (inside, row) in enumerate(zip(members, rows, strict=True)):
        size = len(row.tokens)
        input_ids[number, :size], positions[number, :size] = row.tokens, row.depths
        allowed[number, :size, :size] = row.ancestors
        for branch, path in zip(inside, row.paths, strict=True):
            predictors = path[len(branches[branch].prompt) - 1 + weights[branch].nonzero()[0]]
            predicting[number, predictors] = True
            places[branch] = number * length + predictors
    numbering = np.cumsum(predicting.reshape(-1)) - 1
    steps = [row.nonzero()[0] for row in weights]
    return TreeBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(positions),
        ancestors=torch.from_numpy(allowed)[:, None],
        predicting=torch.from_numpy(predicting),
        labels=torch.tensor([b.completion[step] for b, kept in zip(branches, steps, strict=True) for step in kept.tolist()]),
        weights=torch.from_numpy(np.concatenate([row[kept] for row, kept in zip(weights, steps, strict=True)])),
        predictors=torch.from_numpy(numbering[np.concatenate(places)]),
        branches=torch.from_numpy(np.repeat(np.arange(len(branches)), [len(kept) for kept in steps])),
        steps=torch.from_numpy(np.concatenate(steps)),
        trie_nodes=_trie_nodes(branches, steps, trie),
        longest=max(map(len, sequences)),
        trie_depth=0 if trie is None else trie.depth,
    )


def _refuse_view(trie: CatalogTrie) -> None:
    if trie.legal is not None:
        raise ConstraintError("Log-probabilities are taken over the whole catalog: give the trie that the view was made from.")


def _weights(number: int, branch: Branch) -> np.ndarray:
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


def _trie_nodes(branches: Sequence[Branch], steps: Sequence[np.ndarray], trie: CatalogTrie | None) -> torch.Tensor:
    """The trie node above each label, in the order of the labels."""
    above = np.full((len(branches), max(len(branch.completion) for branch in branches)), -1, dtype=np.int64)
    sids = [number for number, branch in enumerate(branches) if branch.is_sid] if trie is not None else []
    if trie is not None and sids:
        trie.check_normalisable()
        paths = np.full((len(sids), trie.depth), NO_TOKEN, dtype=np.int64)
        for row, number in zip(paths, sids, strict=True):
            completion = branches[number].completion
            row[: len(completion)] = completion[: trie.depth]
        nodes = trie.walk(torch.from_numpy(paths)).numpy()
        for path, number in zip(nodes, sids, strict=True):
            completion = branches[number].completion
            if len(completion) > trie.depth or path.min() < 0:
                raise ConstraintError(f"The completion {list(completion)} of branch {number} is not a SID of the catalog.")
            above[number, : len(completion)] = [0, *path[: len(completion) - 1]]
    return torch.from_numpy(np.concatenate([row[kept] for row, kept in zip(above, steps, strict=True)]))


@dataclass(frozen=True)
class TreeLogprobs:
    """Per label of a `TreeBatch`, float32, in nats.

    Attributes:
        logprobs: (labels,) log-probability of the label, with gradient.
        entropies: (labels,) entropy of the distribution that it was taken from, without gradient; None where not asked for.
        siblings: (labels,) mean log-probability of the tokens that are legal in the label's place, the label among them, with
            gradient; the label's own where it has no trie node. None where not asked for.
    """

    logprobs: torch.Tensor
    entropies: torch.Tensor | None
    siblings: torch.Tensor | None


def tree_logprobs(
    model: torch.nn.Module,
    batch: TreeBatch,
    *,
    trie: CatalogTrie | None = None,
    temperature: float = 1.0,
    entropies: bool = False,
    siblings: CatalogTrie | None = None,
) -> TreeLogprobs:
    """Each branch's token log-probabilities, as if it were alone in a padded batch.

    Args:
        model: the causal LM, possibly wrapped by DDP or DeepSpeed, whose forward is called.
        trie: take the labels with a trie node over the trie's children, not over the vocabulary; on the model's device, and the
            one that `pack` was given.
        temperature: divides the logits.
        entropies: also the entropy at each label.
        siblings: also the mean log-probability over each label's legal siblings in this trie; it must be `trie` where both are
            given.

    Raises:
        ConstraintError: the model's attention cannot take a tree mask, the temperature is not above 0, a trie is a view or
            another one than `pack` got.
    """
    if not temperature > 0:
        raise ConstraintError(f"temperature is {temperature}; it must be greater than 0.")
    catalog = siblings if trie is None else trie
    if catalog is not None:
        _refuse_view(catalog)
        if batch.trie_depth != catalog.depth or (siblings is not None and siblings is not catalog):
            raise ConstraintError("The batch was packed without this trie: give pack the same one.")
    config_of = cast(PreTrainedModel, extract_model_from_parallel(model))
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=attention_bias(config_of, batch.ancestors, batch.longest),
        position_ids=batch.position_ids,
        logits_to_keep=batch.predicting,
        use_cache=False,
    ).logits  # (predicting tokens, vocabulary)
    scaled = logits.float() / temperature
    chosen = scaled[batch.predictors, batch.labels]
    inside = (batch.trie_nodes >= 0).nonzero().squeeze(-1)
    if trie is not None and len(inside) == len(chosen):
        totals = torch.zeros_like(chosen)  # all are taken over the trie below
    else:
        totals = scaled.logsumexp(-1)[batch.predictors]
    spread, beside = None, chosen
    if entropies:
        with torch.no_grad():
            spread = _entropy(scaled)[batch.predictors]
    levels = () if catalog is None else batch.steps[inside].unique().tolist()
    for step in levels:
        some = inside[batch.steps[inside] == step]
        _, tokens, valid = cast(CatalogTrie, catalog).children(step, batch.trie_nodes[some])
        legal = scaled[batch.predictors[some, None], tokens.clamp(min=0)]  # (labels of this level, children)
        if siblings is not None:
            beside = beside.index_copy(0, some, (legal * valid).sum(-1) / valid.sum(-1))
        if trie is not None:
            legal = legal.masked_fill(~valid, torch.finfo(legal.dtype).min)
            totals = totals.index_copy(0, some, legal.logsumexp(-1))
            if spread is not None:
                spread[some] = _entropy(legal.detach())
    return TreeLogprobs(chosen - totals, spread, None if siblings is None else beside - totals)


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
