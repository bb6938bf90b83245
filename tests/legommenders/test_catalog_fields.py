import numpy as np
import polars as pl
import pytest

from minionerec.config import LegoConfig
from minionerec.errors import DataError
from minionerec.legommenders.catalog_fields import item_fields

TITLES = ["Red Lamp", "Blue lamp", "Round, red table", "Old chair"]
CATALOG = pl.DataFrame(
    {
        "item_id": list("abcd"),
        "title": TITLES,
        "text": [f"{TITLES[0]}. Genres: Drama, War", f"{TITLES[1]}. Genres: War", TITLES[2], f"{TITLES[3]}. Genres: Noir"],
        "description": ["It shines.", "", None, "['Four', 'legs']"],
        "brand": ["Acme", "", "Acme", "Zeta"],
        "categories": ["", "", "", ""],
    }
)
ALL = np.ones(4, dtype=bool)


def fields_of(trained=ALL, catalog=CATALOG, **options):
    return item_fields(catalog, LegoConfig(item="pooling", user="pooling", **options), trained, "run/data")


def test_texts_become_words_and_categories_ids():
    fields = fields_of()
    assert list(fields.texts) == ["title", "description"] and list(fields.categories) == ["brand", "genres"]
    title = fields.texts["title"]
    assert title[0, 1] == title[1, 1] != 0 and title[0, 0] == title[2, 2]  # `lamp`, and `Red` in any case
    assert title[0, 2:].tolist() == [0] * (title.shape[1] - 2)  # words stand left
    assert fields.categories["brand"].tolist() == [[1], [0], [1], [2]] and fields.values == {"brand": 3, "genres": 4}
    assert fields.categories["genres"].tolist() == [[1, 3], [3, 0], [0, 0], [2, 0]]  # Drama, Noir, War
    assert fields.texts["description"][1].tolist() == [0] * fields.texts["description"].shape[1]
    assert fields.words > int(max(ids.max() for ids in fields.texts.values())) and fields.items == 4


def test_what_only_unseen_items_have_is_unknown():
    fields = fields_of(np.array([True, True, False, False]))
    assert fields.categories["brand"].tolist() == [[1], [0], [1], [0]] and fields.values["brand"] == 2
    assert fields.categories["genres"][3].tolist() == [0, 0]
    assert list(fields_of(np.array([False, True, False, False])).categories) == ["genres"]  # the item has no brand
    assert fields.words < fields_of().words  # `table` and `chair` are written in pieces
    assert (fields.texts["title"][2] > 0).sum() > (fields_of().texts["title"][2] > 0).sum()


def test_fields_are_chosen_cut_and_refused():
    assert list(fields_of(fields=["genres", "title"], max_words=2).texts) == ["title"]
    assert fields_of(fields=["title"]).pieces and fields_of(fields=["genres"]).pieces is None
    assert fields_of(fields=["title"], max_words=2).texts["title"].shape == (4, 2)
    with pytest.raises(DataError, match=r"names categories, which no train item of run/data has; .* title, .*brand, gen"):
        fields_of(fields=["categories"])
    with pytest.raises(DataError, match=r"names genre, .*Did you mean genres\?"):
        fields_of(fields=["genre"])


def test_a_language_model_gets_sentences_and_a_table_nothing():
    sentences = item_fields(CATALOG, LegoConfig(recipe="plm-nr"), ALL, "x").sentences
    assert sentences[0] == "Red Lamp. It shines.. Acme. Drama, War" and sentences[3] == "Old chair. Four legs. Zeta. Noir"
    table = item_fields(CATALOG, LegoConfig(recipe="din"), ALL, "x")
    assert table.items == 4 and not table.texts and not table.categories
