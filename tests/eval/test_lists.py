import dataclasses
import json

import numpy as np
import pytest

from minionerec.errors import DataError
from minionerec.eval import lists as module
from minionerec.eval.compare import align, compare, left_out
from minionerec.eval.lists import RankedLists
from minionerec.eval.predictions import Prediction, as_predictions, read_predictions, write_predictions
from tests import small
from tests.eval.samples import prediction, random_predictions

pytestmark = pytest.mark.fast

DATASET, INDEX = small.random_dataset()


def whole(split="test"):
    rows = DATASET.split(split)
    return as_predictions(rows, [np.arange(10)] * len(rows), INDEX)


def assert_equal(first, second):
    for field in dataclasses.fields(RankedLists):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, module.Ragged):
            ours, theirs = (ours.values, ours.offsets), (theirs.values, theirs.offsets)
        np.testing.assert_equal(ours, theirs) if not isinstance(ours, tuple) else [
            np.testing.assert_array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
        ]


@pytest.mark.parametrize("block", [1, 700, 10**6])
def test_blocks_read_what_single_lines_read(tmp_path, monkeypatch, block):
    predictions = random_predictions(users=30, length=7)
    predictions[3] = dataclasses.replace(predictions[3], sids=[], scores=[], items=[])
    predictions[4] = dataclasses.replace(predictions[4], score_kind=None)
    first = predictions[5]
    predictions[5] = dataclasses.replace(first, sizes=[1] * (len(first.sids) - 1) + [len(first.items) - len(first.sids) + 1])
    predictions[7] = dataclasses.replace(predictions[7], position=4, item_tie=[2, 3])
    predictions[29] = dataclasses.replace(predictions[29], item_tie=[0, 9], sid_tie=[0, 2])
    path = tmp_path / "p.jsonl"
    write_predictions(path, predictions)
    monkeypatch.setattr(module, "_BLOCK", block)
    monkeypatch.setattr(module, "read_predictions", lambda _: pytest.fail("the fast path gave up"))
    assert_equal(RankedLists.read(path), RankedLists.of(read_predictions(path)))


def test_short_sids_are_read_as_columns(tmp_path, monkeypatch):
    predictions = [prediction("a", (1, 2, -1), (1, 2, 0), (1, 2, -1), (3, -1, -1)), prediction("b", (3, -1, -1), (1, 2, 1))]
    path = tmp_path / "p.jsonl"
    write_predictions(path, predictions)
    monkeypatch.setattr(module, "read_predictions", lambda _: pytest.fail("the fast path gave up"))
    assert_equal(RankedLists.read(path), RankedLists.of(predictions))


@pytest.mark.parametrize("sid", [[-1, -1, -1], [1, -1, 0], [1, 2, -2]])
@pytest.mark.parametrize("field", ["target_sid", "sids"])
def test_codes_after_the_end_of_a_sid_are_named_by_line(tmp_path, field, sid):
    path = tmp_path / "p.jsonl"
    write_predictions(path, random_predictions(users=2, length=1))
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {field: [sid] if field == "sids" else sid})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=f"line 2: field {field} is .* expected a list of"):
        RankedLists.read(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"user": "x"', "line 2: not valid JSON"),
        ("", "line 2: not valid JSON"),
        ("NAN", "line 2: field scores is"),
        ("TWICE", "line 2: user 'u1': sids holds a SID twice"),
        ("AGAIN", "line 2: user 'u0' is already on line 1"),
        ("SHORT", "line 2: user 'u1': 1 scores for"),
        ("FLOAT", "line 2: field target is 1.5"),
        ("SIZES", "line 2: user 'u1': 1 sizes that add up to 3"),
        ("IDS", "line 2: user 'u1': 1 item_ids for 30 items"),
        ("NO ID", "line 2: field history_ids is"),
        ("KIND", 'line 2: field score_kind is "nats", expected one of log-probability, weighed logarithm, minus rank'),
    ],
)
def test_what_the_fast_path_refuses_is_named_by_line(tmp_path, bad, message):
    path = tmp_path / "p.jsonl"
    write_predictions(path, random_predictions(users=3, length=5))
    lines = path.read_text().splitlines()
    values = read_predictions(path)[1]
    row = {name: value for name, value in dataclasses.asdict(values).items() if value is not None}
    changes = {
        "NAN": {"scores": [float("nan")] * len(values.scores)},
        "TWICE": {"sids": [values.sids[0]] * len(values.sids)},
        "AGAIN": {"user": "u0"},
        "SHORT": {"scores": [0.0]},
        "FLOAT": {"target": 1.5},
        "SIZES": {"sizes": [3]},
        "IDS": {"item_ids": ["lamp"]},
        "NO ID": {"history_ids": ["lamp", None]},
        "KIND": {"score_kind": "nats"},
    }
    lines[1] = json.dumps(row | changes[bad]) if bad in changes else bad
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        RankedLists.read(path)


def test_comparison_needs_the_same_examples():
    first, second = RankedLists.of(whole()), RankedLists.of(whole()[::-1])
    assert align(first, second).tolist() == list(range(20))[::-1]
    same = compare(first, second, resamples=50)
    assert all(cell["value"] == 0 and cell["p"] == 1 and cell["noise"] for cell in same.values())
    with pytest.raises(DataError, match="20 and 19 examples"):
        compare(whole(), whole()[1:], resamples=50)
    with pytest.raises(DataError, match="other targets"):
        compare(whole(), whole("valid"), resamples=50)


def test_lists_of_unequal_width_are_compared_as_far_as_both_reach():
    long = random_predictions(users=30, length=60, codes=6)
    wide = max(len(example.sids) for example in long)

    def cut(example, length):
        return dataclasses.replace(
            example, sids=example.sids[:length], scores=example.scores[:length], items=example.items[:length]
        )

    short = [cut(example, 16) for example in long]
    short[0] = cut(short[0], 2)  # found less than asked for
    differences = compare(long, short, resamples=50)
    assert [name for name in differences if name.startswith("HR")] == ["HR@1", "HR@3", "HR@5", "HR@10"]
    long_lists, short_lists = RankedLists.of(long), RankedLists.of(short)
    assert left_out(long_lists, short_lists) == f"lists of {wide} and 16 places: cut-offs beyond 16 are left out"
    assert left_out(long_lists, long_lists) is None and "HR@50" in compare(long, long, resamples=50)


def test_a_user_with_several_rows_is_told_by_position():
    rows = [Prediction("a", [1], 1, [1], [[1]], [1], [0.0], True, position=position) for position in (3, 4)]
    lists = RankedLists.of(rows)
    assert lists.units().tolist() == [0, 0] and RankedLists.of([prediction("a", (1,))]).units() is None
