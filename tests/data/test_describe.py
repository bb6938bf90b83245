"""The facts: small ones by hand, the real files against the figures that were measured on them before."""

import json

import polars as pl
import pytest

from minionerec.cli import main
from minionerec.config import DataConfig
from minionerec.data import prepare, released
from minionerec.data.bad_rows import Problems
from minionerec.data.dataset import SPLIT_SCHEMA, Dataset
from minionerec.data.describe import facts
from minionerec.report.dataset_page import render_dataset_page
from tests.shared import shared
from tests.small import write_config

# What a study of the released code's files found: design notes, section "Dataset facts that shape any metric".
KNOWN = {
    "Industrial_and_Scientific": {
        "shared": (31, 15, 3, 11), "targets": (238, 317), "lost": 0.0243,
        "top": ("<a_107><b_93><c_0>", 200, {"181": 132, "182": 68}),
        "constant": (0.0441, 0.0754, 0.1628), "items": (0.0291, 0.0684, 0.1546), "repeats": (0.0282, 0.0474, 0.0435, 0.0269),
        "absent": (0.698, 0.065), "later": 2546, "titles": 5,
    },
    "Office_Products": {
        "shared": (30, 15, 2, 15), "targets": (50, 84), "lost": 0.0070, "top": ("<a_255><b_211><c_133>", 41, {"8": 41}),
        "constant": (0.0078, 0.0436, 0.1443), "items": (0.0078, 0.0395, 0.1426), "repeats": (0.0245, 0.0316, 0.0195, 0.0156),
        "absent": (0.779, 0.087), "later": 2842, "titles": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("category", KNOWN)
def test_the_real_files_have_the_known_facts(category):
    folder = shared("data/amazon")
    config = DataConfig(source="released", path=str(folder), category=category)
    dataset = released.read(folder, config, Problems())
    found, known = facts(dataset, ["".join(row) for row in dataset.sids["tokens"]]), KNOWN[category]
    sids, splits, leaks = found["semantic IDs"], found["splits"], found["leaks"]
    assert (
        sids["items that share a SID"],
        sids["shared SIDs"],
        sids["most items of one SID"],
        sids["shared SIDs whose items have the same title and description"],
    ) == known["shared"]
    assert (sids["valid targets in a shared SID"], sids["test targets in a shared SID"]) == known["targets"]
    assert sids["item HR lost if each SID meant its most frequent test item"] == pytest.approx(known["lost"], abs=5e-5)
    assert (sids["most frequent test SID"], sids["its test rows"], sids["its items"]) == known["top"]
    constant = sids["constant predictor, most frequent SIDs of valid"]
    assert tuple(constant.values()) == pytest.approx(known["constant"], abs=6e-5)
    assert tuple(found["constant predictor"]["most frequent targets of valid"].values()) == pytest.approx(
        known["items"], abs=6e-5
    )
    assert (
        found["repeats"]["test"]["target in history"],
        sids["test target's SID in the history"],
        sids["repeat last HR@1"],
        found["constant predictor"]["repeat last HR@1"],
    ) == pytest.approx(known["repeats"], abs=6e-5)
    absent = (splits["test rows of users without a valid row"], splits["test targets never seen in a valid row"])
    assert absent == pytest.approx(known["absent"], abs=6e-4)
    assert leaks["later test rows of a user"] == leaks["of these, with an earlier test target in the history"] == known["later"]
    assert sids["titles with more than one SID"] == known["titles"]
    assert leaks["train rows that hold a test interaction"] == 0


def split(*rows):
    return pl.DataFrame(rows, schema=SPLIT_SCHEMA, orient="row")


def test_leaks_and_cold_items_by_hand():
    catalog = pl.DataFrame({"item_id": list("abcd"), "title": ["A", "A", "C", "D"], "text": ["A", "A", "", "D"]})
    dataset = Dataset(
        catalog,
        train=split(("u", [0, 1], 2, 30, 2), ("v", [0], 1, 90, 1)),  # u's row covers the valid target, v's comes after test
        valid=split(("u", [0], 1, 20, 1)),
        test=split(("u", [0, 1, 2], 3, 40, 3), ("w", [1], 1, 40, 1)),
    )
    found = facts(dataset, ["x", "x", "y", "z"])
    assert found["leaks"]["train rows that hold a valid interaction"] == 1
    assert found["leaks"]["train rows that hold a test interaction"] == 0
    assert found["leaks"]["train targets after the first test target"] == 0.5
    assert found["splits"]["cold items among test targets"] == 1
    assert found["splits"]["test targets never seen in train"] == 0.5
    assert found["splits"]["test rows of users without a train row"] == 0.5
    assert found["splits"]["users in valid and test"] == 1
    assert found["repeats"]["test"] == {"target in history": 0.5, "target is the last item": 0.5}
    assert found["size"]["users"] == 3 and found["size"]["interactions"] == 8
    assert found["size"]["sparsity"] == pytest.approx(1 - 7 / 12)
    assert found["texts"]["items without text"] == 1 and found["texts"]["items with such a title"] == 2
    assert found["time"]["test"] == {"first target": "1970-01-01", "last target": "1970-01-01"}
    assert found["popularity"]["curve"][-1] == (1.0, 1.0)
    assert found["semantic IDs"]["shared SIDs"] == 1 and found["semantic IDs"]["test targets in a shared SID"] == 1


def test_a_share_of_nothing_is_no_number():
    """Of an empty split, and of cut-offs beyond the items that a constant list has."""
    catalog = pl.DataFrame({"item_id": list("abc"), "title": list("ABC"), "text": list("ABC")})
    dataset = Dataset(catalog, train=split(("u", [0], 1, 30, 1)), valid=split(), test=split(("u", [0, 1], 2, 40, 2)))
    sections = facts(dataset, None)
    assert sections["repeats"]["valid"] == {"target in history": None, "target is the last item": None}
    assert sections["splits"]["valid targets never seen in train"] is None
    assert sections["constant predictor"]["most frequent targets of train"] == {"HR@1": 0.0}
    assert sections["constant predictor"]["most frequent targets of valid"] == {}
    page = render_dataset_page(sections, "small")
    assert ">None<" not in page and ">nan<" not in page and "HR@10" not in page


def test_times_and_ratings_where_the_source_has_them():
    rows = [
        ("u", "a", 0, 5.0),
        ("u", "b", 86_400, 1.0),
        ("u", "b", 86_401, 1.0),
        ("u", "c", 172_800, 2.0),
        ("u", "a", 172_800, 3.0),
    ]
    schema = {"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float32}
    items = pl.DataFrame({"item_id": list("abc"), "title": list("abc"), "text": list("abc")})
    dataset, _ = prepare.build_dataset(
        pl.DataFrame(rows, schema=schema, orient="row"), items, DataConfig(source="csv", path="x")
    )
    found = facts(dataset)
    assert found["repeats"]["test"]["target has the last item's timestamp"] == 1.0
    assert found["repeats"]["valid"]["target has the last item's timestamp"] == 0.0
    assert found["repeats"]["train"]["target is the last item"] == 0.5
    assert (
        found["repeats"]["valid"]["target rated 2 or less"] == 1.0 and found["repeats"]["test"]["target rated 2 or less"] == 0.0
    )
    assert found["time"]["different timestamps"] == 4 and found["time"]["whole days only"] is False
    assert "semantic IDs" not in found


def test_the_commands_describe_and_export(tmp_path, capsys):
    path = str(write_config(tmp_path))
    assert main(["data", "describe", "--config", path]) == 2
    assert "minionerec data prepare" in capsys.readouterr().err
    assert main(["data", "prepare", "--config", path]) == 0
    page, values = tmp_path / "page.html", tmp_path / "facts.json"
    assert main(["data", "describe", "--config", path, "--html", str(page), f"--json={values}"]) == 0
    printed = capsys.readouterr().out
    assert "popularity" in printed and "train rows that hold a test interaction" in printed
    assert json.loads(values.read_text())["size"]["users"] == 40
    html = page.read_text()
    assert html.count('class="plot"') == 2 and "http-equiv" not in html and 'src="http' not in html
    assert "Sparsity" in html or "sparsity" in html
    assert main(["data", "export", "--config", path, "--layout", "recbole", "--to", str(tmp_path / "r")]) == 0
    (tmp_path / "r" / "small.inter").write_text("mine")
    assert main(["data", "export", "--config", path, "--layout", "recbole", "--to", str(tmp_path / "r")]) == 2
    assert "holds files already" in capsys.readouterr().err and (tmp_path / "r" / "small.inter").read_text() == "mine"
    assert main(["data", "export", "--config", path, "--layout", "recbole", "--to", str(tmp_path / "r"), "--replace"]) == 0
    assert (tmp_path / "r" / "small.inter").read_text() != "mine"
    assert main(["data", "export", "--config", path, "--layout", "released", "--to", str(tmp_path / "x")]) == 2
    assert "Make them first: minionerec sid" in capsys.readouterr().err
    assert main(["sid", "--config", path]) == 0
    assert main(["data", "export", "--config", path, "--layout", "released", "--to", str(tmp_path / "x")]) == 0
    assert (tmp_path / "x" / "test" / "small.csv").read_text().startswith("user_id,history_item_title,")
    assert main(["data", "describe", "--config", path]) == 0
    assert "shared SIDs" in capsys.readouterr().out
    for wrong in (["--layout", "excel", "--to", "x"], ["--layout", "recbole"], ["--to"]):
        assert main(["data", "export", "--config", path, *wrong]) == 2
    assert main(["data", "describe", "--config", path, "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
