"""Wrong settings for every field of the configuration, and files that are no configuration.

Each of `wrong_settings` must end in a ConfigError that names the field: a test tries all of them without a command.
`benchmarks/chaos.py` runs whole commands with values of `bad_values`, a few of which fit.
"""

from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from minionerec.config import Config
from minionerec.config.checks import Bounds
from minionerec.config.fields import field_bounds, field_types

NAN, INFINITY = float("nan"), float("inf")
SPOILT_TEXTS = ("a\0b", "\x1b[31m", "half \udcff", "x" * 5000)
SPOILT_PATHS = ("", "~nobody-of-this-name/x", "folder/" + "x" * 300)
NOT_NAMES = ("", " ", ".", "..", "../../x", "/x", "a/b", "a\\b", "~", "~/x", " x", "x" * 201)
PATHS = (
    "out",
    "data.path",
    "sid.encoder",
    "sid.vectors",
    "model.path",
    "baseline.sequences",
    "baseline.weights",
    "pairs.path",
    "score.model",
)
NAMES = ("name", "data.category")
WORDS = ("sft.best_metric", "rl.best_metric")  # texts that must be one of a few words
DOCUMENTS = [
    "",
    "[]",
    "a: [",
    "name: {",
    "\0",
    "sft:\n\tepochs: 3",
    "sft: 3",
    "nonsense: 1",
    "sft: {nonsense: 1}",
    "[" * 10**5,
    "a: &a [*a]",
    "sft: {epochs: 1}\nsft: {epochs: 2}",
    "seed: " + "9" * 5000,
    "- name: x",
    "name: !!python/object:os.system x",
    "\ufeff[",
    "{" * 999,
]


class WrongSetting(NamedTuple):
    """A field by its dotted name, and a value that it must not have, as YAML would give it."""

    field: str
    value: Any


def _wrong_numbers(kind: type, bounds: Bounds) -> Iterator[Any]:
    step = 1 if kind is int else 0.001 * max(1.0, abs(bounds.low))
    yield bounds.low if bounds.above else bounds.low - step
    yield bounds.high if bounds.below else bounds.high * 2 + 1
    yield from (10**40, -(10**40), 10**400, NAN, INFINITY, -INFINITY, 1e300, -1e300, "1e999", "three", True, [1], {"a": 1})


def wrong_values(field: str, kind: Any, bounds: Bounds | None) -> Iterator[Any]:
    """What a field of this type must not have, apart from null."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list or origin is dict:
        yield from ("text", 3, [[[]]], {"no-such-name": 1}, [None], {"a": None})
        yield [1] * 2000 if bounds else ["twice", "twice"]
        member = arguments[-1]
        numbers = _wrong_numbers(member, bounds) if bounds else ["no-such-word"] if get_origin(member) is Literal else [1.5]
        if origin is list and (bounds or get_origin(member) is Literal):
            yield from ([number] for number in numbers)
        if origin is dict:
            for name in get_args(arguments[0])[:2]:
                yield from ({name: number} for number in (NAN, INFINITY, 1e300, -1e300, 10**400, "x", [1]))
    elif origin is Literal or kind is bool or field in WORDS:
        yield from ("no-such-word", 3, 1.5, [1], {"a": 1}, "", "\0", 10**40)
    elif arguments:  # a union: what no member takes
        members = [member for member in arguments if member is not NoneType]
        for value in wrong_values(field, members[0], bounds):
            if len(members) == 1 or value not in get_args(members[1]):
                yield value
    elif kind is str:
        yield from ([1], {"a": 1}, *SPOILT_TEXTS)
        yield from SPOILT_PATHS if field in PATHS else NOT_NAMES if field in NAMES else ()
    elif bounds is not None:
        yield from _wrong_numbers(kind, bounds)
    else:  # a section
        yield from (3, "text", [1], {"no_such_field": 1}, None)


def wrong_settings() -> Iterator[WrongSetting]:
    """All fields, each with all of its wrong values."""
    bounds = field_bounds(Config)
    for field, kind in field_types(Config).items():
        for value in wrong_values(field, kind, bounds.get(field)):
            yield WrongSetting(field, value)
        if NoneType not in get_args(kind):
            yield WrongSetting(field, None)


def fields() -> list[str]:
    """The names of all fields that hold a value, not a section."""
    return [name for name, kind in field_types(Config).items() if not hasattr(kind, "__dataclass_fields__")]


def bad_values(name: str) -> list[Any]:
    """Values that a field does not take, or that nobody means; a few fit."""
    kind = field_types(Config)[name]
    words = ["[/]", "/dev/full", "\u202e", "a\nb", "-", "x" * 10**5] if str in (kind, *get_args(kind)) else []
    return [
        *wrong_values(name, kind, field_bounds(Config).get(name)),
        *words,
        [],
        {},
        "",
        -1,
        0,
        5,
        True,
        10**12,
        2**63,
        "0x10",
    ]
