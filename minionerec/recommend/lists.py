"""What a recommender answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minionerec.recommend.filters import Item, ItemFilter, ItemSets
from minionerec.recommend.requests import Request
from minionerec.sid.index import SidIndex
from minionerec.tree import CatalogTrie

_MOST_SIDS = 1 << 16  # as text, kept for the next lists: a few MB
_BLOCK = 4096  # items of a popularity list that are looked at together


@dataclass(frozen=True)
class RecommendedItem:
    """An item of a list.

    Attributes:
        item_id: the catalog's id.
        title: empty if the catalog has none.
        score: log-probability of the item's SID in nats; in a popularity list the number of training interactions.
        sid: its semantic ID, such as `<a_17><b_3><c_8>`.
        tied: other items that pass the filters have the same SID. The model cannot order these: they stand in catalog order.
        place: 1 for the best.
        index: its row in the catalog, from 0.
    """

    item_id: str
    title: str
    score: float
    sid: str
    tied: bool
    place: int
    index: int


@dataclass(frozen=True)
class Recommendation:
    """A ranked list for one history.

    Attributes:
        items: best first.
        exact: the certificate: True proves that no item outside the list scores higher than one in it. False for a list that
            no model made.
        beams: of the search that made the list; 0 if no search did.
        cut: how many of the history's oldest items were left out: those beyond the longest history of the model's data, and
            those for which the model's prompt had no room.
        skipped: items of the history and the filters that the catalog lacks.
        fallback: `popularity` if the history was empty; the list then has the most popular items that pass the filters.
        reason: why the list is shorter than asked for; None if it is not.
    """

    items: tuple[RecommendedItem, ...]
    exact: bool
    beams: int
    cut: int = 0
    skipped: tuple[Item, ...] = ()
    fallback: str | None = None
    reason: str | None = None


class ListMaker:
    """Makes lists of items from what a search found, or from popularity."""

    def __init__(self, catalog: ItemSets, trie: CatalogTrie, index: SidIndex) -> None:
        self._catalog, self._trie, self._index = catalog, trie, index
        self._sid_of = lru_cache(_MOST_SIDS)(index.text)  # writing one takes longer than all else of an item

    def __reduce__(self) -> tuple[type["ListMaker"], tuple[ItemSets, CatalogTrie, SidIndex]]:
        return ListMaker, (self._catalog, self._trie, self._index)  # a copy in another process has a cache of its own

    def ranked(self, leaves: Sequence[int], scores: Sequence[float], item_filter: ItemFilter) -> list[RecommendedItem]:
        """The items of some SIDs that pass a filter, in the order of the SIDs.

        Args:
            leaves: numbers of SIDs in the trie; -1 in empty places.
            scores: one per SID.
        """
        items: list[RecommendedItem] = []
        for leaf, score in zip(leaves, scores, strict=True):
            group = item_filter.passing(self._trie.items(leaf))
            items += [self._item(item, score, len(group) > 1, len(items) + place) for place, item in enumerate(group, 1)]
        return items

    def popular(self, request: Request, popularity: np.ndarray, order: np.ndarray, length: int) -> Recommendation:
        """The most popular items that pass the request's filter.

        Args:
            popularity: (items,) of each item.
            order: (items,) all items, the most popular first.
        """
        passing: list[int] = []
        for start in range(0, len(order), _BLOCK):  # of a large catalog only the beginning is looked at
            passing += request.item_filter.passing(order[start : start + _BLOCK].tolist())
            if len(passing) >= length:
                break
        items = []
        for place, item in enumerate(passing[:length], 1):
            group = request.item_filter.passing(self._trie.items(int(self._trie.leaf_of_item[item])))
            items.append(self._item(item, float(popularity[item]), len(group) > 1, place))
        return Recommendation(
            items=tuple(items),
            exact=False,
            beams=0,
            skipped=request.skipped,
            fallback="popularity",
            reason=self._catalog.reason(request.item_filter) if len(items) < length else None,
        )

    def _item(self, index: int, score: float, tied: bool, place: int) -> RecommendedItem:
        item_id, title = self._catalog.ids[index], self._catalog.titles[index]
        return RecommendedItem(item_id, title or "", score, self._sid_of(index), tied, place, index)
