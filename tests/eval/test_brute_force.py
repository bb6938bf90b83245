"""Metrics and level tables against `brute.py`, on lists of any length with duplicates, invalid SIDs and ties."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from minionerec.eval import level_tables
from minionerec.eval.calc_level import level_report
from minionerec.eval.levels import calibration, lost_targets
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import measure, ranks
from minionerec.eval.predictions import Prediction
from minionerec.eval.result_json import read_released
from minionerec.statistics.ranking import hit_rate, mrr, ndcg
from tests.eval import brute
from tests.examples import examples

CUTOFFS = (1, 2, 3, 5, 10, 50)
NOT_SIDS = ("", "<a_1>", "hello", "<b_1><a_1>", "<a_1><b_2><c_3><d_4>", "<a_x><b_1>", "<a_1> <b_1>")


@st.composite
def released_records(draw):
    """Records of one depth and one list length, with duplicates and texts that are no SID (None)."""
    depth, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    sid = st.tuples(*[st.integers(0, 2)] * depth)
    ranked = st.lists(st.one_of(sid, st.none()), min_size=width, max_size=width)
    return draw(st.lists(st.tuples(sid, ranked), min_size=1, max_size=12))


def text(sid):
    return "".join(f"<{chr(97 + level)}_{code}>" for level, code in enumerate(sid))


def as_released(records):
    bad = [t for t in NOT_SIDS if t != "<a_1>" or len(records[0][0]) != 1]
    bad = [t for t in bad if t.count("<") != len(records[0][0]) or t not in ("<a_1>", "<a_1><b_2><c_3><d_4>")]
    return [
        {"input": "x", "output": text(target) + "\n", "predict": [bad[position % len(bad)] if sid is None else text(sid)
         for position, sid in enumerate(ranked)]}
        for target, ranked in records
    ]  # fmt: skip


@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(released_records())
def test_the_released_json(tmp_path, records):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(as_released(records)))
    lists = read_released(path)
    target_ranks = ranks(lists)
    independent, cumulative = brute.levels(records, CUTOFFS)
    tables = level_tables(lists, CUTOFFS)
    for k in CUTOFFS:
        assert (hit_rate(target_ranks, k), ndcg(target_ranks, k), mrr(target_ranks, k)) == pytest.approx(
            brute.metrics(records, k)
        )
        depth = len(records[0][0])
        assert list(tables["independent"][str(k)].values())[:depth] == pytest.approx([float(x) for x in independent[k]])
        assert list(tables["cumulative"][str(k)].values()) == pytest.approx([float(x) for x in cumulative[k]])
    assert [row["lost"] for row in lost_targets(lists)] == pytest.approx(brute.lost(records))
    width = len(records[0][1])
    assert level_report(lists, CUTOFFS, 20, 0)["lengths"]["longest"] == width
    invalid = sum(sid is None for _, ranked in records for sid in ranked) / (width * len(records))
    assert measure(lists, (1,), 20).invalid == pytest.approx(invalid)


@st.composite
def our_predictions(draw):
    """Predictions with distinct SIDs, lists of any length (also none), and several tied items per SID."""
    depth = draw(st.integers(1, 3))
    sid = st.tuples(*[st.integers(0, 2)] * depth)
    rows = draw(st.lists(st.tuples(sid, st.lists(sid, unique=True, max_size=9), st.integers(0, 3)), min_size=1, max_size=10))
    examples = []
    for user, (target, ranked, most) in enumerate(rows):
        sizes = [1 + (sum(example) + user) % (most + 1) for example in ranked]
        items = list(range(100, 100 + sum(sizes)))
        hit = brute.rank(target, ranked)
        item = 99 if hit is None else items[sum(sizes[: hit + 1]) - 1]  # the last of its group
        scores = [-1.5 - position for position in range(len(ranked))]
        examples.append(
            Prediction(
                user=f"u{user}",
                history=[1],
                target=item,
                target_sid=list(target),
                sids=[list(sid) for sid in ranked],
                items=items,
                scores=scores,
                exact=True,
                score_kind="log-probability",
                sizes=sizes,
            )
        )
    return examples


@examples(150)
@given(our_predictions())
def test_tied_items_and_short_lists(predictions):
    records = [(tuple(example.target_sid), [tuple(sid) for sid in example.sids]) for example in predictions]
    metrics = measure(predictions, CUTOFFS, 20)
    for k in CUTOFFS:
        hit, gain, reciprocal = brute.metrics(records, k)
        assert [metrics.sid[f"{name}@{k}"]["value"] for name in ("HR", "NDCG", "MRR")] == pytest.approx([hit, gain, reciprocal])
        expected = brute.tied(records, [example.sizes for example in predictions], k)
        ours = [metrics.item[f"{name}@{k}"][part] for name in ("HR", "NDCG") for part in ("value", "best", "worst")]
        assert ours == pytest.approx(expected)
        assert metrics.item[f"HR@{k}"]["worst"] <= metrics.item[f"HR@{k}"]["value"] + 1e-12
    assert [row["lost"] for row in metrics.lost] == pytest.approx(brute.lost(records))


@examples(60)
@given(our_predictions())
def test_calibration_sums_the_probability_of_each_prefix(predictions):
    lists = RankedLists.of(predictions)
    tables = calibration(predictions)
    if lists.width == 0:
        assert tables is None
        return
    for level, table in enumerate(tables):
        sure, right = [], []
        for example in predictions:
            mass = {}
            for sid, score in zip(example.sids, example.scores, strict=True):
                prefix = tuple(sid[: level + 1])
                mass[prefix] = mass.get(prefix, 0.0) + np.exp(score)
            sure.append(max(mass.values(), default=0.0))
            best = [prefix for prefix, value in mass.items() if np.isclose(value, sure[-1])]
            right.append(tuple(example.target_sid[: level + 1]) in best)
        assert table["confidence"] == pytest.approx(np.mean(sure))
        assert table["accuracy"] <= np.mean(right) + 1e-9  # ties may go either way


def test_the_arrays_survive_a_round_trip(tmp_path):
    from minionerec.eval.predictions import read_predictions, write_predictions
    from tests.eval.samples import random_predictions

    predictions = random_predictions()
    write_predictions(tmp_path / "p.jsonl", predictions)
    lists = RankedLists.read(tmp_path / "p.jsonl")
    assert [lists.example(row) for row in range(len(lists))] == predictions == read_predictions(tmp_path / "p.jsonl")
