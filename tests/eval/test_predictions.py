import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from minionerec.data.dataset import SPLIT_SCHEMA
from minionerec.errors import CatalogError, DataError
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import ranks
from minionerec.eval.predictions import Prediction, as_predictions, read_predictions, write_predictions
from minionerec.sid.index import SidIndex
from tests.eval.samples import prediction, random_predictions

pytestmark = pytest.mark.fast

LINE = dataclasses.asdict(prediction("a", (1, 1), (1, 1), (0, 0), item=3, items=(3, 4)))


def test_round_trip_and_deterministic_bytes(tmp_path):
    predictions = random_predictions(users=5)
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, predictions)
    first = path.read_bytes()
    assert read_predictions(path) == predictions
    write_predictions(path, iter(predictions))
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_short_sids_end_in_no_code(tmp_path):
    path = tmp_path / "predictions.jsonl"
    short = [prediction("a", (1, 2, -1), (1, 2, 0), (1, 2, -1), (3, -1, -1)), prediction("b", (3, -1, -1), (1, 2, 1))]
    write_predictions(path, short)
    assert read_predictions(path) == short
    assert ranks(read_predictions(path)).tolist() == [1, np.inf]


def test_an_empty_target_is_refused():
    with pytest.raises(DataError, match="target_sid is empty"):
        prediction("a", ())


def test_scores_keep_six_decimals_and_users_any_script(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [dataclasses.replace(prediction("zoë", (1,), (1,)), scores=[-1 / 3])])
    assert "-0.333333]" in path.read_text(encoding="utf-8")
    assert read_predictions(path)[0].user == "zoë"


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, random_predictions(users=1))
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_predictions(path, [dataclasses.replace(prediction("a", (1,), (1,)), scores=[float("nan")])])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": -1}, "field target is -1, expected an item index"),
        ({"target": True}, "field target is true"),
        ({"history": "1,2"}, "expected a list of item indices"),
        ({"sids": [[1, 1], [0, 0.5]]}, "expected a list of lists of codes"),
        ({"sids": [[1, 1], [0]]}, r"sids\[1\] has 1 codes, target_sid has 2"),
        ({"sids": [[1, 1], [1, 1]]}, "holds a SID twice"),
        ({"scores": [0.0]}, "1 scores for 2 sids"),
        ({"scores": [0.0, float("inf")]}, "finite numbers"),
        ({"target_sid": []}, r"field target_sid is \[\], expected a list of codes"),
        ({"target_sid": [-1, -1]}, "field target_sid is"),
        ({"target_sid": [1, -2]}, "field target_sid is"),
        ({"target_sid": [1, True]}, "field target_sid is"),
        ({"sids": [[1, 1], [-1, 1]]}, "expected a list of lists of codes, -1 only after the last"),
        ({"sids": [[1, -1], [1, -1]]}, "holds a SID twice"),
        ({"exact": 1}, "expected true or false"),
        ({"extra": 1}, "unknown extra"),
    ],
)
def test_malformed_field_names_file_line_and_field(tmp_path, change, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({**LINE, "user": "first"}) + "\n" + json.dumps(LINE | change) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(path)
    assert f"{path}, line 2:" in str(caught.value)


def test_missing_field(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({name: value for name, value in LINE.items() if name not in ("items", "scores")}))
    with pytest.raises(DataError, match="line 1: fields missing items, scores"):
        read_predictions(path)


def test_truncated_line(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:40])
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        read_predictions(path)


def test_other_bad_files(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(DataError, match="not found"):
        read_predictions(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path)
    path.write_text("")
    with pytest.raises(DataError, match="empty"):
        read_predictions(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: found list"):
        read_predictions(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_predictions(path)


def test_a_shard_merged_twice_is_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text((json.dumps(LINE) + "\n") * 2)
    with pytest.raises(DataError, match="line 2: user 'a' is already on line 1"):
        read_predictions(path)


def test_depth_must_agree_between_lines(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [prediction("a", (1, 1), (1, 1)), prediction("b", (1,), (1,))])
    with pytest.raises(DataError, match="line 2: SIDs of 1 codes, line 1 has 2"):
        read_predictions(path)


def _examples(*targets: int) -> pl.DataFrame:
    rows = [(f"u{row}", [0], target, 0, 1) for row, target in enumerate(targets)]
    return pl.DataFrame(rows, schema=SPLIT_SCHEMA, orient="row")


def test_item_rankings_become_predictions():
    index = SidIndex(np.array([[0, 0], [0, 1], [0, 0], [1, 1]], dtype=np.int32), (2, 2), "digest")
    predictions = as_predictions(_examples(2, 3), [np.array([0, 1, 2]), np.array([3])], index)
    assert predictions[0] == Prediction("u0", [0], 2, [0, 0], [[0, 0], [0, 1]], [0, 1, 2], [0.0, -1.0], True, "minus rank")
    assert ranks(predictions, "sid").tolist() == [0, 0]
    assert ranks(predictions, "item").tolist() == [2, 0]


@pytest.mark.parametrize(
    ("ranking", "best", "ties", "item_tie", "sid_tie"),
    [
        ([4, 2, 3, 5], 1, 3, [1, 3], [1, 2]),
        ([0, 1, 4, 3], 2, 2, [2, 2], [1, 2]),  # two items before it, of one SID
        ([4, 2, 3], 1, 2, [1, 2], None),  # both have the target's SID, which thus ties with none
        ([2, 3, 4], 1, 2, [1, 2], None),  # a better item has the target's SID
        ([4, 5, 3], 0, 3, [0, 3], [0, 3]),
        ([4, 5], 1, 3, [1, 3], [1, 3]),  # two more tie behind the end, the target is one of them
        ([4, 5], 2, 2, None, None),  # the list does not reach it
        ([4, 3], 1, 1, None, None),
        ([4, 5], np.inf, 1, None, None),
    ],
)
def test_what_ties_with_the_target_is_said_of_items_and_of_sids(ranking, best, ties, item_tie, sid_tie):
    """The target is item 3; items 0 and 1 share a SID, and so do 2 and 3."""
    index = SidIndex(np.array([[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 1]], dtype=np.int32), (2, 2), "digest")
    places = np.array([best]), np.array([ties])
    (made,) = as_predictions(_examples(3), [np.array(ranking)], index, places=places)
    assert (made.item_tie, made.sid_tie) == (item_tie, sid_tie)


def test_ids_of_the_catalog_are_kept_in_the_file(tmp_path):
    index = SidIndex(np.array([[0, 0], [0, 1]], dtype=np.int32), (2, 2), "digest")
    predictions = as_predictions(_examples(1), [np.array([1, 0])], index, ["lamp", "cup"])
    assert (predictions[0].target_id, predictions[0].history_ids, predictions[0].item_ids) == ("cup", ["lamp"], ["cup", "lamp"])
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(tmp_path / "p.jsonl") == predictions
    assert np.array_equal(RankedLists.read(tmp_path / "p.jsonl").sids, RankedLists.of(predictions).sids)


def test_rankings_outside_the_index_are_refused():
    index = SidIndex(np.zeros((2, 1), dtype=np.int32), (1,), "digest")
    with pytest.raises(CatalogError, match="Item 2 of user 'u0' has no SID"):
        as_predictions(_examples(1), [np.array([2])], index)
