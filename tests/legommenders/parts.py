"""A tiny catalog's fields and configurations for tests of the parts."""

import torch

from minionerec.config import LegoConfig
from minionerec.legommenders.fields import ItemFields

WORDS, GENRES, ITEMS = 12, 5, 6


def item_fields(padding: int = 0) -> ItemFields:
    """Six items with titles of 1 to 4 words, texts that two items lack, and up to two genres.

    Args:
        padding: empty columns behind each field, which must change nothing.
    """
    generator = torch.Generator().manual_seed(3)
    titles = torch.randint(1, WORDS, (ITEMS, 4), generator=generator)
    titles[1, 1:] = titles[4, 2:] = 0
    texts = torch.randint(1, WORDS, (ITEMS, 3), generator=generator)
    texts[0] = texts[3] = 0
    texts[5, 1:] = 0
    genres = torch.tensor([[1, 2], [2, 0], [3, 4], [4, 0], [0, 0], [1, 3]])
    pad = [torch.nn.functional.pad(ids, (0, padding)) for ids in (titles, texts, genres)]
    sentences = ("a cat", "dog", "the lazy dog sat", "moon", "a lazy moon", "cat dog")
    return ItemFields({"title": pad[0], "text": pad[1]}, {"genres": pad[2]}, WORDS, {"genres": GENRES}, ITEMS, sentences)


def lego(item="pooling", user="pooling", interaction="dot", **options) -> LegoConfig:
    """A small configuration of three parts; options that they do not read are left out."""
    parts = {item, user, interaction}
    small = {"hidden": 10, "heads": 2, "layers": 2, "mlp": [7, 5], "cross_layers": 2, "experts": 3, "rank": 2, "codes": 3}
    heads = {"attention", "transformer", "fastformer", "flatten"}
    reads = {
        "hidden": heads | {"cnn", "cnn-cat", "plm", "additive", "poly"},
        "heads": heads,
        "layers": heads - {"attention"},
        "mlp": {"dcn", "dcnv2", "gdcn", "deepfm", "pnn", "din", "din-reference", "dnn"},
        "cross_layers": {"dcn", "dcnv2", "gdcn"},
        "experts": {"dcnv2"},
        "rank": {"dcnv2"},
        "codes": {"poly"},
    }
    chosen = {name: value for name, value in small.items() if parts & reads[name]}
    return LegoConfig(
        item=item, user=user, interaction=interaction, **({"width": 8, "dropout": 0.0, "history": 6} | chosen | options)
    )
