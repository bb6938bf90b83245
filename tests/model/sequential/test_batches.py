import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minionerec.model.sequential.batches import partners
from tests.examples import examples
from tests.model.sequential.models import LENGTH, batch_of, rows_of

histories = st.lists(st.lists(st.integers(1, 30), max_size=LENGTH), min_size=1, max_size=30)


@examples(60)
@given(histories, st.sampled_from(["packed", "padded"]), st.sampled_from(["left", "right"]))
def test_every_history_lies_whole_in_one_row_and_ends_at_its_readout(some, layout, side):
    batch = batch_of(rows_of(some), layout, side)
    width = batch.items.shape[1]
    items, positions, segments = (values.flatten().numpy() for values in (batch.items, batch.positions, batch.segments))
    taken = np.zeros(len(items), bool)
    for history, end in zip(some, batch.readout.tolist(), strict=True):
        cells = np.arange(end - len(history) + 1, end + 1)
        assert not taken[cells].any()
        taken[cells] = True
        assert items[cells].tolist() == history
        if history:
            assert cells[0] // width == cells[-1] // width
            assert len(set(segments[cells])) == 1 and segments[cells[0]] > 0
            same = np.flatnonzero(segments[end // width * width :][:width] == segments[end]) + end // width * width
            assert same.tolist() == cells.tolist()
            first = LENGTH - len(history) if side == "left" else 0
            assert positions[cells].tolist() == list(range(first, first + len(history)))
        else:  # a row of padding for itself
            row = end // width
            assert width == LENGTH and end == row * width + width - 1 and not segments[row * width :][:width].any()
    assert (items[~taken] == 0).all() and (segments[~taken] == 0).all()
    assert ((positions >= 0) & (positions < LENGTH)).all()
    assert batch.lengths.tolist() == [len(history) for history in some]
    assert items[batch.cells().numpy()].tolist() == [item for history in some for item in history]


@examples(60)
@given(histories)
def test_packing_leaves_little_room(some):
    some = [history for history in some if history] or [[1]]
    rows, width = batch_of(rows_of(some), "packed").items.shape
    assert width == max(map(len, some))
    # Best fit, longest first, never needs more than 11/9 of the least number of rows, plus one (Johnson, 1973).
    assert rows <= 11 / 9 * -(-sum(map(len, some)) // width) + 4


def test_padded_sides():
    left, right = (batch_of(rows_of([[4, 5]]), "padded", side) for side in ("left", "right"))
    assert left.items[0].tolist() == [0] * (LENGTH - 2) + [4, 5] and left.readout.tolist() == [LENGTH - 1]
    assert right.items[0].tolist() == [4, 5] + [0] * (LENGTH - 2) and right.readout.tolist() == [1]


def test_a_partner_is_any_other_row_with_the_same_target():
    targets = np.array([7, 3, 7, 9, 7, 3])
    drawn = np.array([partners(targets, np.random.default_rng(seed)) for seed in range(600)])
    assert (targets[drawn] == targets).all()
    for row, others in enumerate([{2, 4}, {5}, {0, 4}, {3}, {0, 2}, {1}]):
        partner, times = np.unique(drawn[:, row], return_counts=True)
        assert set(partner) == others and times.min() > 600 / len(others) * 0.8
