"""Checks of single values that all sections share, so that equal mistakes have equal messages."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from minionerec.errors import ConfigError


def _dotted(section: str, name: str) -> str:
    """A field's name as on the command line; fields such as `seed` are in no section."""
    return f"{section}.{name}" if section else name


def positive(section: str, **values: float | None) -> None:
    """Check that every value is None, or above 0 and finite.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:  # NaN, which YAML can write, fails every comparison
            raise ConfigError(f"{_dotted(section, name)} is {value}; it must be greater than 0.")


def between(section: str, low: float, high: float, **values: float) -> None:
    """Check that every value is at least `low` and less than `high`.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """
    for name, value in values.items():
        if not low <= value < high:
            limit = f" and less than {high}" if high < math.inf else " and finite"
            raise ConfigError(f"{_dotted(section, name)} is {value}; it must be at least {low}{limit}.")


def check_shares(section: str, shares: Mapping[Any, float], tasks: Collection[str]) -> None:
    """Check that `task_shares` names tasks of the section, each with a share.

    Raises:
        ConfigError: the section has no such task, or a share is out of range.
    """
    for task, share in shares.items():
        if task not in tasks:
            raise ConfigError(f"{section}.task_shares names {task}, which is not among {section}.tasks: {', '.join(tasks)}.")
        if not 0 < share <= 1:
            raise ConfigError(f"{section}.task_shares.{task} is {share}; it is a share above 0 and at most 1.")
