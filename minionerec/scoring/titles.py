"""Titles of items as prompts show them."""

import polars as pl

from minionerec.data.pairs import PairSet
from minionerec.errors import DataError
from minionerec.prompts.plain_text import PlainText


def titles(pairs: PairSet, plain: PlainText | None = None) -> list[str]:
    """What prompts show of each item, free of what a tokenizer would read as a special token.

    Args:
        plain: of the tokenizer that reads them; None if nothing in a text is special to it.

    Raises:
        DataError: an item has no title.
    """
    empty = pairs.catalog.filter(pl.col("title").str.strip_chars() == "").head(1)
    if len(empty):
        raise DataError(
            f"Item {empty['item_id'][0]!r} has no title, and a prompt shows titles. Give it one, or prepare the data with "
            "--data.missing_text drop."
        )
    shown: list[str] = pairs.catalog["title"].to_list()
    return shown if plain is None else [plain(title) for title in shown]
