import pytest

from minionerec.statistics.sampling import evenly_spaced

pytestmark = pytest.mark.fast


def test_rows_are_at_even_distances_and_never_more_than_there_are():
    assert evenly_spaced(12, 4) == [0, 3, 6, 9]
    assert evenly_spaced(3, 5) == evenly_spaced(3, 3) == [0, 1, 2]
    assert evenly_spaced(5, 0) == []
