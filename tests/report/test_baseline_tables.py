"""The published tables next to our rows: what our intervals say of the published values, and what was not run."""

import io

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from minionerec import presets
from minionerec.artifacts import Recipe
from minionerec.config import BaselineConfig
from minionerec.config.documents import parse_yaml
from minionerec.report.baseline_tables import published_rows, published_table

USERS = 1090


def given_ranks(runs, preset, ranks):
    """A finished baseline in the run of a preset, with these test ranks."""
    options = parse_yaml(presets.files()[preset].read_text(encoding="utf-8"))["baseline"]
    config = {"weights": None, "protocol": options["protocol"]}
    with Recipe("baselines/x", runs / preset / "baselines" / options["model"], {"baseline": config}, {}, 1).write() as draft:
        pl.DataFrame({"rank": ranks}).write_parquet(draft.path / "test.parquet")


def ranks_of(hits):
    """So many targets at the first rank, the others in no list."""
    return np.where(np.arange(USERS) < hits, 0.0, np.inf)


def words(table):
    """What is said of our intervals of the first two metrics, HR@10 and NDCG@10, by row."""
    columns = [list(column.cells) for column in table.columns]
    return {name: tuple(columns[place][row].partition("\n")[2] for place in (3, 5)) for row, name in enumerate(columns[0])}


def test_a_word_says_where_our_interval_lies(tmp_path):
    for preset, hits in (("lastfm-wearec", 89), ("lastfm-pswrec-v5", 500), ("lastfm-pswrec-v12", 2), ("lastfm-sasrec", 89)):
        given_ranks(tmp_path, preset, ranks_of(hits))
    table = published_table("lastfm", tmp_path)
    word, caption = words(table), str(table.caption)
    assert word["WEARec Official"] == ("within noise", "above")  # .0817 of both; published .0817 and .044
    assert word["PSWRecV5 (WOF, tuned)"] == ("above", "above") and word["PSWRecV12 (WOF)"] == ("below", "below")
    assert word["SASRec"] == word["PSWRecV13 (AM-B-RoPE)"] == ("", "")  # nothing published; not run
    names = "lastfm-pswrec-v13 lastfm-pswrec-v14 lastfm-pswrec-v13-without-rotation lastfm-gru4rec lastfm-popularity"
    command = f"for preset in {names} lastfm-item-knn lastfm-markov; do minionerec baseline --config $preset"
    assert f"{command} --out {tmp_path}/$preset; done" in caption and "Not run: PSWRecV13 (AM-B-RoPE), " in caption


def test_a_later_run_has_a_word_of_its_own_and_the_table_fits_the_screen(tmp_path):
    given_ranks(tmp_path, "beauty-sasrec", np.where(np.arange(22_363) < 1883, 4.0, np.inf))  # HR@10 .0842; .0736 was published
    table = published_table("beauty", tmp_path)
    assert words(table)["SASRec"] == ("above / within noise", "below / below")
    screen = Console(file=io.StringIO(), width=200)
    screen.print(table)
    assert "│ SASRec " in screen.file.getvalue() and "│    877,824 │" in screen.file.getvalue()


@pytest.mark.parametrize("table", ["beauty", "lastfm"])
def test_every_preset_of_a_table_s_data_has_a_row(table):
    rows = [row["preset"] for row in published_rows(table)["rows"]]
    baselines = {
        name: BaselineConfig(**values["baseline"])
        for name, path in presets.files().items()
        if "baseline" in (values := parse_yaml(path.read_text(encoding="utf-8")))
    }
    read = baselines[rows[0]].protocol, baselines[rows[0]].sequences
    assert {*rows} == {name for name, config in baselines.items() if (config.protocol, config.sequences) == read}
    assert len(rows) == len({*rows})
