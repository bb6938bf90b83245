"""Control rows: scores that no model is needed for. A model that is not above them has learnt nothing that they do not know.

Inputs: `<run>/pairs`, and the text vectors of `sid.encoder` for one of them. Outputs: `<run>/scoring/<name>/`.
What they know of people comes from the train users alone (`pairs/counts.parquet`).
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from scipy import sparse

from minionerec.artifacts import Manifest
from minionerec.config import Config
from minionerec.data.pairs import PairSet
from minionerec.errors import ConfigError
from minionerec.sid.encoder import check_encoder, item_vectors, vector_inputs, vector_origin, vector_settings
from minionerec.training.scored_pairs import pairs_of_split, score_recipe, write_scores

SMOOTHING = 5.0  # labels of the average item that each item's like-rate starts with


class Control(NamedTuple):
    """A control row.

    Attributes:
        label: for display.
        score: takes the pairs, the rows to score and the configuration; gives (rows,) float.
        scale: `logit` if the score is the logit of a probability, else `any`.
        needs: what it cannot do without: `people` (train users), `labels` (likes and dislikes of theirs), `text`, `vectors` (of
            the text encoder), or nothing.
    """

    label: str
    score: Callable[[PairSet, pl.DataFrame, Config], np.ndarray]
    scale: Literal["logit", "any"]
    needs: str = ""


def _random(pairs: PairSet, rows: pl.DataFrame, config: Config) -> np.ndarray:
    chances = np.random.default_rng([config.seed, 2]).uniform(1e-6, 1 - 1e-6, len(rows))
    return np.log(chances / (1 - chances))


def _popularity(pairs: PairSet, rows: pl.DataFrame, config: Config) -> np.ndarray:
    return pairs.counts["had"].to_numpy()[rows["candidate"].to_numpy()].astype(float)


def _like_rate(pairs: PairSet, rows: pl.DataFrame, config: Config) -> np.ndarray:
    """Logit of each item's share of likes among its labels, drawn to the share g of all by five labels of the average item."""
    likes, labelled = (pairs.counts[name].to_numpy().astype(float) for name in ("likes", "labelled"))
    share = likes.sum() / labelled.sum()
    rate = (likes + SMOOTHING * share) / (labelled + SMOOTHING)
    return np.log(rate / (1 - rate))[rows["candidate"].to_numpy()]


def _overlap(pairs: PairSet, rows: pl.DataFrame, config: Config) -> np.ndarray:
    """Cosine of TF-IDF words between the candidate's text and those of the history together."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit_transform(pairs.catalog["text"].to_list())
    return _likeness(words, rows, lambda profiles: normalize(profiles))


def _text_vectors(pairs: PairSet, rows: pl.DataFrame, config: Config) -> np.ndarray:
    """Dot product of the candidate's vector with the mean of those of the history."""
    section, seed = vector_origin(config)
    return _likeness(np.asarray(item_vectors(pairs, section, seed)), rows, lambda profiles: profiles)


def _likeness(vectors: Any, rows: pl.DataFrame, finish: Callable[[Any], Any]) -> np.ndarray:
    """The dot product of each candidate's vector with that of its user: the mean over the history, finished."""
    users = rows.unique("user", keep="first", maintain_order=True)
    number = dict(zip(users["user"], range(len(users)), strict=True))
    lengths = users["history"].list.len().to_numpy().astype(np.int64)
    places = (np.repeat(np.arange(len(users)), lengths), users["history"].explode().to_numpy())
    means = sparse.csr_matrix((np.repeat(1 / lengths, lengths), places), shape=(len(users), vectors.shape[0]))
    profiles = finish(means @ vectors)
    of_row = np.array([number[user] for user in rows["user"]])
    chosen, candidates = profiles[of_row], vectors[rows["candidate"].to_numpy()]
    product = chosen.multiply(candidates) if sparse.issparse(chosen) else chosen * candidates
    return np.asarray(product.sum(axis=1), dtype=float).ravel()


CONTROLS = {
    "random": Control("random", _random, "logit"),
    "popularity": Control("popularity", _popularity, "any", "people"),
    "like-rate": Control("like-rate of the item", _like_rate, "logit", "labels"),
    "overlap": Control("words shared with the history", _overlap, "any", "text"),
    "text-vectors": Control("text vectors near the history", _text_vectors, "any", "vectors"),
}
REFERENCE = "like-rate"  # the row that others are compared with


def missing(name: str, pairs: PairSet, config: Config) -> str | None:
    """Why a control cannot be had of these pairs, in words; None if it can."""
    needs, section = CONTROLS[name].needs, vector_origin(config)[0]
    likes, labelled = pairs.counts["likes"].sum(), pairs.counts["labelled"].sum()
    if needs in ("people", "labels") and not labelled:
        return "no train users to count (pairs.test_share, pairs.train_rows)"
    if needs == "labels" and likes in (0, labelled):
        return f"all labels of the train users are {'likes' if likes else 'dislikes'}"
    reads_text = needs == "text" or (needs == "vectors" and section.vectors is None)
    if reads_text and not (pairs.catalog["text"].str.strip_chars() != "").all():
        return "the catalog has items without a text"
    if needs == "vectors":
        try:
            check_encoder(section)
        except ConfigError as error:
            return str(error)
    return None


def score_controls(config: Config) -> Iterator[tuple[Manifest, bool]]:
    """Score the pairs by every control that these pairs allow.

    Raises:
        ArtifactError: the pairs are not prepared.
        DataError: the split is empty.
    """
    pairs = PairSet.load(config.folder / "pairs")
    for name in CONTROLS:
        if missing(name, pairs, config) is None:
            yield _score_control(config, name, pairs)


def _score_control(config: Config, name: str, pairs: PairSet) -> tuple[Manifest, bool]:
    control = CONTROLS[name]
    reads_vectors = control.needs == "vectors"

    def inputs() -> dict[str, str]:
        return vector_inputs(vector_origin(config)[0]) if reads_vectors else {}

    recipe = score_recipe(config, name, {"vectors": vector_settings(config)} if reads_vectors else None, inputs)

    def build() -> None:
        rows = pairs_of_split(pairs, config)
        with recipe.write() as draft:
            facts = {"label": control.label, "kind": "control", "scale": control.scale}
            write_scores(draft, rows, control.score(pairs, rows, config), **facts)

    return recipe.make(build)
