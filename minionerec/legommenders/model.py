"""A content recommender: an item encoder, a user encoder and an interaction (Legommenders, Liu et al., 2024)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from minionerec.config import LegoConfig
from minionerec.config.lego import DIN
from minionerec.legommenders.fields import ItemFields
from minionerec.legommenders.interactions import interaction
from minionerec.legommenders.items import Cnn, CnnOfFields, FlatText, IdTable, ItemEncoder, JoinedFields, MeanOfFields
from minionerec.legommenders.users import user_encoder


class Legommender(nn.Module):
    """Scores of candidates for histories. Initial weights are drawn from torch's random state.

    Histories hold catalog indices, oldest first, at most `lego.history` of them; -1 is padding, wherever it stands.

    Attributes:
        reads_texts: the user's vector is read from the history's text, not from item vectors (`flatten`).
        users_cacheable: a user has one vector for all candidates; for `din` a user is the history's item vectors.
        pieces: the tokenizer of the items' texts, see `ItemFields`.
    """

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        """Raises what `item_encoder` raises, and ConfigError if item vectors do not split into `lego.heads`."""
        super().__init__()
        self.item = item_encoder(config, fields)
        self.user = user_encoder(config, self.item.width)
        self.interaction = interaction(config, self.item.width)
        self.reads_texts = isinstance(self.item, FlatText)
        self.users_cacheable = config.parts.interaction not in DIN
        self.pieces = fields.pieces

    def item_vectors(self, items: Tensor) -> Tensor:
        """The vectors of items (n,), (n, width)."""
        return self.item(items)

    def users(self, histories: Tensor, vectors: Tensor | None) -> Tensor:
        """What the interaction reads of users.

        Args:
            histories: (b, h).
            vectors: the vectors of their items, (b, h, width), of any values where padding; None if the model `reads_texts`.

        Returns:
            (b, width); (b, codes, width) of `poly`; (b, h, width) of `none`.
        """
        if isinstance(self.item, FlatText):
            return self.item.histories(histories)
        return self.user(vectors, histories >= 0)

    def scores(self, users: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """Logits (b, c).

        Args:
            users: what `users` gave.
            candidates: vectors of candidates (b, c, width), or (1, c, width) if all users have the same.
            mask: where the histories are real, (b, h).
        """
        return self.interaction(users, candidates, mask)

    def forward(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """Logits of candidates (b, c), catalog indices, for histories (b, h). Each item of the batch is encoded once."""
        shown = candidates if self.reads_texts else torch.cat([histories.clamp(min=0), candidates], 1)
        distinct, places = shown.unique(return_inverse=True)
        vectors = self.item_vectors(distinct)[places]
        length = shown.shape[1] - candidates.shape[1]
        users = self.users(histories, None if self.reads_texts else vectors[:, :length])
        return self.scores(users, vectors[:, length:], histories >= 0)

    def slow_parameters(self) -> Iterator[nn.Parameter]:
        """The trained weights of a pretrained language model, which want a learning rate of their own; none without one."""
        model = getattr(self.item, "layers_above", None)
        return (weight for weight in model.parameters() if weight.requires_grad) if model is not None else iter(())


def item_encoder(config: LegoConfig, fields: ItemFields) -> ItemEncoder:
    """The item encoder of a configuration.

    Raises:
        DataError: it reads fields, or sentences, and there are none.
        ConfigError: the language model of `plm` cannot be read, or lacks the layer `lego.plm.tune_from`.
    """
    part = config.parts.item
    if part == "id":
        return IdTable(config, fields.items)
    if part == "plm":
        from minionerec.legommenders.plm import PretrainedWords  # brings transformers, which takes seconds

        return PretrainedWords(config, fields)
    make: dict[str, Callable[[LegoConfig, ItemFields], ItemEncoder]] = {
        "pooling": MeanOfFields,
        "cnn": Cnn,
        "cnn-cat": CnnOfFields,
        "attention": JoinedFields,
        "transformer": JoinedFields,
        "fastformer": JoinedFields,
        "flatten": FlatText,
    }
    return make[part](config, fields)


def fewest_parameters(config: LegoConfig, fields: ItemFields) -> int:
    """How many parameters the parts have at least, found without memory for them; those of a language model do not count."""
    part, width = config.parts.item, config.width
    rows = {"id": fields.items, "plm": 0}.get(part, fields.words)
    layer = 0 if part in ("id", "pooling") else width * width * (config.kernel if part.startswith("cnn") else 1)
    with torch.device("meta"):
        others = [user_encoder(config, width), interaction(config, width)]
    return rows * width + layer + sum(weight.numel() for other in others for weight in other.parameters())
