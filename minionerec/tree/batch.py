"""Prefix-tree batches: token sequences packed into rows in which every shared prefix is computed once.

Sequences are sorted, so that sequences with a common beginning are neighbours, and laid into rows. A sequence adds only the
tokens that it does not share with its neighbour in the row. A mask lets every token see its ancestors only, so every branch
gets the log-probabilities that it would get alone in a padded batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, modeling_utils

from minionerec.errors import ConstraintError
from minionerec.tree.forward import attention_bias
from minionerec.tree.rows import Row, Rows, common_tokens
from minionerec.tree.trie import NO_TOKEN, CatalogTrie

# Transformers before 5.21 projects the same positions of every row, so that rows compute logits which only others need.
_PROJECTS_MASKS = hasattr(modeling_utils, "slice_logits_to_keep")


@dataclass(frozen=True)
class Branch:
    """One token sequence: a prompt and the completion whose tokens are labels.

    Labels inside a prompt are written as a short prompt and a long completion with weights:

    >>> pack([Branch([1, 2], [3, 4, 5, 6], [0, 1, 1, 0])], row_tokens=16).labels.tolist()
    [4, 5]

    Attributes:
        prompt: token ids, at least one.
        completion: token ids, at least one.
        weights: of each completion token in the loss; 0 for a token that is no label. None weighs all 1.
        is_sid: the completion is a path of the catalog's trie, trailing tokens included: its log-probabilities can be taken
            over the trie's children.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    weights: Sequence[float] | None = None
    is_sid: bool = False


@dataclass(frozen=True)
class TreeBatch:
    """Rows of packed sequences. Labels are in the order of the branches, and of their tokens within a branch.

    Attributes:
        input_ids, position_ids: (rows, length).
        ancestors: (rows, 1, length, length) bool, True if a token (third dimension) may attend to another (fourth).
        predicting: (rows, length) bool: the tokens that predict a label. Only these are projected to the vocabulary.
        labels: (labels,) token ids.
        weights: (labels,) float32.
        predictors: (labels,) which of the predicting tokens, counted row by row, predicts each label.
        branches: (labels,) index of each label's branch.
        steps: (labels,) position of each label in its completion.
        trie_nodes: (labels,) the trie node above each label, -1 if the completion is no SID or `pack` got no trie.
        longest: tokens of the longest branch.
        trie_depth: depth of the trie that `pack` got, 0 if it got none.
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
        """All fields by name: the form in which transformers' Trainer passes a batch."""
        return dict(vars(self))

    def by_branch(self, values: torch.Tensor, count: int, longest: int) -> torch.Tensor:
        """One value per label as a matrix, (count, longest): by branch and position in its completion; 0 without a label.

        >>> batch = pack([Branch([1], [5, 6]), Branch([1], [7])], row_tokens=16)
        >>> batch.by_branch(batch.labels, count=2, longest=3).tolist()
        [[5, 6, 0], [7, 0, 0]]

        Args:
            values: (labels,).
            count: branches.
            longest: tokens of the longest completion, at least.
        """
        matrix = values.new_zeros(count, longest)
        matrix[self.branches, self.steps] = values
        return matrix


def pack(branches: Sequence[Branch], *, row_tokens: int, trie: CatalogTrie | None = None) -> TreeBatch:
    """Pack sequences into rows that hold every shared prefix once.

    >>> branches = [Branch([1, 2, 3], [7, 8]), Branch([1, 2, 3], [7, 9]), Branch([1, 2], [5])]
    >>> batch = pack(branches, row_tokens=16)
    >>> batch.input_ids.tolist()  # the last token of a completion is only a label
    [[1, 2, 3, 7]]
    >>> batch.labels.tolist(), batch.branches.tolist()
    ([7, 8, 7, 9, 5], [0, 0, 1, 1, 2])

    Args:
        branches: in any order; sorting finds what they share.
        row_tokens: rows are filled up to this many distinct tokens; one sequence may exceed it.
        trie: the catalog, on the CPU, if log-probabilities over its children are wanted for the branches that are SIDs.

    Raises:
        ConstraintError: `row_tokens` is below 1; there is no branch, or none with a label; a branch has no prompt or no
            completion; its number of weights differs from its number of completion tokens; a SID is not in the trie; or the
            trie is a view, has a prior, or holds a SID that is the beginning of another.
    """
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
    return TreeBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(positions),
        ancestors=torch.from_numpy(allowed)[:, None],
        predicting=torch.from_numpy(predicting),
        labels=torch.tensor(labels),
        weights=torch.from_numpy(np.concatenate([row[labelled] for row, labelled in zip(weights, steps, strict=True)])),
        predictors=torch.from_numpy(numbering[np.concatenate(predictor_places)]),
        branches=torch.from_numpy(np.repeat(np.arange(len(branches)), [len(labelled) for labelled in steps])),
        steps=torch.from_numpy(np.concatenate(steps)),
        trie_nodes=_trie_nodes(branches, steps, trie),
        longest=max(map(len, sequences)),
        trie_depth=0 if trie is None else trie.depth,
    )


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


@dataclass(frozen=True)
class TreeLogprobs:
    """Figures of each label of a `TreeBatch`, float32, in nats.

    Attributes:
        logprobs: (labels,) log-probability of the label, with gradient.
        entropies: (labels,) entropy of the distribution that it was taken from, without gradient; None if not asked for.
        siblings: (labels,) mean log-probability of the tokens that are legal in the label's position, the label among them,
            with gradient; the label's own if it has no trie node. None if not asked for.
        states: (predicting tokens, hidden) the states that the logits were computed from, with gradient, if the model gives
            them (`model/item_text.py`); else None.
    """

    logprobs: torch.Tensor
    entropies: torch.Tensor | None
    siblings: torch.Tensor | None
    states: torch.Tensor | None = None


def tree_logprobs(
    model: torch.nn.Module,
    batch: TreeBatch,
    *,
    trie: CatalogTrie | None = None,
    temperature: float = 1.0,
    entropies: bool = False,
    siblings: CatalogTrie | None = None,
) -> TreeLogprobs:
    """The log-probability of each label, as if its branch were alone in a padded batch.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).eval()
    >>> batch = pack([Branch([1, 2, 3], [10, 13]), Branch([1, 2, 3], [11, 14])], row_tokens=16)
    >>> together = tree_logprobs(model, batch).logprobs
    >>> together.shape  # 2 branches of 2 labels
    torch.Size([4])
    >>> alone = tree_logprobs(model, pack([Branch([1, 2, 3], [11, 14])], row_tokens=16)).logprobs
    >>> torch.allclose(together[2:], alone, atol=1e-5)
    True

    Args:
        model: the causal LM, possibly wrapped by DDP or DeepSpeed, whose forward is called.
        batch: on the model's device.
        trie: normalises the labels with a trie node over the trie's children instead of the vocabulary; on the model's device,
            and the one that `pack` got.
        temperature: divides the logits.
        entropies: also give the entropy at each label.
        siblings: also give the mean log-probability over each label's legal siblings in this trie. If `trie` is given too, both
            must be the same.

    Raises:
        ConstraintError: the model's attention cannot take a tree mask, the temperature is not above 0, or a trie is a view or
            not the one that `pack` got.
    """
    if not temperature > 0:
        raise ConstraintError(f"temperature is {temperature}; it must be greater than 0.")
    catalog = siblings if trie is None else trie
    if catalog is not None:
        catalog.check_whole()
        if batch.trie_depth != catalog.depth or (siblings is not None and siblings is not catalog):
            raise ConstraintError("The batch was packed without this trie: give the trie to pack too.")

    # 1. One forward of all rows. Only the predicting tokens are projected to the vocabulary: (predicting tokens, vocabulary).
    unwrapped = cast(PreTrainedModel, extract_model_from_parallel(model))
    columns = None if _PROJECTS_MASKS else batch.predicting.any(0).nonzero().squeeze(-1)
    bias = attention_bias(unwrapped, batch.ancestors, batch.longest)
    inputs = {"input_ids": batch.input_ids, "attention_mask": bias, "position_ids": batch.position_ids, "use_cache": False}
    output = model(**inputs, logits_to_keep=batch.predicting if columns is None else columns)
    kept = ... if columns is None else batch.predicting[:, columns]
    scaled = output.logits[kept].float() / temperature
    states = None if getattr(output, "states", None) is None else output.states[kept]

    # 2. A label's log-probability is its logit minus the logsumexp that it is normalised by: here over the vocabulary, unless
    #    step 3 replaces all of them.
    label_logits = scaled[batch.predictors, batch.labels]
    in_trie = (batch.trie_nodes >= 0).nonzero().squeeze(-1)
    if trie is not None and len(in_trie) == len(label_logits):
        normalisers = torch.zeros_like(label_logits)
    else:
        normalisers = scaled.logsumexp(-1)[batch.predictors]
    label_entropies, sibling_means = None, label_logits
    if entropies:
        with torch.no_grad():
            label_entropies = _entropy(scaled)[batch.predictors]

    # 3. Labels of SIDs: look up the logits of their node's children, level by level, as children are padded per level.
    for step in () if catalog is None else batch.steps[in_trie].unique().tolist():
        at_step = in_trie[batch.steps[in_trie] == step]
        _, tokens, valid = cast(CatalogTrie, catalog).children(step, batch.trie_nodes[at_step])
        legal = scaled[batch.predictors[at_step, None], tokens.clamp(min=0)]  # (labels of this level, children)
        if siblings is not None:
            sibling_means = sibling_means.index_copy(0, at_step, (legal * valid).sum(-1) / valid.sum(-1))
        if trie is not None:
            legal = legal.masked_fill(~valid, torch.finfo(legal.dtype).min)
            normalisers = normalisers.index_copy(0, at_step, legal.logsumexp(-1))
            if label_entropies is not None:
                label_entropies[at_step] = _entropy(legal.detach())
    means = None if siblings is None else sibling_means - normalisers
    return TreeLogprobs(label_logits - normalisers, label_entropies, means, states)


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
