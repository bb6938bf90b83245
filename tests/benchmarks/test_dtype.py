"""The benchmark of number formats, on a run of seconds."""

import numpy as np
import pytest

from minionerec.eval.lists import RankedLists
from minionerec.eval.predictions import Prediction
from tests.recommend.conftest import finished  # noqa: F401, a fixture


@pytest.fixture
def dtype(script):
    return script("dtype")


def lists(*rows):
    """Predictions of SIDs of one code, with scores."""
    return RankedLists.of(
        [
            Prediction(str(user), [0], 1, [1], [[code] for code in row], [*row], [*row.values()], True)
            for user, row in enumerate(rows)
        ]
    )


def test_the_columns(dtype):
    exact = lists({1: -1.0, 2: -2.0, 3: -3.0}, {4: -1.0, 5: -1.5, 6: -4.0})
    rounded = lists({1: -1.25, 2: -2.0, 3: -3.0}, {5: -1.0, 4: -1.5, 7: -4.0})
    assert dtype.differences(exact, exact) == [1, 1, 1, 1, 0, 0]
    first, ten, whole, overlap, mean, largest = dtype.differences(exact, rounded)
    assert (first, ten, whole, overlap, largest) == (0.5, 0.5, 0.5, 5 / 6, 0.5)
    assert mean == pytest.approx(np.mean([0.25, 0, 0, 0.5, 0.5]))


def test_it_prints_both_tables(dtype, finished, capsys):  # noqa: F811
    dtype.main(["--run", str(finished.folder), "--dtypes", "bfloat16", "float16", "--rows", "10"])
    printed = capsys.readouterr().out.splitlines()
    assert "10 rows of test, 10 beams, cpu" in printed[0]
    rows = [line.split(" | ") for line in printed if line.startswith(("| float", "| bfloat"))]
    assert [row[0].strip("| ") for row in rows] == ["float32", "bfloat16", "float16"] * 2
    assert [float(value.strip("| ")) for value in rows[0][3:]] == [1, 1, 1, 1, 0, 0]
    assert float(rows[1][-1].strip("| ")) > 0 and "[" in rows[4][1] and "[" not in rows[3][1]
