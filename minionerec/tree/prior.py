"""Another distribution over the catalog, mixed into the model's: p = (1 - share) * p_model + share * p_prior.

The model's probability of a prefix, normalised over the catalog, is the sum over the SIDs that begin with it. So is the
prior's, hence the mixture's too: the mixture is itself a model that writes a SID code by code, and search, sampling and exact
scores hold for it. Interpolation of a language model with a cache: Grave, Joulin, Usunier, "Improving Neural Language Models
with a Continuous Cache", 2016, arXiv:1612.04426, equation 5; there over words, here over the leaves of a trie.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from minionerec.errors import ConstraintError
from minionerec.tree.guide import Guide, PrefixGuide, below_nodes, check_shapes, highest, legal_leaves, of_nodes, per_request

if TYPE_CHECKING:
    from minionerec.tree.trie import CatalogTrie

_TOLERANCE = 1e-3  # of a row's sum: float32 rows of a million SIDs add up to 1 within 1e-4


@dataclass(frozen=True)
class Prior(Guide):
    """What is mixed into the model's distribution, for each request of a batch its own. `CatalogTrie.mixed` takes it.

    Attributes:
        leaves: (batch, SIDs) floating: the probability of each SID, in the order of `trie.sids`; a row adds up to 1, unless its
            share is 0. Over a view of the trie, what lies outside is dropped and the rest divided by its sum, as the model's
            steps are normalised over what is left; a request of which nothing is left is searched with the model alone.
        share: (batch,) floating, the weight of the prior, 0 to 1.
    """

    share: torch.Tensor

    @classmethod
    def of_items(cls, trie: "CatalogTrie", items: torch.Tensor, share: torch.Tensor) -> "Prior":
        """A prior over items: a SID gets the sum of its items.

        >>> from minionerec.tree import CatalogTrie
        >>> trie = CatalogTrie.from_codes(torch.tensor([[4, 2], [1, 3], [4, 2]]))  # items 0 and 2 share a SID
        >>> Prior.of_items(trie, torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([0.1])).leaves.tolist()
        [[0.5, 0.5]]

        Args:
            trie: of the catalog.
            items: (batch, items) floating, the probability of each item, on the trie's device.
            share: (batch,) floating.
        """
        leaves = items.new_zeros(len(items), len(trie))
        return cls(leaves.index_add_(1, trie.leaf_of_item.long(), items), share)

    def within(self, trie: "CatalogTrie") -> "Prior":
        """The prior over what a view leaves: zero outside, divided by its sum inside; float64.

        Args:
            trie: a view, or the whole trie, on which only the sums become exact. A request of which nothing is left has zeros
                and the share 0.
        """
        leaves = self.leaves.double()
        if trie.view is not None:
            leaves = leaves * legal_leaves(trie, len(leaves))
        total = leaves.sum(1)
        leaves = leaves / torch.where(total > 0, total, 1.0)[:, None]
        return Prior(leaves, torch.where(total > 0, self.share.double(), 0.0))

    def prefixes(self, trie: "CatalogTrie", look: bool = True) -> "PrefixPrior | None":
        """What a search of the trie takes; None if the host looks and every request is the model's alone."""
        if look and not bool((self.share > 0).any()):
            return None
        prior = self.within(trie)
        return PrefixPrior(trie, torch.log1p(-prior.share).float(), prior.leaves * prior.share[:, None])

    def check(self, trie: "CatalogTrie", requests: int, normalise_over: str) -> None:
        """Refuse a search that this prior does not fit.

        Args:
            trie: of the search.
            requests: prompts of the batch.
            normalise_over: what the model's steps add up over.

        Raises:
            ConstraintError: the model's steps add up over the vocabulary, or the prior has another shape, holds numbers that
                are no probabilities, or lies on another device than the trie.
        """
        check_over_catalog(normalise_over)
        check_shapes("A prior", trie, requests, leaves=self.leaves, share=self.share)
        if not bool(((self.share >= 0) & (self.share <= 1)).all()):
            raise ConstraintError(f"A prior's share must be from 0 to 1; found {self.share.tolist()}.")
        sums = self.leaves.sum(1, dtype=torch.float64)
        complete = ((sums - 1).abs() <= _TOLERANCE) | ((self.share == 0) & sums.isfinite())
        wrong = ~((self.leaves >= 0).all(1) & complete)
        if bool(wrong.any()):
            request = int(wrong.nonzero()[0])
            raise ConstraintError(
                f"A prior's probabilities must not be negative and add up to 1; those of request {request} add up to "
                f"{float(sums[request]):.6g}, the lowest is {float(self.leaves[request].min()):.6g}."
            )


def check_over_catalog(normalise_over: str) -> None:
    """Refuse to mix where the model's steps add up over something else than the catalog.

    Raises:
        ConstraintError: they do.
    """
    if normalise_over != "catalog":
        raise ConstraintError(
            f"A prior needs normalise_over 'catalog'; found {normalise_over!r}. Over the vocabulary the model's "
            "probabilities of the SIDs do not add up to 1, so what is mixed would be no distribution."
        )


@dataclass(frozen=True)
class PrefixPrior(PrefixGuide):
    """A prior on the prefixes of a trie. A prefix has its log-probability in the mixture, that of all SIDs below it together.

    Sums of the leaves below a node are in float64, and no differences of running sums: a node of mass 1e-20 next to one of mass
    1 keeps its digits.

    Attributes:
        model_weight: (batch,) float32, logarithm of the model's share, in nats.
        weighted: (batch, SIDs) float64, the prior's share times each SID's probability; 0 outside a view.
    """

    model_weight: torch.Tensor
    weighted: torch.Tensor

    @cached_property
    def largest(self) -> tuple[torch.Tensor, ...]:
        """Per level, (batch, nodes) float32: logarithm of the largest weighted leaf below each node, -inf for none."""
        # The logarithm is taken once, at the leaves: a bound is then the very number that the best leaf below it gets.
        return below_nodes(self.trie, self.weighted.log().float(), highest)

    @cached_property
    def mass(self) -> tuple[torch.Tensor, ...]:
        """Per level, (batch, nodes) float32: logarithm of the sum of the weighted leaves below each node, -inf for 0."""
        return tuple(level.log().float() for level in below_nodes(self.trie, self.weighted, _sums))

    def _weighed(self, of_guide: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor | None) -> torch.Tensor:
        model = scores + per_request(self.model_weight, scores)
        return torch.logaddexp(model, of_nodes(of_guide, nodes)).masked_fill(scores == -torch.inf, -torch.inf)


def _sums(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """The sum of each group's values; see `highest`."""
    return values.new_zeros(len(values), count).scatter_add(1, groups.expand_as(values), values)
