import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.report.published import (
    METRICS,
    PAPER,
    REPLICATION,
    audit,
    contradictions,
    discrepancy,
    gap,
    impossible,
    published,
    replication_levels,
    reward_rows,
    summary,
)
from minionerec.statistics.ranking import per_user
from tests.examples import examples
from tests.shared import shared

pytestmark = pytest.mark.fast

DATASETS = published()["datasets"]
EXPECTED = {
    "Industrial_and_Scientific": [("HSTU", 3, 5), ("D3", 3, 5), ("LCRec", 3, 3)],
    "Office_Products": [("TIGER", 3, 5), ("TIGER", 5, 10), ("S-DPO", 5, 10)],
}
LINES = {
    "Industrial_and_Scientific": "NDCG ~13-16 % below, HR ~12-16 % below the paper",
    "Office_Products": "NDCG ~0-4 % below, HR ~0-5 % below the paper",
}


@pytest.fixture
def tables():
    return json.loads(shared("reference/minionerec.json").read_text(encoding="utf-8"))["datasets"]


def test_the_packages_tables_are_the_shared_ones(tables):
    for name, entry in tables.items():
        for part in ("published", "replication"):
            assert DATASETS[name][part] == entry[part]
        for part in ("independent", "cumulative"):
            assert DATASETS[name]["levels"][part] == entry["levels"][part]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_audit_flags_exactly_the_impossible_cells(name):
    rows = DATASETS[name]["counts"]["test"]
    found = [(finding.method, finding.first, finding.second) for finding in audit(DATASETS[name]["published"], rows)]
    assert sorted(found) == sorted(EXPECTED[name])
    assert audit(DATASETS[name]["replication"], rows) == [] and audit(DATASETS[name]["elsewhere"], rows) == []
    flagged = impossible(DATASETS[name]["published"], rows)
    assert PAPER not in flagged and flagged.get("LCRec", {"HR@3"}) == {"HR@3"}


def test_the_reward_rows_are_the_shared_ones_and_their_contradictions_are_found():
    theirs = json.loads(shared("reference/replication_rewards.json").read_text(encoding="utf-8"))
    found = set()
    for name, rows in theirs["rows"].items():
        assert reward_rows(name) == {row["row"]: dict(zip(theirs["columns"], row["values"], strict=True)) for row in rows}
        for row in rows:
            levels = DATASETS[name]["rewards"][row["row"]]["levels"]
            assert list(levels.values()) == pytest.approx([share / 100 for share in row["levels"]])
            exact = math.prod(levels.values())  # right at level 1, of these at level 2, of these all: the exact ones
            assert exact == pytest.approx(row["values"][0], abs=1e-4)
        found |= {(f.method, *f.cells) for f in audit(reward_rows(name), DATASETS[name]["counts"]["test"])}
    restated = "SFT, as restated beside the reward table"
    assert found == {(restated, "HR@3"), (restated, "HR@10"), ("position, 2 epochs", "HR@5")}
    assert contradictions("Office_Products") == []
    [sentence] = contradictions("Industrial_and_Scientific")
    assert "HR@3 0.0873 (logged 0.0900)" in sentence and "HR@10 0.1259 (logged 0.1379)" in sentence
    assert "sibling, 2 epochs in HR@10 is +13.9 % over it and +4.0 % over the logged row" in sentence


@examples(100)
@given(st.integers(1, 20_000), st.data())
def test_a_rounded_count_is_never_flagged_and_half_a_hit_is(rows, data):
    hits = data.draw(st.integers(0, rows))
    assert audit({"m": {"HR@10": round(hits / rows, 4)}}, rows) == []
    if rows < 2_000 and hits < rows:  # counts lie further apart than twice the rounding
        [finding] = audit({"m": {"HR@10": (hits + 0.5) / rows}}, rows)
        assert finding.cells == ("HR@10",) and f"is no share of {rows:,} test rows: {hits:,} hits give" in finding.rule


def test_the_discrepancy_tables_to_the_last_digit(tables):
    for name, entry in tables.items():
        ours = discrepancy(DATASETS[name]["published"][PAPER], DATASETS[name]["replication"][REPLICATION])
        assert ours == entry["discrepancy"] and list(ours) == list(METRICS)
        assert summary(ours) == LINES[name]


def test_the_drop_off_tables_to_the_last_digit(tables):
    for name, entry in tables.items():
        ours = replication_levels(name)["drop_off"]
        for stage, label in (("SFT", "SFT"), ("RL (2 epochs)", "RL (2ep)")):
            theirs = {step: row[label] for step, row in entry["levels"]["drop_off"].items()}
            assert {step: round(share, 4) for step, share in ours[stage].items()} == theirs


@examples(100)
@given(st.lists(st.one_of(st.integers(0, 30).map(float), st.just(float("inf"))), min_size=1, max_size=200))
def test_real_results_are_never_flagged(ranks):
    row = {name: round(float(values.mean()), 4) for name, values in per_user(ranks, (1, 3, 5, 10, 20)).items()}
    assert audit({"anything": row}, len(ranks)) == []


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"HR@3": 0.2, "NDCG@3": 0.3}, "exceeds"),
        ({"HR@3": 0.2, "NDCG@3": 0.05}, "is below"),
        ({"HR@3": 1.2, "NDCG@3": 0.9}, "between 0 and 1"),
        ({"HR@3": 0.2, "NDCG@3": 0.15, "HR@5": 0.17, "NDCG@5": 0.15}, "HR falls"),
        ({"HR@3": 0.2, "NDCG@3": 0.15, "HR@5": 0.3, "NDCG@5": 0.16}, "NDCG must grow by"),
    ],
)
def test_each_rule(row, rule):
    assert rule in audit({"m": row})[0].rule


def test_gaps_are_of_printed_decimals():
    assert gap(0.1143, 0.09664) == {"paper": 0.1143, "ours": 0.0966, "gap": -0.0177, "relative": -0.155}
    above = {"HR@3": gap(0.1, 0.11), "NDCG@3": gap(0.1, 0.09), "NDCG@5": gap(0.1, 0.105)}
    assert summary(above) == "NDCG -10 % to +5 %, HR ~10-10 % above the paper"
