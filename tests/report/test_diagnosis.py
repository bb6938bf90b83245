import re

import pytest

from minionerec.report.build import run
from minionerec.report.diagnosis import over_sharpened, reading
from tests.report.run_folder import make_run
from tests.report.test_page import Page


def cell(value, half=0.01):
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "p": 0.5,
        "detectable": 0.02,
        "noise": abs(value) <= half,
    }


def differences(top, deep):
    return {"HR@1": cell(top), "HR@10": cell(0.0), "HR@50": cell(deep), "NDCG@10": cell(0.0)}


@pytest.mark.parametrize(("top", "deep", "expected"), [(0.02, -0.03, True), (0.02, -0.005, False), (-0.02, -0.03, False)])
def test_over_sharpened(top, deep, expected):
    assert over_sharpened(differences(top, deep)) is expected


def test_the_reading_names_what_is_beyond_noise():
    said = " ".join(reading({}, {}, differences(0.02, -0.03), [{"step": 1, "kl": 0.1}, {"step": 2, "kl": 0.05}]))
    assert "better than SFT beyond noise at HR@1." in said and "worse than SFT beyond noise at HR@50." in said
    assert "over-sharpened" in said and "0.0500 at the end, 0.1000 at most" in said
    quiet = " ".join(reading({}, {}, differences(0.0, 0.0), []))
    assert "At no cut-off" in quiet and "0.0200 in NDCG@10" in quiet and "over-sharpened" not in quiet


def test_the_page_of_a_run(tmp_path):
    config = make_run(tmp_path, users=40)
    run(config)
    page = Page(tmp_path / "report/rl.html")
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == ["reading", "cutoffs", "levels", "slices", "sharpness", "training"]
    for words in ("MRR@50", "target popularity", "intra-list diversity", "KL divergence from the SFT model"):
        assert words in page.words
    assert not re.search(r"built-in|object at 0x|Undefined|\bNone\b|\bnan\b", page.words)
    assert {"index.html", "rl.html", "paper_gap.html", "paper_gap.md", "paper_gap.json", "manifest.json"} == {
        path.name for path in (tmp_path / "report").iterdir()
    }
