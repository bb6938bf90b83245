"""`resolve` against brute force on tiny catalogs, and its promises on random ones."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import SidConfig
from minionerec.errors import CatalogError
from minionerec.sid.codebooks import ResidualQuantizer
from minionerec.sid.collisions import resolve
from minionerec.sid.quantize import fit_quantizer
from tests.examples import examples
from tests.shared import shared


@st.composite
def catalogs(draw, distinct: bool = False):
    """Vectors and a quantizer with room for all: few codes, so collisions and full prefixes are common."""
    sizes = draw(st.sampled_from([(7,), (3, 3), (2, 4), (4, 2), (2, 2, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items = draw(st.integers(1, math.prod(sizes)))
    # Small integers: many ties, and squared distances are exact.
    if distinct:
        vectors = rng.permutation([*itertools.product(range(-2, 3), repeat=3)])[:items].astype(np.float32)
    else:
        vectors = rng.integers(-2, 3, size=(items, 3)).astype(np.float32)
    return vectors, ResidualQuantizer(tuple(rng.integers(-2, 3, size=(size, 3)).astype(np.float32) for size in sizes))


def rows(codes: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row) for row in codes.tolist()]


@given(catalogs())
@examples(150)
def test_each_item_gets_its_own_sid_and_moves_only_if_it_must(catalog):
    vectors, quantizer = catalog
    before = quantizer.encode(vectors)
    after = resolve(before, vectors, quantizer, "nearest-free")
    assert after.dtype == np.int32 and (after >= 0).all() and (after < quantizer.codebook_sizes).all()
    old, new = rows(before), rows(after)
    assert len(set(new)) == len(new)
    group, per_prefix = Counter(old), Counter(sid[:-1] for sid in old)
    for sid, moved in zip(old, new, strict=True):
        if group[sid] == 1:
            assert moved == sid
        if per_prefix[sid[:-1]] <= quantizer.codebook_sizes[-1]:
            assert moved[:-1] == sid[:-1]
    for sid in group:  # one of those who shared a SID keeps it, and none of them is nearer to it
        sharers = [item for item, other in enumerate(old) if other == sid]
        error = ((vectors[sharers] - quantizer.decode(before[sharers])) ** 2).sum(axis=1)
        kept = [place for place, item in enumerate(sharers) if new[item] == sid]
        assert len(kept) == 1 and error[kept[0]] == error.min()


@given(catalogs(distinct=True), st.randoms(use_true_random=False))
@examples(100)
def test_the_order_of_items_does_not_matter(catalog, random):
    vectors, quantizer = catalog
    order = list(range(len(vectors)))
    random.shuffle(order)
    straight = resolve(quantizer.encode(vectors), vectors, quantizer, "nearest-free")
    shuffled = resolve(quantizer.encode(vectors[order]), vectors[order], quantizer, "nearest-free")
    assert (shuffled == straight[order]).all()


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@examples(60)
def test_moves_within_a_prefix_cost_least(seed, items):
    rng = np.random.default_rng(seed)
    quantizer = ResidualQuantizer((np.zeros((1, 2), dtype=np.float32), rng.normal(size=(6, 2)).astype(np.float32)))
    vectors = (quantizer.codebooks[1][0] + rng.normal(scale=0.05, size=(items, 2))).astype(np.float32)
    before = quantizer.encode(vectors)
    after = resolve(before, vectors, quantizer, "nearest-free")
    movers = np.flatnonzero((after != before).any(axis=1))
    kept = {sid[-1] for item, sid in enumerate(rows(after)) if item not in movers}
    free = [code for code in range(6) if code not in kept]

    def cost(codes):
        return float(((vectors[movers] - quantizer.codebooks[1][list(codes)]) ** 2).sum())

    best = min(cost(codes) for codes in itertools.permutations(free, len(movers)))
    assert cost(after[movers, 1]) == pytest.approx(best)


def test_a_full_prefix_spills_to_the_next_nearest_one():
    quantizer = ResidualQuantizer(
        (np.array([[0.0], [10.0], [100.0]], dtype=np.float32), np.array([[0.0], [1.0]], dtype=np.float32))
    )
    vectors = np.zeros((3, 1), dtype=np.float32)
    codes = resolve(quantizer.encode(vectors), vectors, quantizer, "nearest-free")
    assert rows(codes) == [(0, 0), (0, 1), (1, 0)]  # equal vectors: by item index


def test_keep_changes_nothing():
    quantizer = ResidualQuantizer((np.zeros((2, 1), dtype=np.float32),))
    codes = np.zeros((5, 1), dtype=np.int32)
    assert (resolve(codes, np.zeros((5, 1), dtype=np.float32), quantizer, "keep") == 0).all()


def test_more_items_than_sids_is_an_error():
    quantizer = ResidualQuantizer((np.zeros((2, 1), dtype=np.float32), np.zeros((2, 1), dtype=np.float32)))
    vectors = np.zeros((5, 1), dtype=np.float32)
    with pytest.raises(CatalogError, match=r"5 items, but codebooks of 2 x 2 make only 4 .* sid.codebook_size"):
        resolve(quantizer.encode(vectors), vectors, quantizer, "nearest-free")


def test_industrial_catalog_becomes_unique():
    vectors = np.load(shared("data/embeddings/industrial_minilm_256.npy"), allow_pickle=False)
    fitted = fit_quantizer(vectors, SidConfig(method="rq-kmeans", codebook_sizes=[64, 64, 64], iterations=10), seed=42)
    before, quantizer = fitted.codes, fitted.quantizer
    after = resolve(before, vectors, quantizer, "nearest-free")
    assert len(np.unique(before, axis=0)) < 3000
    assert len(np.unique(after, axis=0)) == len(vectors) == 3686
    assert (after[:, 0] == before[:, 0]).all()


@given(catalogs(), st.randoms(use_true_random=False))
@examples(60)
def test_suffixes_go_to_those_who_share_and_to_nobody_else(catalog, random):
    vectors, quantizer = catalog
    before = quantizer.encode(vectors)
    after = resolve(before, vectors, quantizer, "suffix")
    groups = Counter(rows(before))
    if max(groups.values()) == 1:
        assert after is before
        return
    assert (after[:, :-1] == before).all() and len(set(rows(after))) == len(after)
    for sid in groups:
        found = sorted(suffix for *stem, suffix in rows(after) if tuple(stem) == sid)
        assert found == ([-1] if groups[sid] == 1 else list(range(groups[sid])))


def test_sinkhorn_spreads_a_group_and_leaves_others_alone():
    rng = np.random.default_rng(0)
    quantizer = ResidualQuantizer((np.zeros((1, 2), dtype=np.float32), rng.normal(size=(16, 2)).astype(np.float32)))
    vectors = np.concatenate(
        [quantizer.codebooks[1][0] + rng.normal(scale=0.01, size=(6, 2)), quantizer.codebooks[1][7:8]]
    ).astype(np.float32)
    before = quantizer.encode(vectors)
    assert len(set(rows(before))) == 2
    after = resolve(before, vectors, quantizer, "sinkhorn")
    assert len(set(rows(after[:6]))) > 1 and rows(after)[6] == rows(before)[6]
    order = rng.permutation(7)
    assert (resolve(before[order], vectors[order], quantizer, "sinkhorn") == after[order]).all()
