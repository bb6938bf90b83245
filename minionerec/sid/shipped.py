"""Semantic IDs that come with the raw files, such as the `*.index.json` of the released code and of LETTER."""

from collections.abc import Sequence

import numpy as np

from minionerec.data.dataset import Dataset
from minionerec.errors import CatalogError
from minionerec.sid.index import MOST_CODES, SidIndex, parse_token, token_string

_MOST_CODES = 65_536  # of a level in any catalog
_CODES_PER_ITEM = 4  # a level of a large catalog may have more: a code of its own for each item, with gaps


def index_of_tokens(tokens: Sequence[Sequence[str]], dataset: Dataset) -> SidIndex:
    """An index of given SIDs, without codebooks. A level has as many codes as its largest code needs.

    Args:
        tokens: per item the tokens of its SID, in the order of the catalog.
        dataset: that the SIDs belong to.

    Raises:
        CatalogError: a token is not a code of its level (`<a_N>` at the first, `<b_N>` at the second), or its number is far
            above the number of items.
    """
    levels = max(map(len, tokens))
    codes = np.full((len(tokens), levels), -1, dtype=np.int32)
    for item, sid in enumerate(tokens):
        for level, token in enumerate(sid):
            parsed = parse_token(token)
            if parsed is None or parsed[0] != level:
                expected = token_string(level, 0)
                raise CatalogError(
                    f"Item {item}: token {level + 1} of its SID is {token!r}, expected one like {expected}, its number "
                    f"below {MOST_CODES:,}."
                )
            codes[item, level] = parsed[1]
    most = max(_MOST_CODES, _CODES_PER_ITEM * len(tokens))
    for level, largest in enumerate(codes.max(axis=0).tolist()):
        if largest >= most:
            item = int(codes[:, level].argmax())
            raise CatalogError(
                f"Item {item}: {token_string(level, largest)} asks for {largest + 1:,} tokens at level {level + 1}, as each "
                f"code below becomes a token too; for {len(tokens):,} items expected codes below {most:,}. Count from 0."
            )
    return SidIndex(codes, tuple(int(column.max()) + 1 for column in codes.T), dataset.digest, encoder="shipped")
