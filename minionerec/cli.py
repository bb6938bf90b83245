"""The `minionerec` command: every stage by name, `run` for all of them, one configuration for all."""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from rich.console import Console

from minionerec import __version__
from minionerec.config import Config, run_file
from minionerec.distributed import is_main_process
from minionerec.errors import ArtifactError, ConfigError, MiniOneRecError

COMMANDS = {
    "run": "all stages in order: data, sid, sft, rl, eval, report",
    "data prepare": "raw files to a Dataset: catalog and train, valid and test examples (data/)",
    "data describe": "what matters about a prepared Dataset: terminal, HTML and JSON",
    "data export": "a prepared Dataset in the layout of the released code or of RecBole",
    "data list": "the public datasets that can be fetched",
    "data get": "fetch a public dataset into the cache",
    "sid": "item text to semantic IDs (sid/)",
    "sid inspect": "figures of a run's semantic IDs, in the terminal and as an HTML page",
    "sid compare": "several quantizers on a run's catalog in one table (sid/)",
    "sid append": "semantic IDs for new items, those of an earlier run unchanged (sid/)",
    "sft": "supervised fine-tuning of a causal LM (sft/)",
    "rl": "GRPO from the SFT model with ranking rewards (rl/)",
    "eval": "constrained beam search over a split, metrics with intervals (eval/)",
    "report": "one HTML page of the run (report/)",
    "baseline": "a sequential recommender on the same split, with the same metrics",
    "baseline table": "a published table beside our rows (beauty, lastfm), or everything evaluated in a run's folder",
}
_OWN_OPTIONS = {  # beside the configuration
    "data describe": {"html": "write a self-contained page to this file", "json": "write the facts to this file"},
    "data export": {"layout": "released or recbole", "to": "the folder to write to"},
    "sid compare": {"methods": "names with commas between them; all where it is not given"},
    "sid append": {"base": "folder of the run whose semantic IDs are extended"},
}
for _stage in ("sft", "rl"):
    _OWN_OPTIONS[_stage] = {
        "dry-run": "print the plan (parameters, steps, tokens, FLOPs, memory per rank) and stop; no weights are read",
        "devices": "with --dry-run: plan for this many (default: those that run)",
        "gpu-memory": "with --dry-run: say whether it fits into devices of so many GB",
    }
_FLAGS = ("dry-run",)  # options without a value
_NO_CONFIG = ("data list", "data get")
_RUN = ("data", "sid", "sft", "rl", "eval", "report")


def preset(name: str) -> Path:
    """The file of a configuration: a path, a run's folder, or the name of a preset with or without `.yaml`.

    Raises:
        ConfigError: none of these (the message names the nearest preset); or the run's `run.yaml` is missing or damaged.
    """
    if name and Path(name).is_file():
        return Path(name)
    if name and (Path(name) / run_file.RUN_FILE).is_file():
        run_file.load(Path(name))
        return Path(name) / run_file.RUN_FILE
    folder = Path(str(resources.files("minionerec.presets")))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name.removesuffix(".yaml") in known:
        return folder / f"{name.removesuffix('.yaml')}.yaml"
    if name and Path(name).is_dir():
        run_file.load(Path(name))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    if not name:
        raise ConfigError(f"--config needs a value: a YAML file, or a preset ({', '.join(known)}).")
    raise ConfigError(f"--config {name}: no such file, and no such preset ({', '.join(known)}).{hint}")


def parser(command: str, own_options: bool = True) -> ArgumentParser:
    """The parser of one command; all commands take the whole configuration, some have options of their own."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    made = ArgumentParser(prog=f"minionerec {command}", description=COMMANDS[command], exit_on_error=False)
    made.add_argument("--config", action="config", help="a YAML file, or the name of a preset that ships with the package")
    for option in _OWN_OPTIONS.get(command, {}) if own_options else ():
        action: dict[str, Any] = {"action": "store_true"} if option in _FLAGS else {}
        made.add_argument(f"--{option}", help=_OWN_OPTIONS[command][option], **action)
    made.add_class_arguments(Config, None)
    return made


def _fields(value: object, prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, inner in vars(value).items():
        names.append(prefix + name)
        if hasattr(inner, "__dataclass_fields__"):
            names += _fields(inner, f"{prefix}{name}.")
    return names


def _check_fields(names: Sequence[str], where: str) -> None:
    made = Config()
    known = _fields(made)
    for name in names:
        section, _, mapping = name.rpartition(".")[0].rpartition(".")
        if isinstance(getattr(getattr(made, section, None), mapping, None), dict):
            continue  # a key of a field that is a mapping, like rl.rewards; the parser checks it
        if name not in known:
            namesakes = [field for field in known if field.rpartition(".")[2] == name.rpartition(".")[2]]  # misplaced
            near = namesakes or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else " See minionerec run --help for all fields."
            raise ConfigError(f"{where}: unknown field {name}.{hint}")


def _leaves(values: dict[object, object], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, value in values.items():
        names += _leaves(value, f"{prefix}{name}.") if value and isinstance(value, dict) else [f"{prefix}{name}"]
    return names


def _check_file(path: Path) -> None:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected fields and sections, found {type(values).__name__}.")
    for name, value in values.items():
        if dataclasses.is_dataclass(getattr(Config(), str(name), None)) and not isinstance(value, dict):
            raise ConfigError(f"{path}: {name} is a section; expected its fields below it, found {value!r}.")
    _check_fields(_leaves(values), str(path))


def parse(command: str, arguments: Sequence[str]) -> Config | None:
    """The configuration of a command line; None where it only asked for help or for the resolved configuration.

    Fields on the command line win over those of `--config`, wherever it stands.

    Raises:
        ConfigError: an unknown field (the message names the nearest), or a bad value.
    """
    files, fields = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name == "--config":
            given = value if equals else next(remaining, "")
            path = preset(given)
            _check_file(path)
            files.append(f"--config={path}")
            if path == Path(given) / run_file.RUN_FILE and not any(field.partition("=")[0] == "--name" for field in arguments):
                files.append(f"--out={given}")  # a new name asks for a new run with the same configuration
            continue
        if argument == "--replace":  # the one field that needs no value
            argument = "--replace=true"
        if name.startswith("--") and name not in ("--help", "--print_config"):
            _check_fields([name.removeprefix("--").removesuffix("+")], "command line")
        fields.append(argument)
    made = parser(command, own_options="--print_config" not in arguments)  # what is printed is a configuration and no more
    try:
        config = made.instantiate(made.parse_args(files + fields)).as_dict()
    except MiniOneRecError:
        raise
    except SystemExit as stop:  # --help and --print_config
        if stop.code:
            raise
        return None
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        cause = next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, MiniOneRecError)), None)
        raise cause or ConfigError(" ".join(str(error).split())) from None
    for name in ("config", *_OWN_OPTIONS.get(command, ())):
        config.pop(name.replace("-", "_"), None)
    return Config(**config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 when all is well, 2 for a user's mistake, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    if arguments[:1] in (["--version"], ["-V"]):
        print(f"minionerec {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help") or arguments in (["data"], ["data", "-h"], ["data", "--help"]):
        print("usage: minionerec COMMAND [--config PRESET_OR_FILE] [--section.field VALUE ...]\n")
        print("\n".join(f"  {name:15}{text}" for name, text in COMMANDS.items()))
        print("\nminionerec COMMAND --help shows every field; --print_config prints the resolved configuration.")
        return 0
    command, *rest = arguments
    grouped = any(known.startswith(f"{command} ") for known in COMMANDS)
    if rest and (command == "data" or (grouped and not rest[0].startswith("-"))):
        command, rest = f"{command} {rest[0]}", rest[1:]
    try:
        if command.startswith("data -"):
            raise ConfigError("minionerec data needs to know what to do, for example: minionerec data prepare --config FILE")
        if command not in COMMANDS:
            near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown command {command}; known are {', '.join(COMMANDS)}.{hint}")
        if command == "baseline table":
            _table(rest)
            return 0
        if command in _NO_CONFIG:
            from minionerec import data_command

            return data_command.run(command, rest)
        rest, extra = _own_options(command, rest)
        config = parse(command, rest)
        if config is None:
            return 0
        _run(command, config, extra)
    except MiniOneRecError as error:
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        errors.print(str(error), markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print("Interrupted. Run the same command again to go on where it stopped.")
        return 130
    return 0


def _table(arguments: Sequence[str]) -> None:
    from minionerec.report import baseline_tables

    made = argparse.ArgumentParser(prog="minionerec baseline table", exit_on_error=False)
    made.add_argument("name", help="beauty, lastfm, or the folder of a run with evaluated recommenders")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs of the presets are (default: runs)")
    try:
        chosen = made.parse_args(arguments)
    except SystemExit as stop:  # --help, or a mistake that argparse has told with the usage
        if stop.code:
            raise ConfigError("baseline table takes one name: minionerec baseline table NAME [--runs DIR].") from None
        return
    Console(width=None if sys.stdout.isatty() else 200).print(baseline_tables.baseline_table(chosen.name, chosen.runs))


def _own_options(command: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments of the configuration, and the options that only this command has.

    Raises:
        ConfigError: such an option without a value, or a flag with one.
    """
    rest, extra = [], {}
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in _OWN_OPTIONS.get(command, ()):
            flag = name in _FLAGS and not equals
            extra[name] = value if equals else "true" if flag else next(remaining, "")
            if not extra[name]:
                raise ConfigError(f"--{name} needs a value.")
            if name in _FLAGS and equals:
                raise ConfigError(f"--{name} takes no value; found {value!r}.")
        else:
            rest.append(argument)
    return rest, extra


def _run(command: str, config: Config, extra: dict[str, str]) -> None:
    from minionerec import pipeline

    try:
        if command in pipeline.COMMANDS:
            pipeline.command(command, config, extra)
            return
        if extra:
            pipeline.plan(command, config, extra)
            return
        pipeline.run(config, _RUN if command == "run" else (command.partition(" ")[0],))
    except PermissionError as error:
        raise ArtifactError(f"{error.filename}: permission denied. Choose another folder with --out DIR.") from None
    if command in ("run", "eval") and is_main_process():
        Console(width=None if sys.stdout.isatty() else 120).print(pipeline.result_table(config))
    if command in ("run", "report") and is_main_process():
        print(config.folder / "report" / "index.html")
