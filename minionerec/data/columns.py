"""Which column of a file is what: the names that public data use, and the names that `data.columns` gives.

A role (user, item, timestamp ...) is filled by the first of its names that a file has. A column that is not required is looked
up under its usual names only in files of public dumps: in your own files a column `year` or `genres` means nothing unless
`data.columns` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from minionerec.config.data import ColumnRole
from minionerec.data.dataset import CATALOG_DETAILS

# In order of preference. The first name is that of our own layout, or of RecBole's.
USERS = (
    *("user", "user_id", "userId", "userID", "reviewerID", "username", "customer_id", "customerId", "visitorid", "visitor_id"),
    *("uid", "UserID"),
)
ITEMS = (
    *("item", "item_id", "itemId", "itemID", "movieId", "movie_id", "MovieID", "parent_asin", "asin", "business_id"),
    *("artist_id", "artistID", "track_id", "product_id", "productId", "news_id", "book_id", "video_id", "venue_id", "anime_id"),
    *("app_id", "article_id", "itemid", "id"),
)
TIMES = (
    *("timestamp", "unixReviewTime", "time", "datetime", "date", "date_added", "Timestamp", "event_time", "created_at"),
    *("review_date", "t_dat"),
)
RATINGS = ("rating", "stars", "overall", "Rating")
LABELS = ("label", "click", "clicked", "is_click")
TITLES = ("title", "movie_title", "name", "item_name", "book_title", "app_name", "prod_name", "Title")
DESCRIPTIONS = ("description", "abstract")
BRANDS = ("brand", "store")
CATEGORIES = ("categories", "category")
GENRES = ("class", "genre", "genres", "Genres")
YEARS = ("release_year", "year")
INTERACTION_NAMES = (*USERS, *ITEMS, *TIMES, *RATINGS, *LABELS)
ITEM_NAMES = (*ITEMS, *TITLES, *DESCRIPTIONS, *BRANDS, *CATEGORIES, *GENRES, *YEARS, "text")


@dataclass(frozen=True)
class Layout:
    """What a layout's own files call their columns.

    Attributes:
        titles: names of an item's title.
        details: further roles of items that are looked up in its own files, with their names.
    """

    user: str
    item: str
    timestamp: str
    titles: tuple[str, ...]
    details: Mapping[str, tuple[str, ...]]

    def interactions(self, present: Sequence[str], mapping: Mapping[ColumnRole, str]) -> dict[str, tuple[str, ...]]:
        """The columns of interactions: for each role the names under which it is looked up.

        Args:
            present: the columns that the file has.
            mapping: `data.columns`.
        """
        required = {"user": (self.user, *USERS), "item": (self.item, *ITEMS), "timestamp": (self.timestamp, *TIMES)}
        own = all(names[0] in present for role, names in required.items() if role not in mapping)
        if mapping.get("timestamp") == "":
            del required["timestamp"]
        optional = {"rating": ("rating",) if own else RATINGS, "label": LABELS}
        return _filled(present, mapping, required, optional)

    def items(self, present: Sequence[str], mapping: Mapping[ColumnRole, str]) -> dict[str, tuple[str, ...]]:
        """The columns of items, as `interactions` has them. The id is looked up under the name of `id`, or of `item` first."""
        own_names = {"item": (self.item,), "title": self.titles}
        own = all(set(names) & set(present) for role, names in own_names.items() if role not in mapping)
        # `categories` is the column as it is, `Categories` what the embedded text says of it.
        public: dict[str, tuple[str, ...]] = {"description": DESCRIPTIONS, "brand": BRANDS, "genres": GENRES, "year": YEARS}
        public |= {"categories": CATEGORIES, "Categories": CATEGORIES}
        ids = (mapping["id"],) if "id" in mapping else (mapping.get("item", self.item), self.item, *ITEMS)
        required = {"item": ids, "title": (*self.titles, *TITLES)}
        optional = dict(self.details) if own else {**self.details, **public}
        further: dict[ColumnRole, str] = {role: name for role, name in mapping.items() if role != "item"}
        return _filled(present, further, required, optional, tuple(public))


def _filled(
    present: Sequence[str],
    mapping: Mapping[ColumnRole, str],
    required: Mapping[str, tuple[str, ...]],
    optional: Mapping[str, tuple[str, ...]],
    others: Sequence[str] = (),
) -> dict[str, tuple[str, ...]]:
    """The names of each required role, and of each optional one that is present; a mapped role has the name of the mapping.

    Args:
        others: further roles that may be mapped.
    """
    columns = dict(required) | {role: names for role, names in optional.items() if set(names) & set(present)}
    for role, name in mapping.items():
        if name and role in (*required, *optional, *others):
            columns[role] = (name,)
    return {"item_id" if role == "item" else role: tuple(dict.fromkeys(names)) for role, names in columns.items()}


_DETAILS = {name: (name,) for name in ("text", *CATALOG_DETAILS)}
OWN = Layout("user", "item", "timestamp", ("title",), _DETAILS)
RECBOLE = Layout(
    *("user_id", "item_id", "timestamp"),
    titles=("title", "movie_title", "name", "item_name", "book_title", "app_name"),
    details={**_DETAILS, "year": YEARS, "genres": GENRES, "Categories": CATEGORIES},
)


def note(path_name: str, frame: pl.DataFrame, columns: Mapping[str, tuple[str, ...]]) -> str:
    """How a file was read, for display: `ratings.csv: user = userId, ...; not read: tag`.

    Args:
        frame: as `tables.numbered` gives it.
    """
    used = {role: next((name for name in options if name in frame.columns[1:]), "") for role, options in columns.items()}
    roles = ", ".join(f"{'item' if role == 'item_id' else role} = {name}" for role, name in used.items() if name)
    others = [name for name in frame.columns[1:] if name not in used.values()]
    return f"{path_name}: {roles}" + (f"; not read: {', '.join(others)}" if others else "")
