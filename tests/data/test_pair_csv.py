import pytest

from minionerec.cli import main
from minionerec.config import Config, DataConfig, PairsConfig
from minionerec.data.bad_rows import Problems
from minionerec.data.dataset import Dataset
from minionerec.data.pair_csv import read_labelled_csv
from minionerec.data.pairs import PairSet
from minionerec.errors import ConfigError, DataError
from tests.data.test_pairs import rated_csv

pytestmark = pytest.mark.fast

ROWS = [(user, item, time, int(item % 3 > 0)) for user in "ab" for time, item in enumerate((1, 3, 2, 4, 0, 5), 1)]


def write(folder, rows=ROWS, header="user,item,timestamp,label"):
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    (folder / "items.csv").write_text("item,title\n" + "".join(f"{item},Film {item}\n" for item in range(6)))
    return folder


def read(folder, data=None, **fields):
    config = PairsConfig("csv", str(folder), test_share=1.0, **fields)
    return read_labelled_csv(folder, config, data or DataConfig(), 0, Problems())


def test_label_0_is_a_dislike_and_label_1_what_the_user_has_had(tmp_path):
    catalog, drawn, figures = read(write(tmp_path))
    rows = drawn.splits["test"].filter(user="a")
    assert {tuple(history) for history in rows["history"]} == {(1, 2)}  # the likes before the last two, oldest first
    assert sorted(rows.select("candidate", "label").iter_rows()) == [(0, 0), (3, 0), (4, 1), (5, 1)]
    assert len(catalog) == 6 and figures["dislikes"] == 4 and figures["dislikes_older_than_history"] == 2


def test_ratings_serve_if_there_are_no_labels(tmp_path):
    rated_rows = [(user, item, time, 5 if label else 1) for user, item, time, label in ROWS]
    drawn = read(write(tmp_path, rated_rows, "user,item,timestamp,rating")).drawn
    assert sorted(drawn.splits["test"].filter(user="a")["candidate"]) == [0, 3, 4, 5]


def test_items_without_title_are_left_out_with_their_rows(tmp_path):
    write(tmp_path)
    items = tmp_path / "items.csv"
    items.write_text(items.read_text().replace("Film 3", "nan"))
    with pytest.raises(DataError, match=r"items.csv, row 5: item '3' has no title"):
        read(tmp_path)
    problems, config = Problems(), PairsConfig("csv", str(tmp_path), test_share=1.0)
    catalog, drawn, _ = read_labelled_csv(tmp_path, config, DataConfig(missing_text="drop"), 0, problems)
    assert catalog["item_id"].to_list() == ["0", "1", "2", "4", "5"]
    assert sorted(catalog["item_id"].gather(drawn.splits["test"].filter(user="a")["candidate"])) == ["0", "4", "5"]
    assert problems.counts["dropped_items_without_text"] == 1 and problems.counts["dropped_interactions_unlisted"] == 2


def test_what_labels_cannot_be(tmp_path):
    with pytest.raises(DataError, match=r"interactions.csv, row 2: label '2' is neither 0 nor 1"):
        read(write(tmp_path, [("a", 1, 1, 2), *ROWS]))
    with pytest.raises(ConfigError, match=r"pairs.positive is 4.0, but .*interactions.csv has a column of labels"):
        read(write(tmp_path), positive=4.0)
    with pytest.raises(DataError, match=r"interactions.csv: has no column label \(0 or 1\), and none of ratings"):
        read(write(tmp_path, [row[:3] for row in ROWS], "user,item,timestamp"))
    with pytest.raises(DataError, match=r"interactions.csv: every label is 1; expected both 0 \(disliked\) and 1"):
        read(write(tmp_path, [(*row[:3], 1) for row in ROWS]))
    with pytest.raises(DataError, match=r"interactions.csv: has no rows below its header"):
        read(write(tmp_path, []))


def test_columns_of_other_names_are_named_without_another_source_of_data(tmp_path, capsys):
    """`data.columns` was refused unless `data.source` was csv, too, though these files are not the Dataset's."""
    folder = write(tmp_path, header="user,item,timestamp,verdict")
    config = Config(data=DataConfig(columns={"label": "verdict"}), pairs=PairsConfig("csv", str(folder)))
    assert len(read(folder, config.data).drawn.splits["test"])
    assert main(["pairs", "prepare", "--out", str(tmp_path / "run"), "--pairs.source", "csv", "--pairs.path", "nowhere"]) == 2
    assert "nowhere: not a folder. pairs.path is" in capsys.readouterr().err


def test_the_same_files_serve_pairs_and_the_pipeline_and_no_dislike_is_an_interaction(tmp_path, capsys, caplog):
    config = rated_csv(tmp_path)
    raw = tmp_path / "raw" / "interactions.csv"
    header, *lines = raw.read_text().splitlines()
    labelled = [f"{line.rpartition(',')[0]},{int(line.rpartition(',')[2] > '3')}" for line in lines]
    raw.write_text("\n".join([header.replace("rating", "label"), *labelled]) + "\n")
    assert main(["pairs", "prepare", "--config", str(config)]) == 2
    assert "--data.positive 1 takes those with a label of at least 1" in " ".join(capsys.readouterr().err.split())
    positive = ["--data.positive", "1", "--pairs.last_positives", "1"]
    assert main(["pairs", "prepare", "--config", str(config), *positive]) == 0
    assert "which would be true dislikes" in caplog.text
    likes = [line for line in labelled if line.endswith(",1")]
    assert 0 < len(Dataset.load(tmp_path / "run" / "data").interactions) <= len(likes)
    own = ["--pairs.source", "csv", "--pairs.path", str(tmp_path / "raw"), "--out", str(tmp_path / "own")]
    assert main(["pairs", "prepare", "--config", str(config), *own]) == 0
    pairs = PairSet.load(tmp_path / "own" / "pairs")
    kinds = {tuple(line.split(",")[:2]): int(line[-1]) for line in labelled}
    ids = pairs.catalog["item_id"].to_list()
    rows = list(pairs.test.iter_rows(named=True))
    assert rows and all(kinds[row["user"], ids[row["candidate"]]] == row["label"] for row in rows)
    assert all(kinds[row["user"], ids[item]] == 1 for row in rows for item in row["history"])
