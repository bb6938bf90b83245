"""`run.yaml` in a run's folder: the name and the configuration that its artefacts were made with, every field.

A run's first command writes the file whole. A later command updates only the sections that its stages read, so the file keeps
saying what each finished stage was made with. `--config RUN_FOLDER` reads it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from minionerec.config import Config
from minionerec.config.components import mixes_in, reads_vectors
from minionerec.config.differences import differences
from minionerec.config.documents import DocumentError, no_fields, parse_yaml
from minionerec.config.fields import made_of
from minionerec.config.sid import VECTOR_FIELDS
from minionerec.distributed import is_main_process
from minionerec.errors import ArtifactError, ConfigError, LockedError

RUN_FILE = "run.yaml"
_HEADER = "# What this run's artefacts were made with, kept by MiniOneRec. Pass it to later commands: --config THIS_FOLDER.\n"
_END = "...\n"  # YAML's end of a document: a file that was cut off lacks it
_READS = {  # what each stage reads; validations and rollouts read `eval` too
    "data": ("data",),
    "sid": ("seed", "sid"),
    "sft": ("seed", "model", "prompts", "sft", "eval", "mixture"),
    "rl": ("seed", "prompts", "rl", "eval", "mixture"),
    "mixture": ("seed", "prompts", "eval", "mixture"),
    "d3": ("prompts", "eval"),
    "eval": ("seed", "prompts", "eval"),
    "report": ("report",),
    "baseline": ("seed", "baseline", "eval"),
    "pairs": ("seed", "pairs"),
    "score": ("seed", "score"),
    "yes-no": ("seed", "model", "yes_no"),
    "lego": ("seed", "lego", "green", "eval"),
}
_MADE_WITH = {"data": ("data",), "sid": ("sid",), "sft": ("model", "prompts", "sft"), "rl": ("rl",)}  # stages that take long
# Of a finished model; who fits a mixture to it, evaluates it or trains a baseline otherwise leaves them as they are.
_TRAINED_WITH = ("seed", "prompts", "eval")
_TRAINED_BEFORE = {"rl": ("sft",), **dict.fromkeys(("mixture", "d3", "eval", "baseline", "lego"), ("sft", "rl"))}  # by stage
_FOLDERS = {  # of stages that make several artefacts
    "mixture": "mixture/*",
    "d3": "d3/*",
    "eval": "eval/*",
    "baseline": "baselines/*",
    "score": "scoring/*",
    "lego": "lego/*/*",
    "yes-no": "yes-no/*",
}
_MOST_DIFFERENCES = 5  # fields named in a line


def load(folder: Path) -> dict[str, Any]:
    """The content of a run's `run.yaml`.

    Raises:
        ConfigError: the folder holds none, or it is damaged.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise ConfigError(
            f"--config {folder}: this folder holds no {RUN_FILE}, so it is not a run's. Give a YAML file or a preset's name; "
            f"to make a run in this folder, add --out {folder}."
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = parse_yaml(text)
    except (UnicodeDecodeError, DocumentError) as error:
        raise _damaged(path, f"not readable as YAML: {error}") from None
    if not text.endswith(_END) and not isinstance(values, list):  # no beginning of a run's file is a list
        raise _damaged(path, "its end is missing")
    if not isinstance(values, dict):
        raise _damaged(path, no_fields(values))
    for name in _sections():
        if not isinstance(values.get(name, {}), dict):
            raise _damaged(path, f"{name} is a section, found {values[name]!r}")
    return values


def configuration(folder: Path) -> Config:
    """The configuration in a run's `run.yaml`, as `--config FOLDER` reads it.

    Raises:
        ConfigError: there is no such file, it is damaged, or it holds what this version does not take.
    """
    values = {**load(folder), "out": str(folder)}
    try:
        config: Config = made_of(Config, values)
    except ConfigError as error:
        raise ConfigError(f"{folder / RUN_FILE}: {error}") from None
    return config


def name_of(config: Config) -> str:
    """The name of the run in the configuration's folder: that in its `run.yaml`, else the configuration's.

    The two differ if a command names a preset and the folder of a run: the run keeps the name that it was made with.

    Raises:
        ConfigError: the run's `run.yaml` is damaged.
    """
    if not (config.folder / RUN_FILE).is_file():
        return config.name
    return str(load(config.folder).get("name", config.name))


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path}: damaged ({what}). Delete the file and give the run's configuration again: --config FILE --out {path.parent}. "
        "The finished stages stay, and the command writes the file anew."
    )


def _sections() -> set[str]:
    return {name for names in _READS.values() for name in names} - {"seed"}


def other_settings(config: Config, stages: Sequence[str]) -> str | None:
    """One line about the settings in which a command differs from what finished stages were made with; None if in none.

    Args:
        stages: what the command runs. These stages compare their settings themselves.

    Raises:
        ConfigError: the run's `run.yaml` is damaged.
    """
    if not (config.folder / RUN_FILE).is_file():
        return None
    stored = load(config.folder)
    updated = {name for stage in stages for name in _READS[stage]}
    changed = []
    for stage, sections in _MADE_WITH.items():
        if stage not in stages and (config.folder / stage / "manifest.json").is_file():
            now = config.key_fields(*(name for name in sections if name not in updated))
            before = {name: {key: value for key, value in stored.get(name, {}).items() if key in now[name]} for name in now}
            changed += differences(before, now)
    if not changed:
        return None
    fields = ", ".join(f"{change.field} {change.before} (here {change.now})" for change in changed[:_MOST_DIFFERENCES])
    more = f" and {len(changed) - _MOST_DIFFERENCES} more" if len(changed) > _MOST_DIFFERENCES else ""
    return (
        f"Finished stages keep the settings of {config.folder / RUN_FILE}, which are not this command's: {fields}{more}. "
        f"--config {config.folder} gives the run's own."
    )


@contextmanager
def recording(config: Config, stage: str) -> Iterator[None]:
    """While and after a stage runs, `run.yaml` holds what the stage reads; of a run without the file, everything.

    Mixtures, evaluations and baselines of a run with a trained model do not change what it was trained with, see `_updates`.

    An interrupted training can so be resumed with `--config RUN_FOLDER`. If the stage is refused before it begins, the file is
    put back: nothing was made with the new settings. Only the main process writes.

    Raises:
        ConfigError: the run's `run.yaml` is damaged.
        ArtifactError: the folder cannot be written.
    """
    path, folder = config.folder / RUN_FILE, config.folder
    before = load(folder) if path.is_file() else None
    if not is_main_process():
        yield
        return
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    now = config.recorded
    kept = {name: value for name, value in (before or {}).items() if name in now}
    values = now | kept | _updates(config, stage, before or {})
    if values != before:  # a finished run on a disk that cannot be written is still read
        _write(path, values)
    try:
        yield
        _write_again(config, stage, values)
    except BaseException as error:
        begun = not isinstance(error, ConfigError | LockedError) and any(folder.glob(f"{_FOLDERS.get(stage, stage)}.partial"))
        if not begun and before is not None:
            with suppress(ConfigError):  # removed or damaged meanwhile: the first error says more
                _put_back(config, stage, before)
        elif not begun:
            with suppress(ConfigError):  # removed or damaged meanwhile
                if load(folder) == values:  # else another command's
                    path.unlink()
            with suppress(OSError):  # one holds something else
                for parent in missing:
                    parent.rmdir()
        raise


def _updates(config: Config, stage: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that a stage's command updates, by name, as the file will have them.

    A model's recipe holds the seed, the prompts, parts of `eval` and perhaps the components that it was trained or validated
    with, and their vectors. If an evaluation with other beams, or a mixture of other components, updated them, the file would
    no longer say what the model was made with, and the next `run --config RUN_FOLDER` would train it again or be refused.

    Args:
        stored: the content of the file; empty if there is none.
    """
    now = config.recorded
    updates = {name: now[name] for name in _READS[stage]}
    if stage == "sft":
        updates["rl"] = _with_holdout(stored.get("rl", now["rl"]), now["rl"])
    before = _TRAINED_BEFORE.get(stage, ())
    trained = [name for name in before if (config.folder / name / "manifest.json").is_file()]
    if stage == "yes-no" and (config.folder / "sft" / "manifest.json").is_file():
        del updates["model"]  # that of SFT stays; this stage's manifest has its own
    if trained and stage != "rl":
        updates = {name: value for name, value in updates.items() if name not in _TRAINED_WITH}
    if trained and "mixture" in updates and not mixes_in(now, stage):
        if any(mixes_in(stored, name) for name in trained):
            del updates["mixture"]
        else:  # how models are validated is nothing that this command decides
            before_it = stored.get("mixture", now["mixture"])
            validation = now["mixture"]["validation"] and before_it.get("validation", False)
            updates["mixture"] = {**now["mixture"], "validation": validation}
    vectors = _vectors(now, stored, stage)
    if vectors and not any(_vectors(stored, stored, name) for name in trained):
        updates["sid"] = {**stored["sid"], **vectors}
    return updates


def _with_holdout(stored: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Section `rl` after SFT, which reads of it only which rows are held out; RL's own settings stay.

    Args:
        stored: the section in the file.
        now: the command's.
    """
    if now["holdout"] == "none" and stored.get("prompts") == "holdout":
        return now  # the two together would be refused when the file is read
    return stored | {name: now[name] for name in ("holdout", "holdout_share")}


def _vectors(values: Mapping[str, Any], stored: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Where the item vectors come from that a stage reads: fields of `sid`; empty if it reads none.

    The vectors of a run whose semantic IDs were made from vectors are those, whatever a later command says. Only a run with
    shipped semantic IDs takes them from the command that reads them.

    Args:
        values: the configuration of the stage.
        stored: the content of the file.
    """
    if not stored.get("sid", {}).get("shipped") or "sid" not in values or not reads_vectors(values, stage):
        return {}
    return {name: values["sid"][name] for name in VECTOR_FIELDS if name in values["sid"]}


def _write_again(config: Config, stage: str, values: dict[str, Any]) -> None:
    """Restore what a stage was made with if a command that was refused meanwhile has put back what it had found."""
    present = load(config.folder) if (config.folder / RUN_FILE).is_file() else {}
    updated = {name: values[name] for name in _updates(config, stage, present)}
    if stage == "sft":
        updated["rl"] = _with_holdout(present.get("rl", values["rl"]), values["rl"])
    if (restored := values | present | updated) != present:
        _write(config.folder / RUN_FILE, restored)


def _put_back(config: Config, stage: str, before: dict[str, Any]) -> None:
    """Undo what `recording` has written for a stage; sections that another command has written meanwhile stay."""
    present = load(config.folder)
    updates = _updates(config, stage, present)
    undone = {name: value for name, value in before.items() if name in updates or name not in present}
    if stage == "sft" and "rl" in before and present.get("rl") != _with_holdout(before["rl"], config.recorded["rl"]):
        undone.pop("rl", None)  # a command of RL has written it meanwhile
    fields = {name: value for name, value in before.items() if not isinstance(value, dict)}
    if (values := present | fields | undone) != present:
        _write(config.folder / RUN_FILE, values)


def _write(path: Path, values: dict[str, Any]) -> None:
    fields = {name: value for name, value in values.items() if not isinstance(value, dict)}
    parts = [fields, *({name: value} for name, value in values.items() if name not in fields)]
    texts = [yaml.safe_dump(part, sort_keys=False, allow_unicode=True, width=120) for part in parts]
    temporary = path.with_name(f"{RUN_FILE}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(_HEADER + "\n".join(texts) + _END, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror}). Choose another folder with --out DIR.") from None
