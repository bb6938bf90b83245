"""What the training of a content recommender refuses before data are prepared. Nothing here imports torch."""

from minionerec.config import Config
from minionerec.config.extras import require_package
from minionerec.model import pretrained
from minionerec.sid.sentence_encoders import minilm_folder


def check_early(config: Config) -> None:
    """Refuse what is not installed or not fetched. A model of the hub is not asked for.

    Raises:
        ConfigError: the language model of `lego.plm`, or the package that trains its adapters or counts emissions, is missing.
    """
    plm = config.lego.plm
    if config.lego.parts.item == "plm":
        if plm.path == "minilm":
            minilm_folder("lego.plm.path", "give --lego.plm.path FOLDER")
        else:
            pretrained.check_present(plm.path, "lego.plm.path")
        if plm.lora_rank:
            require_package("peft", "lego.plm.lora_rank")
    if config.green.country is not None:
        require_package("codecarbon", "green.country")
