"""What `--help` looks like: two lines for a field; with `--help-all` the whole text of every field."""

import argparse
import dataclasses
import re
import shutil
import textwrap
from typing import Any

from jsonargparse import DefaultHelpFormatter

from minionerec.config import Config
from minionerec.config.fields import choices, field_bounds, field_types, short_type

_TYPES, _BOUNDS = field_types(Config), field_bounds(Config)


class Formatter(DefaultHelpFormatter):
    """Two lines for a field: what it takes, its default and its bounds; then the first clause of its help."""

    whole = False

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120))

    def _format_action(self, action: argparse.Action) -> str:
        if action.help == argparse.SUPPRESS or (action.dest in _TYPES and dataclasses.is_dataclass(_TYPES[action.dest])):
            return ""  # `--sft FILE` reads a whole section: it works, but no newcomer needs it
        name = next((option for option in action.option_strings[::-1] if not option.endswith("+")), action.dest)
        value = "" if action.nargs == 0 else f" {action.metavar or '|'.join(map(str, action.choices or ['VALUE']))}"
        empty: tuple[Any, ...] = (
            (None, [], {}) if not self.whole or action.dest not in _TYPES else ()
        )  # a short help leaves them out
        has_default = action.nargs != 0 and action.default is not argparse.SUPPRESS and action.default not in empty
        notes = [f"default: {_as_text(action.default)}"] if has_default else []
        notes += [_BOUNDS[action.dest].words] if action.dest in _BOUNDS else []
        default = f" ({'; '.join(notes)})" if notes else ""
        text = " ".join((action.help or "").split())
        text = text if self.whole else in_short(text)
        words = choices(_TYPES.get(action.dest))
        if value == " NAME" and words:
            text += f" One of {', '.join(words)}."
        head = f"  {name}{value}{default}"
        if max(len(head) + 2, 40) + len(text) <= self._width:
            return f"{head:38}  {text}\n"
        indent: dict[str, Any] = {"initial_indent": " " * 6, "subsequent_indent": " " * 6, "width": self._width}
        lines = textwrap.wrap(text, **indent, max_lines=None if self.whole else 2, placeholder=" ...")
        return "".join(f"{line}\n" for line in (head, *lines))


class WholeFormatter(Formatter):
    """The whole text of each field, for `--help-all`."""

    whole = True


def metavar(kind: Any) -> str:
    """What a field takes, for its line of help; `NAME` for a long list of words, which the text then has."""
    short = short_type(kind)
    return short if len(short) <= 60 else "NAME"


def _as_text(value: object) -> str:
    """A default as one would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def in_short(text: str) -> str:
    """The first clause of a field's help, with the brackets at its end: unit and the paper's value.

    >>> in_short("Passes over the examples; one at least. More are better, e.g. ten (epochs; paper: 10).")
    'Passes over the examples (epochs; paper: 10).'
    """
    text = text.removesuffix(".")
    first = re.split(r"(?<!e\.g)\. (?=[A-Z`\d])|; (?![^(]*\))", text)[0]
    brackets = re.search(r" \([^()]*\)$", text)
    return f"{first}{brackets.group() if brackets and not first.endswith(')') else ''}."
