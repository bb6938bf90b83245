"""What the training on pairs, and the scoring, refuse before anything is made. Nothing here imports torch."""

from collections.abc import Collection

import polars as pl

from minionerec.artifacts import MANIFEST
from minionerec.config import Config
from minionerec.errors import ConfigError
from minionerec.model import pretrained
from minionerec.sid.encoder import check_encoder
from minionerec.sid.sentence_encoders import check_sentence_encoder
from minionerec.training.machine import check_model_memory


def check_scoring(config: Config) -> None:
    """Refuse a model or text encoder that is not there, before anything is scored.

    Raises:
        ConfigError: nothing is at the path of `score.model` or `score.encoder`; or the encoder is not installed, or is no
            sentence encoder and `score.pooling` is `own`.
    """
    encoder = config.score.encoder
    if config.score.model is not None:
        pretrained.check_present(config.score.model, "score.model")
    if encoder is not None and config.score.pooling == "own" and pretrained.is_published(encoder):
        raise ConfigError(f"score.encoder {encoder} is a causal LM: set score.pooling to last or mean.")
    if encoder is not None and encoder != "minilm":
        pretrained.check_present(encoder, "score.encoder")
    if encoder is not None and config.score.pooling == "own":
        check_sentence_encoder(encoder, "score.encoder")


def check_early(config: Config, pending: Collection[str] = ()) -> None:
    """Refuse settings that this training cannot have.

    Args:
        pending: stages that run before; if the pairs are among them, their number is not known yet.

    Raises:
        ConfigError: the model would have item texts, semantic IDs are asked for and the pairs are of no Dataset, the model is
            not there or does not fit into the memory, the encoder of text vectors is not installed, or a batch holds more users
            than there are.
    """
    if config.model.item_texts:
        name = "text_input" if config.model.text_input else "text_output"
        raise ConfigError(f"model.{name} is true, but a model that says yes or no has no text vectors of items. Leave it out.")
    if config.yes_no.items == "sid" and config.pairs.source != "dataset":
        raise ConfigError(
            f"yes_no.items is sid, but pairs.source is {config.pairs.source}: such items have no semantic IDs. Set yes_no.items"
            " text."
        )
    if config.model.init == "from_pretrained":
        pretrained.check_present(str(config.model.path))
    check_model_memory(config)
    if config.yes_no.items == "vector":
        check_encoder(config.sid)
    if "pairs" not in pending and (config.folder / "pairs" / MANIFEST).is_file():
        train = pl.scan_parquet(config.folder / "pairs" / "train.parquet", glob=False)
        users = train.select(pl.col("user").n_unique()).collect().item()
        if users < config.yes_no.batch_size:
            raise few_users(config.yes_no.batch_size, users)


def few_users(batch_size: int, users: int) -> ConfigError:
    """The error of a batch that holds more users than there are."""
    return ConfigError(f"yes_no.batch_size is {batch_size}, but there are only {users} train users; lower it.")
