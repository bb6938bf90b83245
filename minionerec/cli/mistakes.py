"""What is wrong with a command line or a file: the first mistake, in words that a newcomer knows.

jsonargparse decides what is valid. When it refuses something, the functions here say what was found, what was expected, and
the nearest name.
"""

import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minionerec import presets
from minionerec.cli.table import COMMANDS, Command
from minionerec.config import Config
from minionerec.config.checks import cut, exists
from minionerec.config.documents import MOST_BYTES, DocumentError, no_fields, parse_yaml
from minionerec.config.fields import allowed, did_you_mean, field_types, fits, nearest, quoted, wrong_value
from minionerec.errors import ConfigError

FLAGS = ("--help-all", "--print_config")  # of every command that takes a configuration, next to --help
SWITCHES = ("--replace", "--wait")  # fields that need no value on the command line, but may have one of these
SWITCHED = ("true", "false")
_TYPES = field_types(Config)
_MAPPINGS = {name for name, kind in _TYPES.items() if typing.get_origin(kind) is dict}  # such as rl.rewards


def _check_field(name: str, value: object, where: str) -> None:
    """Refuse a field that does not exist, or a value that is not of its type.

    Raises:
        ConfigError: the message names the nearest field or value, and what is allowed.
    """
    section, _, key = name.rpartition(".")
    kind = _TYPES.get(name)
    if isinstance(value, dict) and value and name not in _MAPPINGS:
        for inner, inner_value in value.items():
            _check_field(f"{name}.{inner}", inner_value, where)
        return
    if section in _MAPPINGS:  # one entry of a mapping, such as rl.rewards.ranking
        keys, kind = typing.get_args(_TYPES[section])
        if not fits(key, keys):
            raise ConfigError(f"{where}: {wrong_value(f'a name in {section}', key, keys)}")
    elif kind is None:
        namesakes = [field for field in _TYPES if field.rpartition(".")[2] == key]  # in another section
        near = " or ".join(namesakes) or nearest(name, _TYPES, 0.5)
        hint = f"Did you mean {near}?" if near else "minionerec run --help-all shows all fields."
        raise ConfigError(f"{where}: unknown field {name}. {hint}")
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            example = next(field for field in _TYPES if field.startswith(f"{name}."))
            raise ConfigError(f"{where}: {name} is a section; expected its fields, such as {example}, found {quoted(value)}.")
    elif not fits(value, kind):
        raise ConfigError(f"{where}: {wrong_value(name, value, kind)}")


def check_file(path: Path) -> None:
    """Refuse a file that is no configuration.

    Raises:
        ConfigError: it is no YAML, has no fields, or one of them is wrong.
    """
    try:
        with path.open("rb") as stream:  # a device would never end
            content = stream.read(MOST_BYTES + 1)
        values = parse_yaml(content.decode("utf-8"))
    except (UnicodeDecodeError, OSError, DocumentError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {no_fields(values)}.")
    for name, value in values.items():
        _check_field(str(name), value, str(path))


def _read(text: str) -> object:
    """The value of an option as YAML reads it."""
    try:
        return parse_yaml(text)
    except DocumentError:
        return text


def check_words(name: str, arguments: Sequence[str]) -> None:
    """Find the first mistake of a command line that the parser has refused, and say it in words a newcomer knows.

    Raises:
        ConfigError: the mistake: an option, a value or an argument.
    """
    command = COMMANDS[name]
    positions = [option for option in command.options if not option.startswith("-")]
    flags = {option for option, spec in command.options.items() if spec.get("action") == "store_true"} | {*FLAGS, *SWITCHES}
    words = list(arguments)
    missing = {option for option, spec in command.options.items() if _is_required(option, spec)}
    while words:
        option, equals, value = words.pop(0).partition("=")
        if not option.startswith("-"):
            if not positions:
                raise ConfigError(_surplus(name, command, option))
            many = command.options[positions[0]].get("nargs") in ("+", "*")
            option, equals, value = positions[0] if many else positions.pop(0), "=", option
        spec = command.options.get(option)
        missing.discard(option)
        kind = None if spec is None else spec.get("type")
        if spec is None and option.startswith("--") and command.takes_config and option not in ("--config", *FLAGS):
            field = option.removeprefix("--").removesuffix("+")
            kind = _TYPES.get(field)
            if kind is None and field.rpartition(".")[0] not in _MAPPINGS:
                if near := nearest(option, command.options, 0.75):
                    raise ConfigError(f"minionerec {name} has no option {option}. Did you mean {near}?")
                _check_field(field, None, "command line")  # there is no such field
        elif spec is None and not (command.takes_config and option in ("--config", *FLAGS)):
            raise ConfigError(f"minionerec {name} has no option {option}.{did_you_mean(option, command.options, 0.5)}")
        if option in flags and not equals:
            if option in SWITCHES and command.takes_config and words and words[0] in SWITCHED:
                words.pop(0)
            continue
        if spec is not None and "nargs" in spec and not equals:
            values = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
            del words[: len(values)]
        else:
            values = [value if equals else words.pop(0)] if equals or (words and not words[0].startswith("--")) else [""]
        for text in values:
            _check_value(option, text, kind, spec)
    if missing:
        option = sorted(missing)[0]
        about = command.options[option]
        needed = f"{option} {about.get('metavar', '')}".strip() if option.startswith("-") else f"a {option}"
        raise ConfigError(f"minionerec {name} needs {needed}: {about['help']}.")


def _is_required(option: str, spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("required")) or not (option.startswith("-") or spec.get("nargs") in ("?", "*"))


def _surplus(name: str, command: Command, word: str) -> str:
    """What to say of a word that the command has no place for."""
    mistake = f"minionerec {name} takes no argument {cut(repr(word))}."
    if not command.takes_config:
        return mistake
    if word.removesuffix(".yaml") in presets.files() or exists(word):
        return f"{mistake} Did you mean --config {word}?"
    near = nearest(word, _TYPES, 0.5)
    return f"{mistake} Did you mean --{near} VALUE?" if near else f"{mistake} Fields are set by --section.field VALUE."


def _check_value(option: str, text: str, kind: Any, spec: Mapping[str, Any] | None) -> None:
    """Refuse the value of an option: an empty one, one that is not among the choices, or one of another type."""
    field = option.removeprefix("--").removesuffix("+")
    flag = option in FLAGS or (spec or {}).get("action") == "store_true"
    if flag:
        raise ConfigError(f"{option} takes no value; found {text!r}.")
    words = (spec or {}).get("choices")
    if not text:
        expected = f": {allowed(kind)}" if spec is None and kind else f": one of {', '.join(words)}" if words else ""
        raise ConfigError(f"{option} needs a value{expected}.")
    if words and text not in words:
        raise ConfigError(f"{option} is {text!r}.{did_you_mean(text, words)} Expected one of {', '.join(words)}.")
    if spec is not None and kind in (int, float) and not fits(_read(text), kind):
        raise ConfigError(wrong_value(option, _read(text), kind))
    if spec is None and option != "--config" and kind is not str:
        value = _read(text)
        _check_field(field, [value] if option.endswith("+") and not isinstance(value, list) else value, "command line")
