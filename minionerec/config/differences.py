"""How two configurations differ, field by field, for messages."""

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

_LONGEST = 60  # characters of a value in a message
_MOST_LINES = 8  # of a message
_NOT_RECORDED = object()


class Difference(NamedTuple):
    """A field whose value has changed: `field` with its section, and both values as text."""

    field: str
    before: str
    now: str


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The single fields of nested sections, named like on the command line.

    >>> leaves({"seed": 1, "rl": {"beta": 0.1, "rewards": {"rule": 1.0}}})
    {'seed': 1, 'rl.beta': 0.1, 'rl.rewards.rule': 1.0}
    """
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if value and isinstance(value, Mapping):
            fields |= leaves(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The fields in which two configurations differ, in the order of `now`; values count as JSON would store them."""
    old, new = (leaves(json.loads(json.dumps(values))) for values in (before, now))
    pairs = {name: (old.get(name, _NOT_RECORDED), new.get(name, _NOT_RECORDED)) for name in new | old}
    return [Difference(name, _text(then), _text(value)) for name, (then, value) in pairs.items() if then != value]


def _text(value: Any) -> str:
    if value is _NOT_RECORDED:
        return "not recorded"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and seed of a recipe, with the names that a user sets them by."""
    settings = {**recipe["config"], "seed": recipe["seed"]}
    for name in ("validation", "rollouts"):  # what a training takes from the section `eval`
        if name in settings:
            settings["eval"] = {**settings.get("eval", {}), **settings.pop(name)}
    return settings


def recipe_changes(before: Mapping[str, Any], now: Mapping[str, Any], indifferent: Collection[str] = ()) -> list[str]:
    """What differs between the recipes of two artefacts, one line each, at most some.

    Args:
        before, now: `config`, `seed` and `inputs` of each.
        indifferent: fields of `config` that do not count.
    """
    settings = (_settings(recipe) for recipe in (before, now))
    lines = [f"{name}: {then} there, {value} now" for name, then, value in differences(*settings) if name not in indifferent]
    old, new = before["inputs"], now["inputs"]
    for name in {**new, **old}:
        if name not in old or name not in new:
            lines.append(f"input {name}: {'not used there' if name in new else 'not used now'}")
        elif old[name] != new[name]:
            lines.append(f"input {name}: changed")
    more = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], f"and {more} more"] if more > 0 else lines
