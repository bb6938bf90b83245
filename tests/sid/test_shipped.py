import json

import numpy as np
import pytest

from minionerec.cli import main
from minionerec.data.dataset import Dataset
from minionerec.errors import CatalogError
from minionerec.sid.index import SidIndex
from minionerec.sid.shipped import index_of_tokens
from tests.small import random_dataset

DATASET, _ = random_dataset(users=6, items=4)


def write(folder, index):
    folder.mkdir()
    sequences = {f"u{user}": [(user + step) % 5 for step in range(5)] for user in range(6)}
    (folder / "Toys.inter.json").write_text(json.dumps(sequences))
    if index is not None:
        (folder / "Toys.index.json").write_text(json.dumps(index))
    options = ["--data.source", "letter", "--data.path", str(folder), "--sid.shipped", "true", "--data.user_k", "3"]
    return [*options, "--out", str(folder.parent / "run")]


def test_a_run_takes_the_sids_of_its_files(tmp_path, capsys):
    index = {str(item): [f"<a_{item // 2}>", f"<b_{7 * (item % 2)}>"] for item in range(5)}
    options = write(tmp_path / "raw", index)
    assert main(["data", "prepare", *options]) == 0
    assert main(["sid", *options]) == 0
    dataset = Dataset.load(tmp_path / "run/data")
    found = SidIndex.load(tmp_path / "run/sid", dataset)
    assert [found.tokens(item) for item in range(5)] == [index[item] for item in dataset.catalog["item_id"].to_list()]
    assert found.codebook_sizes == (3, 8) and not found.codebooks
    assert json.loads((tmp_path / "run/sid/index.json").read_text()) == index
    capsys.readouterr()
    assert main(["sid", *options]) == 0
    assert "up to date" in capsys.readouterr().out
    moved = (tmp_path / "raw").rename(tmp_path / "elsewhere")  # a finished stage needs its source no longer
    assert main(["sid", *options]) == 0
    assert "up to date" in capsys.readouterr().out
    moved.rename(tmp_path / "raw")
    assert main(["sid", "inspect", *options]) == 0
    assert (tmp_path / "run/sid-inspect/index.html").is_file()
    assert main(["sid", "append", *options[:-1], str(tmp_path / "new"), "--base", str(tmp_path / "run")]) == 2
    (tmp_path / "raw/Toys.index.json").write_text(json.dumps(index | {"0": ["<a_9>", "<b_0>"]}))
    for stage in (["data", "prepare"], ["sid"]):
        assert main([*stage, *options]) == 2  # each is finished, and asks in turn
        assert "Toys.index.json: changed" in (shown := capsys.readouterr().err) or "input data: changed" in shown
        assert main([*stage, *options, "--replace"]) == 0
    assert SidIndex.load(tmp_path / "run/sid", dataset).codebook_sizes == (10, 8)


def test_a_source_without_sids_is_refused(tmp_path, capsys):
    options = write(tmp_path / "raw", None)
    assert main(["data", "prepare", *options]) == 0
    assert main(["sid", *options]) == 2
    assert "brings no semantic IDs" in capsys.readouterr().err
    assert not (tmp_path / "run/sid").exists()


def test_short_sids_end_in_no_code():
    codes = index_of_tokens([["<a_1>", "<b_0>"], ["<a_0>"], ["<a_2>"], ["<a_1>", "<b_1>"]], DATASET).codes
    np.testing.assert_array_equal(codes, [[1, 0], [0, -1], [2, -1], [1, 1]])


def test_codes_far_above_the_number_of_items_are_refused():
    assert index_of_tokens([["<a_65535>", "<b_0>"]], DATASET).codebook_sizes == (65536, 1)
    with pytest.raises(CatalogError, match=r"Item 1: <b_16000000> asks for 16,000,001 tokens at level 2, .* below 65,536"):
        index_of_tokens([["<a_1>", "<b_0>"], ["<a_0>", "<b_16000000>"]], DATASET)


@pytest.mark.parametrize("token", ["<b_1>", "a_1", "<a_-1>", "<a_01>", "<a_99999999>"])
def test_a_token_of_another_level_is_named(token):
    with pytest.raises(CatalogError, match=r"Item 1: token 1 of its SID is .* expected one like <a_0>"):
        index_of_tokens([["<a_1>"], [token]], DATASET)
