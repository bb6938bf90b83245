"""A second recommender that helps the model at every step, as D3 has it: s = a log p_model + (1 - a) log p_assistant.

Bao et al., "Decoding Matters: Addressing Amplification Bias and Homogeneity Issue for LLM-based Recommendation", EMNLP 2024,
arXiv:2406.14900, equation 8. The assistant's probability of a token after a prefix is the mass of the SIDs that go on so over
the mass of all SIDs with this prefix. Along a path these ratios telescope: a prefix scores

    a log P_model(prefix) + (1 - a) log P_assistant(all SIDs that begin with it),

at a leaf D3's score of the SID. This is a weighing of logarithms, no mixture: the scores of a catalog do not add up to 1.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from minionerec.errors import ConstraintError
from minionerec.tree.guide import Guide, PrefixGuide, below_nodes, check_shapes, highest, legal_leaves, of_nodes, per_request

if TYPE_CHECKING:
    from minionerec.tree.trie import CatalogTrie

_TOLERANCE = 1e-3  # of the logarithm of a row's sum


@dataclass(frozen=True)
class Assistant(Guide):
    """What helps the model, for each request of a batch its own. `CatalogTrie.mixed` takes it.

    Attributes:
        leaves: (batch, SIDs) floating: log-probability of each SID in nats, in the order of `trie.sids`. Over a view of the
            trie what lies outside is dropped, and the rest adds up to 1 again.
        weight: (batch,) floating, 0 to 1: the model's. 1 is the model alone, 0 ranks as the assistant does.
    """

    weight: torch.Tensor

    @classmethod
    def of_items(cls, trie: "CatalogTrie", items: torch.Tensor, weight: torch.Tensor) -> "Assistant":
        """An assistant that knows items: a SID gets the probability of all its items together.

        >>> from minionerec.tree import CatalogTrie
        >>> trie = CatalogTrie.from_codes(torch.tensor([[4, 2], [1, 3], [4, 2]]))  # items 0 and 2 share a SID
        >>> items = torch.tensor([[0.25, 0.5, 0.25]]).log()
        >>> Assistant.of_items(trie, items, torch.tensor([0.7])).leaves.exp().tolist()
        [[0.5, 0.5]]

        Args:
            trie: of the catalog.
            items: (batch, items) floating, the log-probability of each item, on the trie's device.
            weight: (batch,) floating, the model's.
        """
        return cls(_log_sums(items, trie.leaf_of_item.long(), len(trie)), weight)

    def within(self, trie: "CatalogTrie") -> "Assistant":
        """The assistant over what a view leaves: -inf outside, the rest adds up to 1; float64.

        Args:
            trie: a view, or the whole trie, on which only the sums become exact.
        """
        leaves = self.leaves.double()
        if trie.view is not None:
            leaves = leaves.masked_fill(~legal_leaves(trie, len(leaves)), -torch.inf)
        return Assistant(leaves.log_softmax(1), self.weight.double())

    def prefixes(self, trie: "CatalogTrie", look: bool = True) -> "PrefixAssistant | None":
        """What a search of the trie takes; None if the host looks and every request is the model's alone."""
        return None if look and not bool((self.weight < 1).any()) else PrefixAssistant(trie, self.within(trie))

    def check(self, trie: "CatalogTrie", requests: int, normalise_over: str) -> None:
        """Refuse a search that this assistant does not fit.

        Args:
            trie: of the search.
            requests: prompts of the batch.
            normalise_over: what the model's steps add up over; either will do.

        Raises:
            ConstraintError: the assistant has another shape, holds numbers that are no log-probabilities, or lies on another
                device than the trie.
        """
        del normalise_over
        check_shapes("An assistant", trie, requests, leaves=self.leaves, weight=self.weight)
        if not bool(((self.weight >= 0) & (self.weight <= 1)).all()):
            raise ConstraintError(f"The model's weight next to an assistant must be from 0 to 1; found {self.weight.tolist()}.")
        sums = self.leaves.double().logsumexp(1)
        wrong = ~(self.leaves.isfinite().all(1) & (sums.abs() <= _TOLERANCE))
        if bool(wrong.any()):
            request = int(wrong.nonzero()[0])
            raise ConstraintError(
                "An assistant's log-probabilities must be finite and those of a catalog add up to 1; the probabilities of "
                f"request {request} add up to {float(sums[request].exp()):.6g}, the lowest logarithm is "
                f"{float(self.leaves[request].min()):.6g}."
            )


@dataclass(frozen=True)
class PrefixAssistant(PrefixGuide):
    """An assistant on the prefixes of a trie. A prefix has D3's score, the sum of its steps.

    A bound holds as the model's part only falls along a path, and no leaf has more of the assistant's part than the best one
    below.

    Attributes:
        assistant: over what the view leaves.
    """

    assistant: Assistant

    @cached_property
    def largest(self) -> tuple[torch.Tensor, ...]:
        """Per level, (batch, nodes) float64: the highest log-probability of a leaf below each node, -inf for none."""
        return below_nodes(self.trie, self.assistant.leaves, highest)

    @cached_property
    def mass(self) -> tuple[torch.Tensor, ...]:
        """Per level, (batch, nodes) float64: log-probability of all leaves below each node together, -inf for none."""
        return below_nodes(self.trie, self.assistant.leaves, _log_sums)

    def _weighed(self, of_guide: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor | None) -> torch.Tensor:
        missing = scores == -torch.inf
        weight = per_request(self.assistant.weight, scores)
        # Where there is no node, and there alone, a part may be -inf, which times 0 is no number. A request of weight 1 keeps
        # the model's float32 scores to the bit: they fit into float64.
        of_model, of_assistant = (part.masked_fill(missing, 0) for part in (scores.double(), of_nodes(of_guide, nodes)))
        return (weight * of_model + (1 - weight) * of_assistant).float().masked_fill(missing, -torch.inf)


def _log_sums(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """Logarithm of the sum of each group's exponentials; see `highest`."""
    top = highest(values, groups, count)
    shift = top.masked_fill(top == -torch.inf, 0)
    groups = groups.expand_as(values)
    sums = torch.zeros_like(shift).scatter_add(1, groups, (values - shift.gather(1, groups)).exp())
    return sums.log() + shift
