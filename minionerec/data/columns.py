"""Which column of a file is what: the names that public data use, and the names that `data.columns` gives.

A role (user, item, timestamp ...) is filled by the first of its names that a file has. A column that is not required is looked
up under its usual names only in files of public dumps: in your own files a column `year` or `genres` means nothing unless
`data.columns` says so.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from minionerec.data.dataset import CATALOG_DETAILS

# In order of preference. The first name is that of our own layout, or of RecBole's.
USERS = (
    *("user", "user_id", "userId", "userID", "reviewerID", "username", "customer_id", "customerId", "visitorid", "visitor_id"),
    *("uid", "UserID"),
)
ITEMS = (
    *(
        "item",
        "item_id",
        "itemId",
        "itemID",
        "movieId",
        "movie_id",
        "MovieID",
        "parent_asin",
        "asin",
        "business_id",
        "artist_id",
    ),
    *("artistID", "track_id", "product_id", "productId", "news_id", "book_id", "video_id", "venue_id", "anime_id", "app_id"),
    *("article_id", "itemid", "id"),
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


def interaction_columns(
    present: Sequence[str], chosen: Mapping[str, str], required: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """The columns of interactions: for each role the names under which it is looked up.

    Args:
        present: the columns that the file has.
        chosen: `data.columns`.
        required: the layout's own names of user, item and timestamp; these are looked up first.
    """
    names = {"user": USERS, "item": ITEMS, "timestamp": TIMES}
    own = all(name in present for role, name in required.items() if role not in chosen)
    columns = {role: (required[role], *options) for role, options in names.items()}
    if chosen.get("timestamp") == "":
        del columns["timestamp"]
    optional = {"rating": ("rating",) if own else RATINGS, "label": LABELS}
    columns |= {role: options for role, options in optional.items() if set(options) & set(present)}
    columns |= {role: (name,) for role, name in chosen.items() if name and role in (*names, *optional)}
    return _by_field(columns)


def item_columns(
    present: Sequence[str], chosen: Mapping[str, str], required: Mapping[str, str], usual: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The columns of items.

    Args:
        required: the layout's own names of item and title.
        usual: further roles that the layout always looks up, with their names.
    """
    own = all(name in present for role, name in required.items() if role not in chosen)
    further = {"description": DESCRIPTIONS, "brand": BRANDS, "categories": CATEGORIES}
    further |= {"Categories": CATEGORIES, "genres": GENRES, "year": YEARS}
    optional = usual if own else {**further, **usual}
    columns = {"item": (required["item"], *ITEMS), "title": (required["title"], *TITLES)}
    columns |= {role: options for role, options in optional.items() if set(options) & set(present)}
    columns |= {role: (name,) for role, name in chosen.items() if role in (*columns, *further, "text")}
    return _by_field(columns)


def _by_field(columns: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The names of each role, each once, by the name that the role has in a frame."""
    return {"item_id" if role == "item" else role: tuple(dict.fromkeys(options)) for role, options in columns.items()}


def named_the_same(*roles: str) -> dict[str, tuple[str, ...]]:
    """Roles that are looked up under their own name alone."""
    return {role: (role,) for role in roles}


OWN_ITEM_ROLES = named_the_same("text", *CATALOG_DETAILS)
INTERACTION_NAMES = (*USERS, *ITEMS, *TIMES, *RATINGS, *LABELS)
ITEM_NAMES = (*ITEMS, *TITLES, *DESCRIPTIONS, *BRANDS, *CATEGORIES, *GENRES, *YEARS, "text")
RECBOLE_ITEM_ROLES = {**OWN_ITEM_ROLES, "year": YEARS, "genres": GENRES, "Categories": CATEGORIES}


def note(path_name: str, frame: pl.DataFrame, columns: Mapping[str, tuple[str, ...]]) -> str:
    """How a file was read, for display: `ratings.csv: user = userId, ...; not read: tag`."""
    used = {role: next((name for name in options if name in frame.columns), "") for role, options in columns.items()}
    roles = ", ".join(f"{'item' if role == 'item_id' else role} = {name}" for role, name in used.items() if name)
    others = [name for name in frame.columns if name not in (*used.values(), "row")]
    return f"{path_name}: {roles}" + (f"; not read: {', '.join(others)}" if others else "")
