"""The fields of the configuration by their dotted names, such as `sft.epochs`: types in words, checks and changes of values."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from minionerec.config.checks import Bounds, cut, finite
from minionerec.errors import ConfigError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
_LONGEST_WORD = 100  # characters; no field and no value has as many


@cache
def field_types(config: type) -> Mapping[str, Any]:
    """The type of every field, sections included: dotted name to annotation, in the order of the dataclass."""
    types: dict[str, Any] = {}
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        types[field.name] = hints[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            types |= {f"{field.name}.{name}": inner for name, inner in field_types(hints[field.name]).items()}
    return types


@cache
def field_bounds(config: type) -> Mapping[str, Bounds]:
    """The bounds of every numeric field by its dotted name; of a list, the bounds of each number in it."""
    bounds: dict[str, Bounds] = {}
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if "bounds" in field.metadata:
            bounds[field.name] = field.metadata["bounds"]
        elif dataclasses.is_dataclass(hints[field.name]):
            bounds |= {f"{field.name}.{name}": inner for name, inner in field_bounds(hints[field.name]).items()}
    return bounds


def value_of(config: Any, name: str) -> Any:
    """The value of a field by its dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A configuration, or a section of it, with other values of some fields, checked as any is.

    Args:
        values: by dotted name; all are set at once, so that fields which need one another may change together.

    Raises:
        ConfigError: a value is out of its bounds, or contradicts another.
    """
    own = {name: value for name, value in values.items() if "." not in name}
    for section in dict.fromkeys(name.partition(".")[0] for name in values if "." in name):
        inner = {name.removeprefix(f"{section}."): value for name, value in values.items() if name.startswith(f"{section}.")}
        own[section] = with_values(getattr(config, section), inner)
    return dataclasses.replace(config, **own)


def made_of(config: type, values: Mapping[str, Any], section: str = "") -> Any:
    """A configuration, or a section of it, of nested plain values; a field that they lack has its default.

    Args:
        values: as YAML reads them.
        section: its name, for messages; empty for the whole configuration.

    Raises:
        ConfigError: they name an unknown field, a value is not of its field's type or out of its bounds, or it contradicts
            another.
    """
    kinds = get_type_hints(config)
    made = {}
    for field, value in values.items():
        name = f"{section}.{field}" if section else field
        if (kind := kinds.get(field)) is None:
            raise ConfigError(f"{name} is no field of the configuration.{did_you_mean(field, kinds)}")
        if not fits(value, kind):
            raise ConfigError(wrong_value(name, value, kind))
        if dataclasses.is_dataclass(kind):
            value = made_of(kinds[field], value, name)
        elif isinstance(value, str) and float in (kind, *get_args(kind)) and _is_number(value):
            value = float(value)  # YAML reads 1e-4 as text
        made[field] = value
    return config(**made)


def nearest(name: str, candidates: Collection[str], cutoff: float = 0.6) -> str | None:
    """The candidate that is spelled most like a name; None if none is near."""
    if len(name) > _LONGEST_WORD:  # comparing thousands of characters takes seconds
        return None
    return next(iter(difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, candidates: Collection[str], cutoff: float = 0.6) -> str:
    """The nearest candidate as a sentence with a leading space; empty if none is near.

    >>> did_you_mean("evla", ["eval", "run"])
    ' Did you mean eval?'
    """
    near = nearest(name, candidates, cutoff)
    return f" Did you mean {near}?" if near else ""


def fits(value: object, kind: Any) -> bool:
    """Whether a value, as YAML reads it, is of the type of a field.

    >>> fits(3, float), fits("three", float), fits(True, int)
    (True, False, False)
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(fits(member, arguments[0]) for member in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items())
    if arguments:  # a union
        return any(fits(value, member) for member in arguments)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind in (bool, str)
    if kind is float:
        if isinstance(value, str):  # YAML reads 1e-4 as text
            return _is_number(value)
        return isinstance(value, float) or (isinstance(value, int) and finite(value))
    return isinstance(value, str | int | float) if kind is str else isinstance(value, kind)


def _is_number(text: str) -> bool:
    try:
        return finite(float(text))
    except ValueError:
        return False


def allowed(kind: Any) -> str:
    """What a field takes, in words.

    >>> allowed(list[int] | None)
    'a list of whole numbers, e.g. [3, 5], or null'
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return str(arguments[0]) if len(arguments) == 1 else f"one of {', '.join(map(str, arguments))}"
    if origin is list:
        (member,) = arguments
        if get_origin(member) is Literal:
            return f"a list, e.g. [{get_args(member)[0]}], of {', '.join(get_args(member))}"
        example = {int: "[3, 5]", float: "[1, 0.5]"}.get(member, "[a, b]")
        plural = {int: "whole numbers", float: "numbers"}.get(member, "texts")
        return f"a list of {plural}, e.g. {example}"
    if origin is dict:
        names = choices(arguments[0])
        example = "NAME" if arguments[1] is str else "1"
        return f"names with {_WORDS[arguments[1]]} each, e.g. {{{names[0]}: {example}}}; names are {', '.join(names)}"
    if arguments:  # a union
        return ", or ".join(allowed(member) for member in arguments)
    return _WORDS.get(kind, "a section with fields")


def choices(kind: Any) -> list[str]:
    """The words that a field takes, alone or in a list; none if it takes free text or numbers.

    >>> choices(list[Literal["a", "b"]] | None), choices(bool)
    (['a', 'b'], ['true', 'false'])
    """
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    members = get_args(kind)[:1] if get_origin(kind) is dict else get_args(kind)
    return [word for member in members for word in choices(member)]


def short_type(kind: Any) -> str:
    """What a field takes, for a line of help: `vocabulary|catalog`, `NUMBER`, `LIST`."""
    origin, members = get_origin(kind), [member for member in get_args(kind) if member is not NoneType]
    if origin in (list, dict):
        return "LIST" if origin is list else "{NAME: NUMBER}"
    if origin is Literal or kind is bool:
        return "|".join(choices(kind))
    if members:
        return "|".join(short_type(member) for member in members)
    return {int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(kind, "SECTION")


def wrong_value(name: str, value: object, kind: Any) -> str:
    """Two sentences about a value that does not fit: what was found, the nearest word, and what is allowed."""
    words = (
        value
        if isinstance(value, Sequence) and not isinstance(value, str)
        else list(value)
        if isinstance(value, dict)
        else [value]
    )
    unknown = [str(word) for word in words if str(word) not in choices(kind)]
    hint = did_you_mean(unknown[0], choices(kind), 0.5) if unknown and kind is not bool else ""
    if not isinstance(value, list | dict) and not hint and fits([value], kind):
        hint = f" Did you mean [{value}]?"
    actual = "null" if value is None else str(value).lower() if isinstance(value, bool) else quoted(value)
    return f"{name} is {actual}.{hint} Expected {allowed(kind)}."


def quoted(value: object) -> str:
    """A value for a message, texts in quotes."""
    try:
        return cut(repr(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return cut(value)
