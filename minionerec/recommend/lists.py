"""What a recommender answers."""

from dataclasses import dataclass

from minionerec.recommend.filters import Item


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
