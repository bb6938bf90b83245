import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, Dataset
from minionerec.errors import ArtifactError, CatalogError
from minionerec.sid import SidIndex, parse_token, token_string
from tests.small import random_dataset

pytestmark = pytest.mark.fast


def dataset(names: list[str]) -> Dataset:
    catalog = pl.DataFrame({"item_id": names, "title": names, "text": names}, schema=CATALOG_SCHEMA)
    empty = pl.DataFrame(schema=SPLIT_SCHEMA)
    return Dataset(catalog, empty, empty, empty)


DATASET = dataset(["x", "y", "z"])
CODES = np.array([[0, 3], [1, 0], [0, 3]], dtype=np.int32)


@pytest.fixture
def index() -> SidIndex:
    codebooks = (np.eye(2, dtype=np.float32), np.ones((4, 2), dtype=np.float32))
    return SidIndex(CODES, (2, 4), DATASET.digest, codebooks)


def test_both_directions_and_tokens(index):
    assert index.text(1) == "<a_1><b_0>"
    assert index.items((0, 3)) == [0, 2]
    assert index.items([1, 1]) == []
    assert index.collisions() == 2
    assert index.token_strings() == ["<a_0>", "<a_1>", "<b_0>", "<b_1>", "<b_2>", "<b_3>"]
    assert token_string(25, 7) == "<z_7>"
    assert parse_token("<z_7>") == (25, 7) and parse_token(token_string(0, 2**24 - 1)) == (0, 2**24 - 1)
    for text in ("<A_1>", "<a_01>", "<a_1> ", "<a_16777216>", "<a_\u0661>", "a_1"):
        assert parse_token(text) is None


def test_save_and_load_give_the_same_index(index, tmp_path):
    index.save(tmp_path)
    loaded = SidIndex.load(tmp_path, DATASET)
    assert (loaded.codes == CODES).all() and loaded.codes.dtype == np.int32
    assert loaded.codebook_sizes == (2, 4)
    assert all((a == b).all() for a, b in zip(loaded.codebooks, index.codebooks, strict=True))
    assert json.loads((tmp_path / "index.json").read_text())["1"] == ["<a_1>", "<b_0>"]


def test_index_of_another_dataset_is_refused(index, tmp_path):
    index.save(tmp_path)
    with pytest.raises(ArtifactError, match="belongs to another dataset"):
        SidIndex.load(tmp_path, dataset(["x", "z", "y"]))


@pytest.mark.parametrize("name", ["codes.safetensors", "sid.json"])
@pytest.mark.parametrize("keep", [None, 0, 20])
def test_missing_and_truncated_files_are_refused(index, tmp_path, name, keep):
    index.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink() if keep is None else (tmp_path / name).write_bytes(content[:keep])
    with pytest.raises(ArtifactError):
        SidIndex.load(tmp_path, DATASET)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 4]], "Item 0 has code 4 at level 1, outside 0..3"),
        ([[0, 0], [-1, 0]], "Item 1 has code -1 at level 0"),
        ([[0], [1]], "shape"),
    ],
)
def test_impossible_codes_are_refused(codes, message):
    with pytest.raises(CatalogError, match=message):
        SidIndex(np.array(codes, dtype=np.int32), (2, 4), "digest")


def test_a_shorter_sid_ends_in_minus_one(tmp_path):
    codes = np.array([[0, 1, -1], [0, 2, 0], [0, 2, 1]], dtype=np.int32)
    index = SidIndex(codes, (2, 4, 2), DATASET.digest, encoder="minilm", lineage=({"base": "x"},))
    assert [index.text(item) for item in range(3)] == ["<a_0><b_1>", "<a_0><b_2><c_0>", "<a_0><b_2><c_1>"]
    assert index.items((0, 1)) == index.items((0, 1, -1)) == [0] and index.items((0, 2)) == []
    index.save(tmp_path)
    loaded = SidIndex.load(tmp_path, DATASET)
    assert (loaded.codes == codes).all() and loaded.encoder == "minilm" and loaded.lineage == ({"base": "x"},)
    assert json.loads((tmp_path / "index.json").read_text())["0"] == ["<a_0>", "<b_1>"]


def test_a_sid_that_is_the_beginning_of_another_is_named():
    """TIGER's suffix for the second item of two: the first would always be ranked before it."""
    SidIndex(np.array([[0, 1, -1], [0, 0, 1], [1, -1, -1]]), (2, 2, 2), "").check_ends()
    with pytest.raises(CatalogError, match=r"SID of item 2, <a_0><b_1>, is the beginning of that of item 1, <a_0><b_1><c_0>"):
        SidIndex(np.array([[1, 1, 1], [0, 1, 0], [0, 1, -1]]), (2, 2, 2), "").check_ends()


def test_a_code_after_a_missing_one_is_refused():
    with pytest.raises(CatalogError, match="Item 0 has code 1 at level 2, but none at the level above"):
        SidIndex(np.array([[0, -1, 1]], dtype=np.int32), (2, 2, 2), "digest")


def test_items_without_a_sid(tmp_path):
    whole, index = random_dataset()
    short = replace(index, codes=index.codes[:-1])
    short.save(tmp_path)
    with pytest.raises(ArtifactError, match="the index has SIDs of 29 items, but the dataset has 30"):
        SidIndex.load(tmp_path, whole)
    index.save(tmp_path)
    beyond = whole.valid.with_columns(target=pl.lit(30, dtype=pl.Int32))
    with pytest.raises(ArtifactError, match="holds item 30, which has no SID"):
        SidIndex.load(tmp_path, replace(whole, valid=beyond))
    SidIndex.load(tmp_path, whole)
