"""The one parser of all commands: a command line to a configuration and the command's own options."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from minionerec import presets
from minionerec.cli.help import Formatter, WholeFormatter, metavar
from minionerec.cli.mistakes import SWITCHED, SWITCHES, check_file, check_words
from minionerec.cli.table import COMMANDS, OWN_KEYS
from minionerec.config import Config, run_file
from minionerec.config.checks import check_output_file, check_text, checked_path
from minionerec.config.documents import DocumentError, LimitError, parse_yaml
from minionerec.config.fields import did_you_mean, field_types
from minionerec.errors import ConfigError, MiniOneRecError

_read_yaml = get_loader("yaml")


def _load(text: str) -> Any:
    """A value or a whole file as jsonargparse reads it, unless it is too deep or too large to be read.

    Raises:
        ConfigError: it is.
    """
    if len(text) > 100 or set("[{&*") & set(text):
        try:
            parse_yaml(text)
        except LimitError as error:
            raise ConfigError(f"command line: a value is not readable as YAML ({error}).") from None
        except DocumentError:
            pass  # jsonargparse takes it as a text
    return _read_yaml(text)


set_loader("yaml", _load, (yaml.YAMLError,))
QUOTE = "Quote lists and mappings, which a shell would take for patterns: --sft.tasks '[history_sid_to_sid]'"
SECTIONS = tuple(field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type))


def preset(name: str) -> Path:
    """The file of a configuration: a path, a run's folder, or the name of a preset with or without `.yaml`.

    Raises:
        ConfigError: none of these (the message names the nearest preset), or the run's `run.yaml` is missing or damaged.
    """
    if name:
        name = checked_path("--config", name)
    if name and Path(name).is_file():
        return Path(name)
    if name and (Path(name) / run_file.RUN_FILE).is_file():
        run_file.load(Path(name))
        return Path(name) / run_file.RUN_FILE
    files = presets.files()
    if name.removesuffix(".yaml") in files:
        return files[name.removesuffix(".yaml")]
    if name and Path(name).is_dir():
        run_file.load(Path(name))  # says that this is no run's folder
    if not name:
        raise ConfigError("--config needs a value: a YAML file, or a preset (minionerec presets lists them).")
    hint = did_you_mean(name, files)
    raise ConfigError(f"--config {name}: no such file, run folder or preset.{hint} minionerec presets lists all presets.")


@cache
def parser(name: str, sections: tuple[str, ...] | None = None, whole: bool = False) -> ArgumentParser:
    """The parser of a command: the options of its own and the fields of the configuration.

    Args:
        sections: only these sections of the configuration; None for all.
        whole: the whole text of each field in the help, not only its first sentence.
    """
    command = COMMANDS[name]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = f"minionerec {name}" + "".join(
        f" {option} {spec.get('metavar', 'VALUE')}" if option.startswith("-") else f" {option.upper()}"
        for option, spec in command.options.items()
        if spec.get("required") or not option.startswith("-")
    )
    usage += " [--config PRESET] [--FIELD VALUE ...]" if command.takes_config else " [options]"
    result = ArgumentParser(
        prog=f"minionerec {name}",
        usage=usage,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=_epilog(name, whole),
        formatter_class=WholeFormatter if whole else Formatter,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    for option, spec in command.options.items():
        result.add_argument(option, **{name: value for name, value in spec.items() if name not in OWN_KEYS})
    if command.takes_config:
        text = "a preset (minionerec presets lists them), a YAML file of your own, or the folder of a run"
        result.add_argument("--config", action="config", metavar="PRESET|FILE|RUN", help=text)
        result.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
        result.add_argument("--help-all", action="store_true", help="show every section, with the whole text of each field")
        result.add_class_arguments(Config, None, skip=set(SECTIONS) - set(SECTIONS if sections is None else sections))
        types = field_types(Config)
        for action in result._actions:
            if action.dest in types:
                action.metavar = metavar(types[action.dest])
    return result


def _epilog(name: str, whole: bool) -> str | None:
    if not COMMANDS[name].takes_config or whole:
        return None
    others = [section for section in SECTIONS if section not in COMMANDS[name].sections]
    return f"Further sections: {', '.join(others)}. minionerec {name} --help-all shows their fields too. {QUOTE}"


def help_text(name: str, whole: bool = False) -> str:
    """What `--help` prints: the options and the command's own sections; with `whole` every section and the whole text."""
    return parser(name, None if whole else COMMANDS[name].sections, whole).format_help()


def read(name: str, arguments: Sequence[str]) -> tuple[Config | None, dict[str, Any]]:
    """The configuration of a command line, None if the command has none, and the command's own options.

    Fields on the command line win over the fields of `--config`, wherever it stands.

    Raises:
        ConfigError: an unknown option or field, or a bad value; the message names the nearest.
    """
    command = COMMANDS[name]
    files, rest = [], []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        option, equals, value = argument.partition("=")
        if option == "--config" and command.takes_config:
            source = value if equals or not remaining else remaining.pop(0)
            path = preset(source)
            check_file(path)
            files.append(f"--config={path}")
            if path == Path(source) / run_file.RUN_FILE and not any(word.partition("=")[0] == "--name" for word in arguments):
                files.append(f"--out={source}")  # a new name asks for a new run with the same configuration
        else:
            flag = argument in SWITCHES and command.takes_config
            switched = remaining.pop(0) if flag and remaining and remaining[0] in SWITCHED else "true"
            rest.append(f"{argument}={switched}" if flag else argument)
    commands_parser = parser(name)
    try:
        values = commands_parser.instantiate(commands_parser.parse_args(files + rest)).as_dict()
    except (MiniOneRecError, argparse.ArgumentError, TypeError, ValueError, OverflowError) as error:
        cause = next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, MiniOneRecError)), None)
        if cause is None:
            check_words(name, rest)
        raise cause or ConfigError(" ".join(str(error).split())) from None
    names = {option: option.strip("-").replace("-", "_") for option in command.options}
    options = {names[option]: _checked(values.pop(names[option]), option, spec) for option, spec in command.options.items()}
    if not command.takes_config:
        return None, options
    for option, spec in command.options.items():
        unread = not options[names[option]] and not values["print_config"]  # who prints gets what other commands may read
        if "alone_reads" in spec and unread:
            _refuse_section(option, spec["alone_reads"], rest)
    for option in ("config", "help_all", "print_config"):
        values.pop(option)
    return Config(**values), options


def _refuse_section(switch: str, section: str, words: Sequence[str]) -> None:
    """Refuse fields on a command line that the command would not read. Those of a file may be meant for other commands.

    Raises:
        ConfigError: there is one.
    """
    for word in words:
        field = word.partition("=")[0]
        if field == f"--{section}" or field.startswith(f"--{section}."):
            raise ConfigError(f"{field} has an effect with {switch} only. Add {switch}, or leave it out.")


def _checked(value: Any, option: str, spec: Mapping[str, Any]) -> Any:
    """The value of a command's own option: numbers within their bounds, paths with the home folder in place of `~`.

    Raises:
        ConfigError: a number is out of its bounds, or a path cannot be read or written.
    """
    if isinstance(value, list):
        return [_checked(entry, option, spec) for entry in value]
    if value is not None and "bounds" in spec:
        spec["bounds"].check(option, value)
    if isinstance(value, Path):
        value = Path(checked_path(option, str(value)))
        if spec.get("writes"):
            check_output_file(option, value)
    elif isinstance(value, str):
        check_text(option, value, spec.get("when_long", ""))
    return value


def parse(name: str, arguments: Sequence[str]) -> Config:
    """The configuration of a command line; see `read`."""
    config, _ = read(name, arguments)
    assert config is not None
    return config
