import numpy as np
import pytest
import torch

from minionerec.legommenders.caches import CachedScores, uncached_pairs
from minionerec.legommenders.model import Legommender
from tests.legommenders.parts import ITEMS, item_fields, lego
from tests.model.sequential.models import rows_of

CPU = torch.device("cpu")
CELLS = [  # every item encoder but plm, every user encoder and every kind of interaction
    ("id", "additive", "dot"),
    ("id", "none", "din"),
    ("pooling", "transformer", "dot"),
    ("cnn", "additive", "dot"),
    ("cnn-cat", "gru", "dot"),
    ("attention", "attention", "dot"),
    ("transformer", "poly", "max"),
    ("fastformer", "fastformer", "dot"),
    ("pooling", "pooling", "dcn"),
    ("pooling", "pooling", "dcnv2"),
    ("pooling", "pooling", "gdcn"),
    ("pooling", "pooling", "deepfm"),
    ("pooling", "pooling", "pnn"),
    ("flatten", "none", "dot"),
]


def rows():
    """Nine pairs of three users, who share their histories, in mixed order."""
    histories = [[1, 2], [3], [6, 5, 4, 3, 2, 1]]
    own = rows_of(histories)
    users = np.array([0, 2, 1, 2, 0, 1, 1, 2, 0])
    taken = own.take(users)
    return type(taken)(taken.flat, taken.start, taken.stop, np.array([1, 6, 2, 3, 4, 5, 1, 2, 6]), users, taken.seen)


def model_of(*parts):
    torch.manual_seed(1)
    return Legommender(lego(*parts), item_fields())


@pytest.mark.parametrize("parts", CELLS)
def test_cached_scores_are_those_of_the_model(parts, monkeypatch):
    monkeypatch.setattr("minionerec.legommenders.caches.PAGE", 4)  # several pages
    monkeypatch.setattr("minionerec.legommenders.caches._CELLS", 2 * ITEMS)
    model, pairs = model_of(*parts), rows()
    scores = CachedScores(model, ITEMS, CPU)
    plain = uncached_pairs(model, pairs, 2, CPU)
    np.testing.assert_allclose(scores.pairs(pairs), plain, rtol=0, atol=1e-6)
    catalog = scores.catalog(pairs)
    assert catalog.shape == (9, 1 + ITEMS) and bool((catalog[:, 0] == -torch.inf).all())
    np.testing.assert_allclose(catalog[np.arange(9), pairs.target].numpy(), plain, rtol=0, atol=1e-6)
    assert scores.encoded == 1


def test_a_cache_is_dropped_if_a_weight_changes():
    model, pairs = model_of("cnn", "additive", "dot"), rows()
    scores = CachedScores(model, ITEMS, CPU)
    before = scores.pairs(pairs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.tensor([[0, 1]]), torch.tensor([[2]])).sum().backward()
    optimizer.step()
    after = scores.pairs(pairs)
    np.testing.assert_allclose(after, uncached_pairs(model, pairs, 9, CPU), rtol=0, atol=1e-6)
    assert scores.encoded == 2 and not np.allclose(before, after)
    model.load_state_dict(model_of("cnn", "additive", "dot").state_dict())
    np.testing.assert_array_equal(scores.pairs(pairs), before)
    assert scores.encoded == 3
