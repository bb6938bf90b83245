"""The softmax over a sample of the items, next to the one over all."""

import pytest
import torch

from minionerec.config import BaselineConfig
from minionerec.errors import ConfigError
from minionerec.model.sequential import losses, make
from tests.model.sequential.models import ITEMS, batch_of, random_rows, rows_of, small

NAMES = ("sasrec", "sasrec-sampled")


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_all_other_rows_is_the_whole_softmax(name):
    model, batch = small(name, loss="softmax"), batch_of(random_rows(40), "packed")
    ids = torch.arange(ITEMS + 1)
    candidates = torch.stack([torch.cat([target[None], ids[ids != target]]) for target in batch.targets])
    whole, sample = model(batch), losses.among(model.states(batch), model.vectors(), candidates)
    torch.testing.assert_close(sample, whole)
    torch.testing.assert_close(gradients(model, sample), gradients(model, whole), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_as_many_negatives_as_items_are_all_of_them(name):
    batch = batch_of(random_rows(40))
    whole, all_items = (
        small(name, **options)(batch) for options in ({"loss": "softmax"}, {"loss": "sampled", "negatives": ITEMS})
    )
    assert torch.equal(whole, all_items)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_drawn_items_one_by_one(name):
    model, batch = small(name, loss="sampled", negatives=5), batch_of(random_rows(30))
    torch.manual_seed(4)
    loss = model(batch)
    torch.manual_seed(4)
    drawn = torch.randint(1, ITEMS + 1, (30, 5))
    with torch.no_grad():
        scores = model.scores(batch)
        expected = [
            torch.cat([scores[row, target][None], scores[row, drawn[row]]]).logsumexp(0) - scores[row, target]
            for row, target in enumerate(batch.targets)
        ]
    torch.testing.assert_close(loss.detach(), torch.stack(expected).mean())


def test_every_item_is_drawn_and_padding_never(monkeypatch):
    drawn = []
    monkeypatch.setattr(losses, "among", lambda states, table, candidates: drawn.append(candidates) or states.sum())
    model = small("sasrec-sampled", negatives=20)
    model(batch_of(random_rows(200)))
    [candidates] = drawn
    assert candidates[:, 1:].unique().tolist() == list(range(1, ITEMS + 1))


def test_the_draw_follows_the_seed():
    model, batch = small("sasrec-sampled", negatives=5), batch_of(random_rows(30))
    first, again, other = (torch.manual_seed(seed) and model(batch).detach() for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_positions_count_from_the_newest_item(layout, side):
    from minionerec.model.sequential.sasrec_sampled import from_newest

    batch = batch_of(rows_of([[1, 2, 3], [4], []]), layout, side)
    distances = from_newest(batch).flatten()
    assert distances[batch.cells()].tolist() == [2, 1, 0, 0]
    assert distances.sum() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "sasrec", "loss": "bce"}, r"baseline\.loss is bce; sasrec takes softmax or sampled"),
        ({"model": "sasrec-released", "loss": "sampled"}, r"loss is sampled; the \*-released models take bce or softmax"),
        ({"model": "sasrec", "negatives": 5}, r"baseline\.negatives is set, but baseline\.loss softmax takes all items"),
        ({"model": "gru4rec", "loss": "sampled"}, r"baseline\.loss is set, but gru4rec does not take it"),
    ],
)
def test_a_loss_that_a_model_lacks_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(BaselineConfig(protocol="recbole", sequences="-", **options), ITEMS)
