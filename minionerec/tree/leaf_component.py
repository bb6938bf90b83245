"""A model with a second distribution over the leaves, beside the one that it writes code by code.

Such a model has `has_leaf_component`, `leaf_trie` and `leaf_component(states)`, as `model/item_text.py` describes them. Its
distribution over the catalog is (1 - g) p_LM + g p_leaf: here it is computed for the labels of a batch, with gradients, and
handed to search as a prior.
"""

from typing import TYPE_CHECKING, Any

import torch

from minionerec.errors import ConstraintError
from minionerec.tree.assistant import Assistant
from minionerec.tree.length_penalty import LengthPenalty
from minionerec.tree.prior import Prior, check_over_catalog
from minionerec.tree.trie import NO_TOKEN, CatalogTrie

if TYPE_CHECKING:
    from minionerec.tree.batch import TreeBatch, TreeLogprobs


def leaf_model(model: Any) -> Any | None:
    """The model, without PEFT's wrapping, if it has a second distribution over the leaves; else None."""
    base = getattr(model, "get_base_model", lambda: model)()
    return base if getattr(base, "has_leaf_component", False) else None


def check_leaves(model: Any, trie: CatalogTrie) -> None:
    """Refuse a trie whose leaves the model does not number alike.

    Raises:
        ConstraintError: it holds other SIDs than those that the model was trained with.
    """
    own: CatalogTrie = model.leaf_trie  # another one if the model's SIDs were loaded anew
    checked, others = getattr(model, "checked_tokens", (None, None))
    if checked is own.tokens and others is trie.tokens:  # views and mixtures of a trie share its arrays
        return
    if len(own) != len(trie) or own.levels != trie.levels or not torch.equal(own.sids, trie.sids.to(own.device)):
        raise ConstraintError(
            f"The model has the text vectors of a catalog of {len(own)} SIDs, but the trie holds {len(trie)} SIDs, or others. "
            "Train the model with this catalog (minionerec sft), or set model.text_output false."
        )
    model.checked_tokens = own.tokens, trie.tokens


def branch_logprobs(
    model: Any, batch: "TreeBatch", result: "TreeLogprobs", logprobs: torch.Tensor, trie: CatalogTrie
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What both parts of a model say of whole SIDs, with gradients.

    Args:
        model: as `leaf_model` gives it.
        batch: packed with the trie.
        result: of `tree_logprobs`, with the states.
        logprobs: (labels,) log-probability of each label, in nats.
        trie: of the catalog, on the model's device.

    Returns:
        of every branch that is a SID: its number (branches,) int64, the log-probability of its SID by the language model and by
        the second distribution, both (branches,), and the logit of the second one's weight (branches,).

    Raises:
        ConstraintError: the model gave no states.
    """
    if result.states is None:
        raise ConstraintError("The model gave no states with its logits, so its second distribution cannot be computed.")
    first = ((batch.trie_nodes >= 0) & (batch.steps == 0)).nonzero().squeeze(-1)
    branches = batch.branches[first]
    count, is_sid = int(batch.branches.max()) + 1, batch.trie_nodes >= 0
    paths = batch.labels.new_full((count, trie.depth), NO_TOKEN)
    paths[batch.branches[is_sid], batch.steps[is_sid]] = batch.labels[is_sid]
    leaves = trie.walk(paths[branches])[:, -1] if len(branches) else branches  # a batch may hold texts alone
    written = logprobs.new_zeros(count).index_add(0, batch.branches[is_sid], logprobs[is_sid])[branches]
    dense, gate = model.leaf_component(result.states[batch.predictors[first]])
    return branches, written, dense.gather(1, leaves[:, None]).squeeze(1), gate


def mixed(written: torch.Tensor, dense: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """log((1 - g) exp(written) + g exp(dense)) with g = sigmoid(gate), elementwise.

    >>> half = torch.zeros(1)
    >>> mixed(torch.tensor([0.2]).log(), torch.tensor([0.4]).log(), half).exp()
    tensor([0.3000])
    """
    sigmoid = torch.nn.functional.logsigmoid
    return torch.logaddexp(sigmoid(-gate) + written, sigmoid(gate) + dense)


def check_leaf_component(model: Any, trie: CatalogTrie, normalise_over: str) -> None:
    """Refuse a search that cannot follow the model's second distribution; a model that has none takes any.

    Args:
        model: without PEFT's wrapping.
        trie: the valid SIDs, or a view, mixed or not.
        normalise_over: what the steps of the search add up over.

    Raises:
        ConstraintError: the distribution is of other SIDs, steps do not add up over the catalog, or there is an assistant, too.
    """
    if leaf_model(model) is None:
        return
    check_leaves(model, trie)
    if isinstance(trie.guide, Assistant | LengthPenalty):
        raise ConstraintError(
            "The model has a second distribution over the catalog (model.text_output), and an assistant, or a length penalty, "
            "weighs what is written code by code only. Leave it out, or train with model.text_output false."
        )
    check_over_catalog(normalise_over)


def with_leaf_component(model: Any, trie: CatalogTrie, states: torch.Tensor, normalise_over: str) -> CatalogTrie:
    """`mixed_with_own`, checked.

    Args:
        normalise_over: what the steps of the search add up over.

    Raises:
        ConstraintError: as `check_leaf_component`, or the distribution holds no numbers.
    """
    check_leaf_component(model, trie, normalise_over)
    mixed_trie = mixed_with_own(model, trie, states)
    if mixed_trie is not trie and mixed_trie.guide is not None:
        mixed_trie.guide.check(trie, len(states), normalise_over)
    return mixed_trie


def mixed_with_own(model: Any, trie: CatalogTrie, states: torch.Tensor) -> CatalogTrie:
    """The trie for searches after some prompts: with the model's second distribution as a prior; as it is for other models.

    If the trie is mixed already, say with a cache of weight l, the result is (1 - l) ((1 - g) p_LM + g p_leaf) + l p_cache.
    The host looks at no tensor: what `check_leaf_component` refuses does not come here.

    Args:
        model: without PEFT's wrapping.
        trie: the valid SIDs, or a view, mixed or not.
        states: (prompts, hidden), of each prompt's last token.
    """
    if leaf_model(model) is None:
        return trie
    logprobs, gate = model.leaf_component(states)
    own = Prior(logprobs.double().exp(), gate.double().sigmoid())
    if not isinstance(trie.guide, Prior):
        return trie.mixed(own)
    own, other = own.within(trie), trie.guide.within(trie)  # each over what a view leaves, before they are added
    kept = 1 - other.share
    share = 1 - kept * (1 - own.share)
    leaves = (kept * own.share)[:, None] * own.leaves + other.share[:, None] * other.leaves
    return trie.mixed(Prior(leaves / torch.where(share > 0, share, 1.0)[:, None], share))
