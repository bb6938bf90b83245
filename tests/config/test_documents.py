import contextlib
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minionerec import presets
from minionerec.cli import main
from minionerec.config.documents import DocumentError, LimitError, _PlainLoader, _value, parse_json, parse_yaml
from minionerec.errors import DataError
from minionerec.eval.lists import RankedLists
from tests.examples import examples

pytestmark = pytest.mark.fast

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]"
for _before, _name in zip("abcdefgh", "bcdefghi", strict=True):
    BOMB += f"\n{_name}: &{_name} [{', '.join([f'*{_before}'] * 9)}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "more than 30 levels of nesting"),
        ('{"a":' * 100_000, "more than 30 levels of nesting"),
        ("- " * 100_000, "more than 30 levels of nesting"),
        ("a: &a [*a]", "an alias that holds itself, line 1"),
        ("a: &a {b: *a}", "an alias that holds itself, line 1"),
        (BOMB, "more than 20,000 values once aliases are followed"),
        (f"lego:\n  mlp: {[8] * 1001}", "1,001 entries in one list, line 2; 1,000 at most"),
        ("x" * 1_000_001, "1,000,001 characters; 1,000,000 at most"),
        ("sft:\n  epochs: 1\nsid: {}\nsft:\n  epochs: 2", "'sft' stands twice in one mapping, lines 1 and 4"),
        ("sft: {epochs: 1, 'epochs': 2}", "'epochs' stands twice in one mapping"),
    ],
)
def test_yaml_has_limits(text, message, tmp_path, capsys):
    with pytest.raises(LimitError, match=message):
        parse_yaml(text)
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["run", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert "mine.yaml: not readable as YAML (" in " ".join(capsys.readouterr().err.split())


def test_a_value_on_the_command_line_has_the_same_limits(capsys):
    bomb = "{" + BOMB.replace("\n", ", ") + "}"
    for value in ("[" * 100_000, str([8] * 9000), "{a: &a [*a]}", "{epochs: 1, epochs: 2}", bomb):
        assert main(["run", "--sft", value]) == 2
        assert "command line: a value is not readable as YAML (" in " ".join(capsys.readouterr().err.split())
    assert main(["run", "--seed", "9" * 5000]) == 2
    assert "Expected a whole number." in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["a: " + "9" * 5000, "a: 2001-99-99", "? [a]\n: 1", "a: *b", "!!python/name:os.abort", "a: [", "\0"]
)
def test_what_is_no_yaml(text):
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text)
    assert not isinstance(caught.value, LimitError)


def test_honest_aliases_and_merges_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    assert parse_yaml("") is None


@examples(60)
@given(st.text(st.sampled_from("[]{}:,-&*!|>'\"#a1 \n"), max_size=40))
def test_no_text_ends_in_another_error(text):
    with contextlib.suppress(DocumentError):
        parse_yaml(text)


def test_presets_are_read_as_the_loader_in_python_reads_them():
    for path in presets.files().values():
        text = path.read_text(encoding="utf-8")
        assert parse_yaml(text) == _value(text, _PlainLoader) != {}


WORDS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
KEYS = st.text(max_size=8)


@examples(60)
@given(st.recursive(WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8))
def test_what_yaml_writes_is_read_as_the_loader_in_python_reads_it(values):
    text = yaml.safe_dump(values, allow_unicode=True)
    assert parse_yaml(text) == _value(text, _PlainLoader)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("9" * 5000, "more digits than Python reads"),
        ('["half \\ud800"]', r"half of a character, \\ud800"),
        ('{"\\uDFFF": 1}', r"half of a character, \\udfff"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice in one object"),
        ("[1", "Expecting"),
    ],
)
def test_json_has_limits(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text, distinct=True)


def test_a_name_twice_among_many_is_found_at_once():
    """With a million users in a file, one of them twice, nobody would have seen the message."""
    text = "{" + ", ".join(f'"{number}": 1' for number in [*range(100_000), 99_999]) + "}"
    began = time.process_time()
    with pytest.raises(DocumentError, match="'99999' stands twice"):
        parse_json(text, distinct=True)
    assert time.process_time() - began < 5


def test_honest_json_is_read():
    assert parse_json('{"a": "\\ud83d\\ude00", "a": 1}') == {"a": 1}
    assert parse_json('["\\ud83d\\ude00"]') == ["\U0001f600"]


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5000 + "]", '[{"a": "\\ud800"}]'])
def test_result_files_have_the_same_limits(text, tmp_path):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(DataError, match=r"file\.json"):
        RankedLists.read(tmp_path / "file.json")
