"""What a search follows besides the model, and what a prior, an assistant and a length penalty (files of these names) share."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

from minionerec.errors import ConstraintError

if TYPE_CHECKING:
    from minionerec.tree.trie import CatalogTrie


@dataclass(frozen=True)
class Guide:
    """What a search weighs beside the model, for each request of a batch its own.

    Attributes:
        leaves: (batch, SIDs) floating, what each SID has, in the order of `trie.sids`. Further fields of a subclass are
            tensors with a row for each request, too.
    """

    leaves: torch.Tensor

    def select(self, rows: torch.Tensor) -> Self:
        """The guide of some requests.

        Args:
            rows: their numbers, (requests,).
        """
        return self._with_each(lambda values: values[rows])

    def to(self, device: torch.device | str) -> Self:
        """The guide on another device."""
        return self._with_each(lambda values: values.to(device))

    def zeros(self, requests: int) -> Self:
        """A guide of the same kind to be filled, for so many requests; in float64, which searches compute in."""
        return self._with_each(lambda values: values.new_zeros(requests, *values.shape[1:], dtype=torch.float64))

    def fill(self, other: "Guide") -> None:
        """Write another guide of the same kind over the first requests."""
        for field in fields(self):
            values = getattr(other, field.name)
            getattr(self, field.name)[: len(values)] = values

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return replace(self, **{field.name: change(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class PrefixGuide:
    """A guide on the prefixes of a trie: what searches ask it for in place of the model's scores.

    Attributes:
        trie: the valid SIDs, or a view.
    """

    trie: "CatalogTrie"

    @cached_property
    def largest(self) -> tuple[torch.Tensor, ...]:
        """Per level, (batch, nodes): the most that the guide has for a leaf below each node, as a logarithm, -inf for none."""
        raise TypeError(f"{type(self).__name__} does not define largest.")

    @cached_property
    def mass(self) -> tuple[torch.Tensor, ...]:
        """Per level, (batch, nodes): what the guide has for all leaves below each node together, as a logarithm."""
        raise TypeError(f"{type(self).__name__} does not define mass.")

    def bounds(self, level: int, scores: torch.Tensor, nodes: torch.Tensor | None = None) -> torch.Tensor:
        """What no SID below a node exceeds; at the last level the SID's own score. Arguments as of `masses`."""
        return self._weighed(self.largest[level], scores, nodes)

    def masses(self, level: int, scores: torch.Tensor, nodes: torch.Tensor | None = None) -> torch.Tensor:
        """Score of a prefix, by all SIDs below it together.

        Args:
            level: of the nodes.
            scores: (batch, ...) the model's log-probability of each, -inf where there is no node.
            nodes: (batch, ...) their numbers; None for all nodes of the level in their order.

        Returns:
            float32 in nats, in the shape of `scores`; -inf where there is no node, or nothing is probable below it.
        """
        return self._weighed(self.mass[level], scores, nodes)

    def _weighed(self, of_guide: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor | None) -> torch.Tensor:
        """The model's scores and the guide's values (batch, nodes of the level) as one; the other arguments as of `masses`."""
        raise TypeError(f"{type(self).__name__} does not define _weighed().")


def check_shapes(owner: str, trie: "CatalogTrie", requests: int, **values: torch.Tensor) -> None:
    """Refuse what cannot be weighed in a search of the trie.

    Args:
        owner: what the values belong to, as a sentence begins with it.
        requests: prompts of the batch.
        values: first (requests, SIDs), then (requests,), by name.

    Raises:
        ConstraintError: one is not floating, has another shape, or lies on another device than the trie.
    """
    wanted = ((requests, len(trie)), (requests,))
    for (name, tensor), shape in zip(values.items(), wanted, strict=True):
        if not tensor.is_floating_point() or tuple(tensor.shape) != shape or tensor.device != trie.device:
            raise ConstraintError(
                f"{owner}'s {name} must be floating, of shape {shape}, on {trie.device}; found {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} on {tensor.device}."
            )


def below_nodes(
    trie: "CatalogTrie", leaves: torch.Tensor, join: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """What the leaves below each node come to: per level, (batch, nodes); one pass from the leaves up.

    Args:
        leaves: (batch, SIDs).
        join: what the values of children, (batch, children), come to by parent, (batch, parents); it is given them, the number
            of each one's parent, (children,), and how many parents there are.
    """
    levels = [leaves]
    for level in reversed(range(1, trie.depth)):
        levels.insert(0, join(levels[0], trie.parents(level), len(trie.tokens[level - 1])))
    return tuple(levels)


def highest(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """The largest value of each group, (batch, groups); -inf for a group without members.

    Args:
        values: (batch, members).
        groups: (members,) the group of each.
        count: of the groups.
    """
    lowest = values.new_full((len(values), count), -torch.inf)
    return lowest.scatter_reduce(1, groups.expand_as(values), values, "amax")


def of_nodes(values: torch.Tensor, nodes: torch.Tensor | None) -> torch.Tensor:
    """The values of some nodes of a level.

    Args:
        values: (batch, nodes of the level).
        nodes: (batch, ...) their numbers; None for all in their order.
    """
    return values if nodes is None else values.gather(1, nodes.flatten(1)).view(nodes.shape)


def per_request(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """One value per request, (batch,), so that it counts for each of the request's scores, (batch, ...)."""
    return values.view(-1, *[1] * (scores.dim() - 1))


def legal_leaves(trie: "CatalogTrie", requests: int) -> torch.Tensor:
    """Which leaves each request of a batch may reach in a view, (requests, SIDs) bool."""
    assert trie.view is not None
    return trie.view.legal(trie.depth - 1, len(trie), requests)
