"""What a recommender is asked, checked and in item indices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from minionerec.config.evaluation import MOST_BEAMS
from minionerec.errors import CatalogError, ConfigError, DataError
from minionerec.recommend.filters import Filters, Item, ItemFilter, ItemSets, Listed

OnUnknown = Literal["error", "skip"]


@dataclass(frozen=True)
class Request:
    """A history that was read, with its filter.

    Attributes:
        history: item indices, oldest first, at most as many as the longest history of the model's data.
        item_filter: what the list may hold.
        cut: how many older items were left out.
        skipped: unknown items.
    """

    history: list[int]
    item_filter: ItemFilter
    cut: int
    skipped: tuple[Item, ...]


@dataclass(frozen=True)
class Search:
    """How wide a search is, and how long the list that it makes.

    Attributes:
        k: items of the list; None for all items of all beams.
        num_beams: of the first search.
        widest: beams are doubled up to this number while the list is not proven exact; None searches once.
    """

    k: int | None
    num_beams: int
    widest: int | None


def read_requests(
    catalog: ItemSets,
    histories: Iterable[Sequence[Item]],
    filters: Filters | Sequence[Filters],
    on_unknown: OnUnknown,
    max_history: int,
    exclude_history: bool,
) -> list[Request]:
    """Check histories and their filters, and turn items into indices.

    Args:
        catalog: the items that there are.
        histories: items, oldest first.
        filters: for all histories, or one per history.
        on_unknown: whether an item that the catalog lacks is an error, or is skipped and named in the request.
        max_history: items of a history that are read, the newest.
        exclude_history: whether filters that do not say so hide the items of the history.

    Raises:
        CatalogError: filters leave a history no item.
        ConfigError: `on_unknown` has another value, there is not one `Filters` per history, or a named set does not exist.
        DataError: an item is unknown or is no item, or a category is unknown.
    """
    if on_unknown not in ("error", "skip"):
        raise ConfigError(f"on_unknown is {on_unknown!r}; expected error or skip.")
    if isinstance(histories, str):
        raise DataError(f"histories is the text {histories!r}; expected a list of histories, each a list of items.")
    histories = list(histories)
    each = [filters] * len(histories) if isinstance(filters, Filters) else list(filters)
    if len(each) != len(histories):
        raise ConfigError(f"There are {len(each)} filters for {len(histories)} histories; expected one each, or one for all.")
    if strange := [one for one in each if not isinstance(one, Filters)]:
        raise ConfigError(f"filters holds {strange[0]!r}; expected Filters, such as Filters(deny=['50']).")
    shared: dict[int, ItemFilter] = {}  # of filters that hold for several histories alike
    listed: dict[int, Listed] = {}  # by filters
    requests = []
    for number, (history, wanted) in enumerate(zip(histories, each, strict=True)):
        unknown: list[Item] | None = [] if on_unknown == "skip" else None
        items = catalog.read(history, f"history {number}", unknown)
        newest = items[-max_history:]
        exclude = exclude_history if wanted.exclude_history is None else wanted.exclude_history
        if id(wanted) not in listed:
            listed[id(wanted)] = catalog.listed(wanted, on_unknown == "skip")
        in_filters = listed[id(wanted)]
        try:
            item_filter = None if exclude else shared.get(id(wanted))
            if item_filter is None:
                item_filter = catalog.resolve(wanted, items if exclude else [], in_filters)
        except CatalogError as error:
            raise CatalogError(f"history {number}: {error}") from None
        if not exclude:
            shared[id(wanted)] = item_filter
        skipped = (*(unknown or ()), *in_filters.unknown)
        requests.append(Request(newest, item_filter, len(items) - len(newest), skipped))
    return requests


def search_widths(k: int | None, num_beams: int | None, widest: int | None, usual: int, sids: int) -> Search:
    """How wide a search is.

    >>> search_widths(k=10, num_beams=None, widest=None, usual=50, sids=1000)
    Search(k=10, num_beams=50, widest=None)

    Args:
        k: items of the list; None for all items of all beams.
        num_beams: of the first search; None for `usual`, or for `k` if that is more.
        widest: see `Search`.
        usual: beams of the evaluation.
        sids: of the catalog; more beams would find nothing more.

    Raises:
        ConfigError: a number is out of range, or they do not go together.
    """
    for name, value in (("k", k), ("num_beams", num_beams), ("widest", widest)):
        if value is not None and not 1 <= value <= MOST_BEAMS:
            raise ConfigError(f"{name} is {value}; expected 1 to {MOST_BEAMS}.")
    beams = max(k or 1, usual) if num_beams is None else num_beams
    if k is not None and beams < k:
        raise ConfigError(f"num_beams is {beams}, fewer than the k {k} items of a list; expected at least as many.")
    if widest is not None and widest < beams:
        raise ConfigError(f"widest is {widest}, fewer than the {beams} beams of the first search.")
    return Search(k, min(beams, sids), None if widest is None else min(widest, sids))
