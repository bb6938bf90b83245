import json

import numpy as np
import pytest

from minionerec.sid.diagnose import diagnose
from minionerec.sid.quantize import ResidualQuantizer


def test_figures_of_a_catalogue_worked_by_hand():
    quantizer = ResidualQuantizer((np.array([[0.0], [4.0]], dtype=np.float32), np.array([[0.0], [1.0]], dtype=np.float32)))
    vectors = np.array([[0], [0], [4], [5]], dtype=np.float32)
    before = quantizer.encode(vectors)
    assert before.tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    figures = diagnose(before, np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), vectors, quantizer)
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
    assert diagnose(codes, codes, np.zeros((2, 1), dtype=np.float32), quantizer)["reconstruction_error"] == 0.0
