"""Predictions that are not those of a run's split and catalog, each with what is wrong and where."""

from dataclasses import replace

import numpy as np
import pytest

from minionerec.errors import DataError
from minionerec.eval.check_predictions import check_belongs
from minionerec.eval.lists import RankedLists
from minionerec.eval.predictions import as_predictions
from minionerec.sid.index import SidIndex
from tests import small

pytestmark = pytest.mark.fast

DATASET, INDEX = small.random_dataset()
SHARED = SidIndex(INDEX.codes[np.arange(30) // 2 * 2], INDEX.codebook_sizes, DATASET.digest)  # two items to a SID


def whole(split="test", index=INDEX):
    """The same ten items for everybody, as a baseline ranks them."""
    rows = DATASET.split(split)
    return as_predictions(rows, [np.arange(10)[::-1]] * len(rows), index)


def grouped(index=SHARED):
    """The same lists as a model that writes SIDs has them: all items of a SID, the SID's first."""
    changed = []
    for row in whole(index=index):
        groups = [index.items(sid) for sid in row.sids]
        items = [item for group in groups for item in group]
        changed.append(replace(row, items=items, sizes=[len(group) for group in groups]))
    return changed


def check(predictions, split="test", index=INDEX):
    check_belongs(RankedLists.of(predictions), DATASET, index, split, "p.jsonl")


def test_predictions_of_this_split_in_any_order_belong():
    check(whole())
    check(whole()[::-1])
    check(whole("valid"), "valid")


def test_items_of_shared_sids_belong_in_either_order():
    check(whole(index=SHARED), index=SHARED)
    check(grouped(), index=SHARED)
    first = grouped()[0]
    check([replace(first, sids=[], items=[], sizes=[], scores=[]), *grouped()[1:]], index=SHARED)


def test_predictions_of_other_splits_and_missing_users():
    with pytest.raises(DataError, match=r"user 'u\d+' \(and 1 more\) is missing.*20 examples, the file 18"):
        check(whole()[2:])
    with pytest.raises(DataError, match=r"p.jsonl, line \d+: user 'u\d+' has (target|a history of) .*another split"):
        check(whole("valid"))
    with pytest.raises(DataError, match=r"'stranger'.*is not in this split"):
        check([*whole(), replace(whole()[0], user="stranger")])


def refused(change, message, predictions=None, index=INDEX):
    """The fourth prediction, changed, is what the message names."""
    changed = list(predictions or whole(index=index))
    changed[3] = replace(changed[3], **change(changed[3]))
    with pytest.raises(DataError, match=f"^p.jsonl, line 4: {message}"):
        check(changed, index=index)


def test_another_history_of_the_same_length():
    refused(lambda row: {"history": [29, *row.history[1:]]}, r"user 'u3' has history \[29, .*, expected \[\d.*another split")
    refused(lambda row: {"history": row.history[1:]}, r"user 'u3' has a history of \d items, expected \d: another split")


def test_the_targets_sid_is_the_indexs():
    refused(lambda _: {"target_sid": [5, 5, 5]}, r"item \d+ has the SID \[5, 5, 5\], in this run's index .*another catalog")
    shallow = [replace(row, target_sid=row.target_sid[:2], sids=[sid[:2] for sid in row.sids]) for row in whole()]
    with pytest.raises(DataError, match="SIDs of 2 levels, this run's index has 3"):
        check(shallow)


def test_listed_items_are_of_the_catalog():
    refused(lambda row: {"items": [*row.items[:4], 30, *row.items[5:]]}, "lists item 30, the catalog has 30")


@pytest.mark.parametrize("kind", ["ranked", "shared", "grouped"])
def test_listed_sids_are_of_the_index(kind):
    index = INDEX if kind == "ranked" else SHARED
    strange = next([5, 5, code] for code in range(6) if not index.items([5, 5, code]))
    predictions = grouped() if kind == "grouped" else None
    message = rf"lists the SID \[5, 5, {strange[2]}\], which no item has .*another catalog"
    refused(lambda row: {"sids": [row.sids[0], strange, *row.sids[2:]]}, message, predictions, index)


def test_a_sid_more_than_the_index_has():
    change = {"items": [*grouped()[3].items, 20], "sizes": [2] * 5 + [1], "scores": [-float(rank) for rank in range(6)]}
    refused(lambda row: {"sids": [*row.sids, [5, 5, 0]], **change}, r"lists the SID \[5, 5, 0\]", grouped(), SHARED)


def test_items_are_those_of_the_listed_sids():
    message = "items are not those of the listed SIDs"
    refused(lambda row: {"items": [20, *row.items[1:]]}, message)
    refused(lambda row: {"items": row.items[::-1]}, message)
    refused(lambda row: {"items": row.items[:-1]}, message)
    refused(lambda row: {"items": row.items[::-1]}, message, index=SHARED)
    refused(lambda row: {"sids": row.sids[:-1], "scores": row.scores[:-1]}, message, index=SHARED)
    refused(lambda row: {"items": row.items[::-1]}, message, grouped(), SHARED)
    refused(lambda row: {"sizes": [1, 3, *row.sizes[2:]]}, message, grouped(), SHARED)


def test_scores_do_not_rise():
    refused(lambda row: {"scores": [-1.0, -0.9, *row.scores[2:]]}, "scores rise along the list")
    row, *others = whole()
    check([replace(row, scores=[-1.0, -0.9999999, *row.scores[2:]]), *others])  # rounding
