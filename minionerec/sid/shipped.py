"""Semantic IDs that the raw files bring along, as the released code's and LETTER's `*.index.json` do."""

from collections.abc import Sequence

import numpy as np

from minionerec.data.dataset import Dataset
from minionerec.errors import CatalogError
from minionerec.sid.index import MOST_CODES, SidIndex, parse_token, token_string


def index_of_tokens(tokens: Sequence[Sequence[str]], dataset: Dataset) -> SidIndex:
    """An index of these SIDs, without codebooks. Codes per level are as many as the largest needs; short SIDs end in -1.

    Raises:
        CatalogError: a token is not the code of its level, `<a_N>` at the first, `<b_N>` at the second.
    """
    levels = max(map(len, tokens))
    codes = np.full((len(tokens), levels), -1, dtype=np.int32)
    for item, sid in enumerate(tokens):
        for level, token in enumerate(sid):
            found = parse_token(token)
            if found is None or found[0] != level:
                expected = token_string(level, 0)
                raise CatalogError(
                    f"Item {item}: token {level + 1} of its SID is {token!r}, expected one like {expected}, its number "
                    f"below {MOST_CODES:,}."
                )
            codes[item, level] = found[1]
    return SidIndex(codes, tuple(int(column.max()) + 1 for column in codes.T), dataset.digest, encoder="shipped")
