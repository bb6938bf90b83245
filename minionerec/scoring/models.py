"""Which trained models a run has, and which of them can still be asked. Nothing here imports torch.

A model that was trained on other pairs, or with other semantic IDs, than the run has by now is not asked.
"""

from minionerec.artifacts import MANIFEST, changed_input, require
from minionerec.config import Config

FOLDER = "yes-no"
COMMAND = "minionerec score --train"


def trained_models(config: Config) -> tuple[list[str], dict[str, str]]:
    """The names of the run's trained models that can be asked, and of the others why not, in words.

    Raises:
        ArtifactError: one is damaged.
    """
    current, outdated = [], {}
    for path in sorted((config.folder / FOLDER).glob(f"*/{MANIFEST}")):
        name = path.parent.name
        trained = require(path.parent, COMMAND)
        if (changed := changed_input(config.folder, trained)) is None:
            current.append(name)
        else:
            section = trained.config["yes_no"]
            options = f"--yes_no.scheme {section['scheme']} --yes_no.items {section['items']} --replace"
            outdated[name] = f"trained with other {changed} than the run has now; train it again ({COMMAND} {options})"
    return current, outdated


def row_of(name: str) -> str:
    """The row of a trained model's scores."""
    return f"{FOLDER}-{name}"
