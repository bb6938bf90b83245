"""Item encoders: from the fields of an item to its vector. All of them are asked by item index, (n,) int64."""

import torch
from torch import Tensor, nn

from minionerec.config import LegoConfig
from minionerec.errors import DataError
from minionerec.legommenders.fields import ItemFields
from minionerec.legommenders.layers import (
    AdditiveAttention,
    Fastformer,
    SelfAttention,
    Transformer,
    masked_mean,
)


class ItemEncoder(nn.Module):
    """Base of the item encoders.

    Attributes:
        width: of the item vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class IdTable(ItemEncoder):
    """`id`: a vector of each item's own, which knows nothing of an item without clicks."""

    def __init__(self, config: LegoConfig, items: int) -> None:
        super().__init__(config.width)
        self.table = table(items, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, items: Tensor) -> Tensor:
        """(n, width)."""
        return self.dropout(self.table(items))


class Words(nn.Module):
    """The vectors of all fields' words and category values, from one table, a separator between two fields.

    Attributes:
        ids: (items, columns), the rows of the table; 0 is padding. The fields' columns stand one field after the other.
        spans: the columns of each field, without separators.
        texts: for each field, whether it is a text, whose words have neighbours.
        separator: the id of the separator.
    """

    ids: Tensor

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        super().__init__()
        if not (fields.texts or fields.categories):
            raise DataError(f"The item encoder {config.parts.item} reads fields, but there is none. Name some in lego.fields.")
        rows = max(fields.words, 1)
        parts: list[Tensor] = list(fields.texts.values())
        for name, ids in fields.categories.items():
            parts.append(torch.where(ids > 0, ids + rows - 1, 0))  # row 0 is the padding of all fields
            rows += fields.values[name] - 1
        self.texts = [True] * len(fields.texts) + [False] * len(fields.categories)
        self.separator = rows
        columns: list[Tensor] = []
        self.spans: list[slice] = []
        width = 0
        for number, ids in enumerate(parts):
            if number:
                columns.append(torch.full((fields.items, 1), self.separator))
                width += 1
            columns.append(ids)
            self.spans.append(slice(width, width := width + ids.shape[1]))
        self.register_buffer("ids", torch.cat(columns, 1), persistent=False)
        self.table = table(rows + 1, config.width)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def columns(self) -> int:
        """Words of an item at most, separators included."""
        return self.ids.shape[1]

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, columns, width), zeros where padding, and mask (n, columns)."""
        return self.look_up(self.ids[items])

    def look_up(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The same for rows of the table, (n, length)."""
        mask = ids > 0
        return self.dropout(self.table(ids)) * mask[..., None], mask

    def by_field(self, items: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Vectors and mask of each field."""
        vectors, mask = self(items)
        return [(vectors[:, span], mask[:, span]) for span in self.spans]


class MeanOfFields(ItemEncoder):
    """`pooling`: the mean of each field's words, then the mean of the fields that the item has."""

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        super().__init__(config.width)
        self.words = Words(config, fields)

    def forward(self, items: Tensor) -> Tensor:
        """(n, width)."""
        fields = self.words.by_field(items)
        means = torch.stack([masked_mean(vectors, mask) for vectors, mask in fields], 1)
        return masked_mean(means, torch.stack([mask.any(1) for _, mask in fields], 1))


class Filters(nn.Module):
    """Each text field through a convolution of its own and ReLU, each category field through a linear layer; mask, dropout."""

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        super().__init__()
        width = config.width
        self.words = Words(config, fields)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, config.kernel, padding="same") if text else nn.Linear(width, width)
            for text in self.words.texts
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, items: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Vectors and mask of each field."""
        filtered = []
        for layer, text, (vectors, mask) in zip(self.layers, self.words.texts, self.words.by_field(items), strict=True):
            states = layer(vectors.mT).mT.relu() if text else layer(vectors)
            filtered.append((self.dropout(states * mask[..., None]), mask))
        return filtered


class Cnn(ItemEncoder):
    """`cnn` (NAML, Wu et al., 2019): filtered words and values of all fields, summed by one additive attention."""

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        super().__init__(config.width)
        self.filters = Filters(config, fields)
        self.sum = AdditiveAttention(config.width, config.hidden)

    def forward(self, items: Tensor) -> Tensor:
        """(n, width)."""
        vectors, masks = zip(*self.filters(items), strict=True)
        return self.sum(torch.cat(vectors, 1), torch.cat(masks, 1))


class CnnOfFields(ItemEncoder):
    """`cnn-cat` (LSTUR, An et al., 2019): filtered fields, each summed by an attention of its own, side by side."""

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        filters = Filters(config, fields)
        super().__init__(len(filters.layers) * config.width)
        self.filters = filters
        self.sums = nn.ModuleList(AdditiveAttention(config.width, config.hidden) for _ in filters.layers)

    def forward(self, items: Tensor) -> Tensor:
        """(n, fields * width)."""
        sums = [layer(vectors, mask) for layer, (vectors, mask) in zip(self.sums, self.filters(items), strict=True)]
        return torch.cat(sums, -1)


class JoinedFields(ItemEncoder):
    """`attention` (NRMS), `transformer`, `fastformer`: all fields as one text, with a learnt separator between two."""

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        super().__init__(config.width)
        self.words = Words(config, fields)
        self.reader = reader(config, config.parts.item, self.words.columns)

    def forward(self, items: Tensor) -> Tensor:
        """(n, width)."""
        return self.reader(*self.words(items))


class FlatText(ItemEncoder):
    """`flatten` (as Recformer, Li et al., 2023, but from scratch): one transformer reads an item, or a whole history.

    A history's items follow one another, oldest first, each ended by a separator; the newest `lego.flat_tokens` tokens are
    read.
    """

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        super().__init__(config.width)
        self.longest = config.flat_tokens
        self.words = Words(config, fields)
        self.reader = Transformer(config, config.width, self.longest)

    def forward(self, items: Tensor) -> Tensor:
        """(n, width)."""
        return self.histories(items[:, None])

    def histories(self, histories: Tensor) -> Tensor:
        """The vectors of histories (b, h), -1 where padding: (b, width)."""
        ids = nn.functional.pad(self.words.ids, (0, 1), value=self.words.separator)[histories.clamp(min=0)]
        ids = (ids * (histories >= 0)[..., None]).flatten(1)
        real = ids > 0
        longest = min(self.longest, max(1, int(real.sum(1).max())))
        newest = real.long().argsort(dim=1, stable=True)[:, -longest:]  # padding first, then the words in their order
        return self.reader(*self.words.look_up(ids.gather(1, newest)))


def table(rows: int, width: int) -> nn.Embedding:
    """A table of vectors whose norms are about 1."""
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    return embedding


def reader(config: LegoConfig, part: str, length: int) -> nn.Module:
    """What reads the words of an item, (vectors, mask) to (n, width)."""
    if part == "attention":
        return SelfAttention(config, config.width)
    return {"transformer": Transformer, "fastformer": Fastformer}[part](config, config.width, length)
