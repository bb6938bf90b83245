"""From a catalog to `ItemFields`: titles and descriptions as words, brands, categories and genres as ids.

The vocabulary, and the values of categories that have an id, are learnt from the items of the train data: what other items have
besides is unknown, as it is for items that arrive later.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from minionerec.config import LegoConfig
from minionerec.config.fields import did_you_mean
from minionerec.data.texts import listed, readable_column
from minionerec.errors import DataError
from minionerec.legommenders.fields import ItemFields

_PAD = "[PAD]"  # id 0
_GENRES = re.compile(r"(?:^|\. )Genres: ([^.]*)")  # as the readers of MovieLens and RecBole write them behind the title


def _values(column: str) -> Callable[[pl.DataFrame], list[list[str]]]:
    return lambda catalog: [[part for part in listed(text or "").split(", ") if part] for text in catalog[column].to_list()]


def _brands(catalog: pl.DataFrame) -> list[list[str]]:
    return [[text] if text else [] for text in readable_column(catalog["brand"]).to_list()]


def _genres(catalog: pl.DataFrame) -> list[list[str]]:
    found = (_GENRES.search(text) for text in catalog["text"].to_list())
    return [[] if match is None else [part for part in match[1].split(", ") if part] for match in found]


TEXTS = ("title", "description")
CATEGORIES = {"brand": _brands, "categories": _values("categories"), "genres": _genres}
_COLUMN = {"genres": "text"}  # of the catalog, where it has another name than the field


def item_fields(
    catalog: pl.DataFrame, config: LegoConfig, trained: np.ndarray, where: str, pieces: str | None = None
) -> ItemFields:
    """The fields that a recipe reads.

    Args:
        catalog: as a Dataset or a PairSet has it.
        trained: which items the train data have, (items,) bool.
        where: the catalog, for messages.
        pieces: the tokenizer of a trained recipe, see `ItemFields`; None learns one from the texts.

    Raises:
        DataError: `lego.fields` names one that no item of the train data has; the message names those that there are.
    """
    if config.parts.item == "id":
        return ItemFields({}, {}, 1, {}, len(catalog))
    texts = {name: readable_column(catalog[name]).to_list() for name in TEXTS if name in catalog.columns}
    values = {name: read(catalog) for name, read in CATEGORIES.items() if _COLUMN.get(name, name) in catalog.columns}
    known = np.flatnonzero(trained).tolist()
    present = [name for name, column in {**texts, **values}.items() if any(column[item] for item in known)]
    chosen = present if config.fields is None else config.fields
    for name in chosen:
        if name not in present:
            raise DataError(
                f"lego.fields names {name}, which no train item of {where} has; there are: {', '.join(present) or 'none'}."
                f"{did_you_mean(name, present)}"
            )
    texts = {name: texts[name] for name in chosen if name in texts}
    values = {name: values[name] for name in chosen if name in values}
    if config.parts.item == "plm":
        parts = [*texts.values(), *([", ".join(item) for item in column] for column in values.values())]
        sentences = tuple(". ".join(part for part in item if part) for item in zip(*parts, strict=True))
        return ItemFields({}, {}, 1, {}, len(catalog), sentences)
    if pieces is None:
        corpus = [text for column in texts.values() for text, own in zip(column, trained, strict=True) if own]
        tokenizer = _tokenizer(corpus, config)
    else:
        tokenizer = Tokenizer.from_str(pieces)
    coded = {name: _coded(column, trained) for name, column in values.items()}
    return ItemFields(
        texts={name: _words(tokenizer, column) for name, column in texts.items()},
        categories={name: ids for name, (ids, _) in coded.items()},
        words=tokenizer.get_vocab_size(),
        values={name: count for name, (_, count) in coded.items()},
        items=len(catalog),
        pieces=tokenizer.to_str() if texts else None,
    )


def _tokenizer(texts: Sequence[str], config: LegoConfig) -> Tokenizer:
    """Byte-level BPE of lower-case texts: frequent words have an id, others are written in pieces, down to single bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[_PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_truncation(config.max_words)
    return tokenizer


def _words(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    return _padded([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])


def _coded(values: Sequence[Sequence[str]], trained: np.ndarray) -> tuple[Tensor, int]:
    """Ids of the values that a trained item has, 0 for the others and none; and how many ids there are."""
    known = sorted({value for item, own in zip(values, trained, strict=True) if own for value in item})
    number = {value: place for place, value in enumerate(known, 1)}
    return _padded([[number[value] for value in item if value in number] for item in values]), len(known) + 1


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(rows, longest), 0 behind the end of each row; one column at least."""
    ids = np.zeros((len(rows), max(1, *map(len, rows))), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return torch.from_numpy(ids)
