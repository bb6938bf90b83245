"""What an artefact's manifest records of its prompts, and the comparison with the prompts that a model is now asked with."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from minionerec.config import PromptsConfig
from minionerec.errors import ConfigError
from minionerec.prompts.wordings import wordings_digest


def prompts_section(prompts: PromptsConfig) -> dict[str, Any]:
    """What the key of an artefact says of its prompts: the section's values, and the words themselves by their digest."""
    return {**asdict(prompts), "words": wordings_digest()}


def check_prompts(trained: Mapping[str, Any], prompts: PromptsConfig, folder: str) -> None:
    """Compare the prompts that a model was trained with to those that it is now asked with.

    Args:
        trained: the `config` of the model's manifest.

    Raises:
        ConfigError: they differ. The model was never asked like this and would answer badly.
    """
    now, then = prompts_section(prompts.for_training()), trained["prompts"]
    for name, value in now.items():
        if value != then.get(name):
            what = "words of this version" if name == "words" else f"prompts.{name} {value}"
            raise ConfigError(
                f"{folder} was trained with other prompts ({name}: {then.get(name)}), but now it is to be asked with {what}. "
                "Train it again, or set the section prompts as it was. To measure the released code's mistake of asking "
                "differently in evaluation: prompts.eval_style released."
            )
