import json

import numpy as np
import pytest

from minionerec.cli import main
from minionerec.errors import DataError
from minionerec.report.pair_audit import Tables, audit, published_tables, read_tables

pytestmark = pytest.mark.fast

COLUMNS = ["News", "Films", "Steam", "Overall"]


def clean(seed=0, rows=5):
    """Two tables in which nothing is wrong."""
    rng = np.random.default_rng(seed)
    values = {
        name: rng.uniform(low, low + 0.2, (rows, 3)).round(4) for name, low in (("Zero-shot, Generative", 0.5), ("SFT", 0.75))
    }
    whole = {name: np.column_stack([part, part.mean(axis=1).round(4)]) for name, part in values.items()}
    models = [f"model {number}" for number in range(rows)]
    return Tables(["News", "Films", "Games", "Overall"], {"Zero-shot, Generative": models, "SFT": models}, whole)


def kinds(tables):
    return sorted({finding.audit for finding in audit(tables)} - {"fine-tuned"})


def test_a_clean_table_has_no_finding_but_where_models_gained():
    findings = audit(clean())
    assert {finding.audit for finding in findings} == {"fine-tuned"} and len(findings) == 5
    assert not any("below zero-shot" in finding.text for finding in findings)


def spoil(change):
    tables = clean()
    change(tables.values["SFT"])
    return tables


def renewed(values):
    values[:, 3] = values[:, :3].mean(axis=1).round(4)


def copied(values):
    values[:, 1] = values[:, 0] + 0.005
    renewed(values)


def repeated(values):
    values[3] = values[1]


def low(values):
    values[2, 1] = 0.47
    renewed(values)


def narrow(values):
    values[:, 2] = [0.8, 0.801, 0.802, 0.803, 0.804]
    renewed(values)


def wrong(values):
    values[0, 3] += 0.002


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (copied, "near-duplicate columns"),
        (repeated, "repeated row"),
        (low, "below chance"),
        (narrow, "no spread"),
        (wrong, "wrong mean"),
    ],
)
def test_each_planted_defect_is_found_and_nothing_else(change, expected):
    assert kinds(spoil(change)) == [expected]


def test_random_negatives_are_flagged_by_the_name_of_the_column():
    tables = clean()._replace(columns=COLUMNS)
    [finding] = [finding for finding in audit(tables) if finding.audit == "random negatives"]
    assert finding.text.startswith("Steam:") and "popularity" in finding.text


def test_a_tuned_model_below_its_zero_shot_row_is_named():
    tables = clean()
    tables.values["SFT"][0, 0] = tables.values["Zero-shot, Generative"][0, 0] - 0.03
    tables.models["SFT"] = ["model 0-1", *tables.models["SFT"][1:]]
    told = [finding.text for finding in audit(tables) if finding.audit == "fine-tuned"]
    assert "is below zero-shot on News (-0.0300)" in told[0] and not any("below zero-shot" in text for text in told[1:])


def test_apc_follows_from_auc_and_carbon():
    rows = [{"model": "m", "items": "text", "values": [62.95, 32.0, 58.86]}]
    [finding] = [found for found in audit(clean()._replace(green=rows)) if found.audit == "carbon"]
    assert "m, text 22.0 to 22.0" in finding.text
    right, wrong, chance = ({**rows[0], **change} for change in ({"CO2E": 22}, {"CO2E": 30}, {"values": [49.0, 22.0, 1.0]}))
    texts = [found.text for found in audit(clean()._replace(green=[right, wrong, chance])) if found.audit == "carbon"]
    assert texts == [
        "m, text: ApC is 58.86, but AUC and CO2E give 43.17.",
        "m, text: AUC 49.00 is not above 50, so an ApC means nothing.",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a JSON file with columns and tables"),
        (
            '{"columns": ["a"], "tables": {"t": [{"model": "m", "values": [0.5, 0.6]}]}}',
            "table 't', row 1: expected a model and 1 numbers",
        ),
        ('{"columns": ["a"], "tables": {"t": [{"model": "m", "values": [56]}]}}', "numbers from 0 to 1"),
        ('{"columns": ["a"], "tables": {"t": [{"values": [0.5]}]}}', "expected a model"),
        ('{"columns": ["a"], "tables": {"t": 3}}', "table 't', row 1"),
        ('{"columns": ["a"], "tables": {"t": [{"model": "m", "values": [true]}]}}', "numbers from 0 to 1"),
        ('{"columns": ["a"], "tables": {"t": []}}', "have no rows"),
        ('{"columns": ["a"], "tables": {}}', "have no rows"),
        ('{"columns": "ab", "tables": {"t": [{"model": "m", "values": [0.5, 0.6]}]}}', "expected a list of distinct names"),
        ('{"columns": ["a", "a"], "tables": {"t": [{"model": "m", "values": [0.5, 0.6]}]}}', "distinct names of data sets"),
        ('{"columns": ["Overall"], "tables": {"t": [{"model": "m", "values": [0.5]}]}}', "distinct names of data sets"),
        (
            '{"columns": ["a"], "tables": {"t": [{"model": "m", "values": [0.5]}]}, "green": {"rows": [{"model": "m"}]}}',
            "green, row 1: expected model, items, and values of AUC",
        ),
        ("[" * 100_000, "not a JSON file with columns and tables"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json") as error:
        read_tables(tmp_path / "x.json")
    assert message in str(error.value)


def test_the_command_prints_one_line_for_each_finding(tmp_path, capsys):
    rows = [{"model": "m", "values": [0.6, 0.4]}, {"model": "n", "values": [0.6, 0.4]}]
    (tmp_path / "x.json").write_text(json.dumps({"columns": ["Steam", "Yelp"], "tables": {"t": rows}}))
    assert main(["pairs", "audit", str(tmp_path / "x.json")]) == 0
    printed = capsys.readouterr().out
    assert (
        "repeated row, t: m has the same figures as n" in printed
        and "random negatives" in printed
        and "below chance" in printed
    )
    assert main(["pairs", "audit", str(tmp_path / "none.json")]) == 2
    (tmp_path / "x.json").write_text(json.dumps({"columns": ["Yelp"], "tables": {"t": [{"model": "m", "values": [0.6]}]}}))
    assert main(["pairs", "audit", str(tmp_path / "x.json")]) == 0
    assert "x.json: nothing found in 1 rows." in capsys.readouterr().out


def test_the_published_tables_have_the_findings_that_are_known():
    findings = audit(published_tables())
    texts = {
        kind: [f"{found.table}: {found.text}" for found in findings if found.audit == kind]
        for kind in {f.audit for f in findings}
    }
    assert any(
        "MovieLens and MicroLens differ by at most 0.0054 in 10 of 11 rows" in text for text in texts["near-duplicate columns"]
    )
    assert any("Llama-3 has the same figures as Llama-3" in text for text in texts["repeated row"])
    assert texts["random negatives"] == [
        "all: MicroLens, Steam, H&M: dislikes are random items, so the figures measure popularity."
    ]
    assert len(texts["fine-tuned"]) >= 10
