import json

import numpy as np
import pytest

from minionerec.sid.codebooks import ResidualQuantizer
from minionerec.sid.diagnose import diagnose, nearest_neighbours, structure

pytestmark = pytest.mark.fast


def test_figures_of_a_catalog_worked_by_hand():
    quantizer = ResidualQuantizer((np.array([[0.0], [4.0]], dtype=np.float32), np.array([[0.0], [1.0]], dtype=np.float32)))
    vectors = np.array([[0], [0], [4], [5]], dtype=np.float32)
    before = quantizer.encode(vectors)
    assert before.tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    figures = diagnose(before, np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), vectors, quantizer, np.empty((0, 2), int))
    assert figures["items"] == 4
    assert (figures["collision_rate_before"], figures["collision_rate"]) == (0.5, 0.0)
    assert (figures["largest_group_before"], figures["largest_group"]) == (2, 1)
    assert figures["moved"] == 0.25
    assert figures["codes_used"] == [2, 2]
    assert figures["perplexity"] == pytest.approx([2, 2])
    assert figures["reconstruction_error_before"] == 0.0
    assert figures["reconstruction_error"] == pytest.approx(1 / 20.75)
    assert json.loads(json.dumps(figures)) == figures


def test_one_single_vector_is_no_division_by_zero():
    quantizer = ResidualQuantizer((np.array([[0.0]], dtype=np.float32),))
    codes = np.zeros((2, 1), dtype=np.int32)
    assert (
        diagnose(codes, codes, np.zeros((2, 1), dtype=np.float32), quantizer, np.empty((0, 2), int))["reconstruction_error"]
        == 0.0
    )


def test_neighbours_equal_brute_force_and_leave_out_the_item_itself():
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    queries, found = nearest_neighbours(vectors, 5)
    assert (queries == np.arange(60)).all()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for item in range(60):
        scores = unit @ unit[item]
        scores[item] = -2
        np.testing.assert_array_equal(np.sort(scores[found[item]]), np.sort(scores)[-5:])


def test_structure_worked_by_hand():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, -1]])
    vectors = np.array([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]], dtype=np.float32)
    figures = structure(codes, vectors, np.array([[0, 1], [0, 2], [2, 3], [3, 1]]), (4, 2))
    assert figures["codes_used"] == [2, 2] and figures["balance"][0] == pytest.approx(0.5)
    assert figures["copurchase_1"] == 0.5 and figures["copurchase_2"] == 0.0
    assert figures["chance_1"] == 0.5 and figures["chance_2"] == 0.25
    assert figures["neighbours_1"] == pytest.approx(1 / 3)  # of each item's 3 neighbours one
    assert figures["next_entropy"][0] == pytest.approx(1.0)
    assert "copurchase_1" not in structure(codes, vectors, np.empty((0, 2), int))
