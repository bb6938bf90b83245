"""Scores without gradient, from caches: all items are encoded once, each user once; then vectors interact.

A cache of item vectors lasts until a weight changes. Users are encoded once per call. An interaction that weighs the history
for each candidate (`din`) has no vector of a user; for an item encoder that is a table (`id`) the cache is a copy of it.
"""

import numpy as np
import torch
from torch import Tensor

from minionerec.data.history_rows import HistoryRows
from minionerec.legommenders.examples import histories
from minionerec.legommenders.model import Legommender

PAGE = 512  # items, or users, encoded at once
_CELLS = 2**16  # pairs of user and item scored at once


class CachedScores:
    """Scores of rows by a model as it is now, in evaluation mode.

    Attributes:
        encoded: how often all items were encoded.
    """

    def __init__(self, model: Legommender, items: int, device: torch.device) -> None:
        """Nothing is computed yet.

        Args:
            items: how many the catalog has.
        """
        self.model, self.items, self.device = model, items, device
        self.encoded = 0
        self._state: tuple[tuple[int, int], ...] = ()
        self._vectors: Tensor | None = None

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """The vectors of all items, (items, width); computed anew if a weight has changed."""
        self.model.eval()
        # In-place changes raise a tensor's version, and a new tensor has another address.
        state = tuple((value.data_ptr(), value._version) for value in (*self.model.parameters(), *self.model.buffers()))
        if self._vectors is None or state != self._state:
            pages = torch.arange(self.items, device=self.device).split(PAGE)
            self._vectors = torch.cat([self.model.item_vectors(page) for page in pages])
            self._state, self.encoded = state, self.encoded + 1
        return self._vectors

    @torch.no_grad()
    def pairs(self, rows: HistoryRows) -> np.ndarray:
        """The logit of each row's candidate, (rows,) float32. Rows that share a slice of `flat` share their user's vector."""
        items = self.item_vectors()
        _, first, user = np.unique(np.stack([rows.start, rows.stop]), axis=1, return_index=True, return_inverse=True)
        distinct = rows.take(first)
        users = self._users(distinct) if self.model.users_cacheable else None
        scores = []
        for start in range(0, len(rows), PAGE):
            page = user.reshape(-1)[start : start + PAGE]
            shown = histories(distinct.take(page)).to(self.device)
            candidates = items[torch.from_numpy(rows.target[start : start + PAGE].astype(np.int64) - 1).to(self.device)]
            own = self._encode(shown, items) if users is None else users[torch.from_numpy(page).to(self.device)]
            scores.append(self.model.scores(own, candidates[:, None], shown >= 0)[:, 0].float())
        return torch.cat(scores).cpu().numpy()

    @torch.no_grad()
    def catalog(self, rows: HistoryRows) -> Tensor:
        """The logits of all items for each row's history, (rows, 1 + items); column 0 stands for padding and is -infinity."""
        items = self.item_vectors()
        users = self._users(rows) if self.model.users_cacheable else None
        scores = torch.full((len(rows), 1 + self.items), -torch.inf, device=self.device)
        width = 1 if self.model.users_cacheable else int((rows.stop - rows.start).max())  # of what is computed for each pair
        at_once = max(1, _CELLS // (self.items * width))
        for start in range(0, len(rows), at_once):
            shown = histories(rows.take(np.arange(start, min(start + at_once, len(rows))))).to(self.device)
            own = self._encode(shown, items) if users is None else users[start : start + at_once]
            scores[start : start + at_once, 1:] = self.model.scores(own, items[None], shown >= 0).float()
        return scores

    def _users(self, rows: HistoryRows) -> Tensor:
        items = self.item_vectors()
        pages = np.array_split(np.arange(len(rows)), range(PAGE, len(rows), PAGE))
        return torch.cat([self._encode(histories(rows.take(page)).to(self.device), items) for page in pages])

    def _encode(self, shown: Tensor, items: Tensor) -> Tensor:
        return self.model.users(shown, None if self.model.reads_texts else items[shown.clamp(min=0)])


@torch.no_grad()
def uncached_pairs(model: Legommender, rows: HistoryRows, batch: int, device: torch.device) -> np.ndarray:
    """The logit of each row's candidate, (rows,) float32. Each batch encodes its own items and histories, as in training."""
    model.eval()
    scores = []
    for start in range(0, len(rows), batch):
        part = rows.take(np.arange(start, min(start + batch, len(rows))))
        candidates = torch.from_numpy(part.target.astype(np.int64) - 1)[:, None]
        scores.append(model(histories(part).to(device), candidates.to(device))[:, 0].float())
    return torch.cat(scores).cpu().numpy()
