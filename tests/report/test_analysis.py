import re
from types import SimpleNamespace

import pytest

from minionerec.report.analysis import drop_off, level_tables, metric_tables
from minionerec.report.page import environment
from minionerec.report.table import NO_VALUE, Cell, Row, Table

pytestmark = pytest.mark.fast


def cell(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def texts(row):
    return [cell.text for cell in row.cells]


def test_levels_of_other_depths_and_cut_offs():
    shallow = {"independent": {"1": {"Level 1": 0.5, "Exact": 0.5}}, "cumulative": {"1": {"L1": 0.5}}}
    deep = {
        "independent": {
            "1": {"Level 1": 0.4, "Level 2": 0.2, "Exact": 0.1},
            "50": {"Level 1": 0.6, "Level 2": 0.4, "Exact": 0.3},
        },
        "cumulative": {"1": {"L1": 0.4, "L1+L2": 0.1}, "50": {"L1": 0.6, "L1+L2": 0.3}},
    }
    independent, cumulative = level_tables({"a": shallow, "b": deep})
    assert independent.columns == ("Level 1", "Level 2", "Exact") and cumulative.columns == ("L1", "L1+L2")
    assert [[row.headings for row in group] for group in independent.groups] == [[("1", "a"), ("1", "b")], [("50", "b")]]
    assert texts(independent.rows[0]) == ["0.5000", "", "0.5000"]
    shallow["drop_off"], deep["drop_off"] = {"L1 accuracy": 0.5}, {"L1 accuracy": 0.4, "L1 → L1+L2 retention": 0.25}
    steps = drop_off({"a": shallow, "b": deep}, {"a": 10, "b": 20})
    assert [(row.headings, texts(row)) for row in steps.rows] == [
        (("L1 accuracy",), ["0.5000", "0.4000"]),
        (("L1 → L1+L2 retention",), ["", "0.2500"]),
    ]
    assert [[cell.note for cell in row.cells] for row in steps.rows] == [["of 10", "of 20"], ["", "of 8"]]  # 8 of 20 had L1
    deep["drop_off"]["L1 → L1+L2 retention"] = None
    assert drop_off({"b": deep}, {"b": 20}).rows[1].cells == (NO_VALUE,)


def test_the_levels_of_one_recommender_do_not_name_it():
    independent, _ = level_tables({"a": {"independent": {"1": {"Level 1": 0.5}}, "cumulative": {"1": {"L1": 0.5}}}})
    assert independent.headings == ("K",) and [row.headings for row in independent.rows] == [("1",)]


def test_every_table_that_a_run_has_is_on_the_page():
    width = {"HR@1": 0.1, "HR@10": 0.2, "NDCG@10": 0.15, "overlap": 0.9, "missed": 0.01}
    search = {
        "rows": 64,
        "exact": {"HR@1": 0.1, "HR@10": 0.21, "NDCG@10": 0.16},
        "widths": {"10": width},
        "pruned": [{"level": 1, "dropped": 0.0125, "rank": 17.0}, {"level": 2, "dropped": 0.0, "rank": None}],
    }
    lost = [{"level": 1, "lost": 0.4567, "rank": None}, {"level": 2, "lost": 0.1, "rank": 3.0}]
    whole = SimpleNamespace(
        per_user={"HR@10": cell(0.3123)},
        slices={"user": {"new": {"rows": 5, "share": 0.25, "HR@10": cell(0.2345)}}},
        exposure={"k": 10, "coverage": 0.375, "gini": None},
        lost=lost,
        search=search,
    )
    bare = SimpleNamespace(per_user=None, slices={}, exposure=None, lost=lost, search=None)
    tables = metric_tables({"whole": whole, "bare": bare})
    page = environment().from_string('{% from "tables.html" import more %}{{ more(tables) }}').render(tables=tables)
    for text in ("0.3123", "0.2345", "0.375", "0.4567", "place 3", "64 examples", "10 beams", "0.9000", "0.0125", "17"):
        assert text in page
    assert "gini" not in page.lower().split("coverage: share")[-1].split("<table>")[1]  # no recommender has it
    empty = metric_tables({"bare": bare})
    assert empty.per_user is empty.slices is empty.exposure is None and empty.search == []


def test_texts_of_a_table_are_escaped():
    table = Table(("<a>",), ("<b>",), (Row(("<c>",), (Cell("<d>", "<e>"), NO_VALUE)),))
    page = environment().from_string('{% from "tables.html" import show %}{{ show(table) }}').render(table=table)
    assert not re.search("<[abcde]>", page) and all(f"&lt;{letter}&gt;" in page for letter in "abcde") and "\N{EN DASH}" in page
