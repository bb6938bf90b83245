"""Similarities of items by who bought them, the largest of each item, and what one interaction less changes in them."""

import numpy as np
from scipy import sparse

from minionerec.recommend.cache.interactions import NOTHING, Interactions, lookup


class Neighbours:
    """Cosine similarities between items over users, each item's `neighbours` largest.

    Attributes:
        kept: (items, items) float64, row: the item whose neighbours these are. Not symmetric: an item may be among another
            one's nearest and not have it among its own.
    """

    def __init__(self, interactions: Interactions, neighbours: int, shrinkage: float) -> None:
        self._interactions, self._neighbours, self._shrinkage = interactions, neighbours, shrinkage
        items = interactions.catalog
        # 1. Cosine of two items: users who have both, over the root of the product of their users, shrunk.
        user = np.cumsum(np.diff(interactions.users, prepend=interactions.users[0]) != 0)
        self._bought = sparse.csr_matrix((np.ones(len(user)), (user, interactions.items)), shape=(user[-1] + 1, items))
        times = self._bought.copy()  # how often a user bought an item
        self._bought.data[:] = 1.0  # a user counts once, however often the item was bought
        together = (self._bought.T @ self._bought).tocsr()
        self._users_of = together.diagonal()
        norms = np.sqrt(self._users_of)
        together.setdiag(0)
        together.eliminate_zeros()
        together.sort_indices()
        row = np.repeat(np.arange(items), np.diff(together.indptr))
        self._together = together.data.copy()
        together.data /= norms[row] * norms[together.indices] + shrinkage
        # 2. Keep each item's most similar neighbours.
        order = np.lexsort((together.indices, -together.data, row))  # row by row, the most similar first
        place = np.arange(len(row)) - together.indptr[row]
        nearest = order[place < neighbours]
        self.kept = sparse.csr_matrix((together.data[nearest], (row[nearest], together.indices[nearest])), shape=(items, items))
        # 3. For leaving one interaction out: all similarities, their order, and whether a user bought an item just once.
        self._all, self._order = together, order
        self._place = np.empty_like(place)
        self._place[order] = place
        self._cells = row.astype(np.int64) * items + together.indices  # ascending
        self._user = user
        self._once = lookup(times, user, interactions.items) == 1

    def leave_out(self, scores: np.ndarray, histories: sparse.csr_matrix, own: np.ndarray) -> None:
        """Change the rows of `scores`, in place, to what they are without each row's own interaction.

        Args:
            scores: `histories @ kept`, dense, (batch, items).
            histories: how often each item stands in each history, (batch, items).
            own: the interaction that each row leaves out, (batch,); `NOTHING` for none.
        """
        counts = np.diff(histories.indptr)
        row = np.repeat(np.arange(len(own)), counts)
        # Only a user who bought the target just once changes anything by not having bought it.
        changed = (own != NOTHING) & self._once[own]
        cells = np.flatnonzero(changed[row])
        row, item, times = row[cells], histories.indices[cells].astype(np.int64), histories.data[cells]
        target, user = self._interactions.items[own[row]], self._user[own[row]]
        # The user has every item of a history that is really theirs, and has the target nowhere else.
        theirs = (lookup(self._bought, user, item) > 0) & (item != target)
        foreign = np.unique(row[~theirs])
        for number in foreign:
            cell = row == number
            rows_of_items = [self._without(one, own[number]) for one in item[cell]]
            scores[number] = np.sum(times[cell, None] * np.array(rows_of_items), axis=0)
        own_cells = ~np.isin(row, foreign)
        row, item, times, target = row[own_cells], item[own_cells], times[own_cells], target[own_cells]
        self._replace_target(scores, np.flatnonzero(changed & ~np.isin(np.arange(len(own)), foreign)), own)
        self._lower_target(scores, row, item, times, target)

    def _replace_target(self, scores: np.ndarray, rows: np.ndarray, own: np.ndarray) -> None:
        scores[rows, self._interactions.items[own[rows]]] = 0.0

    def _lower_target(
        self, scores: np.ndarray, row: np.ndarray, item: np.ndarray, times: np.ndarray, target: np.ndarray
    ) -> None:
        """Add to the target's score what each item of the history still gives it, and let those in that take its place.

        One user fewer has the item and the target together, and one fewer has the target. The cosine falls: with c of the
        target's N users having both, (c-1)/(sqrt(N-1) n + s) < c/(sqrt(N) n + s), since (c-1)/c <= (N-1)/N < sqrt((N-1)/N). So
        a target outside the nearest stays there, and of one inside only the next one in order can take the place.
        """
        cell = np.searchsorted(self._cells, item * self._interactions.catalog + target)  # is there: the user has both
        inside = self._place[cell] < self._neighbours
        cell, row, item, times, target = cell[inside], row[inside], item[inside], times[inside], target[inside]
        both = self._together[cell] - 1
        norms = np.sqrt(self._users_of[item]) * np.sqrt(self._users_of[target] - 1) + self._shrinkage
        lowered = np.divide(both, norms, out=np.zeros_like(both), where=both > 0)
        # The first one that is not among the nearest, if there is one.
        follower = self._all.indptr[item].astype(np.int64) + self._neighbours
        exists = follower < self._all.indptr[item + 1]
        entry = self._order[np.where(exists, follower, 0)]
        value, column = np.where(exists, self._all.data[entry], 0.0), self._all.indices[entry]
        stays = (both > 0) & ~(exists & ((value > lowered) | ((value == lowered) & (column < target))))
        np.add.at(scores, (row[stays], target[stays]), times[stays] * lowered[stays])
        enters = ~stays & exists
        np.add.at(scores, (row[enters], column[enters]), times[enters] * value[enters])

    def _without(self, item: int, own: int) -> np.ndarray:
        """An item's row of `kept` without an interaction, computed anew: (items,)."""
        bought = self._bought.copy()
        user, target = self._user[own], self._interactions.items[own]
        bought[user, target] = 0.0
        users_of = self._users_of.copy()
        users_of[target] -= 1
        together = np.asarray((bought.T @ bought[:, [item]]).todense())[:, 0]
        together[item] = 0.0
        norms = np.sqrt(users_of) * np.sqrt(users_of[item]) + self._shrinkage
        similar = np.divide(together, norms, out=np.zeros_like(norms), where=together > 0)
        nearest = np.lexsort((np.arange(len(similar)), -similar))[: self._neighbours]
        row = np.zeros_like(similar)
        row[nearest] = similar[nearest]
        return row
