"""What the training on pairs refuses before anything is made. Nothing here imports torch."""

from minionerec.config import Config
from minionerec.errors import ConfigError
from minionerec.training.machine import check_model_memory


def check_early(config: Config) -> None:
    """Refuse settings that this training cannot have.

    Raises:
        ConfigError: the model would have item texts, semantic IDs are asked for and the pairs are of no Dataset, or the model
            does not fit into the memory.
    """
    if config.model.item_texts:
        name = "text_input" if config.model.text_input else "text_output"
        raise ConfigError(f"model.{name} is true, but a model that says yes or no has no text vectors of items. Leave it out.")
    if config.yes_no.items == "sid" and config.pairs.source != "dataset":
        raise ConfigError(
            f"yes_no.items is sid, but pairs.source is {config.pairs.source}: such items have no semantic IDs. Set yes_no.items"
            " text."
        )
    check_model_memory(config)
