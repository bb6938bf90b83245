"""The texts of items: lists become prose, HTML goes, marks of missing values count as missing; and what is embedded.

Files hold texts in many forms: the repr of a Python or numpy list, JSON, HTML from a shop's page, `nan` from pandas. `readable`
gives the words. A catalog keeps descriptions, brands and categories as its source spells them; titles and the embedded text are
readable.
"""

import ast
import html
import io
import json
import re
import tokenize
from html.entities import html5

import polars as pl

from minionerec.errors import DataError

# What programs write where there is no value. Only these very spellings: `none` or `Nan` may be a title.
MISSING = frozenset({"[]", "{}", "''", '""', "nan", "NaN", "None", "null", "NULL", "<NA>", "(no genres listed)"})
_ENTITY = re.compile(r"&(?:#\d{1,99}|#[xX][0-9a-fA-F]{1,99}|[a-zA-Z][a-zA-Z0-9]*);")  # Python reads no thousands of digits
_ESCAPES = 3  # shops escape twice, some three times: &amp;amp;quot;
_UNSEEN = re.compile(r"<!--.*?-->|<(script|style)\b[^>]{0,1000}>.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
# Tags by name, so that `a < b`, `<3` and semantic IDs such as <a_17> stay.
_BLOCK = (
    "address|article|aside|blockquote|body|br|caption|center|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|h[1-6]|"
    "head|header|hr|html|iframe|img|input|legend|li|main|map|meta|nav|noscript|object|ol|option|p|param|pre|script|section|select|"
    "style|summary|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul|video"
)
_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|blink|button|cite|code|del|dfn|em|font|i|ins|kbd|label|link|mark|nobr|q|s|samp|small|span|strike|"
    "strong|sub|sup|time|tt|u|var|wbr"
)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_SUSPECT = r"[<&]|^\s*\["  # nothing else is looked at one by one


def prose(text: str, separator: str = " ") -> str:
    """A list that was stored as text, as prose; other text stays.

    Args:
        separator: stands between the entries.

    >>> prose("['Steel.', '150 mm']"), prose('["Tools", null]', ", "), prose("[sic] a bracket of the author's own")
    ('Steel. 150 mm', 'Tools', "[sic] a bracket of the author's own")
    """
    values = _list(text)
    return text if values is None else separator.join(_entries(values, separator))


def _list(text: str) -> list[object] | None:
    """The list behind a text; None if it is no list."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, _literal):  # JSON first: Python reads its escapes of emoji as halves of characters
        try:
            values = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            continue
        if isinstance(values, list):
            return values
    # A list whose inner quotes someone has changed is none any more, but still looks like one.
    if match := re.fullmatch(r"""\[(['"])(.*)\1\]""", text, re.DOTALL):
        mark, inner = match[1], re.sub(r"\\[nrt]", " ", match[2])
        return [re.sub(r"""\\(['"])""", r"\1", part) for part in inner.split(f"{mark}, {mark}")]
    return None


def _literal(text: str) -> object:
    """A Python literal; numpy separates the strings of an array by white space, which Python would join to one."""
    if re.search(r"""['"]\s+['"]""", text):
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string.strip()]
        pairs = zip(tokens, [*tokens[1:], None], strict=True)
        text = " ".join(
            token.string + ("," if following and token.type == following.type == tokenize.STRING else "")
            for token, following in pairs
        )
    return ast.literal_eval(text)


def _entries(values: list[object], separator: str) -> list[str]:
    entries: list[str] = []
    for value in values:
        if isinstance(value, list | tuple):
            entries += _entries(list(value), separator)
        elif value is not None and str(value) not in MISSING:
            entries.append(str(value).encode("utf-8", "replace").decode())  # half a character is none
    return entries


def without_markup(text: str) -> str:
    """Text without HTML: entities become their characters; tags, comments and scripts go. Text without any stays as it is.

    >>> without_markup("<p>Nice <b>bold</b> &nbsp;text</p><script>x()</script>"), without_markup("AT&T <3 R&D; a < b")
    ('Nice bold text', 'AT&T <3 R&D; a < b')
    """
    plain = text
    for _ in range(_ESCAPES):
        plain = _ENTITY.sub(_character, plain)
    plain = _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", _without_unseen(plain)))
    return text if plain == text else " ".join(plain.split())


def _without_unseen(text: str) -> str:
    """Text without comments and scripts. A comment that never ends is none: with thousands, each would be read to the end."""
    end = max(text.rfind("-->"), 0)
    hidden = text[:end] + text[end:].replace("<!--", "<\0!--")
    return _UNSEEN.sub(" ", hidden).replace("<\0!--", "<!--")


def _character(entity: re.Match[str]) -> str:
    """What an entity stands for; an unknown one stays, where `html.unescape` would take `&notes;` for `&not` and `es;`."""
    name = entity[0]
    return html.unescape(name) if name[1] == "#" or name[1:] in html5 else name


def readable(text: str, separator: str = " ") -> str:
    """One text as words: a list as prose, without HTML, empty if it only marks a missing value.

    >>> readable("['Kid&#39;s <i>set</i>', 'nan']"), readable("nan"), readable("[]")
    ("Kid's set", '', '')
    """
    plain = without_markup(prose(text, separator))
    return "" if plain.strip() in MISSING else plain


def readable_column(column: pl.Series, separator: str = " ") -> pl.Series:
    """`readable` of every text, in one line; null becomes empty."""
    lines = column.cast(pl.String).fill_null("")
    suspects = lines.str.contains(_SUSPECT)
    if suspects.any():
        values = [
            readable(text, separator) if look else text for text, look in zip(lines.to_list(), suspects.to_list(), strict=True)
        ]
        lines = pl.Series(lines.name, values, dtype=pl.String)
    lines = lines.to_frame("text").select(one_line(pl.col("text")))["text"].rename(column.name)
    return lines.set(lines.is_in(list(MISSING)), "")


def has_markup(column: pl.Series) -> pl.Series:
    """Which texts have HTML in them, behind which the words are others."""
    looks = column.fill_null("").str.contains(r"[<&]")
    texts = column.fill_null("").to_list()
    return pl.Series([look and without_markup(text) != text for text, look in zip(texts, looks, strict=True)], dtype=pl.Boolean)


def one_line(column: pl.Expr) -> pl.Expr:
    """Text without line breaks and tabs, which become one blank with what is around them, or white space at the ends."""
    return column.fill_null("").str.replace_all(r"\s*[\t-\r\x{85}\x{2028}\x{2029}]\s*", " ").str.strip_chars()


def full_text(title: pl.Expr, detail: pl.Expr) -> pl.Expr:
    """The text of an item that is embedded: its title and, if it has one, its description."""
    return pl.when((detail != "") & (title != "")).then(title + ". " + detail).otherwise(title)


def listed(text: str) -> str:
    """Genres or categories as `Animation, Comedy`: from a list, or from words that commas, bars or blanks separate.

    >>> listed("Action|Comedy"), listed("['Toys', 'Games & Puzzles']"), listed("Steel Long"), listed("(no genres listed)")
    ('Action, Comedy', 'Toys, Games & Puzzles', 'Steel, Long', '')
    """
    if text.strip() in MISSING:
        return ""
    values = _list(text)
    if values is not None:
        parts = _entries(values, ", ")
    else:
        separator = next((mark for mark in ("|", ",") if mark in text), " ")
        parts = [part.strip(" '\"[]") for part in text.split(separator)]
    return without_markup(", ".join(part for part in parts if part))


def check_titled(catalog: pl.DataFrame, needed_by: str) -> None:
    """Refuse a catalog that cannot be ranked by its titles.

    Args:
        needed_by: the field that ranks items by them.

    Raises:
        DataError: an item has no title, so no list could hold it.
    """
    untitled = (catalog["title"].str.strip_chars() == "").arg_true()
    if len(untitled):
        raise DataError(
            f"{len(untitled)} of {len(catalog)} items have no title, the first is item {untitled[0]} "
            f"({catalog['item_id'][untitled[0]]!r}). {needed_by} ranks items by their titles: give every item one, or leave "
            f"{needed_by} out."
        )
