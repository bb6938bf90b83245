import json

import pytest

from minionerec.errors import CatalogError, ConfigError, DataError
from minionerec.eval.metrics import item_ranks, measure, ranks
from minionerec.eval.predictions import write_predictions
from minionerec.eval.result_json import codes_of, read_catalog, read_lists, read_released
from tests.eval.samples import random_predictions

pytestmark = pytest.mark.fast

RECORD = {
    "input": "### User Input: \nInteracted with items <a_1><b_2>, <a_0><b_0> in order\n\n### Response:\n<a_9><b_9>",
    "output": "<a_1><b_2>\n",
    "predict": ["<a_0><b_0>", "nothing", "<a_1><b_2>"],
}


def write(tmp_path, *records):
    path = tmp_path / "final_result.json"
    path.write_text(json.dumps(records, indent=4))
    return path


def test_a_record_by_hand(tmp_path):
    path = write(tmp_path, RECORD, {**RECORD, "output": '"<a_5><b_5>"\n', "input": ""})
    lists = read_lists(path)
    assert ranks(lists).tolist() == [2, float("inf")]
    assert lists.history_lengths.tolist() == [2, 0] and lists.repeats.tolist() == [True, False]
    assert item_ranks(lists) is None and measure(lists, resamples=10).item is None
    assert measure(lists, resamples=10).invalid == pytest.approx(1 / 3)


def test_a_catalog_gives_item_ranks_and_finds_invalid_sids(tmp_path):
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"0": ["<a_1>", "<b_2>"], "1": ["<a_0>", "<b_0>"], "2": ["<a_1>", "<b_2>"]}))
    assert read_catalog(index) == {(1, 2): 2, (0, 0): 1}
    info = tmp_path / "info.txt"
    info.write_text("<a_1><b_2>\tone\t0\n<a_0><b_0>\ttwo\t1\n<a_1><b_2>\tthree\t2\n")
    assert read_catalog(info) == read_catalog(index)
    lists = read_lists(write(tmp_path, {**RECORD, "predict": ["<a_0><b_0>", "<a_7><b_7>", "<a_1><b_2>"]}), read_catalog(index))
    best, ties = item_ranks(lists)
    assert (best.tolist(), ties.tolist()) == ([2], [2])
    assert lists.sids[0, 1].tolist() == [-1, -1]
    with pytest.raises(DataError, match=r"record 1: the target <a_8><b_8> is not in the catalog"):
        read_released(write(tmp_path, {**RECORD, "output": "<a_8><b_8>"}), read_catalog(index))
    index.write_text('{"0": ["<a_1>", "x"]}')
    with pytest.raises(CatalogError, match="item 0: '<a_1>x' is no SID"):
        read_catalog(index)


SUFFIXED = {
    "input": "### User Input: \nInteracted with items <a_1><b_2><c_0>, <a_0><b_0>, <a_1><b_2> in order\n\n### Response:\n",
    "output": "<a_0><b_0>\n",
    "predict": ["<a_1><b_2><c_1>", "<a_0><b_0>", "<b_0>"],
}


def test_sids_of_unequal_length_end_in_no_code(tmp_path):
    lists = read_lists(write(tmp_path, SUFFIXED, {**SUFFIXED, "output": "<a_1><b_2><c_1>", "predict": ["<a_1><b_2>"] * 3}))
    assert lists.target_sids.tolist() == [[0, 0, -1], [1, 2, 1]]
    assert lists.sids.tolist() == [[[1, 2, 1], [0, 0, -1], [-1, -1, -1]], [[1, 2, -1]] * 3]
    assert ranks(lists).tolist() == [1, float("inf")]
    assert lists.history_lengths.tolist() == [3, 3] and lists.repeats.tolist() == [True, False]
    assert measure(lists, resamples=10).invalid == pytest.approx(1 / 6)


def test_the_catalog_says_how_long_sids_are(tmp_path):
    catalog = {(0, 0): 1, (1, 2, 0): 1, (1, 2, 1): 1}
    lists = read_lists(write(tmp_path, {**SUFFIXED, "predict": ["<a_0><b_0>", "<a_1><b_2>", "<a_0><b_0><c_0><d_0>"]}), catalog)
    assert lists.sids.tolist() == [[[0, 0, -1], [-1, -1, -1], [-1, -1, -1]]]
    best, ties = item_ranks(lists)
    assert (best.tolist(), ties.tolist()) == ([0], [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "hello"}, "record 2: field output is"),
        ({"predict": "x"}, "record 2: field predict is"),
        ({"predict": []}, "record 2: field predict is"),
        ({"predict": ["<a_0><b_0>"]}, "record 2: 1 predictions, record 1 has 3; lists of unequal length"),
    ],
)
def test_malformed_records(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_lists(write(tmp_path, RECORD, RECORD | change))


def test_malformed_files(tmp_path):
    path = write(tmp_path, RECORD, RECORD)
    text = path.read_text()
    path.write_text(text[: text.rindex('"output"')])
    with pytest.raises(DataError, match=r"final_result.json, line \d+, column \d+: not valid JSON .*; the file is cut off"):
        read_lists(path)
    path.write_text(json.dumps([RECORD])[:-5])  # all on one line
    with pytest.raises(DataError, match=r"line 1, column \d\d\d: not valid JSON"):
        read_lists(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"found an empty list; expected a list of objects .*at least one"):
        read_lists(path)
    path.write_text('[{"output": }, {"output": "<a_1>"}]')
    with pytest.raises(DataError, match=r"column 13: not valid JSON \(Expecting value\)\. Run the"):  # not cut off
        read_lists(path)
    for text in ("[" * 100_000, "[1" + "0" * 5000 + "]"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"cannot be read \(.*(deep|digits)"):
            read_lists(path)
    with pytest.raises(DataError, match="not found"):
        read_lists(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_lists(tmp_path)


def test_a_title_with_a_line_separator_of_unicode_is_one_line(tmp_path):
    (tmp_path / "info.txt").write_text("<a_1><b_2><c_3>\tA\u2028B\t0\n<a_1><b_2><c_4>\tC\t1\n", encoding="utf-8")
    assert read_catalog(tmp_path / "info.txt") == {(1, 2, 3): 1, (1, 2, 4): 1}


def test_our_own_files_are_told_apart(tmp_path):
    write_predictions(tmp_path / "p.jsonl", random_predictions(users=3))
    assert read_lists(tmp_path / "p.jsonl").users.tolist() == ["u0", "u1", "u2"]
    with pytest.raises(ConfigError, match="needs no index of the catalog"):
        read_lists(tmp_path / "p.jsonl", {(0, 0, 0): 1})


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("<a_1><b_22>\n", (1, 22)),
        ('"<a_0>"', (0,)),
        ("<b_1>", None),
        ("<a_1> <b_1>", None),
        ("<a_1><b_1", None),
        ("<a_1><a_1>", None),
        ("<a_1>x", None),
        ("<a_99999999>", None),
        ("", None),
    ],
)
def test_codes_of_text(text, codes):
    assert codes_of(text) == codes


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = write(tmp_path, RECORD)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    index = tmp_path / "index.json"
    index.write_text('{"0": ["<a_1>", "<b_2>"]}', encoding="utf-8-sig")
    assert ranks(read_lists(path)).tolist() == [2] and read_catalog(index) == {(1, 2): 1}


@pytest.mark.parametrize(
    ("predicted", "output", "hit"),
    [
        ('"<a_1><b_2>"\n', "<a_1><b_2>\n", True),
        (" <a_1><b_2> ", ' "<a_1><b_2>"\n', True),
        (' "<a_1><b_2>"', "<a_1><b_2>", False),  # calc.py takes off quotes, then blanks
        ('"<a_1><b_2>" ', "<a_1><b_2>", False),
        ("<a_1><b_2>", ["<a_1><b_2>", "<a_0>"], True),
    ],
)
def test_texts_are_read_as_the_released_code_reads_them(tmp_path, predicted, output, hit):
    lists = read_lists(write(tmp_path, {"output": output, "predict": [predicted]}))
    assert bool(ranks(lists)[0] == 0) is hit
    if isinstance(output, str):
        assert hit is (predicted.strip('"\n').strip() == output.strip(' \n"'))
