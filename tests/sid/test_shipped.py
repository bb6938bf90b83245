import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.artifacts import Manifest, read_json
from minionerec.cli import main
from minionerec.config import SidConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import CatalogError, ConfigError
from minionerec.sid.index import SidIndex
from minionerec.sid.shipped import index_of_tokens, separate, separation
from tests.examples import examples
from tests.shared import shared
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


def sids(index):
    return [tuple(index.tokens(item)) for item in range(len(index.codes))]


@st.composite
def indices(draw):
    """SIDs of up to three levels with few codes, so that many are shared; some are short."""
    sizes = draw(st.sampled_from([(4,), (2, 3), (1, 6), (2, 2, 4)]))
    rows = st.tuples(*(st.integers(0, size - 1) for size in sizes), st.integers(0, len(sizes) - 1))
    drawn = draw(st.lists(rows, min_size=1, max_size=12))
    codes = np.array([row[:-1] for row in drawn], dtype=np.int32)
    if draw(st.booleans()):
        for row, (*_, missing) in zip(codes, drawn, strict=True):
            row[len(sizes) - missing :] = -1
    return SidIndex(codes, sizes, "")


def _codes_needed(sids, prefix):
    """How many codes next to a prefix its items need, each its own, and the longer SIDs that pass other codes."""
    depth = len(prefix)
    own = [sid[depth] for sid in sids if len(sid) == depth + 1 and sid[:depth] == prefix]
    passed = {sid[depth] for sid in sids if len(sid) > depth + 1 and sid[:depth] == prefix}
    return len(own) + len(passed - {*own})


@given(indices())
@examples(200)
def test_only_surplus_items_move_and_only_to_free_codes_of_their_prefix(index):
    before = sids(index)
    first = {sid: item for item, sid in reversed([*enumerate(before)])}
    if any(_codes_needed(before, sid[:-1]) > index.codebook_sizes[len(sid) - 1] for sid in before):
        with pytest.raises(CatalogError, match=r"--sid\.collisions suffix"):
            separate(index, "nearest-free")
        return
    separated = separate(index, "nearest-free")
    after = sids(separated)
    assert len(set(after)) == len(after) and separated.codebook_sizes == index.codebook_sizes
    for item, (old, new) in enumerate(zip(before, after, strict=True)):
        if first[old] == item:
            assert new == old
        else:
            assert new != old and new[:-1] == old[:-1] and new not in before
            assert not any(other[: len(new)] == new for other in after if other != new)
    moved = separation(index, separated)
    assert moved["moved_items"] == len(before) - len(set(before)) and moved["items"] == len(before)
    if moved["moved_items"] == 0:
        assert separated is index


@given(indices())
@examples(200)
def test_a_suffix_goes_to_all_that_share_and_to_nobody_else(index):
    before, separated = sids(index), separate(index, "suffix")
    after, sharing = sids(separated), Counter(before)
    assert len(set(after)) == len(after)
    for old, new in zip(before, after, strict=True):
        assert new[: len(old)] == old and len(new) == len(old) + (sharing[old] > 1)
    assert (separated is index) == (max(sharing.values()) == 1)


def test_the_nearest_number_wins_and_the_lower_of_two():
    index = SidIndex(np.array([[0, 5], [0, 5], [0, 4], [0, 5], [1, 8]], dtype=np.int32), (2, 9), "")
    assert separate(index, "nearest-free").codes.tolist() == [[0, 5], [0, 6], [0, 4], [0, 3], [1, 8]]


def test_a_full_prefix_is_named():
    index = SidIndex(np.array([[0, 0], [1, 0], [1, 1], [1, 1]], dtype=np.int32), (2, 2), "")
    message = r"Items 2 and 3 share the SID <a_1><b_1>, but all 2 last codes under <a_1> are taken.*--sid.collisions suffix"
    with pytest.raises(CatalogError, match=message):
        separate(index, "nearest-free")
    assert separate(index, "keep") is index
    assert separate(index, "suffix").codes.tolist() == [[0, 0, -1], [1, 0, -1], [1, 1, 0], [1, 1, 1]]


def test_every_item_s_own_last_code():
    index = SidIndex(np.array([[0, 5], [0, 5], [1, 3]], dtype=np.int32), (2, 6), "")
    own = separate(index, "item")
    assert own.codes.tolist() == [[0, 0], [0, 1], [1, 2]] and own.codebook_sizes == (2, 3)
    short = SidIndex(np.array([[0, 5], [1, -1]], dtype=np.int32), (2, 6), "")
    with pytest.raises(CatalogError, match=r"Item 1: its SID <a_1> has fewer levels"):
        separate(short, "item")


def test_a_27th_level_is_refused():
    index = SidIndex(np.zeros((2, 26), dtype=np.int32), (1,) * 26, "")
    with pytest.raises(CatalogError, match="27 levels; they are named a to z"):
        separate(index, "suffix")


def test_shipped_sids_have_no_distances_for_sinkhorn():
    with pytest.raises(ConfigError, match=r"sid\.collisions is sinkhorn.*expected nearest-free, suffix, item or keep"):
        SidConfig(shipped=True, collisions="sinkhorn")


@pytest.mark.parametrize(("name", "moved"), [("Industrial_and_Scientific", 16), ("Office_Products", 15)])
def test_the_released_catalogs_become_distinct(name, moved):
    rows = read_json(shared(f"data/amazon/index/{name}.index.json"))
    index = index_of_tokens([rows[str(item)] for item in range(len(rows))], DATASET)
    separated = separate(index, "nearest-free")
    assert index.collisions() > 0 and separated.collisions() == 0 and separated.codebook_sizes == index.codebook_sizes
    assert separation(index, separated)["moved_items"] == moved


def test_a_run_says_how_many_items_moved(tmp_path, capsys):
    index = {str(item): ["<a_0>", f"<b_{min(item, 3)}>"] for item in range(5)} | {"0": ["<a_0>", "<b_8>"]}
    options = write(tmp_path / "raw", index)
    assert main(["data", "prepare", *options]) == 0
    capsys.readouterr()
    assert main(["sid", *options]) == 0
    assert "moved_items 1, collision_rate_before 0.4" in capsys.readouterr().out
    assert SidIndex.load(tmp_path / "run/sid", Dataset.load(tmp_path / "run/data")).collisions() == 0
    assert main(["sid", *options, "--sid.collisions", "keep"]) == 2
    assert "is finished, but was made from some" in (shown := capsys.readouterr().err) and "sid.collisions" in shown
    assert main(["sid", *options, "--sid.collisions", "keep", "--replace"]) == 0
    manifest = Manifest.load(tmp_path / "run/sid")
    assert manifest.config == {"sid": {"shipped": True}} and manifest.metrics["collision_rate"] == 0.4
    assert json.loads((tmp_path / "run/sid/index.json").read_text()) == index
