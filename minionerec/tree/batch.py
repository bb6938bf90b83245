"""Prefix-tree batches: token sequences packed into rows in which every shared prefix is computed once.

Sequences are sorted, so that sequences with a common beginning are neighbours, and laid into rows. A sequence adds only the
tokens that it does not share with its neighbour in the row. A mask lets every token see its ancestors only, so every branch
gets the log-probabilities that it would get alone in a padded batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, modeling_utils

from minionerec.errors import ConstraintError
from minionerec.tree.forward import attention_bias
from minionerec.tree.rows import Layout
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
        ends: (rows, length) int64: the tokens below a token stand between it and this column. Together they are the mask.
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
    ends: torch.Tensor
    predicting: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    predictors: torch.Tensor
    branches: torch.Tensor
    steps: torch.Tensor
    trie_nodes: torch.Tensor
    longest: int
    trie_depth: int

    @property
    def ancestors(self) -> torch.Tensor:
        """(rows, 1, length, length) bool, True if a token (third dimension) may attend to another (fourth).

        A row lists its tree in depth-first order, so a token's ancestors are the tokens up to it whose subtree goes beyond it.
        The mask is made where the batch is: to a GPU only `ends` are copied, not their square.
        """
        columns = torch.arange(self.ends.shape[1], device=self.ends.device)
        return ((columns <= columns[:, None]) & (columns[:, None] < self.ends[:, None]))[:, None]

    def to(self, device: torch.device | str) -> "TreeBatch":
        """Copy to a device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Any]:
        """All fields by name: the form in which transformers' Trainer passes a batch."""
        return dict(vars(self))

    def renumbered(self, numbers: torch.Tensor) -> "TreeBatch":
        """The batch as `pack` makes it of the same branches in another order.

        >>> branches = [Branch([1], [5, 6]), Branch([1], [7])]
        >>> pack(branches, row_tokens=16).renumbered(torch.tensor([1, 0])).labels.tolist()
        [7, 5, 6]

        To the last bit, if rows are at least as long as the longest branch; in shorter rows two branches of equal tokens could
        stand in two rows, in the order of their numbers.

        Args:
            numbers: (branches,) the new number of each branch, on any device.
        """
        branches = numbers.to(self.branches.device)[self.branches]
        order = branches.argsort(stable=True)  # keeps the steps of a branch in order
        labels = ("labels", "weights", "predictors", "steps", "trie_nodes")
        return replace(self, branches=branches[order], **{name: getattr(self, name)[order] for name in labels})

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
            trie is a view, is mixed, or holds a SID that is the beginning of another.
    """
    if row_tokens < 1:
        raise ConstraintError(f"row_tokens is {row_tokens}; a row holds at least 1 token.")
    if trie is not None:
        trie.check_whole()
    labels = _Labels.of(branches)

    # 1. The tokens to compute: each branch up to the one before its last label. The last label itself is predicted, not read,
    #    and nothing that follows it is asked for.
    prompts = np.array([len(branch.prompt) for branch in branches])
    last = np.zeros(len(branches), dtype=np.int64)
    last[labels.branches] = labels.steps  # in ascending order: the last one stays
    lengths = prompts + last
    parts = [
        part
        for branch, stop in zip(branches, last.tolist(), strict=True)
        for part in ((branch.prompt, branch.completion[:stop]) if stop else (branch.prompt,))
    ]
    table = np.full((len(branches), lengths.max()), -1, dtype=np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = _joined(parts)

    # 2. Lay them into rows. A label is predicted by the token before it.
    layout = Layout.of(table, lengths, row_tokens)
    rows, columns = layout.rows[labels.branches], layout.columns[labels.branches, prompts[labels.branches] - 1 + labels.steps]
    length = layout.tokens.shape[1]
    predicting = np.zeros((len(layout.tokens), length), dtype=bool)
    predicting[rows, columns] = True

    # 3. List the labels branch by branch, so that their order depends neither on sorting nor on rows. Branches may share a
    #    predicting token; only distinct ones are projected, so labels refer to them by their number.
    numbering = np.cumsum(predicting.reshape(-1)) - 1
    return TreeBatch(
        input_ids=torch.from_numpy(layout.tokens),
        position_ids=torch.from_numpy(layout.depths),
        ends=torch.from_numpy(layout.ends),
        predicting=torch.from_numpy(predicting),
        labels=torch.from_numpy(labels.tokens),
        weights=torch.from_numpy(labels.weights),
        predictors=torch.from_numpy(numbering[rows * length + columns]),
        branches=torch.from_numpy(labels.branches),
        steps=torch.from_numpy(labels.steps),
        trie_nodes=torch.from_numpy(_trie_nodes(branches, labels, trie)),
        longest=int(lengths.max()),
        trie_depth=0 if trie is None else trie.depth,
    )


def _joined(parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Token ids one behind the other, int64; no part is empty."""
    return np.concatenate([np.asarray(part) for part in parts]).astype(np.int64, copy=False)


@dataclass(frozen=True)
class _Labels:
    """The labels of all branches, branch by branch.

    Attributes:
        branches, steps, tokens, weights: (labels,); see `TreeBatch`.
    """

    branches: np.ndarray
    steps: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> "_Labels":
        """The completion tokens whose weight is not 0, after the branches' checks."""
        for number, branch in enumerate(branches):
            if not len(branch.prompt) or not len(branch.completion):
                raise ConstraintError(f"Branch {number} needs at least one prompt token and one completion token.")
            if branch.weights is not None and len(branch.weights) != len(branch.completion):
                raise ConstraintError(
                    f"Branch {number} has {len(branch.weights)} weights for {len(branch.completion)} completion tokens."
                )
        sizes = np.array([len(branch.completion) for branch in branches], dtype=np.int64)
        begins = np.cumsum(sizes) - sizes
        weights = np.ones(int(sizes.sum()), dtype=np.float32)
        for begin, branch in zip(begins.tolist(), branches, strict=True):
            if branch.weights is not None:
                weights[begin : begin + len(branch.weights)] = branch.weights
        labels = np.flatnonzero(weights)
        if not len(labels):
            raise ConstraintError("A batch needs at least one branch with a label.")
        numbers = np.repeat(np.arange(len(branches)), sizes)[labels]
        tokens = _joined([branch.completion for branch in branches])
        return cls(numbers, labels - begins[numbers], tokens[labels], weights[labels])


def _trie_nodes(branches: Sequence[Branch], labels: _Labels, trie: CatalogTrie | None) -> np.ndarray:
    """The trie node above each label, (labels,) int64; -1 for a label of no SID."""
    above = np.full((len(branches), int(labels.steps.max()) + 1), -1, dtype=np.int64)
    sids = [number for number, branch in enumerate(branches) if branch.is_sid] if trie is not None else []
    if trie is not None and sids:
        trie.check_normalisable()
        sizes = np.array([len(branches[number].completion) for number in sids])
        paths = np.full((len(sids), max(trie.depth, sizes.max())), NO_TOKEN, dtype=np.int64)
        paths[np.arange(paths.shape[1]) < sizes[:, None]] = _joined([branches[number].completion for number in sids])
        nodes = trie.walk(torch.from_numpy(paths[:, : trie.depth])).numpy()
        wrong = (sizes > trie.depth) | (nodes.min(axis=1) < 0)
        if wrong.any():
            number = sids[int(wrong.argmax())]
            raise ConstraintError(
                f"The completion {[*map(int, branches[number].completion)]} of branch {number} is not a SID of the catalog."
            )
        width = min(above.shape[1], trie.depth)
        above[sids, :1] = 0  # the root, then what was passed before
        above[sids, 1:width] = nodes[:, : width - 1]
    return above[labels.branches, labels.steps]


@dataclass(frozen=True)
class TreeLogprobs:
    """Figures of each label of a `TreeBatch`, float32, in nats.

    Attributes:
        logprobs: (labels,) log-probability of the label, with gradient.
        entropies: (labels,) entropy of the distribution that it was taken from; None if not asked for.
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
    entropy_gradient: bool = False,
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
        entropies: also give the entropy at each label, without gradient.
        siblings: also give the mean log-probability over each label's legal siblings in this trie. If `trie` is given too, both
            must be the same.
        entropy_gradient: give them a gradient; it takes the memory of further copies of the logits.

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
    label_entropies = _entropy(scaled, entropy_gradient)[batch.predictors] if entropies else None
    sibling_means = label_logits

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
                label_entropies = label_entropies.index_copy(0, at_step, _entropy(legal, entropy_gradient))
    means = None if siblings is None else sibling_means - normalisers
    return TreeLogprobs(label_logits - normalisers, label_entropies, means, states)


def _entropy(logits: torch.Tensor, gradient: bool) -> torch.Tensor:
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        logprobs = logits.log_softmax(-1)
        return -(logprobs.exp() * logprobs).sum(-1)


def tree_states(model: torch.nn.Module, batch: TreeBatch) -> torch.Tensor:
    """The last layer's state of each predicting token, as if its branch were alone: (predicting tokens, hidden), with gradient.

    `states[batch.predictors]` are those of the labels: of the token before each.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).eval()
    >>> batch = pack([Branch([1, 2, 3], [0]), Branch([1, 5], [0])], row_tokens=16)
    >>> tree_states(model, batch)[batch.predictors].shape
    torch.Size([2, 8])

    Args:
        model: see `tree_logprobs`.
        batch: on the model's device.

    Raises:
        ConstraintError: the model's attention cannot take a tree mask.
    """
    bias = attention_bias(cast(PreTrainedModel, extract_model_from_parallel(model)), batch.ancestors, batch.longest)
    inputs = {"input_ids": batch.input_ids, "attention_mask": bias, "position_ids": batch.position_ids, "use_cache": False}
    output = model(**inputs, logits_to_keep=1, output_hidden_states=True)  # one token is projected, and nobody reads it
    return cast(torch.Tensor, output.hidden_states[-1][batch.predicting])
