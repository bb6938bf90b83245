import dataclasses
import json

import pytest

from minionerec.config import CUTOFFS
from minionerec.errors import DataError
from minionerec.eval import level_tables
from minionerec.eval.levels import calibration, first_matches, why_uncalibrated
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import ranks
from minionerec.eval.predictions import write_predictions
from minionerec.statistics.ranking import hit_rate
from tests.eval.samples import prediction, random_predictions
from tests.shared import shared

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_against_a_slow_loop(levels):
    predictions = random_predictions(levels=levels, length=12)
    tables = level_tables(predictions)
    for k in CUTOFFS:
        for level in range(levels):
            alone = sum(any(sid[level] == row.target_sid[level] for sid in row.sids[:k]) for row in predictions)
            prefix = sum(any(sid[: level + 1] == row.target_sid[: level + 1] for sid in row.sids[:k]) for row in predictions)
            name = "+".join(f"L{number + 1}" for number in range(level + 1))
            assert tables["independent"][str(k)][f"Level {level + 1}"] == pytest.approx(alone / 40)
            assert tables["cumulative"][str(k)][name] == pytest.approx(prefix / 40)


@pytest.mark.parametrize("levels", [1, 3])
def test_last_prefix_is_the_exact_hit_rate(levels):
    predictions = random_predictions(levels=levels)
    tables, target_ranks = level_tables(predictions), ranks(predictions)
    for k in CUTOFFS:
        assert list(tables["cumulative"][str(k)].values())[-1] == pytest.approx(hit_rate(target_ranks, k))
        assert tables["independent"][str(k)]["Exact"] == pytest.approx(hit_rate(target_ranks, k))


def test_drop_off_by_hand():
    tables = level_tables([
        prediction("a", (1, 1, 1), (1, 1, 1)),
        prediction("b", (1, 1, 1), (1, 1, 0)),
        prediction("c", (1, 1, 1), (1, 0, 1)),
        prediction("d", (1, 1, 1), (0, 1, 1)),
    ])  # fmt: skip
    assert tables["drop_off"]["L1 accuracy"] == 0.75
    assert tables["drop_off"]["L1 → L1+L2 retention"] == pytest.approx(2 / 3)
    assert tables["drop_off"]["L1+L2 → L1+L2+L3 retention"] == 0.5
    assert tables["independent"]["1"] == {"Level 1": 0.75, "Level 2": 0.75, "Level 3": 0.75, "Exact": 0.25}


def test_nothing_left_to_keep_is_none():
    tables = level_tables([prediction("a", (1, 1), (0, 0)), prediction("b", (1, 1))])
    assert tables["drop_off"] == {"L1 accuracy": 0.0, "L1 → L1+L2 retention": None}


def test_padding_is_no_hit_and_no_code_agrees_with_no_code():
    lists = RankedLists.of([
        prediction("a", (1, 2, -1), (1, 3, 0)),  # one place of two filled
        prediction("b", (1, 2, -1), (2, 2, 5), (4, 4, -1)),
        prediction("c", (1, 2, 0)),  # nothing listed
    ])  # fmt: skip
    alone, together = first_matches(lists)
    never = float("inf")
    assert alone.tolist() == [[0, never, never], [never, 0, 1], [never] * 3]
    assert together.tolist() == [[0, never, never], [never] * 3, [never] * 3]


def test_unequal_depth_and_nobody():
    with pytest.raises(DataError, match=r"\[1, 2\] codes"):
        level_tables([prediction("a", (1,), (0,)), prediction("b", (1, 1), (0, 0))])
    with pytest.raises(DataError, match="no predictions to measure"):
        level_tables([])


def test_names_are_those_of_the_published_replication():
    published = json.loads(shared("reference/minionerec.json").read_text(encoding="utf-8"))["datasets"]
    ours = level_tables(random_predictions(levels=3))
    for dataset in published.values():
        theirs = dataset["levels"]
        for name in ("independent", "cumulative"):
            for run in theirs[name].values():
                assert {k: list(row) for k, row in run.items()} == {k: list(row) for k, row in ours[name].items()}
        assert list(theirs["drop_off"]) == list(ours["drop_off"])
        # The definition, on their numbers: retention is the ratio of neighbours in the cumulative table at K = 1.
        top = list(theirs["cumulative"]["SFT"]["1"].values())
        assert theirs["drop_off"]["L1 → L1+L2 retention"]["SFT"] == pytest.approx(top[1] / top[0], abs=1e-3)
        assert theirs["drop_off"]["L1+L2 → L1+L2+L3 retention"]["SFT"] == pytest.approx(top[2] / top[1], abs=1e-3)


def test_what_the_file_says_of_its_scores_decides_and_not_their_values(tmp_path):
    def lists_of(*kinds):
        rows = [dataclasses.replace(prediction(str(row), (1, 1), (1, 1)), score_kind=kind) for row, kind in enumerate(kinds)]
        write_predictions(tmp_path / "p.jsonl", rows)
        return RankedLists.read(tmp_path / "p.jsonl")

    sure = lists_of("log-probability", "log-probability")  # of a catalog of one SID: the logarithm is 0, as minus the rank is
    assert why_uncalibrated(sure) is None and calibration(sure)[0]["confidence"] == 1
    for kinds, reason in (
        (["minus rank", "minus rank"], "scores are minus ranks, no log-probabilities"),
        (["weighed logarithm"], "scores are weighed logarithms, no log-probabilities"),
        ([None], "an earlier version wrote it; delete the folder of the evaluation and run minionerec eval again"),
        (["log-probability", None], "an earlier version wrote it"),  # some of its shards, before it was interrupted
    ):
        lists = lists_of(*kinds)
        assert reason in why_uncalibrated(lists) and calibration(lists) is None
    assert why_uncalibrated(dataclasses.replace(sure, scores=None)) == "the file has no scores"
    assert why_uncalibrated(RankedLists.of([prediction("a", (1, 1))])) == "the lists are empty"
