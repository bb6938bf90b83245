"""Why a list is as it is: the beam search as a tree, with the probability of each code and what was pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from minionerec.errors import DataError
from minionerec.recommend.lists import Recommendation
from minionerec.tree import NO_TOKEN, CatalogTrie, SearchLevel, left_pad, score_leaves, search_levels

if TYPE_CHECKING:
    from minionerec.recommend.recommender import Recommender
    from minionerec.recommend.requests import Request

MOST_TITLES = 3


@dataclass(frozen=True)
class BeamNode:
    """A prefix of SIDs that the search kept.

    Attributes:
        token: its last code, such as `<b_3>`; empty at the root and where a short SID has ended.
        logprob: log-probability of the code after those above it, in nats.
        score: sum of the log-probabilities from the root; that of a whole SID is the score of its items.
        beams: whole SIDs below it that the search ended with, itself included.
        places: in the list, of the items below it, ascending.
        items: how many items below it pass the filters.
        titles: of some of these, at most `MOST_TITLES`, those of the list first.
        pruned: how many of its legal children the search did not keep.
        best_pruned: the highest score of these, which nothing below them exceeds; None if there are none.
        children: those that were kept, best first.
    """

    token: str
    logprob: float
    score: float
    beams: int
    places: tuple[int, ...]
    items: int
    titles: tuple[str, ...]
    pruned: int
    best_pruned: float | None
    children: tuple[BeamNode, ...]

    def walk(self) -> Iterator[tuple[BeamNode, ...]]:
        """Every path from this node to one below it, itself first."""
        yield (self,)
        for child in self.children:
            for path in child.walk():
                yield (self, *path)


@dataclass(frozen=True)
class Explanation:
    """A list and the search that made it.

    Attributes:
        recommendation: the list.
        root: the tree; its children are the first codes.
        normalise_over: what the probabilities of a node's children add up over: `vocabulary` or `catalog`.
        shares: for each item of the list, which part of its SID's probability comes from the `model` and from each component
            that is mixed in, by name; the parts add up to 1. None if nothing is mixed in.
    """

    recommendation: Recommendation
    root: BeamNode
    normalise_over: str
    shares: tuple[Mapping[str, float], ...] | None = None


def explain(recommender: Recommender, request: Request, recommendation: Recommendation) -> Explanation:
    """The search of one request as a tree.

    Args:
        recommendation: the request's list.

    Raises:
        DataError: the history is empty, so nothing was searched.
    """
    if not request.history:
        raise DataError("The history is empty: its list is the popularity list, and no search is there to explain.")
    [prompt] = recommender.prompts.history_prompts([request.history])
    tokens, mask = left_pad([prompt.tokens], recommender.prompts.tokenizer.pad_token_id, recommender.model.device)
    view = recommender.view([request.item_filter])
    levels = search_levels(
        recommender.model,
        tokens,
        mask,
        trie=recommender.mixed(view, [request.history]),
        num_beams=recommendation.beams,
        normalise_over=recommender.config.normalise_over,
    )
    root = _TreeBuilder(recommender, request, recommendation, levels).node(-1, 0)
    shares = None
    if recommender.mixture is not None:
        leaves = recommender.trie.leaf_of_item[[item.index for item in recommendation.items]].long()
        model_scores = score_leaves(
            recommender.model, tokens, mask, trie=view, leaves=leaves[None], normalise_over=recommender.config.normalise_over
        )
        shares = _shares(recommender, request, view, leaves, model_scores[0])
    return Explanation(recommendation, root, recommender.config.normalise_over, shares)


def _shares(
    recommender: Recommender, request: Request, view: CatalogTrie, leaves: torch.Tensor, model_scores: torch.Tensor
) -> tuple[Mapping[str, float], ...]:
    """Which part of the probability of each SID comes from where.

    Args:
        leaves: (SIDs,) their numbers in the trie.
        model_scores: (SIDs,) log-probabilities of the model alone, over the view.
    """
    from minionerec.recommend.mixing import MODEL, cache_parts  # needs scipy

    assert recommender.mixture is not None
    share, parts = cache_parts(recommender.mixture, request.history, view, leaves)
    parts = {MODEL: (1 - share) * model_scores.double().exp(), **parts}
    total = torch.stack([*parts.values()]).sum(0)
    columns = {name: (part / total).tolist() for name, part in parts.items()}
    return tuple({name: column[place] for name, column in columns.items()} for place in range(len(leaves)))


class _TreeBuilder:
    """Makes the nodes of one search, parents from their children."""

    def __init__(
        self, recommender: Recommender, request: Request, recommendation: Recommendation, levels: Sequence[SearchLevel]
    ) -> None:
        self._recommender, self._request = recommender, request
        self._levels = [{name: value[0].tolist() for name, value in vars(level).items()} for level in levels]
        trie = recommender.trie
        indices = torch.tensor([item.index for item in recommendation.items], device=trie.device)
        self._leaf_of_place = list(enumerate(trie.leaf_of_item[indices].tolist(), 1))
        self._item_of_place = {item.place: item.index for item in recommendation.items}

    def node(self, level: int, beam: int) -> BeamNode:
        """The node of a beam and all below it.

        Args:
            level: -1 for the root.
            beam: its number at this level.
        """
        number = 0 if level < 0 else self._levels[level]["nodes"][beam]
        children: list[BeamNode] = []
        pruned, best_pruned = 0, None
        if level + 1 < len(self._levels):
            below = self._levels[level + 1]
            children = [
                self.node(level + 1, child)
                for child, parent in enumerate(below["parents"])
                if parent == beam and below["nodes"][child] >= 0
            ]
            pruned = below["pruned"][beam]
            best_pruned = below["best_pruned"][beam] if pruned else None
        places, items, titles = self._below(level, number)
        return BeamNode(
            token="" if level < 0 else self._token(level, number),
            logprob=0.0 if level < 0 else self._levels[level]["logprobs"][beam],
            score=0.0 if level < 0 else self._levels[level]["scores"][beam],
            beams=sum(child.beams for child in children) if level + 1 < len(self._levels) else 1,
            places=places,
            items=items,
            titles=titles,
            pruned=pruned,
            best_pruned=best_pruned,
            children=tuple(children),
        )

    def _token(self, level: int, number: int) -> str:
        token = int(self._recommender.trie.tokens[level][number])
        return "" if token == NO_TOKEN else str(self._recommender.prompts.tokenizer.convert_ids_to_tokens(token))

    def _below(self, level: int, number: int) -> tuple[tuple[int, ...], int, tuple[str, ...]]:
        """Places in the list, number and titles of the items below a node."""
        trie, catalog = self._recommender.trie, self._recommender.items
        low, high = number, number + 1
        for offsets in trie.offsets[level + 1 :]:
            low, high = int(offsets[low]), int(offsets[high])
        items_by_leaf, starts = trie.items_by_leaf
        below = items_by_leaf[int(starts[low]) : int(starts[high])].cpu().numpy()
        items = below[self._request.item_filter.passes(below)]
        places = tuple(place for place, leaf in self._leaf_of_place if low <= leaf < high)
        shown = dict.fromkeys(
            [*(self._item_of_place[place] for place in places[:MOST_TITLES]), *items[: 2 * MOST_TITLES].tolist()]
        )
        return places, len(items), tuple(catalog.titles[item] or "" for item in [*shown][:MOST_TITLES])
