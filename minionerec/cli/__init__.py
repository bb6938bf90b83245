"""The `minionerec` command: finds the command, parses its line, runs it, and prints an error as one message."""

import dataclasses
import errno
import io
import os
import select
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console

from minionerec import __version__, presets
from minionerec.cli.parser import QUOTE, help_text, parse, preset, read
from minionerec.cli.table import COMMANDS
from minionerec.config.checks import cut, exists, for_display
from minionerec.config.extras import missing_package
from minionerec.config.fields import did_you_mean
from minionerec.distributed import share_cores
from minionerec.errors import ConfigError, MiniOneRecError

__all__ = ["COMMANDS", "help_text", "main", "parse", "preset"]

_ELSEWHERE = "Choose another folder with --out DIR."
_SURROUNDINGS = {  # errors of the machine or of a path, not of the code; all others keep their traceback
    errno.EACCES: "Allow it (chmod, chown). If it is to be written, you can also choose another folder with --out DIR.",
    errno.EPERM: "Allow it (chmod, chown). If it is to be written, you can also choose another folder with --out DIR.",
    errno.ENAMETOOLONG: "Choose shorter names.",
    errno.ELOOP: "Links lead in a circle; remove one.",
    errno.EEXIST: "Choose another name, or remove it.",
    errno.EISDIR: "A folder stands where a file is needed. Choose another name.",
    errno.ENOTDIR: f"A file stands where a folder is needed. {_ELSEWHERE}",
    errno.EROFS: _ELSEWHERE,
    errno.ENOSPC: f"Free some space, then run the same command again. {_ELSEWHERE}",
    errno.EDQUOT: f"Free some space, then run the same command again. {_ELSEWHERE}",
    errno.EIO: "The disk or its connection fails.",
    errno.EMFILE: "Allow more open files: ulimit -n 4096.",
    errno.ENFILE: "The machine has too many open files.",
}


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
            QUOTE,
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
    if name.removesuffix(".yaml") in presets.files() or exists(name):
        raise ConfigError(f"{name} is a configuration, not a command. Did you mean minionerec run --config {name}?")
    raise ConfigError(f"unknown command {cut(name)}.{did_you_mean(name, COMMANDS, 0.5)} minionerec --help lists all commands.")


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
    COMMANDS[name].run(config, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 when all is well, 2 for a user's mistake, 130 when interrupted, 141 when a pipe is closed."""
    share_cores()
    _prepare_streams()
    try:
        _execute(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except MiniOneRecError as error:
        if not (problem := _output_problem()):
            _print_error(type(error).__name__, str(error))
    except ModuleNotFoundError as error:
        if (explained := missing_package(error)) is None:
            raise
        problem = None
        _print_error(type(explained).__name__, str(explained))
    except KeyboardInterrupt:
        Console(emoji=False, stderr=True).print("Interrupted. Run the same command again to resume.")
        return 130
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return 141  # as a program that the signal SIGPIPE ends
    except OSError as error:
        if not (problem := _output_problem()):
            if error.errno not in _SURROUNDINGS:
                raise
            reason = str(error.strerror).lower() if error.filename else str(error)  # without a file, the text may name one
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            _print_error("ArtifactError", f"{where}{reason}. {_SURROUNDINGS[error.errno]}")
    else:
        return 0
    if problem:
        _print_error("ArtifactError", f"standard output: cannot be written ({problem}). Print to another place.")
    return 2


def levels() -> int:
    """Entry point of `minionerec-levels`."""
    return main(["levels", *sys.argv[1:]])


def gap() -> int:
    """Entry point of `minionerec-gap`."""
    return main(["gap", *sys.argv[1:]])


def _print_error(kind: str, message: str) -> None:
    errors = Console(emoji=False, stderr=True, highlight=False, soft_wrap=True)
    errors.print(f"[bold red]{kind}[/]: ", end="")
    errors.print(for_display(message), markup=False)


class _Output(io.FileIO):
    """The file behind standard output; it remembers why it could not be written, as a full disk is not always the run's."""

    problem: str | None = None

    def write(self, data: Any) -> int:
        """Write bytes."""
        try:
            return super().write(data)
        except OSError as error:
            _Output.problem = None if isinstance(error, BrokenPipeError) else error.strerror
            raise


def _prepare_streams() -> None:
    """Let nothing fail because it cannot be shown: a closed stream is replaced, and signs that it lacks are spelled."""
    _Output.problem = None
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open until the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        file = io.BufferedWriter(_Output(sys.stdout.fileno(), "w", closefd=False))
        old = sys.stdout
        sys.stdout = io.TextIOWrapper(file, old.encoding, "backslashreplace", line_buffering=old.line_buffering)


def _output_problem() -> str | None:
    """Why standard output could not be written; None if it could. What is left to print is then dropped."""
    if _Output.problem is not None:
        _drop_output()
    return _Output.problem


def _output_is_closed() -> bool:
    """Whether the reader of our output has gone, as `head -1` has; what is left to print is then dropped."""
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLERR)
        if not poll.poll(0):
            return False  # another pipe broke
    _drop_output()
    return True


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
