"""Tab completion for bash and zsh."""

import argparse
from typing import Any

from minionerec import presets
from minionerec.cli.help import in_short
from minionerec.cli.parser import SECTIONS, parser
from minionerec.cli.table import COMMANDS
from minionerec.config import Config
from minionerec.config.fields import choices, field_types

_TYPES = field_types(Config)


def script(shell: str) -> str:
    """The script that completes commands, their options and presets; it needs no Python when it completes."""
    import shtab

    names = " ".join(presets.files())
    preamble: Any = {  # a script per shell; shtab declares only one for all
        "bash": f'_minionerec_configs() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"_minionerec_configs() {{ compadd {names}; _files }}",
    }
    parsers: dict[str, argparse.ArgumentParser] = {"": argparse.ArgumentParser(prog="minionerec", description="MiniOneRec")}
    groups: dict[str, Any] = {}
    for name, command in COMMANDS.items():
        *parent, leaf = name.split()
        for above in ((), tuple(parent)) if parent else ((),):
            key = " ".join(above)
            if key not in parsers:
                parsers[key] = groups[""].add_parser(key, help=f"{key} commands")
            if key not in groups:
                groups[key] = parsers[key].add_subparsers()
        sub = parsers[name] = groups[" ".join(parent)].add_parser(leaf, help=command.help)
        for action in parser(name, command.sections or SECTIONS)._actions:
            if action.dest == "help" or action.help == argparse.SUPPRESS:
                continue
            words = list(action.choices or choices(_TYPES.get(action.dest)))
            flag: dict[str, Any] = {"action": "store_true"} if action.nargs == 0 or action.dest in ("replace", "wait") else {}
            typed = flag or ({"choices": words} if words else {})
            text = in_short(action.help or "").replace("%", "%%")  # shtab expands it, as argparse does
            copy = sub.add_argument(*(action.option_strings or [action.dest]), help=text, **typed)
            if action.dest == "config":
                copy.complete = dict.fromkeys(preamble, "_minionerec_configs")
            elif action.metavar in ("FILE", "DIR", "FOLDER", "RUN") or action.dest in ("out", "data.path"):
                copy.complete = shtab.FILE
    return str(shtab.complete(parsers[""], shell, preamble=preamble))
