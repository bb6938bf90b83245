"""Semantic IDs that the raw files bring along, as the reference's and LETTER's `*.index.json` do."""

import re
from collections.abc import Sequence

import numpy as np

from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.data.prepare import shipped_sids
from minionerec.errors import CatalogError, ConfigError
from minionerec.sid.index import SidIndex

_TOKEN = re.compile(r"<([a-z])_(\d+)>")


def shipped_tokens(config: Config, dataset: Dataset) -> list[list[str]]:
    """The token strings of each item of the catalogue.

    Raises:
        ConfigError: the source brings none.
        DataError: its index file is malformed, or lacks an item.
    """
    tokens = shipped_sids(config.data, dataset)
    if tokens is None:
        raise ConfigError(
            f"sid.shipped is set, but data.source {config.data.source!r} brings no semantic IDs (no *.index.json); set it to "
            "false."
        )
    return tokens


def index_of_tokens(tokens: Sequence[Sequence[str]], dataset: Dataset) -> SidIndex:
    """An index of these SIDs, without codebooks. Codes per level are as many as the largest needs; short SIDs end in -1.

    Raises:
        CatalogError: a token is not the code of its level, `<a_N>` at the first, `<b_N>` at the second.
    """
    levels = max(map(len, tokens))
    codes = np.full((len(tokens), levels), -1, dtype=np.int32)
    for item, sid in enumerate(tokens):
        for level, token in enumerate(sid):
            match = _TOKEN.fullmatch(token)
            letter = chr(ord("a") + level)
            if match is None or match[1] != letter or int(match[2]) >= 2**24:
                raise CatalogError(f"Item {item}: token {level + 1} of its SID is {token!r}, expected <{letter}_N>, N from 0.")
            codes[item, level] = int(match[2])
    return SidIndex(codes, tuple(int(column.max()) + 1 for column in codes.T), dataset.digest, encoder="shipped")
