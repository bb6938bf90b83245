"""Caser (Tang and Wang, 2018) without user embeddings: convolutions over the most recent items as over an image.

Horizontal filters of several heights see runs of items, vertical ones weigh the items' places. Deviation from the paper: no
user embedding, so that users unseen in training can be ranked for, and a full softmax on the tied table. MiniOneRec's Caser is
`caser-released`; RecBole's, with user embeddings, is not built.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.baselines.batches import Batch
from minionerec.baselines.models.recommender import Recommender, initialise
from minionerec.errors import ConfigError

HEIGHTS = (2, 3, 4)  # items that a horizontal filter covers


class Caser(Recommender):
    """Reads the last `window` items, padded at the front. Results do not depend on anything before or around them."""

    layout = "padded"

    def __init__(
        self,
        items: int,
        max_history: int,
        *,
        hidden_size: int = 64,
        window: int = 10,
        horizontal_filters: int = 16,
        vertical_filters: int = 4,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(items, hidden_size)
        if not max(HEIGHTS) <= window <= max_history:
            raise ConfigError(
                f"baseline.window is {window}; filters cover {max(HEIGHTS)} items and histories hold {max_history}: choose "
                "something between."
            )
        self.window = window
        self.horizontal = nn.ModuleList(nn.Conv2d(1, horizontal_filters, (height, hidden_size)) for height in HEIGHTS)
        self.vertical = nn.Conv2d(1, vertical_filters, (window, 1))
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(horizontal_filters * len(HEIGHTS) + vertical_filters * hidden_size, hidden_size)
        initialise(self)

    def states(self, batch: Batch) -> Tensor:
        """(batch, hidden), see `Recommender`."""
        # The last `window` cells before each read-out; cells before the history, or of no item, are padding.
        back = torch.arange(self.window - 1, -1, -1, device=batch.items.device)
        cells = batch.readout[:, None] - back
        inside = back < batch.lengths[:, None]
        items = batch.items.flatten()[cells.clamp(min=0)].where(inside, 0)
        image = self.item_embeddings(items)[:, None]  # (batch, 1, window, hidden)
        runs = [functional.relu(convolution(image)).amax(2).flatten(1) for convolution in self.horizontal]
        places = functional.relu(self.vertical(image)).flatten(1)
        return self.dense(self.dropout(torch.cat([*runs, places], 1)))
