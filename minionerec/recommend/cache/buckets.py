"""How much the counts know of a history's last item: the buckets in which a mixture has weights of its own."""

import numpy as np

from minionerec.recommend.cache.interactions import NOTHING, Histories, Interactions, lookup, recent

_FREQUENCIES = (1, 2, 4, 8, 16, 32)  # from so many followers on, the next bucket
_SPREADS = (1 / 3, 2 / 3)  # above this share of distinct items among the followers, the next bucket
BUCKETS = (len(_FREQUENCIES) + 1) * (len(_SPREADS) + 1)  # 21


class Buckets:
    """Sorts histories by how often something followed their last item in training, and how spread these followers are.

    Let `n` be the number of transitions (gap 1) out of the last item, and `d` the number of distinct items that they lead to.
    The bucket is `3 * f + s`, where `f` from 0 to 6 says whether `n` is 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 to 31, or more, and
    `s` from 0 to 2 whether `d / n` is at most 1/3, at most 2/3, or more: Witten and Bell's estimate of how likely something new
    follows.
    A history without an item is in bucket 0, as is one whose last item nothing followed. Some of the 21 are impossible (one
    follower is always spread).
    """

    def __init__(self, interactions: Interactions) -> None:
        self._interactions = interactions
        self._counts = interactions.transitions(1)
        self._followers = np.asarray(self._counts.sum(axis=1))[:, 0]
        self._distinct = np.diff(self._counts.indptr)

    def of(self, histories: Histories, own: np.ndarray | None = None) -> np.ndarray:
        """The bucket of each history, (batch,) int64, 0 to `BUCKETS` - 1.

        Args:
            histories: item indices, oldest first; only the last item matters.
            own: as in `Component.probabilities`: the transition into that interaction is not counted.
        """
        last = recent(histories, 1)[:, 0]
        followers, distinct = self._followers[last], self._distinct[last]
        if own is not None:
            numbers = self._interactions.checked(own, len(last))
            rows = np.flatnonzero((self._interactions.before(numbers, 1) == last) & (last != NOTHING))
            targets = self._interactions.items[numbers[rows]]
            followers[rows] -= 1
            distinct[rows] -= lookup(self._counts, last[rows], targets) == 1
        frequency = np.searchsorted(_FREQUENCIES, followers, side="right")
        spread = np.searchsorted(_SPREADS, distinct / np.maximum(followers, 1), side="left")
        return frequency * (len(_SPREADS) + 1) + spread
