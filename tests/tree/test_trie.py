import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from minionerec.errors import ArtifactError, CatalogError, ConstraintError
from minionerec.tree import NO_TOKEN, CatalogTrie, without_padding
from tests.examples import examples
from tests.tree.conftest import catalogs, paths


def walked(trie):
    """Every path of the trie, found by asking for children: (tokens) -> leaf."""
    nodes_above = {(): 0}
    for level in range(trie.depth):
        below = {}
        for path, node in nodes_above.items():
            nodes, tokens, valid = trie.children(level, torch.tensor([node]))
            for child, token, real in zip(nodes[0].tolist(), tokens[0].tolist(), valid[0].tolist(), strict=True):
                if real:
                    below[*path, token] = child
                    assert trie.parent(level, torch.tensor(child)) == node
        nodes_above = below
    return nodes_above


@examples(80)
@given(catalogs())
def test_walking_the_trie_gives_exactly_the_distinct_sids(codes):
    trie = CatalogTrie.from_codes(codes)
    leaves = walked(trie)
    expected, _ = paths(codes)
    assert sorted(leaves) == expected
    assert [path for path, _ in sorted(leaves.items(), key=lambda pair: pair[1])] == expected
    assert trie.sids.tolist() == [list(path) for path in expected]
    assert trie.sid(trie.leaf_of_item).tolist() == codes.tolist()
    assert len(trie) == len(expected)
    walk = trie.walk(torch.from_numpy(codes))
    assert walk[:, -1].tolist() == trie.leaf_of_item.tolist()


@examples(80)
@given(catalogs(), st.sampled_from([(), (38, 39)]), st.integers(0, 2**20))
def test_items_of_a_leaf_are_the_rows_with_its_sid(codes, trailing, seed):
    """Short and shared SIDs included, in a narrowed view too."""
    allowed = np.random.default_rng(seed).random(len(codes)) < 0.5
    allowed[0] = True
    trie = CatalogTrie.from_codes(codes, trailing=trailing)
    for view in (trie, trie.narrow(allowed)):
        for leaf, sid in enumerate(view.sids.tolist()):
            assert view.items(leaf) == [item for item, row in enumerate(codes.tolist()) if row == sid]
        assert view.items(-1) == []


@pytest.mark.parametrize("leaf", [-2, 3])
def test_a_leaf_that_is_not_there_is_an_error(leaf):
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3], [4, 2]]))
    with pytest.raises(CatalogError, match=f"no leaf {leaf}: its 3 SIDs are numbered from 0"):
        trie.items(leaf)


@examples(100)
@given(st.lists(st.integers(0, 50), max_size=5), st.integers(0, 3))
def test_without_padding_gives_the_tokens_alone(tokens, missing):
    padded = [*tokens, *[NO_TOKEN] * missing]
    assert without_padding(padded) == without_padding(tuple(padded)) == tokens
    assert without_padding(torch.tensor(padded, dtype=torch.int64)) == tokens


@examples(40)
@given(catalogs(), st.lists(st.integers(33, 39), min_size=1, max_size=2))
def test_trailing_tokens_follow_every_sid_and_are_not_returned(codes, trailing):
    trie = CatalogTrie.from_codes(codes, trailing=trailing)
    plain = CatalogTrie.from_codes(codes)
    assert torch.equal(trie.sids, plain.sids)
    assert (trie.levels, trie.depth) == (codes.shape[1], codes.shape[1] + len(trailing))
    for path in walked(trie):
        assert [token for token in path if token != NO_TOKEN][-len(trailing) :] == trailing


@examples(60)
@given(catalogs(), st.integers(0, 2**20), st.integers(1, 4))
def test_a_view_is_the_trie_of_the_items_that_are_left(codes, seed, requests):
    rng = np.random.default_rng(seed)
    allowed = rng.random((requests, len(codes))) < 0.4
    allowed[:, rng.integers(len(codes))] = True
    trie = CatalogTrie.from_codes(codes)
    view = trie.narrow(allowed)
    for request in range(requests):
        left, _ = paths(codes[allowed[request]])
        for narrowed in (view.requests(torch.tensor([request])), trie.narrow(allowed[request])):
            assert sorted(walked(narrowed)) == left
    assert trie.view is None


def test_children_of_missing_nodes_are_invalid():
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3], [4, 2]]))
    _, tokens, valid = trie.children(1, torch.tensor([[0, -1], [1, 0]]))
    assert valid.tolist() == [[[True, True], [False, False]], [[True, False], [True, True]]]
    assert tokens[valid].tolist() == [2, 3, 2, 2, 3]


def test_walk_ends_where_a_sid_leaves_the_trie():
    trie = CatalogTrie.from_codes(np.array([[1, 2, 3], [1, 4, NO_TOKEN]]))
    walk = trie.walk(torch.tensor([[1, 2, 3], [1, 4, NO_TOKEN], [1, 4, 3], [2, 2, 3]]))
    assert (walk >= 0).tolist() == [[True] * 3, [True] * 3, [True, True, False], [False] * 3]


def test_tokens_too_wide_for_one_key_sort_alike():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 4, (200, 4))
    wide = small.astype(np.int64) * (2**29)  # 4 levels of 31 bits do not fit into one 64-bit integer
    assert torch.equal(CatalogTrie.from_codes(wide).sids, CatalogTrie.from_codes(small).sids * 2**29)


def test_a_sid_that_begins_another():
    codes = np.array([[1, 2, NO_TOKEN], [1, 2, 3]])
    assert CatalogTrie.from_codes(codes).sids.tolist() == codes.tolist()
    with pytest.raises(ConstraintError, match="beginning of another"):
        CatalogTrie.from_codes(codes).check_normalisable()
    CatalogTrie.from_codes(codes, trailing=[9]).check_normalisable()


def test_memory_per_item():
    codes = np.random.default_rng(0).integers(0, 256, (100_000, 3))
    trie = CatalogTrie.from_codes(codes)
    assert trie.nbytes <= 20 * len(codes)


@pytest.mark.parametrize("trailing", [(), (7, 8)])
def test_save_and_load(tmp_path, trailing):
    codes = np.array([[1, 2, 3], [1, 4, NO_TOKEN], [1, 2, 3], [5, 2, 6]])
    trie = CatalogTrie.from_codes(codes, trailing=trailing)
    trie.save(tmp_path / "trie.safetensors")
    again = CatalogTrie.load(tmp_path / "trie.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["trie.safetensors"]
    assert again.sid(again.leaf_of_item).tolist() == codes.tolist()
    assert walked(again) == walked(trie)
    assert (again.trailing, again.prefixed) == (trie.trailing, trie.prefixed)
    with pytest.raises(CatalogError, match="view cannot be saved"):
        trie.narrow(np.array([True, False, True, True])).save(tmp_path / "view.safetensors")


def test_bad_files(tmp_path):
    path = tmp_path / "trie.safetensors"
    with pytest.raises(ArtifactError, match=r"trie\.safetensors: cannot be read"):
        CatalogTrie.load(path)
    path.write_bytes(b"not a trie")
    with pytest.raises(ArtifactError, match="cannot be read"):
        CatalogTrie.load(path)
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match="not a trie"):
        CatalogTrie.load(path)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 3), dtype=int), "shape"),
        (np.zeros((3, 0), dtype=int), "shape"),
        (np.zeros(3, dtype=int), "shape"),
        (np.zeros((2, 2)), "integer"),
        (np.array([[1, 2], [1, -3]]), "Item 1 has token id -3 at level 1, which is negative"),
        (np.array([[1, 2], [1, 50]]), "Item 1 has token id 50 at level 1, but the vocabulary has 50 entries"),
        (np.array([[1, 2], [-1, -1]]), "Item 1 has token id -1 at level 0, which means that it has no SID"),
        (np.array([[1, -1, 3]]), "Item 0 has token id -1 at level 1, but another token behind it"),
    ],
)
def test_bad_codes(codes, message):
    with pytest.raises(CatalogError, match=message):
        CatalogTrie.from_codes(codes, vocabulary=50)


@pytest.mark.parametrize(("trailing", "message"), [([-1], "not be negative"), ([50], "trailing token id 50")])
def test_bad_trailing_tokens(trailing, message):
    with pytest.raises(CatalogError, match=message):
        CatalogTrie.from_codes(np.array([[1, 2]]), trailing=trailing, vocabulary=50)


def test_bad_filters():
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3], [4, 2]]))
    with pytest.raises(CatalogError, match=r"\(3,\) or \(requests, 3\); found torch.bool of shape \(2,\)"):
        trie.narrow(np.array([True, False]))
    with pytest.raises(CatalogError, match=r"must be boolean.* found torch.int64"):
        trie.narrow(np.array([1, 0, 1]))
    with pytest.raises(CatalogError, match="request 1 leaves no item of the catalog's 3"):
        trie.narrow(np.array([[True, False, False], [False, False, False]]))
    with pytest.raises(CatalogError, match="combine the item filters"):
        trie.narrow(np.ones((2, 3), dtype=bool)).narrow(np.ones((2, 3), dtype=bool))
