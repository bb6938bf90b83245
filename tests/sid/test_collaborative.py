import numpy as np
import polars as pl
import pytest

from minionerec.config import SidConfig
from minionerec.data.dataset import SPLIT_SCHEMA
from minionerec.sid.collaborative import consecutive_pairs, fuse

VECTORS = np.eye(4, dtype=np.float32)[:, :3] + 0.1


def test_pairs_are_the_last_item_and_the_target():
    rows = [("u", [1, 2], 3, 0, 2), ("u", [3], 3, 0, 1), ("v", [0], 1, 0, 1)]
    examples = pl.DataFrame(rows, schema=SPLIT_SCHEMA, orient="row")
    assert consecutive_pairs(examples).tolist() == [[2, 3], [0, 1]]  # an item after itself says nothing


def test_partners_draw_near_and_others_stay():
    fused = fuse(VECTORS, np.array([[0, 1], [0, 1], [1, 0]]), 0.4)
    mixed = 0.6 * VECTORS[0] + 0.4 * VECTORS[1]
    np.testing.assert_allclose(fused[0], mixed / np.linalg.norm(mixed) * np.linalg.norm(VECTORS[0]), rtol=1e-6)
    np.testing.assert_array_equal(fused[2:], VECTORS[2:])
    assert fused[0] @ fused[1] > VECTORS[0] @ VECTORS[1]


def test_frequent_partners_count_more_by_their_logarithm():
    fused = fuse(VECTORS, np.array([[0, 1]] * 3 + [[0, 2]]), 0.5)
    weights = np.log1p([3, 1])
    mixed = 0.5 * VECTORS[0] + 0.5 * (weights @ VECTORS[1:3]) / weights.sum()
    np.testing.assert_allclose(fused[0] / np.linalg.norm(fused[0]), mixed / np.linalg.norm(mixed), rtol=1e-5)


def test_blocks_and_direction_do_not_matter():
    rng = np.random.default_rng(0)
    vectors, pairs = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 50, (80, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    np.testing.assert_allclose(fuse(vectors, pairs, 0.3), fuse(vectors, pairs[:, ::-1], 0.3, block=7), atol=1e-6)


@pytest.mark.parametrize(("pairs", "weight"), [(np.array([[0, 1]]), 0.0), (np.empty((0, 2), dtype=int), 0.5)])
def test_nothing_to_fuse(pairs, weight):
    assert fuse(VECTORS, pairs, weight) is VECTORS


def test_methods_without_a_first_level_fuse_nothing():
    assert [SidConfig(method=method, collaborative=0.2).fusion for method in ("rq-kmeans", "pq", "opq")] == [0.2, 0, 0]
