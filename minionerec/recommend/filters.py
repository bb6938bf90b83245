"""Which items a request may get: allowed, denied, of a category, of a named set, not yet seen."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

import numpy as np
import polars as pl

from minionerec.errors import CatalogError, ConfigError, DataError

_MOST_CATEGORIES = 64  # whose masks are kept; one takes a byte per item
_LONG = 10_000  # allowed items; more, and more than a sixteenth of the catalog, are a mask, whose view is made once

Item = str | int  # an id of the catalog, or an index: a row of the catalog


class FilterFields(TypedDict, total=False):
    """The fields of `Filters`, as keywords of `Recommender.recommend`."""

    allow: Collection[Item] | None
    deny: Collection[Item]
    category: str | None
    named: Sequence[str]
    exclude_history: bool | None


@dataclass(frozen=True)
class Filters:
    """What a list may hold. An item must pass every filter.

    Attributes:
        allow: only these items; None for all.
        deny: none of these items.
        category: only items of this category of the catalog's column `categories`; None for all.
        named: only items in each of these sets; `Recommender.name_items` makes them.
        exclude_history: no item of the request's own history; None: as the run was evaluated (`eval.exclude_history`).
    """

    allow: Collection[Item] | None = None
    deny: Collection[Item] = ()
    category: str | None = None
    named: Sequence[str] = ()
    exclude_history: bool | None = None

    def __post_init__(self) -> None:
        for name in ("allow", "deny", "named"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"filter {name} is the text {getattr(self, name)!r}; expected a list.")
        if not isinstance(self.category, str | None):
            raise ConfigError(f"filter category is {self.category!r}; expected the name of one category.")


@dataclass(frozen=True)
class ItemFilter:
    """`Filters` of one request, in item indices.

    Attributes:
        listed: the allowed items, ascending; None if the request names none.
        mask: (items,) bool, of the category, the named sets and a long list of allowed items; None if there are none.
        mask_key: equal for equal masks: names, and the digest of a long list.
        hidden: the denied items, and those of the history if they are excluded.
        text: the filters in words.
    """

    listed: np.ndarray | None = None
    mask: np.ndarray | None = None
    mask_key: tuple[str | bytes | None, ...] = ()
    hidden: frozenset[int] = frozenset()
    text: str = ""

    def __bool__(self) -> bool:
        return self.listed is not None or self.mask is not None or bool(self.hidden)

    @property
    def selection(self) -> np.ndarray:
        """The listed items, else the hidden ones."""
        return self.listed if self.listed is not None else np.fromiter(self.hidden, np.int64, len(self.hidden))

    def passing(self, items: Iterable[int]) -> list[int]:
        """Those of the items that pass, in their order."""
        if self.listed is not None:  # ascending, and already without what the mask and the hidden items leave out
            positions = np.searchsorted(self.listed, items := list(items))
            return [
                item for item, position in zip(items, positions.tolist(), strict=True)
                if position < len(self.listed) and self.listed[position] == item
            ]  # fmt: skip
        return [item for item in items if item not in self.hidden and (self.mask is None or self.mask[item])]

    def passes(self, items: np.ndarray) -> np.ndarray:
        """Which of many items pass, (items,) bool: `passing` for parts of a large catalog."""
        if self.listed is not None:
            return np.isin(items, self.listed)
        shown = ~np.isin(items, self.selection)
        return shown if self.mask is None else shown & self.mask[items]


_EVERYTHING = ItemFilter()


@dataclass(frozen=True)
class Listed:
    """The items that `Filters` list, in item indices.

    Attributes:
        allowed: ascending; None for all.
        denied: those of `deny`.
        unknown: those that the catalog lacks, if they are skipped.
    """

    allowed: np.ndarray | None
    denied: frozenset[int]
    unknown: tuple[Item, ...]


@dataclass
class ItemSets:
    """A catalog's items by id, by category and by name.

    Attributes:
        catalog: schema `CATALOG_SCHEMA` of `minionerec.data.dataset`, perhaps with `categories`.
        named: by name, (items,) bool.
    """

    catalog: pl.DataFrame
    named: dict[str, np.ndarray] = field(default_factory=dict)
    _categories: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def ids(self) -> list[str]:
        """The items' ids, by index."""
        return self.catalog["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str]:
        """The items' titles, by index."""
        return self.catalog["title"].to_list()

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.ids)}

    def read(self, items: Iterable[Item], what: str, unknown: list[Item] | None = None) -> list[int]:
        """The indices of items, in their order: text is an id, a whole number is an index.

        Args:
            what: what names the items, for the message.
            unknown: takes the items that the catalog lacks; None refuses them.

        Raises:
            DataError: an item is neither text nor a whole number, or it is unknown.
        """
        if isinstance(items, str):
            raise DataError(f"{what} is the text {items!r}; expected a list of items, such as [{items!r}].")
        items = list(items)
        try:
            return [self._index_of[item] for item in items]  # type: ignore[index]  # almost always all are ids that there are
        except (KeyError, TypeError):  # an index, an unknown item or what is none: one by one
            pass
        indices, missing = [], []
        for item in items:
            index = self._find(item, what)
            if index is None:
                missing.append(item)
            else:
                indices.append(index)
        if missing and unknown is None:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise DataError(
                f"{what}: the catalog has no item {', '.join(map(repr, missing[:5]))}{more}. Its {len(self.ids)} items have "
                f"ids like {self.ids[0]!r}; in Python, whole numbers are indices, 0 to {len(self.ids) - 1}. To leave unknown "
                "items out: on_unknown skip (Python, HTTP) or --skip-unknown."
            )
        if unknown is not None:
            unknown += missing
        return indices

    def _find(self, item: Item, what: str) -> int | None:
        if isinstance(item, str):
            return self._index_of.get(str(item))
        if isinstance(item, (bool, np.bool_)) or not hasattr(item, "__index__"):
            raise DataError(f"{what}: found {item!r}; expected an item's id (text) or its index (a whole number).")
        index = item.__index__()
        return index if 0 <= index < len(self.ids) else None

    def name(self, name: str, items: Iterable[Item]) -> None:
        """Give a set of items a name."""
        mask = np.zeros(len(self.ids), dtype=bool)
        mask[self.read(items, f"the set {name!r}")] = True
        self.named[name] = mask

    def of_category(self, category: str) -> np.ndarray:
        """The items of a category, (items,) bool.

        Raises:
            DataError: the catalog has no categories, or no item has this one.
        """
        if category in self._categories:
            return self._categories[category]
        if "categories" not in self.catalog.columns:
            raise DataError(f"filter category {category!r}: this catalog has no categories, only {self.catalog.columns}.")
        # The column lists an item's categories with ", " between them. A category may contain a comma itself.
        listed = ", " + self.catalog["categories"].fill_null("") + ", "
        mask = listed.str.contains(f", {category}, ", literal=True).to_numpy()
        if not category or not mask.any():  # the empty text would be found in items without categories
            examples = self.catalog["categories"].drop_nulls().filter(self.catalog["categories"].drop_nulls() != "").head(3)
            raise DataError(f"filter category {category!r}: no item has it. Items have, for example: {examples.to_list()}.")
        self._categories[category] = mask
        if len(self._categories) > _MOST_CATEGORIES:
            del self._categories[next(iter(self._categories))]
        return mask

    def listed(self, filters: Filters, skip_unknown: bool) -> Listed:
        """The items that filters list; read once for all requests that have these filters.

        Raises:
            DataError: an item is unknown and not skipped.
        """
        unknown: list[Item] | None = [] if skip_unknown else None
        denied = frozenset(self.read(filters.deny, "filter deny", unknown))
        allowed = None
        if filters.allow is not None:
            allowed = np.unique(np.array(self.read(filters.allow, "filter allow", unknown), dtype=np.int64))
        return Listed(allowed, denied, tuple(unknown or ()))

    def resolve(self, filters: Filters, excluded: Sequence[int], items: Listed) -> ItemFilter:
        """The filters of one request in item indices.

        Args:
            excluded: indices of the history's items if these are hidden, else nothing.
            items: what `listed` gives for these filters.

        Raises:
            DataError: a category is unknown.
            ConfigError: a named set does not exist.
            CatalogError: nothing passes.
        """
        if not (excluded or filters.deny or filters.named) and filters.allow is None and filters.category is None and self.ids:
            return _EVERYTHING
        masks, words = [], []
        for name in filters.named:
            if name not in self.named:
                names = ", ".join(sorted(self.named)) or "none"
                raise ConfigError(f"filter named {name!r}: there is no such set of items; sets with a name: {names}.")
            masks.append(self.named[name])
            words.append(f"named {name!r} has {int(self.named[name].sum())}")
        if filters.category is not None:
            masks.append(self.of_category(filters.category))
            words.append(f"category {filters.category!r} has {int(masks[-1].sum())}")
        key: tuple[str | bytes | None, ...] = (filters.category, *sorted(set(filters.named))) if masks else ()
        hidden, listed = items.denied, items.allowed
        words += [f"deny hides {len(hidden)}"] if hidden else []
        if excluded:
            hidden = hidden.union(excluded)
            words.append(f"exclude_history hides {len(set(excluded))}")
        if listed is not None:
            words.append(f"allow names {len(listed)}")
            if len(listed) > max(_LONG, len(self.ids) // 16):
                masks.append(np.zeros(len(self.ids), dtype=bool))
                masks[-1][listed] = True
                key = (hashlib.sha256(listed.tobytes()).digest(), *key)
                listed = None
        mask = np.logical_and.reduce(masks) if masks else None
        if listed is not None:
            listed = listed if mask is None else listed[mask[listed]]
            listed = listed[~np.isin(listed, list(hidden))] if hidden else listed
        item_filter = ItemFilter(listed, mask, key, hidden, ", ".join(words))
        if not self.count(item_filter):
            raise CatalogError(f"The filters leave no item of the catalog's {len(self.ids)}: {item_filter.text}. Relax one.")
        return item_filter

    def count(self, item_filter: ItemFilter) -> int:
        """How many items pass."""
        if item_filter.listed is not None:
            return len(item_filter.listed)
        if item_filter.mask is None:
            return len(self.ids) - len(item_filter.hidden)
        return int(item_filter.mask.sum()) - sum(bool(item_filter.mask[item]) for item in item_filter.hidden)

    def reason(self, item_filter: ItemFilter) -> str:
        """Why a list is short: how many items there are, and the filters."""
        count = self.count(item_filter)
        if not item_filter:
            return f"The catalog has {count} items."
        return f"The filters leave {count} item{'s' if count != 1 else ''}: {item_filter.text}."
