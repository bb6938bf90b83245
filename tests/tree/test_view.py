import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.errors import CatalogError
from minionerec.tree import CatalogTrie, Selection, beam_search
from tests.examples import examples
from tests.tree.conftest import catalogs, random_codes
from tests.tree.test_trie import walked


def legal_paths(trie, requests):
    """Per request, the paths that a view leaves; asked for one by one and for the whole batch."""
    alone = [walked(trie.requests(torch.tensor([request]))) for request in range(requests)]
    nodes = torch.zeros(requests, 1, dtype=torch.long)
    together: list[set[int]] = [set() for _ in range(requests)]
    for level in range(trie.depth):
        children, _, valid = trie.children(level, nodes)
        nodes = children.masked_fill(~valid, -1).flatten(1)
    for request, row in enumerate(nodes.tolist()):
        together[request] = {node for node in row if node >= 0}
    assert [set(leaves.values()) for leaves in alone] == together
    return alone


@examples(80)
@given(catalogs(), st.integers(0, 2**20), st.integers(1, 4), st.sampled_from([(), (38,)]))
def test_hidden_and_listed_items_are_the_narrowed_view(codes, seed, requests, trailing):
    """Items of every share of the catalog, named twice or in any order, within a mask or not, against a mask per request."""
    rng = np.random.default_rng(seed)
    trie, items = CatalogTrie.from_codes(codes, trailing=trailing), len(codes)
    base = rng.random(items) < 0.7
    base[rng.integers(items)] = True
    within = trie.narrow(base)
    masks, selections = [], []
    for _ in range(requests):
        chosen = rng.integers(0, items, rng.integers(0, 2 * items)).tolist()
        listed, narrowed = bool(rng.integers(2)), bool(rng.integers(2))
        mask = np.full(items, not listed)
        mask[chosen] = listed
        masks.append(mask & base if narrowed else mask)
        selections.append(Selection(chosen, listed, within if narrowed else None))
    empty = [request for request, mask in enumerate(masks) if not mask.any()]
    if empty:
        with pytest.raises(CatalogError, match=f"request {empty[0]} leaves no item"):
            trie.select(selections)
        return
    view = trie.select(selections)
    assert legal_paths(view, requests) == legal_paths(trie.narrow(np.stack(masks)), requests)
    order = torch.from_numpy(rng.integers(0, requests, 3))
    assert legal_paths(view.requests(order), 3) == legal_paths(trie.narrow(np.stack(masks)[order]), 3)
    assert trie.view is None


def test_items_left_out_by_request_are_the_narrowed_view():
    trie = CatalogTrie.from_codes(torch.tensor([[1, 2], [1, 3], [4, 2], [4, 2]]))
    allowed = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0]]).bool()
    view = trie.without([[], [0], [1, 2], [2, 3]])
    assert legal_paths(view, 4) == legal_paths(trie.narrow(allowed), 4)
    assert legal_paths(view.to("cpu"), 4) == legal_paths(view, 4)


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
def test_a_search_in_a_short_view_is_the_search_in_the_mask(qwen2, normalise_over):
    rng = np.random.default_rng(3)
    codes = random_codes(rng, 60, 3, ragged=True)
    trie, prompts = CatalogTrie.from_codes(codes), torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    hidden = [rng.integers(0, 60, size).tolist() for size in (0, 12, 55)]
    allowed = np.ones((3, 60), dtype=bool)
    for row, items in zip(allowed, hidden, strict=True):
        row[items] = False
    for widest in (None, 40):
        options = {"num_beams": 4, "widest": widest, "normalise_over": normalise_over}
        ours = beam_search(qwen2, prompts, trie=trie.without(hidden), **options)
        wanted = beam_search(qwen2, prompts, trie=trie.narrow(allowed), **options)
        for name in ("tokens", "scores", "leaves", "exact", "best_pruned"):
            assert torch.equal(getattr(ours, name), getattr(wanted, name)), name
        shared = [trie.without(hidden[1:2]), trie.narrow(allowed[1])]  # one list, and one mask, serves the whole batch
        assert torch.equal(*(beam_search(qwen2, prompts, trie=view, **options).leaves for view in shared))


def test_short_lists_take_little_memory():
    codes = np.random.default_rng(0).integers(0, 256, (100_000, 3))
    trie = CatalogTrie.from_codes(codes)
    view = trie.without(np.random.default_rng(1).integers(0, len(codes), (16, 100)).tolist())
    assert view.nbytes - trie.nbytes < 64_000


def test_selections_that_cannot_be_made():
    trie = CatalogTrie.from_codes(np.array([[1, 2], [1, 3], [4, 2]]))
    for items in ([3], [-1]):
        with pytest.raises(CatalogError, match="the catalog has 0 to 2"):
            trie.without([items])
    with pytest.raises(CatalogError, match="combine the item filters"):
        trie.without([[0]]).without([[1]])
    with pytest.raises(CatalogError, match="narrowed by one mask"):
        trie.select([Selection([0], within=trie.without([[0]]))])
