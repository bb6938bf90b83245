"""Distributions over the catalog that are counted, read off item vectors or asked of a trained baseline, one class per source.

Let `n(i)` be how often item `i` was bought in training, `c_g(h, i)` how often it followed item `h` by `g` places in the same
user's sequence, `I` the number of items, and `h_1, h_2, ...` a history, the newest first.

| component | scores |
| --- | --- |
| `popularity` | `n(i) + smoothing` |
| `markov` | `c_1(h_1, i)` |
| `skip` | sum over k of `decay^(k-1) * s(h_k, i)`, with `s = sum over g of gap_weights[g-1] * c_g` |
| `item-knn` | sum over the history of cosines of who bought what (Sarwar et al., 2001), the `neighbours` largest of each item |
| `text` | sum over k of `decay^(k-1) * softmax_i(cos(v_i, v_(h_k)) / temperature)`, over all items but `h_k` itself |
| `sequential` | `softmax_i` of a trained baseline's scores after the history |

A row of scores divided by its sum is the distribution. A component that knows nothing of a history, so that all its scores are
0, answers with popularity. Popularity is smoothed: an item that was never bought has a chance of
`smoothing / (interactions + smoothing * I)`, above 0, so that a mixture with popularity gives every target a likelihood.

**Leave-one-out.** A training row would find itself in the counts: its transition into the target is one of them. `own` names
the interaction `t` that is the row's target, and leaves out exactly what `t` as a target adds, in every component:

* popularity: the interaction itself, `n(target) - 1`, also where it is what another component falls back on;
* `markov` and `skip`: every pair that ends in `t` (gaps 1, 2, 3). Pairs that begin in `t` stay: they are other rows' answers;
  and no new pair arises between its neighbours;
* `item-knn`: the interaction itself, so that the item's users are one fewer and its cosines and neighbours are computed anew,
  unless the user bought the item at another place too: a user counts once;
* `text`: nothing, it counts nothing;
* `sequential`: refused, for the baseline was trained on the row.

This equals building the component again from the interactions without `t` (popularity, item-kNN), or from the pairs without
those that end in `t` (transitions), up to the rounding of sums.

Memory: an answer is dense, `(batch, items)` float64, 8 bytes a cell: 8 MB a history at 10^6 items, so 512 histories are 4 GB;
ask for fewer at once. The counts themselves are sparse.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from minionerec.data.vectors import logprobs_of_scores
from minionerec.errors import ConfigError, DataError
from minionerec.recommend.cache.interactions import NOTHING, Histories, Interactions, lookup, recent
from minionerec.recommend.cache.neighbours import Neighbours
from minionerec.recommend.cache.sequential import HistoryScorer

_CELLS = 4_000_000  # of (rows, items) that are computed at once where only targets are asked for: 32 MB
_KERNEL = 8192  # items up to which the softmax of every item over all others is kept (256 MB at most)


class Component(ABC):
    """A source of knowledge about the next item.

    Attributes:
        name: in options, weights and reports.
        interactions: what it counts, and popularity counts for it.
        items: number of items.
    """

    name: ClassVar[str]

    def __init__(self, interactions: Interactions) -> None:
        self.interactions, self.items = interactions, interactions.catalog

    @abstractmethod
    def scores(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """What the class is about, before it is divided by its sum: (batch, items) float64, at least 0.

        A row of zeros knows nothing of its history. Arguments as in `probabilities`.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with besides the interactions, as plain values: a cache's weights hold for these alone."""
        return {}

    def probabilities(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The distribution over the catalog after each history.

        Args:
            histories: item indices, oldest first; may be empty.
            own: (batch,) the number of the training interaction that each row is about and must not know, `NOTHING` (-1) for
                none; None leaves nothing out. See the module for what is left out. `own_interactions(dataset)` has these
                numbers for a train split.

        Returns:
            (batch, items) float64, a new array, at least 0; rows add up to 1. A row of which the component knows nothing is
            popularity's.

        Raises:
            DataError: a history holds an item outside the catalog, or `own` names no interaction.
        """
        scores = self.scores(histories, own)
        totals = scores.sum(axis=1)
        unknown = np.flatnonzero(totals == 0)
        totals[unknown] = 1
        scores /= totals[:, None]
        if len(unknown):
            popularity = Popularity(self.interactions)
            scores[unknown] = popularity.probabilities([()] * len(unknown), None if own is None else np.asarray(own)[unknown])
        return scores

    def target_probabilities(self, histories: Histories, targets: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """The chance of each history's target, (rows,) float64; `probabilities` in blocks, so that any number of rows fits."""
        values = np.empty(len(histories))
        block = max(1, _CELLS // self.items)
        for start in range(0, len(histories), block):
            part = slice(start, start + block)
            answers = self.probabilities(histories[part], None if own is None else own[part])
            values[part] = answers[np.arange(len(answers)), np.asarray(targets[part])]
        return values

    def _recent(self, histories: Histories, last: int) -> np.ndarray:
        items = recent(histories, last)
        if items.size and not (items.min() >= NOTHING and items.max() < self.items):
            raise DataError(f"A history holds item {items.max()}; the catalog has {self.items}, numbered from 0.")
        return items

    def _own(self, own: np.ndarray | None, rows: int) -> np.ndarray:
        """`own`, checked; all `NOTHING` for None."""
        return np.full(rows, NOTHING) if own is None else self.interactions.checked(own, rows)


class Popularity(Component):
    """The same for every history: how often an item was bought, plus `smoothing`.

    >>> interactions = Interactions(np.array([0, 0, 0, 1, 1]), np.array([2, 0, 2, 0, 2]), 4)
    >>> (Popularity(interactions).probabilities([[2]]) * 9).round(6).tolist()
    [[3.0, 1.0, 4.0, 1.0]]
    """

    name = "popularity"

    def __init__(self, interactions: Interactions, smoothing: float = 1.0) -> None:
        super().__init__(interactions)
        self.smoothing = smoothing

    @property
    def settings(self) -> dict[str, Any]:
        """The smoothing."""
        return {"smoothing": self.smoothing}

    def scores(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """Counts plus smoothing; one less for the item of a row's own interaction."""
        numbers = self._own(own, len(histories))
        scores = np.tile(self.interactions.counts + self.smoothing, (len(histories), 1))
        rows = np.flatnonzero(numbers != NOTHING)
        scores[rows, self.interactions.items[numbers[rows]]] -= 1
        return scores


class Skip(Component):
    """Which items followed the last items of the history, at once or a few places later.

    Each of the `last` items of the history adds what followed it, weighed by `decay` per place back. Counts are added, not
    shares: an item that was seen often says more than one that was seen once.
    """

    name = "skip"

    def __init__(
        self,
        interactions: Interactions,
        gap_weights: Sequence[float] = (1.0, 0.5, 0.33),
        last: int = 5,
        decay: float = 0.6,
    ) -> None:
        """Count.

        Args:
            gap_weights: what a transition of gap 1, 2, ... counts.
            last: how many items of the history are read.
            decay: weight of an item against the one after it.
        """
        super().__init__(interactions)
        self.gap_weights, self.last, self.decay = tuple(gap_weights), last, decay
        self._counts = [interactions.transitions(gap) for gap in range(1, len(self.gap_weights) + 1)]
        self._weighted = sum(weight * counts for weight, counts in zip(self.gap_weights, self._counts, strict=True))

    @property
    def settings(self) -> dict[str, Any]:
        """How transitions are weighed."""
        return {"gap_weights": list(self.gap_weights), "last": self.last, "decay": self.decay}

    def scores(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The weighed sum of what followed the last items."""
        items = self._recent(histories, self.last)
        numbers = self._own(own, len(items))
        decays = self.decay ** np.arange(self.last)
        rows_of_counts = items.ravel() % (self.items + 1)  # the last one is empty, for `NOTHING`
        # 1. All transitions.
        row = np.repeat(np.arange(len(items)), self.last)
        shape = (len(items), self.items + 1)
        weights = sparse.csr_matrix((np.tile(decays, len(items)), (row, rows_of_counts)), shape=shape)
        scores = (weights @ self._weighted).toarray()
        # 2. The score of each row's own target once more, without the pairs that end in the row's own interaction. Whole
        # numbers are taken from whole numbers: nothing is left of what only that interaction has told.
        rows = np.flatnonzero(numbers != NOTHING)
        if len(rows):
            targets = self.interactions.items[numbers[rows]]
            cells, columns = rows_of_counts.reshape(items.shape)[rows].ravel(), np.repeat(targets, self.last)
            followed = np.zeros((len(rows), self.last))
            for gap, (weight, counts) in enumerate(zip(self.gap_weights, self._counts, strict=True), 1):
                source = self.interactions.before(numbers[rows], gap)[:, None]
                left_out = (items[rows] == source) & (source != NOTHING)
                followed += weight * (lookup(counts, cells, columns).reshape(followed.shape) - left_out)
            scores[rows, targets] = followed @ decays
        return scores


class Markov(Skip):
    """How often each item followed the last one: transitions of gap 1 from the newest item. Its scores are the counts.

    >>> interactions = Interactions(np.array([0, 0, 0, 0, 1, 1]), np.array([2, 0, 2, 1, 2, 0]), 3)
    >>> Markov(interactions).scores([[0, 2], [1]]).tolist()  # nothing ever followed item 1
    [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    >>> Markov(interactions).probabilities([[2]], own=np.array([3])).tolist()  # without that item 1 followed item 2
    [[1.0, 0.0, 0.0]]
    """

    name = "markov"

    def __init__(self, interactions: Interactions) -> None:
        super().__init__(interactions, gap_weights=(1.0,), last=1, decay=1.0)

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing to choose."""
        return {}


class ItemKNN(Component):
    """Sum over the history of cosine similarities to each item (Sarwar et al., 2001), over users' training items.

    The cosine of two items is the number of users who have both over the root of the product of their numbers of users, with
    `shrinkage` added to the denominator. Each item keeps its `neighbours` most similar ones, ties by item index. An item that
    stands twice in the history counts twice.
    """

    name = "item-knn"

    def __init__(self, interactions: Interactions, neighbours: int = 100, shrinkage: float = 10.0) -> None:
        super().__init__(interactions)
        self.neighbours, self.shrinkage = neighbours, shrinkage
        self._similar = Neighbours(interactions, neighbours, shrinkage)

    @property
    def settings(self) -> dict[str, Any]:
        """How many neighbours, and the shrinkage."""
        return {"neighbours": self.neighbours, "shrinkage": self.shrinkage}

    def scores(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """Sums of similarities."""
        numbers = self._own(own, len(histories))
        row = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        item = np.fromiter((item for history in histories for item in history), np.int64, len(row))
        if len(item) and not (item.min() >= 0 and item.max() < self.items):
            raise DataError(f"A history holds items {item.min()} to {item.max()}; the catalog has {self.items}, from 0.")
        counted = sparse.csr_matrix((np.ones(len(row)), (row, item)), shape=(len(histories), self.items))
        scores = (counted @ self._similar.kept).toarray()
        if (numbers != NOTHING).any():
            self._similar.leave_out(scores, counted, numbers)
        return scores


class TextNeighbours(Component):
    """Which items have texts like those of the last items of the history.

    Each of the `last` items gives a softmax of cosines over all other items of the catalog. An item is no neighbour of itself:
    its cosine of 1 would put what was just bought at the top of every list, and how often that is bought again is counted by
    the transitions. An item whose vector is 0 has no direction: it is passed over in a history, and its cosine is 0.
    """

    name = "text"

    def __init__(
        self,
        interactions: Interactions,
        vectors: np.ndarray,
        temperature: float = 0.1,
        last: int = 5,
        decay: float = 0.6,
    ) -> None:
        """Normalise the vectors.

        Args:
            vectors: (items, dimensions), in the order of the catalog, of any length.
            temperature: cosines are divided by it.
            last: how many items of the history are read.
            decay: weight of an item against the one after it.

        Raises:
            DataError: not one finite vector per item.
        """
        super().__init__(interactions)
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or len(vectors) != self.items or not np.isfinite(vectors).all():
            raise DataError(f"Item vectors of shape {vectors.shape}; expected ({self.items}, dimensions), all finite.")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        # Items of one text have one score: a product of its own may round.
        self._distinct, text_of = np.unique(self._unit, axis=0, return_inverse=True)
        self._text_of = text_of.reshape(-1)
        self._has_text = np.append(norms[:, 0] > 0, False)  # the last one is no item
        self.temperature, self.last, self.decay = temperature, last, decay
        self._kernel: np.ndarray | None = None  # rows of `_softmax` so far, if all of them fit
        self._done = np.zeros(self.items, bool)

    @property
    def settings(self) -> dict[str, Any]:
        """How neighbours are weighed, and the digest of the vectors."""
        return {
            "temperature": self.temperature,
            "last": self.last,
            "decay": self.decay,
            "vectors": self.digest,
        }

    @cached_property
    def digest(self) -> str:
        """Identifies the directions of the vectors."""
        return hashlib.sha256(str(self._unit.shape).encode() + self._unit.astype("<f4").tobytes()).hexdigest()

    def scores(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The weighed softmaxes; `own` changes nothing."""
        items = self._recent(histories, self.last)
        self._own(own, len(items))
        weights = np.where(self._has_text[items], self.decay ** np.arange(self.last), 0.0)
        sources, place = np.unique(np.where(weights > 0, items, 0), return_inverse=True)
        row = np.repeat(np.arange(len(items)), self.last)
        mixed = sparse.csr_matrix((weights.ravel(), (row, place.ravel())), shape=(len(items), len(sources)))
        return np.asarray(mixed @ self._softmax(sources))

    def _softmax(self, sources: np.ndarray) -> np.ndarray:
        """The softmax of the other items' cosines to each of these items, (sources, items) float32."""
        if self.items > _KERNEL:
            return self._computed(sources)
        if self._kernel is None:
            self._kernel = np.empty((self.items, self.items), np.float32)
        missing = sources[~self._done[sources]]
        self._kernel[missing] = self._computed(missing)
        self._done[missing] = True
        return self._kernel[sources]

    def _computed(self, sources: np.ndarray) -> np.ndarray:
        if self.items == 1:  # has no other item
            return np.zeros((len(sources), 1), np.float32)
        logits = ((self._unit[sources] @ self._distinct.T) / self.temperature)[:, self._text_of]
        logits[np.arange(len(sources)), sources] = -np.inf
        np.exp(logits - logits.max(axis=1, keepdims=True), out=logits)
        return logits / logits.sum(axis=1, keepdims=True)


class Sequential(Component):
    """What a trained baseline says: the softmax of its scores over the catalog.

    The model computes in float32, the softmax in float64. A history without an item has popularity: baselines are trained on
    histories that have one.
    """

    name = "sequential"

    def __init__(self, interactions: Interactions, scorer: HistoryScorer) -> None:
        super().__init__(interactions)
        self._scorer = scorer

    @property
    def settings(self) -> dict[str, Any]:
        """The baseline, and the digest of its artefact."""
        return {"baseline": self._scorer.name, "digest": self._scorer.digest}

    def scores(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The softmax; `own` may leave nothing out.

        Raises:
            DataError: a row is to be left out, or a score is not finite.
        """
        self._recent(histories, max(map(len, histories), default=0))
        if (self._own(own, len(histories)) != NOTHING).any():
            raise DataError(f"{self._scorer.name} was trained on all training rows: none can be left out of what it knows.")
        scores = np.zeros((len(histories), self.items))
        rows = [row for row, history in enumerate(histories) if len(history)]
        if not rows:
            return scores
        logits = self._scorer.score([histories[row] for row in rows])
        scores[rows] = np.exp(logprobs_of_scores(logits, self._scorer.name))
        return scores


COUNTS: tuple[str, ...] = ("popularity", "markov", "skip", "item-knn")  # need interactions alone
UNTRAINED: tuple[str, ...] = (*COUNTS, "text")
COMPONENTS: tuple[str, ...] = (*UNTRAINED, "sequential")
_CLASSES: Mapping[str, type[Component]] = {
    component.name: component for component in (Popularity, Markov, Skip, ItemKNN, TextNeighbours, Sequential)
}


def make_components(
    names: Sequence[str],
    interactions: Interactions,
    vectors: np.ndarray | None = None,
    scorer: HistoryScorer | None = None,
) -> dict[str, Component]:
    """Components with their default settings, by name, in the order of the names.

    Args:
        names: of `COMPONENTS`.
        vectors: (items, dimensions); `text` needs them.
        scorer: a trained baseline; `sequential` needs it.

    Raises:
        ConfigError: there is no such component, one is named twice, or what `text` or `sequential` needs is not there.
    """
    if not names or len(set(names)) != len(names) or not set(names) <= set(COMPONENTS):
        raise ConfigError(
            f"Components {', '.join(names) or 'none'}: expected one or several of {', '.join(COMPONENTS)}, each once."
        )
    if "text" in names and vectors is None:
        raise ConfigError("Component text needs item vectors, and there are none.")
    if "sequential" in names and scorer is None:
        raise ConfigError("Component sequential needs a trained baseline, and none is named.")
    further: Mapping[str, tuple[Any, ...]] = {"text": (vectors,), "sequential": (scorer,)}
    return {name: _CLASSES[name](interactions, *further.get(name, ())) for name in names}
