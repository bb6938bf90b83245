import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minionerec.errors import CatalogError
from minionerec.tree import CatalogTrie

matrices = st.integers(1, 4).flatmap(
    lambda levels: st.lists(st.lists(st.integers(0, 5), min_size=levels, max_size=levels), min_size=1, max_size=30)
)


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_walking_the_trie_gives_exactly_the_distinct_sids(codes):
    trie = CatalogTrie.from_codes(np.array(codes))
    paths = {(): 0}
    for level in range(trie.levels):
        below = {}
        for path, node in paths.items():
            nodes, tokens, valid = trie.children(level, torch.tensor([node]))
            for child, token, real in zip(nodes[0].tolist(), tokens[0].tolist(), valid[0].tolist(), strict=True):
                if real:
                    below[*path, token] = child
                    assert trie.parent(level, torch.tensor(child)) == node
        paths = below
    assert sorted(paths) == sorted({tuple(row) for row in codes})
    assert [list(path) for path, _ in sorted(paths.items(), key=lambda pair: pair[1])] == trie.sids.tolist()


def test_children_of_missing_nodes_are_invalid():
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3], [4, 2]]))
    _, tokens, valid = trie.children(1, torch.tensor([[0, -1], [1, 0]]))
    assert valid.tolist() == [[[True, True], [False, False]], [[True, False], [True, True]]]
    assert tokens[valid].tolist() == [2, 3, 2, 2, 3]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 3), dtype=int), "shape"),
        (np.zeros((3, 0), dtype=int), "shape"),
        (np.zeros(3, dtype=int), "shape"),
        (np.zeros((2, 2)), "integer"),
        (np.array([[1, 2], [1, -3]]), "Item 1 .*-3"),
    ],
)
def test_bad_codes(codes, message):
    with pytest.raises(CatalogError, match=message):
        CatalogTrie.from_codes(codes)
