"""Scores over a power of the length, as transformers' beam search with a `length_penalty` has them: long texts lose less.

A text of n tokens, its end token included, scores its log-probability over n ** power. With 0 it is the log-probability; with
1, transformers' default, its mean over the tokens. A beginning of texts is ordered by its own log-probability over m ** power,
where m is the length of the longest text below: no text below scores more, since its log-probability is no higher and it is no
longer. On the way down both only fall, so the certificate holds. With an assistant D3's score is divided instead.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from minionerec.tree.assistant import Assistant, PrefixAssistant
from minionerec.tree.guide import PrefixGuide, below_nodes, highest, of_nodes

if TYPE_CHECKING:
    from minionerec.tree.trie import CatalogTrie


@dataclass(frozen=True)
class LengthPenalty:
    """What divides scores. `CatalogTrie.mixed` takes it.

    Attributes:
        lengths: (SIDs,) floating, the tokens of each, in the order of `trie.sids`.
        power: 0 or above.
        assistant: what helps the model; None for the model alone.
    """

    lengths: torch.Tensor
    power: float
    assistant: Assistant | None = None

    @classmethod
    def of(cls, trie: "CatalogTrie", power: float) -> "LengthPenalty":
        """The penalty of a trie.

        >>> from minionerec.tree import NO_TOKEN, CatalogTrie
        >>> trie = CatalogTrie.from_codes(torch.tensor([[4, 2, 7], [1, 3, NO_TOKEN]]))
        >>> LengthPenalty.of(trie, 1.0).lengths.tolist()
        [2.0, 3.0]

        Args:
            trie: of the catalog.
            power: 0 or above.
        """
        return cls((trie.sids >= 0).sum(1).double() + trie.trailing, power)

    def helped_by(self, assistant: Assistant | None) -> "LengthPenalty":
        """The same penalty on D3's scores."""
        return replace(self, assistant=assistant)

    def select(self, rows: torch.Tensor) -> "LengthPenalty":
        """The penalty of some requests.

        Args:
            rows: their numbers, (requests,).
        """
        return self.helped_by(None if self.assistant is None else self.assistant.select(rows))

    def to(self, device: torch.device | str) -> "LengthPenalty":
        """The penalty on another device."""
        assistant = None if self.assistant is None else self.assistant.to(device)
        return LengthPenalty(self.lengths.to(device), self.power, assistant)

    def prefixes(self, trie: "CatalogTrie", look: bool = True) -> "PrefixLengths":
        """What a search of the trie takes; `Assistant.prefixes` describes the arguments."""
        return PrefixLengths(trie, self, None if self.assistant is None else self.assistant.prefixes(trie, look))

    def check(self, trie: "CatalogTrie", requests: int, normalise_over: str) -> None:
        """Refuse an assistant that does not fit; `Assistant.check` describes arguments and errors."""
        if self.assistant is not None:
            self.assistant.check(trie, requests, normalise_over)


@dataclass(frozen=True)
class PrefixLengths(PrefixGuide):
    """A length penalty on the prefixes of a trie. A prefix has its score over the power of the longest length below it.

    Attributes:
        penalty: of the trie's leaves.
        assistant: what helps the model; None for the model alone.
    """

    penalty: LengthPenalty
    assistant: PrefixAssistant | None

    @cached_property
    def divisors(self) -> tuple[torch.Tensor, ...]:
        """Per level, (1, nodes) float64: what the longest SID below each node, whatever a view leaves, is divided by."""
        return below_nodes(self.trie, (self.penalty.lengths**self.penalty.power)[None], highest)

    def bounds(self, level: int, scores: torch.Tensor, nodes: torch.Tensor | None = None) -> torch.Tensor:
        """See `PrefixGuide.bounds`; the assistant's, if there is one, divided."""
        return self._divided(level, scores if self.assistant is None else self.assistant.bounds(level, scores, nodes), nodes)

    def masses(self, level: int, scores: torch.Tensor, nodes: torch.Tensor | None = None) -> torch.Tensor:
        """See `PrefixGuide.masses`; the assistant's, if there is one, divided."""
        return self._divided(level, scores if self.assistant is None else self.assistant.masses(level, scores, nodes), nodes)

    def _divided(self, level: int, scores: torch.Tensor, nodes: torch.Tensor | None) -> torch.Tensor:
        divisors = self.divisors[level].expand(len(scores), -1)
        return (scores.double() / of_nodes(divisors, nodes)).float()
