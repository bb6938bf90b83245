"""Similarity of two texts as a score: of a user's history, and of a candidate.

Inputs: `<run>/pairs`, a text encoder (`score.encoder`) or a model that was trained for it. Outputs:
`<run>/scoring/vectors/<name>/vectors.safetensors` with one vector for each user and each candidate, and
`<run>/scoring/<name>-dot/` and `-cosine/`. RecBench takes the dot product zero-shot, and the cosine of trained models.
Command: `minionerec score --config ml-100k-pairs --score.encoder minilm`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from minionerec.artifacts import CHECKPOINTS, Manifest, Recipe, over_shards, shards_of
from minionerec.config import Config
from minionerec.data.pairs import PairSet
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import DataError
from minionerec.model import checkpoint, pretrained
from minionerec.prompts.pairs import PairTexts, PairWords
from minionerec.prompts.plain_text import PlainText
from minionerec.scoring.encoders import CausalEncoder, SentenceEncoder, TextEncoder
from minionerec.scoring.titles import titles
from minionerec.sid.sentence_encoders import sentence_encoder_identity
from minionerec.training.scored_pairs import FOLDER, pairs_of_split, row_name, score_recipe, write_scores

Similarity = Literal["dot", "cosine"]
_FILE = "vectors.safetensors"


class Matched(NamedTuple):
    """What embeds the texts of pairs.

    Attributes:
        encoder: makes the vectors.
        words: stand before a history and before a candidate.
        items: what stands for each item.
    """

    encoder: TextEncoder
    words: PairWords
    items: Sequence[str]


def score_matching(config: Config) -> Iterator[tuple[Manifest, bool]]:
    """Score the pairs by `score.encoder`, in two rows: by dot product and by cosine. Every process calls it.

    Raises:
        ArtifactError: the pairs are not prepared, or a process did not finish its share.
        ConfigError: the encoder cannot be loaded.
        DataError: the split is empty, an item has no title, or a vector is not finite.
    """
    section = config.score
    path = str(section.encoder)
    identity = sentence_encoder_identity(path) if section.pooling == "own" else pretrained.identity(path)
    words = PairWords.of(section)
    read = {
        "encoder": path if identity is None else None,  # the identity of its files decides, wherever they lie
        "pooling": section.pooling,
        "max_tokens": section.max_tokens,
        "history": words.history,
        "candidate": words.candidate,
        **({} if section.pooling == "own" else {"dtype": section.dtype}),
    }
    kind = "matching" if section.pooling == "own" else f"matching-{section.pooling}"
    name, inputs = row_name(kind, path), {} if identity is None else {"encoder": identity}
    recipe = vectors_recipe(config, name, read, lambda: inputs)
    yield write_vectors(config, recipe, lambda pairs: _zero_shot(config, pairs))
    pooled = "" if section.pooling == "own" else f", {section.pooling} state"
    for similarity in ("dot", "cosine"):
        yield score_similarity(config, name, similarity, f"{name}-{similarity}", f"{Path(path).name}{pooled}, {similarity}")


def _zero_shot(config: Config, pairs: PairSet) -> Matched:
    section, words = config.score, PairWords.of(config.score)
    if section.pooling == "own":
        return Matched(SentenceEncoder(str(section.encoder), section.max_tokens), words, titles(pairs))
    model, tokenizer = checkpoint.load(str(section.encoder), section.dtype)
    model = model.to(distributed_state().device).eval()
    encoder = CausalEncoder(model, tokenizer, section.pooling, section.row_tokens, section.max_tokens)
    return Matched(encoder, words, titles(pairs, PlainText(tokenizer)))


def vectors_recipe(config: Config, name: str, read: dict[str, Any], inputs: Callable[[], dict[str, str]]) -> Recipe:
    """What the vectors of this name are made from; they lie beside the scores.

    Args:
        read: what decides the texts and how they are embedded.
        inputs: gives the digests of what embeds them.
    """
    return score_recipe(config, f"vectors/{name}", {"texts": read}, inputs)


def write_vectors(config: Config, recipe: Recipe, matched: Callable[[PairSet], Matched]) -> tuple[Manifest, bool]:
    """A vector of each user's history and of each candidate, made once for all scores; every process takes its share.

    Args:
        matched: loads what embeds them.
    """
    return recipe.make(lambda: _embed(config, recipe, matched), collective=True)


def _embed(config: Config, recipe: Recipe, matched: Callable[[PairSet], Matched]) -> None:
    pairs = PairSet.load(config.folder / "pairs")
    rows = pairs_of_split(pairs, config)
    encoder, words, shown = matched(pairs)
    made = PairTexts(words, shown, encoder.length, encoder.limit)
    histories = [made.of_user(history) for history in _histories(rows)]
    candidates = _candidates(rows)
    texts = [text for text, _ in histories] + [made.of_item(item) for item in candidates.tolist()]
    with recipe.write(resumable=True, collective=True) as draft:
        store = draft.path / CHECKPOINTS
        store.mkdir(exist_ok=True)
        shards = {
            store / f"texts-{of.start:08d}-{of.stop:08d}.safetensors": of
            for of in shards_of(len(texts), config.score.shard_users)
        }

        def write(of: range, path: Path) -> None:
            temporary = path.with_suffix(".tmp")
            save_file({"vectors": np.ascontiguousarray(encoder.vectors(texts[of.start : of.stop]))}, temporary)
            temporary.replace(path)

        over_shards(shards, write, "embed", "texts")
        if not is_main_process():
            return
        vectors = np.concatenate([load_file(path)["vectors"] for path in shards])
        _refuse_not_finite(vectors, texts, recipe.stage)
        users = len(histories)
        save_file({"users": vectors[:users], "candidates": vectors[users:]}, draft.path / _FILE)
        cut = sum(left_out > 0 for _, left_out in histories)
        draft.metrics.update(users=users, candidates=len(candidates), dimensions=vectors.shape[1], users_with_cut_history=cut)


def _refuse_not_finite(vectors: np.ndarray, texts: Sequence[str], stage: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{stage}: the vector of the text {texts[wrong[0]][:60]!r} is not finite; nothing was kept. Choose another "
            "encoder, or score.dtype float32."
        )


def score_similarity(config: Config, vectors: str, similarity: Similarity, name: str, label: str) -> tuple[Manifest, bool]:
    """Score the pairs by the similarity of vectors that are there; every process calls it.

    Args:
        vectors: their name.
        name, label: of the row.
    """
    stage = f"vectors/{vectors}"

    def inputs() -> dict[str, str]:
        return {stage: Manifest.load(config.folder / FOLDER / stage).digest}

    recipe = score_recipe(config, name, {"similarity": {"similarity": similarity}}, inputs)

    def build() -> None:
        rows = pairs_of_split(PairSet.load(config.folder / "pairs"), config)
        with recipe.write(collective=True) as draft:
            if is_main_process():
                scores = similarities(load_file(config.folder / FOLDER / stage / _FILE), rows, similarity)
                write_scores(draft, rows, scores, label=label, kind="model", scale="any")

    return recipe.make(build, collective=True)


def similarities(vectors: dict[str, np.ndarray], rows: pl.DataFrame, similarity: Similarity) -> np.ndarray:
    """The similarity of each pair's two vectors, (rows,) float64.

    Args:
        vectors: `users` in the order of the rows, `candidates` by ascending item, each (count, dimensions).
    """
    tables = [vectors[name].astype(np.float64) for name in ("users", "candidates")]
    if similarity == "cosine":
        tables = [table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12) for table in tables]
    users = rows["user"].to_arrow().dictionary_encode().indices.to_numpy()
    items = np.searchsorted(_candidates(rows), rows["candidate"].to_numpy())
    return np.einsum("ij,ij->i", tables[0][users], tables[1][items])


def _histories(rows: pl.DataFrame) -> list[list[int]]:
    return rows.unique("user", keep="first", maintain_order=True)["history"].to_list()


def _candidates(rows: pl.DataFrame) -> np.ndarray:
    return np.unique(rows["candidate"].to_numpy())
