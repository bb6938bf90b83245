import numpy as np
import polars as pl
import pytest

from minionerec.config import Config, SidConfig
from minionerec.data.dataset import SPLIT_SCHEMA, Dataset
from minionerec.data.vectors import BaselineVectors
from minionerec.errors import ConfigError, DataError
from minionerec.pipeline import run
from minionerec.sid import collaborative
from minionerec.sid.collaborative import collaborative_vectors, consecutive_pairs, fuse, guide_of, neighbour_pairs
from minionerec.sid.index import SidIndex
from tests.sid.baselines import sids_that_ask_a_baseline
from tests.small import config, random_dataset

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


def test_neighbours_by_a_baselines_vectors_are_seen_items_nearest_by_cosine():
    vectors = np.array([[1, 0], [5, 0.5], [0, 2], [1, 0.01], [0.1, 1]], dtype=np.float32)
    seen = np.array([0, 1, 2, 4])  # item 3 is nearest to 0, but its vector was never learnt
    assert neighbour_pairs(vectors, seen, 1).tolist() == [[0, 1], [1, 0], [2, 4], [4, 2]]
    np.testing.assert_array_equal(neighbour_pairs(vectors, seen, 2, block=3), neighbour_pairs(vectors, seen, 2))
    assert len(neighbour_pairs(vectors, seen)) == 4 * 3 and len(neighbour_pairs(vectors, seen[:1])) == 0


def test_a_baseline_that_diverged_is_refused(monkeypatch):
    """All items' neighbours were then the first items of the catalog."""
    dataset, _ = random_dataset()
    items = np.full((len(dataset.catalog), 4), np.nan, dtype=np.float32)
    monkeypatch.setattr(collaborative, "load_vectors", lambda *_: BaselineVectors(items, items[:, 0], {}))
    for fields in ({}, {"method": "letter"}):
        made = Config(sid=SidConfig(collaborative_model="sasrec", **fields))
        with pytest.raises(DataError, match=r"The vector of item 0 .* by sasrec is not finite; train it again"):
            guide_of(made, dataset, VECTORS)
            collaborative_vectors(made, dataset)


def test_sids_ask_the_runs_baseline(tmp_path):
    """Through the stages: a baseline is needed first, changes the SIDs, and is an input of the artefact."""
    made = config(tmp_path, sid={"collaborative_model": "sasrec"}, baseline={"model": "sasrec", "epochs": 1, "hidden_size": 16})
    sids_that_ask_a_baseline(made)
    asked = SidIndex.load(made.folder / "sid", Dataset.load(made.folder / "data")).codes
    made.sid.collaborative_model, made.replace = None, True
    run(made, ("sid",))
    assert (SidIndex.load(made.folder / "sid", Dataset.load(made.folder / "data")).codes != asked).any()


def test_a_baseline_is_asked_only_where_its_answer_counts():
    for fields in ({"collaborative": 0.0}, {"method": "pq"}):
        with pytest.raises(ConfigError, match="collaborative_model is sasrec, but nothing is fused"):
            SidConfig(collaborative_model="sasrec", **fields)


@pytest.mark.parametrize(("pairs", "weight"), [(np.array([[0, 1]]), 0.0), (np.empty((0, 2), dtype=int), 0.5)])
def test_nothing_to_fuse(pairs, weight):
    assert fuse(VECTORS, pairs, weight) is VECTORS


def test_methods_without_a_first_level_fuse_nothing():
    assert [SidConfig(method=method, collaborative=0.2).fusion for method in ("rq-kmeans", "pq", "opq")] == [0.2, 0, 0]
