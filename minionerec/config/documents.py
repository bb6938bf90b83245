"""YAML and JSON that users write, read with limits: no text makes a reader hang, run out of stack or drop a value.

Plain parsers take a mapping with two equal keys (the last one wins), follow aliases that multiply (a text of 400 characters
becomes a billion values) or end in a RecursionError, and Python writes no whole number of more than 4,300 digits.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

MOST_BYTES = 1_000_000  # of a configuration; the largest preset has 2,000
_MOST_DEPTH = 30  # of nested sections and lists; a configuration has 4
_MOST_VALUES = 20_000  # after aliases are followed; a configuration has about 200
_MOST_ENTRIES = 1000  # of a list; jsonargparse takes time with their square: .6 s for these, 4 s for 3,000
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class DocumentError(ValueError):
    """A text that is not readable as YAML or JSON; the message says why, without the file's name."""


class LimitError(DocumentError):
    """A text that is YAML, but too long, too deep or too large to be read, or that says two things of one key."""


_LIBYAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with libyaml


class _Distinct:
    """A mapping with two equal keys is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        first: dict[str, int] = {}  # key to its line
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in first:
                    raise LimitError(f"{key.value[:60]!r} stands twice in one mapping, lines {first[key.value]} and {line}")
                first[key.value] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return mapping


class _Loader(_Distinct, _LIBYAML):
    """The safe loader that jsonargparse reads with, too."""


class _PlainLoader(_Distinct, yaml.SafeLoader):
    """The safe loader in Python, whose errors quote the text that they are about."""


def parse_yaml(text: str) -> object:
    """The value of a YAML text.

    Raises:
        LimitError: it holds a key twice, is too long, too deep or too large, or an alias holds itself.
        DocumentError: it is no YAML.
    """
    if len(text) > MOST_BYTES:
        raise LimitError(f"{len(text):,} characters; {MOST_BYTES:,} at most")
    errors = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: a number or a date that Python cannot take
    if "\t" not in text:  # libyaml takes tabs where YAML forbids them
        try:
            return _value(text, _Loader)
        except LimitError:
            raise
        except errors:  # as the other says it
            pass
    try:
        return _value(text, _PlainLoader)
    except DocumentError:
        raise
    except errors as error:
        raise DocumentError(" ".join(str(error).replace('"<unicode string>", ', "").split())) from None


def _value(text: str, kind: type[_Loader] | type[_PlainLoader]) -> object:
    _check_depth(yaml.parse(text, kind))  # these events come one by one: depth costs no stack
    loader = kind(text)
    node = loader.get_single_node()
    if node is None:
        return None
    _size(node, {})
    return loader.construct_document(node)


def _check_depth(events: Iterator[yaml.Event]) -> None:
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            raise LimitError(f"more than {_MOST_DEPTH} levels of nesting")


def _size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """How many values a node holds once aliases are followed; `sizes` holds those of finished nodes, None while one is open."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise LimitError(f"an alias that holds itself, line {node.start_mark.line + 1}")
        return size
    sizes[id(node)] = None
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.SequenceNode) and len(children) > _MOST_ENTRIES:
        raise LimitError(f"{len(children):,} entries in one list, line {node.start_mark.line + 1}; {_MOST_ENTRIES:,} at most")
    size = 1 + sum(_size(child, sizes) for pair in children for child in (pair if isinstance(pair, tuple) else (pair,)))
    if size > _MOST_VALUES:
        raise LimitError(f"more than {_MOST_VALUES:,} values once aliases are followed")
    sizes[id(node)] = size
    return size


def no_fields(value: object) -> str:
    """What is wrong with the value of a configuration that is no mapping.

    >>> no_fields([1])
    'expected fields and sections such as `name: mine`, found a list'
    """
    kind = "nothing" if value is None else "a list" if isinstance(value, list) else "one text"
    return f"expected fields and sections such as `name: mine`, found {kind}"


def parse_json(text: str, distinct: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        distinct: refuse an object that has two equal names, of which Python keeps the last.

    Raises:
        JSONDecodeError: it is no JSON; the error has line and column.
        DocumentError: it is nested too deep, has a number of thousands of digits, a name twice, or half of a character.
    """
    try:
        values = json.loads(text, object_pairs_hook=_distinct if distinct else None)
    except (json.JSONDecodeError, DocumentError):
        raise
    except RecursionError:
        raise DocumentError("nested too deep") from None
    except ValueError:
        raise DocumentError("a number has more digits than Python reads") from None
    if _HALF.search(text):  # most texts have no such escape; a pair of them is one character, which is fine
        _check_halves(values)
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise DocumentError(f"{first_twice(name for name, _ in pairs)!r} stands twice in one object")
    return values


def first_twice(names: Iterable[str]) -> str:
    """The first of some names, one of which stands there more than once, that does; in linear time.

    >>> first_twice(["a", "b", "c", "b"])
    'b'
    """
    times = Counter(names)
    return next(name for name in times if times[name] > 1)


def _check_halves(values: Any) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DocumentError(f"a text holds half of a character, {ascii(half)[1:-1]}, which no file can hold") from None
