"""The `minionerec` command: finds the command, parses its line, runs it, and prints an error as one message."""

import dataclasses
import os
import select
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from minionerec import __version__, presets
from minionerec.cli.parser import help_text, parse, preset, read
from minionerec.cli.table import COMMANDS
from minionerec.config.fields import did_you_mean
from minionerec.errors import ArtifactError, ConfigError, MiniOneRecError

__all__ = ["COMMANDS", "help_text", "main", "parse", "preset"]


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [textwrap.wrap(command.help, 100 - width) for command in COMMANDS.values()]
    table = (f"  {name:{width}}" + f"\n{'':{width + 2}}".join(text) for name, text in zip(COMMANDS, lines, strict=True))
    return "\n".join(
        [
            "usage: minionerec COMMAND [--config PRESET|FILE|RUN] [--section.field VALUE ...]\n",
            *table,
            "\nStart with: minionerec run --config ml-100k",
            "minionerec COMMAND --help shows the fields of a command, --help-all every field.",
            "minionerec COMMAND --print_config prints the resolved configuration.",
        ]
    )


def _find(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command that a command line begins with, and the rest.

    Raises:
        ConfigError: it begins with none; the message names the nearest.
    """
    name, *rest = arguments
    if name.startswith("-"):
        raise ConfigError(f"name a command before {name}, for example: minionerec run {' '.join(arguments)}")
    grouped = any(command.startswith(f"{name} ") for command in COMMANDS)
    if grouped and name not in COMMANDS and (not rest or rest[0].startswith("-")):
        members = [command for command in COMMANDS if command.startswith(f"{name} ")]
        raise ConfigError(
            f"minionerec {name} needs to know what to do, for example: minionerec {members[0]}. Known: {', '.join(members)}."
        )
    if grouped and rest and not rest[0].startswith("-") and rest[0] != "help":
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in COMMANDS:
        return name, rest
    if name.removesuffix(".yaml") in presets.files() or Path(name).is_file():
        raise ConfigError(f"{name} is a configuration, not a command. Did you mean minionerec run --config {name}?")
    raise ConfigError(f"unknown command {name}.{did_you_mean(name, COMMANDS, 0.5)} minionerec --help lists all commands.")


def _execute(arguments: Sequence[str]) -> None:
    """Run a command line.

    Raises:
        MiniOneRecError: a user's mistake.
    """
    if arguments[:1] in (["--version"], ["-V"]):
        print(f"minionerec {__version__}")
        return
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    groups = {name.partition(" ")[0] for name in COMMANDS} - set(COMMANDS)
    if (
        not arguments
        or arguments[0] in ("-h", "--help")
        or (arguments[0] in groups and arguments[1:] in ([], ["-h"], ["--help"], ["help"]))
    ):
        print(_overview())
        return
    name, rest = _find(arguments)
    if rest == ["help"] or {"-h", "--help", "--help-all"} & set(rest):
        print(help_text(name, "--help-all" in rest), end="")
        return
    config, options = read(name, rest)
    if config is None:
        COMMANDS[name].run(**options)
        return
    if "--print_config" in rest:
        print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), end="")
        return
    try:
        COMMANDS[name].run(config, **options)
    except PermissionError as error:
        raise ArtifactError(f"{error.filename}: permission denied. Choose another folder with --out DIR.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 when all is well, 2 for a user's mistake, 130 when interrupted, 141 when a pipe is closed."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        _execute(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except MiniOneRecError as error:
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        errors.print(str(error), markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print("Interrupted. Run the same command again to resume.")
        return 130
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return 141  # as a program that the signal SIGPIPE ends
    return 0


def _output_is_closed() -> bool:
    """Whether the reader of our output has gone, as `head -1` has; what is left to print is then dropped."""
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLERR)
        if not poll.poll(0):
            return False  # another pipe broke
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return True
