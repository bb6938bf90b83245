"""From item text to vectors: MiniLM from an installed package, any sentence-transformers model, TF-IDF, or your own file.

Vectors are kept between runs in `<cache folder>/embeddings/<hash>.npy`, their SHA-256 next to them, and read memory-mapped; the
hash covers encoder, its files or package version, the limits and every text, so a changed item text is embedded anew. A model
embeds in shards of `_SHARD` texts that are kept in `<hash>.shards/` until all are there: the engine shares them out, and an
interrupted run resumes with the missing ones.
"""

import dataclasses
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minionerec.artifacts import (
    MANIFEST,
    Manifest,
    cache_folder,
    content_hash,
    file_hash,
    folder_digest,
    over_shards,
    shards_of,
)
from minionerec.config import VECTOR_FIELDS, Config, SidConfig
from minionerec.data.dataset import Dataset
from minionerec.data.pairs import PairSet
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.sid.sentence_encoders import MINILM, load_sentence_encoder, model_folder
from minionerec.sid.vector_cache import read_cache, store_vectors, write_cache

if TYPE_CHECKING:  # importing it takes seconds
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

_BATCH = 64  # texts; a larger batch is no faster on a CPU
_SHARD = 8192  # texts; what an interruption may cost


def vector_origin(config: Config) -> tuple[SidConfig, int]:
    """Section `sid` and the seed that decide a run's item vectors.

    They are those with which the run's semantic IDs were made, whatever the configuration says by now. Before the stage `sid`
    has run, and for shipped semantic IDs, they are the configuration's.

    Raises:
        ArtifactError: the run's semantic IDs are damaged.
    """
    folder = config.folder / "sid"
    if not (folder / MANIFEST).is_file():
        return config.sid, config.seed
    manifest = Manifest.load(folder)
    section = manifest.config["sid"]
    if section["shipped"]:
        return config.sid, config.seed
    return dataclasses.replace(config.sid, shipped=False, **{name: section[name] for name in VECTOR_FIELDS}), manifest.seed


def vector_settings(config: Config) -> dict[str, Any]:
    """What decides a run's item vectors, for the recipe of what reads them; `vector_inputs` has the digests of files.

    The seed is among the values only if it decides them and is another than the run's.
    """
    section, seed = vector_origin(config)
    values = {name: getattr(section, name) for name in VECTOR_FIELDS}
    return values | ({"seed": seed} if seed != config.seed and depends_on_seed(section) else {})


def depends_on_seed(config: SidConfig) -> bool:
    """Whether item vectors are made with a seed."""
    return config.vectors is None and config.encoder == "tfidf"


def item_vectors(dataset: Dataset | PairSet, config: SidConfig, seed: int) -> np.ndarray:
    """The catalog's vectors: read from `config.vectors` if it is set, else computed by the encoder.

    Returns:
        (items, dimensions) float32, perhaps memory-mapped.

    Raises:
        ConfigError: the file does not exist, or the encoder cannot be loaded.
        DataError: the file is no float32 matrix with a row per item, an item has no text, or a vector is not finite.
    """
    texts = dataset.catalog["text"].to_list()
    if config.vectors is None:
        return encode(texts, config, seed)
    path = Path(config.vectors)
    if not path.is_file():
        raise ConfigError(f"sid.vectors {path}: no such file; expected a .npy file of ({len(texts)}, dimensions) float32.")
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a complete .npy file ({error}).") from None
    if not isinstance(vectors, np.ndarray):
        raise DataError(
            f"{path}: an archive (.npz, or .pt of torch), not a .npy file. Save the one array that holds the vectors: "
            "numpy.save(FILE.npy, vectors)."
        )
    if vectors.ndim != 2 or len(vectors) != len(texts) or vectors.dtype != np.float32:
        raise DataError(
            f"{path}: holds {vectors.dtype} of shape {vectors.shape}; expected float32 ({len(texts)}, dimensions), one row per "
            "item in the order of the catalog."
        )
    return vectors


def present_vectors(dataset: Dataset, config: SidConfig, seed: int) -> np.ndarray | None:
    """`item_vectors` if they are at hand, in the user's file or in the cache folder: no text is embedded, no hub asked.

    Returns:
        (items, dimensions) float32, perhaps memory-mapped; None if they are not at hand.
    """
    try:
        if config.vectors is not None:
            return item_vectors(dataset, config, seed)
        if config.encoder not in ("minilm", "tfidf") and not Path(config.encoder).is_dir():
            return None
        folder = None if config.encoder == "tfidf" else model_folder(config.encoder)
    except (ConfigError, DataError):  # whoever needs them says what is wrong
        return None
    texts = dataset.catalog["text"].to_list()
    return read_cache(_cache_path(texts, folder, config, seed), len(texts))


def vector_dimensions(dataset: Dataset, config: SidConfig, seed: int) -> int:
    """How many dimensions `item_vectors` has; a model embeds a single text to tell. Raises as `item_vectors` does."""
    if config.vectors is not None or config.encoder == "tfidf":  # memory-mapped, or words that are counted in seconds
        return int(item_vectors(dataset, config, seed).shape[1])
    text = next((text for text in dataset.catalog["text"].to_list() if text.strip()), None)
    if text is None:
        return int(item_vectors(dataset, config, seed).shape[1])  # says what is wrong
    model = _load_model(model_folder(config.encoder), config)
    return int(np.asarray(model.encode([text], show_progress_bar=False)).shape[1])


def vector_inputs(config: SidConfig) -> dict[str, str]:
    """Digests of the user's own vectors, or of the folder of the user's own encoder; empty if there is neither."""
    if config.vectors is not None:
        path = Path(config.vectors)
        return {"vectors": file_hash(path) if path.is_file() else "missing"}  # reading it explains what is wrong
    if config.encoder not in ("minilm", "tfidf") and Path(config.encoder).is_dir():
        return {"encoder": folder_digest(Path(config.encoder))}
    return {}


def check_encoder(config: SidConfig) -> None:
    """Refuse an encoder that is not installed, before it is needed. A model of the hub is not asked for.

    Raises:
        ConfigError: there is no file of `config.vectors`, or the package of `minilm` is not installed.
    """
    if config.vectors is not None:
        if not Path(config.vectors).is_file():
            raise ConfigError(f"sid.vectors {config.vectors}: no such file; expected a .npy file of your own vectors.")
    elif config.encoder == "minilm":
        model_folder(config.encoder)


def encoder_identity(config: SidConfig, vectors: np.ndarray) -> str:
    """The origin of the vectors, in words: codes of vectors of another origin mean something else."""
    if config.vectors is not None:
        return f"own vectors of {vectors.shape[1]} dimensions"
    if config.encoder == "tfidf":
        return f"tfidf fitted to {len(vectors)} items, {vectors.shape[1]} dimensions"
    return f"{config.encoder} of at most {config.max_text_tokens} tokens, {vectors.shape[1]} dimensions"


def encode(texts: Sequence[str], config: SidConfig, seed: int) -> np.ndarray:
    """Embed item texts; equal texts get equal vectors.

    `minilm` and folders need no network. A row is all zeros only if `tfidf` finds no word that other items share;
    `fit_quantizer` refuses it.

    Args:
        texts: one per item, in catalog order.
        config: says which encoder.
        seed: of the randomised SVD of `tfidf`; all other encoders are deterministic.

    Returns:
        (items, dimensions) float32, rows of L2 norm 1.

    Raises:
        DataError: there is no text, a text is empty, or the encoder's output is not finite.
        ConfigError: the encoder is not installed, not found, brings code of its own, or is not a sentence-transformers model in
            safetensors.
    """
    _check_texts(texts)
    folder = None if config.encoder == "tfidf" else model_folder(config.encoder)
    cached = _cache_path(texts, folder, config, seed)
    vectors = read_cache(cached, len(texts))
    if vectors is not None:
        log.info("Text embeddings of %d items read from %s", len(texts), cached)
        return vectors
    if folder is None:
        vectors = _normalise(_tfidf(texts, config, seed), texts)
    else:
        distinct, shards = _shards(texts, cached)
        embedder = _Embedder(distinct, folder, config)
        if len(shards) == 1:
            parts = [embedder.vectors(rows) for rows in shards.values()]
        else:
            _write_shards(embedder, shards, collective=False)
            parts = [np.load(path, mmap_mode="r", allow_pickle=False) for path in shards]
        row = {text: number for number, text in enumerate(distinct)}
        vectors = np.concatenate(parts)[[row[text] for text in texts]]
    write_cache(cached, vectors)
    shutil.rmtree(cached.with_suffix(".shards"), ignore_errors=True)
    return vectors


def _check_texts(texts: Sequence[str]) -> None:
    """Refuse a catalog without items, and items without text."""
    if not texts:
        raise DataError("The catalog holds no item; there is nothing to embed.")
    empty = next((item for item, text in enumerate(texts) if not text.strip()), None)
    if empty is None:
        return
    if not any(text.strip() for text in texts):
        raise DataError(
            "No item of the catalog has a text; this source brings none. Give the items' vectors with --sid.vectors FILE.npy "
            "or use a source with titles."
        )
    raise DataError(f"Item {empty} (row {empty} of the catalog) has an empty text; give it a title or drop it.")


def embed_together(texts: Sequence[str], config: SidConfig, seed: int) -> None:
    """Embed the shards of a catalog into the cache, for `encode` to join; every process of a launch calls it.

    Does nothing for `tfidf` and own vectors, if one shard holds all, or if the joined embeddings are there already. Raises as
    `encode` does.
    """
    if config.vectors is not None or config.encoder == "tfidf":
        return
    _check_texts(texts)
    folder = model_folder(config.encoder)
    cached = _cache_path(texts, folder, config, seed)
    if read_cache(cached, len(texts)) is None:
        distinct, shards = _shards(texts, cached)
        if len(shards) > 1:
            _write_shards(_Embedder(distinct, folder, config), shards, collective=True)


def _cache_path(texts: Sequence[str], folder: Path | None, config: SidConfig, seed: int) -> Path:
    identity = {"encoder": _identity(folder, config, seed), "max_text_tokens": config.max_text_tokens}
    return cache_folder() / "embeddings" / f"{content_hash([identity, list(texts)])}.npy"


def _shards(texts: Sequence[str], cached: Path) -> tuple[list[str], dict[Path, range]]:
    """The distinct texts, short ones first, and the files of their shards."""
    distinct = sorted(dict.fromkeys(texts), key=len)  # a batch's padding changes the last digits: equal texts only once
    folder = cached.with_suffix(".shards")
    return distinct, {folder / f"{number:05d}.npy": rows for number, rows in enumerate(shards_of(len(distinct), _SHARD))}


def _identity(folder: Path | None, config: SidConfig, seed: int) -> Any:
    if folder is None:
        return ["tfidf", metadata.version("scikit-learn"), config.tfidf_dimensions, seed]
    if config.encoder == "minilm":
        return [MINILM, metadata.version(MINILM)]
    return folder_digest(folder)


@dataclasses.dataclass
class _Embedder:
    """Embeds rows of the distinct texts; the model is loaded when the first are asked for."""

    distinct: list[str]
    folder: Path
    config: SidConfig

    @cached_property
    def _model(self) -> "SentenceTransformer":
        return _load_model(self.folder, self.config)

    def vectors(self, rows: range) -> np.ndarray:
        texts = self.distinct[rows.start : rows.stop]
        log.info("Embedding %d texts with %s", len(texts), self.config.encoder)
        bar = len(self.distinct) <= _SHARD  # the shards have one of their own
        vectors = self._model.encode(texts, batch_size=_BATCH, show_progress_bar=bar, convert_to_numpy=True)
        return _normalise(vectors, texts)

    def __call__(self, rows: range, path: Path) -> None:
        store_vectors(path, self.vectors(rows))


def _write_shards(embedder: _Embedder, shards: Mapping[Path, range], *, collective: bool) -> None:
    """Write the missing and the damaged shards.

    Raises:
        ArtifactError: the cache cannot be written.
    """
    try:
        over_shards(
            shards, embedder, "embed", "texts", collective=collective, intact=lambda rows, path: _intact(path, len(rows))
        )
    except OSError as error:
        raise ArtifactError(
            f"{next(iter(shards)).parent}: cannot be written ({error.strerror}), and a catalog of {len(embedder.distinct):,} "
            "texts is embedded there in parts. Free some space, or choose another cache with MINIONEREC_CACHE."
        ) from error


def _intact(path: Path, rows: int) -> bool:
    return read_cache(path, rows) is not None


def _load_model(folder: Path, config: SidConfig) -> "SentenceTransformer":
    model = load_sentence_encoder(folder, config.encoder, "sid.encoder")
    limit = model.max_seq_length or config.max_text_tokens
    if config.max_text_tokens > limit:
        log.warning("sid.max_text_tokens %d is lowered to %d, the encoder's limit", config.max_text_tokens, limit)
    model.max_seq_length = min(config.max_text_tokens, limit)
    return model


def _tfidf(texts: Sequence[str], config: SidConfig, seed: int) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text)[: config.max_text_tokens]

    if len({word for text in texts for word in words(text.lower())}) < 2:
        raise DataError("The catalog's texts hold fewer than two different words; tfidf cannot tell its items apart.")
    vectorizer = TfidfVectorizer(tokenizer=words, token_pattern=None, sublinear_tf=True)
    matrix = vectorizer.fit_transform(texts)
    if (matrix.max(axis=0) != matrix.min(axis=0)).nnz == 0:  # scikit-learn would divide by their variance, 0
        log.warning("All texts of the catalog hold the same words, so tfidf gives all items one vector.")
        return np.ones((len(texts), 1))
    svd = TruncatedSVD(min(config.tfidf_dimensions, *matrix.shape), random_state=seed)
    vectors = svd.fit(matrix).transform(matrix)  # unlike fit_transform, gives equal rows equal vectors
    rank = int(np.sum(svd.singular_values_ > 1e-6 * svd.singular_values_[0]))
    if rank < config.tfidf_dimensions:
        log.info("tfidf: %d dimensions, all that the catalog's rank allows", rank)
    return vectors[:, :rank]


def _normalise(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The vectors of these texts with L2 norm 1, float32."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        text = texts[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]  # not an item: distinct texts are embedded
        raise DataError(
            f"The encoder's vector of the text {text[:60]!r} is not finite; choose another encoder or a higher precision."
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A shorter SVD row is rounding, not text.
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)
