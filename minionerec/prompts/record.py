"""What an artefact's manifest records of its prompts, and the comparison with the prompts that a model is now asked with."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from minionerec.artifacts import content_hash
from minionerec.config import TASKS, PromptsConfig, TaskName
from minionerec.errors import ConfigError
from minionerec.prompts.wordings import HEADER, wording_of


def prompts_section(prompts: PromptsConfig, tasks: Iterable[TaskName]) -> dict[str, Any]:
    """What the key of an artefact says of its prompts.

    Args:
        tasks: the tasks that the stage uses. The words of any other task may change and the artefact stays current.

    Returns:
        the section's values, and `words`: the digest of each text that a prompt can show.

    Raises:
        ConfigError: a task is not put into words everywhere.
    """
    return {**asdict(prompts), "words": _words(prompts, tasks)}


def _words(prompts: PromptsConfig, tasks: Iterable[TaskName]) -> dict[str, str]:
    digests: dict[str, str] = {"header": content_hash(HEADER)} if prompts.style == "alpaca" else {}
    for task in tasks:
        wording = asdict(wording_of(task, prompts))
        if prompts.style == "plain":
            del wording["instructions"]  # this style does not show them
        digests[task] = content_hash(wording)
    return digests


def check_prompts(trained: Mapping[str, Any], prompts: PromptsConfig, folder: str) -> None:
    """Compare the prompts that a model was trained with to those that it is now asked with.

    Args:
        trained: the `config` of the model's manifest.

    Raises:
        ConfigError: they differ. The model was never asked like this and would answer badly.
    """
    then = trained["prompts"]
    now = prompts_section(prompts.for_training(), [task for task in TASKS if task in then["words"]])
    for name, value in now.items():
        if value != then.get(name):
            changed = "words of this version" if name == "words" else f"prompts.{name} {value}"
            before = _differences(then[name], value) if name == "words" else then.get(name)
            raise ConfigError(
                f"{folder} was trained with other prompts ({name}: {before}), but now it is to be asked with {changed}. "
                "Train it again, or set the section prompts as it was. To measure the released code's mistake of asking "
                "differently in evaluation: prompts.eval_style released."
            )


def _differences(then: Any, now: Mapping[str, str]) -> str:
    """The tasks whose words differ, for display; models of earlier versions have one digest of all words."""
    if not isinstance(then, Mapping):
        return "one digest of all tasks"
    return ", ".join(name for name in {**then, **now} if then.get(name) != now.get(name))
