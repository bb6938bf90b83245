"""What item encoders read: the items' texts and categories as tensors, one row per item of the catalog."""

from dataclasses import dataclass

from torch import Tensor

from minionerec.errors import DataError


@dataclass(frozen=True)
class ItemFields:
    """The fields of the whole catalog; the row is the item's index. The order of the fields is the order of reading.

    Attributes:
        texts: by field, (items, tokens) int64: word ids from the left, 0 is padding.
        categories: by field, (items, values) int64: category ids, 0 is none. An item may have several, as films have genres.
        words: how many word ids there are, 0 included.
        values: by field of `categories`, how many category ids there are, 0 included.
        items: how many items the catalog has.
        sentences: one text per item, for encoders that bring their own tokenizer (`plm`); empty if none of them reads it.
        pieces: the tokenizer of `texts` as JSON; None if they have none.

    Raises:
        DataError: a field has other than one row per item, an id out of range, or no item has it.
    """

    texts: dict[str, Tensor]
    categories: dict[str, Tensor]
    words: int
    values: dict[str, int]
    items: int
    sentences: tuple[str, ...] = ()
    pieces: str | None = None

    def __post_init__(self) -> None:
        sizes = {**dict.fromkeys(self.texts, self.words), **self.values}
        if twice := self.texts.keys() & self.categories.keys():
            raise DataError(f"The field {min(twice)} is both a text and a category; name it once.")
        for name, ids in {**self.texts, **self.categories}.items():
            if ids.ndim != 2 or len(ids) != self.items:
                raise DataError(f"Field {name}: shape {tuple(ids.shape)}; expected a row for each of the {self.items} items.")
            if not ids.any():
                raise DataError(
                    f"lego.fields names {name}, but no item of the catalog has it. Leave it out, or prepare data that have it."
                )
            if int(ids.min()) < 0 or int(ids.max()) >= sizes[name]:
                found = f"{int(ids.min())} to {int(ids.max())}"
                raise DataError(f"Field {name}: ids from {found}; expected 0 to {sizes[name] - 1}.")
        if self.sentences and len(self.sentences) != self.items:
            raise DataError(f"{len(self.sentences)} sentences for {self.items} items; expected one for each.")
