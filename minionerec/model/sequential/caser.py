"""Caser (Tang and Wang, 2018) without user embeddings: convolutions over the most recent items as over an image.

Horizontal filters of several heights see runs of items, vertical ones weigh the items' places. Deviation from the paper: no
user embedding, so that users who are new since training can be ranked for, and a full softmax on the tied table. The Caser of
the released MiniOneRec code is `caser-released`; RecBole's, with user embeddings, is not built.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import Options, SequentialModel, initialise

HEIGHTS = (2, 3, 4)  # items that a horizontal filter covers


@dataclass(frozen=True)
class CaserOptions(Options):
    """Options of Caser.

    Attributes:
        window: items that the filters see; at least as many as the highest filter covers.
    """

    window: int = 10
    horizontal_filters: int = 16
    vertical_filters: int = 4
    dropout: float = 0.3


class Caser(SequentialModel):
    """Reads the last `window` items, with padding in front of a shorter history, and nothing before or around them."""

    options = CaserOptions
    causal = padding_free = False
    layout = "padded"

    def __init__(self, items: int, max_history: int, options: CaserOptions) -> None:
        hidden_size, window = options.hidden_size, options.window
        horizontal_filters, vertical_filters = options.horizontal_filters, options.vertical_filters
        super().__init__(items, options)
        if not max(HEIGHTS) <= window <= max_history:
            raise ConfigError(
                f"baseline.window is {window}; filters cover {max(HEIGHTS)} items and histories hold {max_history}: choose "
                "something between."
            )
        self.window = window
        self.horizontal = nn.ModuleList(nn.Conv2d(1, horizontal_filters, (height, hidden_size)) for height in HEIGHTS)
        self.vertical = nn.Conv2d(1, vertical_filters, (window, 1))
        self.dropout = nn.Dropout(options.dropout)
        self.dense = nn.Linear(horizontal_filters * len(HEIGHTS) + vertical_filters * hidden_size, hidden_size)
        initialise(self)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, hidden), see `SequentialModel`."""
        # The last `window` cells before each read-out; cells before the history, or of no item, are padding.
        back = torch.arange(self.window - 1, -1, -1, device=batch.items.device)
        cells = batch.readout[:, None] - back
        inside = back < batch.lengths[:, None]
        items = batch.items.flatten()[cells.clamp(min=0)].where(inside, 0)
        image = self.item_embeddings(items)[:, None]  # (batch, 1, window, hidden)
        runs = [functional.relu(convolution(image)).amax(2).flatten(1) for convolution in self.horizontal]
        places = functional.relu(self.vertical(image)).flatten(1)
        return self.dense(self.dropout(torch.cat([*runs, places], 1)))
