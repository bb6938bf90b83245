"""Vectors of texts by a causal LM, many texts in one row of a tree batch.

The last layer's state of the last token, or the mean over all tokens. Texts that begin alike share these tokens.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from minionerec.tree import Branch, TreeBatch, pack, tree_states

Pooling = Literal["last", "mean"]
_BEHIND = 0  # a label behind each text: some token, which nobody predicts


def pack_texts(texts: Sequence[Sequence[int]], pooling: Pooling, row_tokens: int) -> TreeBatch:
    """Texts as branches, in their order, whose labels stand behind the tokens that a text's vector is made of.

    Args:
        texts: token ids, at least one each.
        row_tokens: see `tree.pack`.
    """
    if pooling == "last":
        return pack([Branch(text, [_BEHIND]) for text in texts], row_tokens=row_tokens)
    return pack([Branch(text[:1], [*text[1:], _BEHIND]) for text in texts], row_tokens=row_tokens)


def text_vectors(model: torch.nn.Module, batch: TreeBatch) -> torch.Tensor:
    """The vectors of packed texts, (texts, hidden) float32, with gradient.

    Args:
        model: a causal LM, possibly wrapped.
        batch: made by `pack_texts`, on the model's device.

    Raises:
        ConstraintError: the model cannot be computed on trees.
    """
    states = tree_states(model, batch)[batch.predictors].float()
    counts = torch.bincount(batch.branches)
    sums = states.new_zeros(len(counts), states.shape[1]).index_add(0, batch.branches, states)
    return sums / counts[:, None]
