"""Values that no field of the configuration should take, and files that are no configuration."""

import math
from typing import Any, Literal, get_args, get_origin

from minionerec.config import Config
from minionerec.config.fields import field_bounds, field_types

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


def fields() -> list[str]:
    """The names of all fields that hold a value, not a section."""
    return [name for name, kind in field_types(Config).items() if not hasattr(kind, "__dataclass_fields__")]


def bad_values(name: str) -> list[Any]:
    """Values that a field does not take, or that nobody means; a few fit."""
    kind, bounds = field_types(Config)[name], field_bounds(Config).get(name)
    kinds = [kind, *get_args(kind)]
    values: list[Any] = [[], {}, [[]], {"a": {}}, "", "\0", math.nan]
    if any(get_origin(each) is Literal for each in kinds):
        return [*values, "nonsense", 0, True, "x" * 10**4]
    if bool in kinds:
        return [*values, "maybe", 2, -1, 0.5]
    if int in kinds or float in kinds:
        values += [-1, 10**12, 2**63, 10**400, math.inf, -math.inf, 1e308, "seven", True, 0.5, "1e", "0x10"]
        return values + ([] if bounds is None else [bounds.low - 1, bounds.high + 1, bounds.high * 2 + 1, -bounds.high])
    if str in kinds:
        words = ["../../x", "a/b", "x" * 300, "x" * 10**5, "~nobody/x", "[/]", "/dev/full", "\u202e", "a\nb", "-"]
        return [*values, *words, 5, True]
    numbers = [[math.nan], [[1]], [10**400], [-1] * 10**4]
    return [*values, *numbers, "a", 5, [None], ["nonsense"], {"nonsense": 1}, {"ranking": math.inf}]
