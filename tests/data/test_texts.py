"""Texts of items: lists, HTML and marks of missing values."""

import json
import time

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.data import texts
from tests.examples import examples

pytestmark = pytest.mark.fast

LETTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"], exclude_characters="&<>[]")
WORDS = st.text(LETTERS, min_size=1).filter(lambda word: word not in texts.MISSING)


@examples(40)
@given(words=st.lists(WORDS, max_size=5), write=st.sampled_from([repr, json.dumps]))
def test_a_list_as_text_is_its_entries(words, write):
    assert texts.prose(write(words)) == " ".join(words)
    assert texts.prose(write([words, None] if write is json.dumps else [words]), ", ") == ", ".join(words)


@examples(40)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="&<[\t\r\n"), max_size=20))
def test_text_without_markup_stays_as_it_is(text):
    column = pl.Series([text])
    expected = column.to_frame("text").select(texts.one_line(pl.col("text")))["text"][0]
    assert texts.without_markup(text) == text and not texts.has_markup(column)[0]
    assert texts.readable_column(column)[0] == ("" if expected in texts.MISSING else expected)


@examples(40)
@given(text=st.text(st.sampled_from("ab<>/&;#x1 pbi'\"[],"), max_size=30))
def test_what_is_readable_stays_readable(text):
    once = texts.readable_column(pl.Series([text]))
    assert not texts.has_markup(once)[0] and texts.without_markup(once[0]) == once[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Kid&#39;s Caf&eacute; Set", "Kid's Café Set"),
        ("<p>Nice <b>bold</b> &nbsp;text</p><script>evil()</script>", "Nice bold text"),
        ("one<br/>two<li>three", "one two three"),
        ("AT&amp;amp;T", "AT&T"),
        ("a &lt;b&gt;bold&lt;/b&gt; word", "a bold word"),
        ("&copy2010 R&notes; &unknown; a<b <3 x<y>z", "&copy2010 R&notes; &unknown; a<b <3 x<y>z"),
        ("<a_1><b_2> decoy", "<a_1><b_2> decoy"),
        ("<!-- old --> new <style>p {}", "new"),
        (f"&#{'9' * 5000}; a", f"&#{'9' * 5000}; a"),
        ("<script>a <!-- b</script> c <!-- d --> e <!-- f", "c e <!-- f"),
        ("['a' 'b'\n 'c']", "a b c"),  # a numpy array
        ("['nan', None, 'x']", "x"),
        (r"['It's\n old', 'and it\'s new']", "It's  old and it's new"),  # no list for Python: a quote has lost its escape
        ("[['a', 'b'], ['c']]", "a b c"),
        (r'["\ud83d\ude00 \ud83d"]', "😀 ?"),
        ("[sic] and [so on]", "[sic] and [so on]"),
        ("[" * 9999 + "]" * 9999, "[" * 9999 + "]" * 9999),
        *((mark, "") for mark in ("[]", "nan", "NaN", "None", "null", "['']", "[None]", "")),
        ("None of these", "None of these"),
    ],
)
def test_words(text, words):
    assert texts.readable_column(pl.Series([text])).to_list() == [words]


@pytest.mark.parametrize("text", ["<!--" * 50_000, "<script" * 50_000, "<a " * 50_000 + "<!-- -->"])
def test_markup_that_never_ends_costs_no_more_than_other_text(text):
    """A text of 80 KB took half a minute."""
    began = time.process_time()
    texts.readable(text)
    assert time.process_time() - began < 5


def test_genres_of_all_forms():
    forms = ["Action|Sci-Fi", "Action, Sci-Fi", "Action Sci-Fi", "['Action', 'Sci-Fi']", '["Action", "Sci-Fi"]']
    assert {texts.listed(form) for form in forms} == {"Action, Sci-Fi"}
    assert [texts.listed(mark) for mark in ("(no genres listed)", "[]", "nan", "")] == [""] * 4
