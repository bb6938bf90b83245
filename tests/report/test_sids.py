"""`minionerec sid inspect`, `compare` and `append` as a user runs them, on a small run."""

import json
import re

import pytest

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.report import sids
from tests import small


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sids")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIONEREC_CACHE", str(folder / "cache"))
        made = small.config(folder)
        assert main(["data", "prepare", "--config", str(folder / "small.yaml")]) == 0
        assert main(["sid", "--config", str(folder / "small.yaml")]) == 0
        yield made, str(folder / "small.yaml")


def test_inspect_prints_figures_and_writes_a_page(config, capsys):
    made, path = config
    assert main(["sid", "inspect", "--config", path]) == 0
    shown = capsys.readouterr().out
    for figure in ("collision rate", "perplexity", "neighbours 1", "copurchase 2", "next entropy", "balance"):
        assert figure in shown
    page = (made.folder / "sid-inspect" / "index.html").read_text()
    assert "Plotly" in page and not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])["data"][0]
    items = [node for node in data["ids"] if node.startswith("item ")]
    assert data["type"] == "treemap" and len(items) == Manifest.load(made.folder / "sid").metrics["items"]
    assert set(data["parents"]) - {""} <= set(data["ids"])
    before = page.encode()
    assert sids.write_sid_page(made)[1] is False
    (made.folder / "sid-inspect" / "index.html").unlink()
    assert sids.write_sid_page(made)[1] is True and (made.folder / "sid-inspect" / "index.html").read_bytes() == before


def test_compare_prints_a_row_per_method(config, capsys):
    _, path = config
    assert main(["sid", "compare", "--config", path, "--methods", "rq-kmeans,pq"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^│? *rq-kmeans .*\d", shown, re.M) and " pq " in shown and "rq-vae" not in shown
    assert main(["sid", "compare", "--config", path, "--methods", "rq-means"]) == 2
    assert "--methods rq-means: there is no such method" in capsys.readouterr().err


def test_append_needs_a_base(config, capsys):
    _, path = config
    assert main(["sid", "append", "--config", path]) == 2
    assert "needs --base RUN" in capsys.readouterr().err
    assert main(["sid", "append", "--config", path, "--base", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_titles_cannot_write_into_the_page():
    import numpy as np

    from minionerec.sid.index import SidIndex

    index = SidIndex(np.array([[0, 1], [1, 0]], dtype=np.int32), (2, 2), "digest")
    drawn = str(sids.treemap(index, ["</script><b>x", "y & z"]))
    assert drawn.count("</script>") == 1 and "<b>" not in drawn
