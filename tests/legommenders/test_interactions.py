"""Interactions against their equations, written out for single pairs."""

import pytest
import torch

from minionerec.legommenders.interactions import CrossExperts, CrossGate, CrossMatrix, CrossVector, Dice, interaction
from tests.legommenders.parts import lego


def pair(seed=0, users=3, candidates=4, width=8):
    torch.manual_seed(seed)
    return torch.randn(users, width), torch.randn(users, candidates, width), torch.ones(users, 2).bool()


def made(name, user="pooling", width=8, **options):
    torch.manual_seed(1)
    return interaction(lego("id", user, name, **options), width).eval()


def test_cross_layers_by_hand():
    torch.manual_seed(0)
    first, x = torch.randn(5), torch.randn(5)
    layer = CrossVector(5)
    layer.bias.data.normal_()
    torch.testing.assert_close(layer(first, x), first * (layer.weight.weight[0] @ x) + layer.bias + x)
    layer = CrossMatrix(5)
    torch.testing.assert_close(layer(first, x), first * (layer.linear.weight @ x + layer.linear.bias) + x)
    layer = CrossGate(5)
    gated = (layer.linear.weight @ x + layer.linear.bias) * torch.sigmoid(layer.gate.weight @ x)
    torch.testing.assert_close(layer(first, x), first * gated + x)
    layer = CrossExperts(5, experts=3, rank=2)
    layer.bias.data.normal_()
    gates = (layer.gates.weight @ x).softmax(0)
    expected = x.clone()
    for gate, v, c, u in zip(gates, layer.down, layer.core, layer.up, strict=True):
        low = torch.tanh(c.T @ torch.tanh(v.T @ x))
        expected = expected + gate * first * (u.T @ low + layer.bias)
    torch.testing.assert_close(layer(first, x), expected)


@pytest.mark.parametrize("name", ["dcn", "dcnv2", "gdcn", "deepfm", "pnn", "dnn", "dot"])
def test_whole_interactions_by_hand(name):
    users, candidates, mask = pair()
    model = made(name)
    scores = model(users, candidates, mask)
    for row in range(3):
        for column in range(4):
            u, v = users[row], candidates[row, column]
            x0 = torch.cat([u, v])
            if name in ("dcn", "gdcn", "dcnv2"):
                states = model.cross[1](x0, model.cross[0](x0, x0))
                states = model.upper(states) if name == "dcnv2" else states
                expected = model.head(torch.cat([states, model.mlp(x0)]))
            elif name == "deepfm":
                expected = (u @ v + model.deep.head(model.deep.mlp(x0))) / 2
            elif name == "pnn":
                expected = model.head(model.mlp(torch.cat([x0, (u @ v)[None]])))
            else:
                expected = model.head(model.mlp(x0)) if name == "dnn" else u @ v
            torch.testing.assert_close(scores[row, column], expected.squeeze())


def test_dcnv2_of_full_rank_has_matrices():
    assert all(isinstance(layer, CrossMatrix) for layer in made("dcnv2", full_rank=True).cross)


def test_max_takes_the_best_code():
    users, candidates, mask = torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.ones(2, 2).bool()
    scores = made("max", "poly")(users, candidates, mask)
    assert scores[1, 2].item() == pytest.approx(max(float(code @ candidates[1, 2]) for code in users[1]), rel=1e-6)


@pytest.mark.parametrize("name", ["din", "din-reference"])
def test_din_by_hand(name):
    torch.manual_seed(0)
    history, candidates = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    model = made(name, "none")
    model.dice.alpha.data.normal_()
    scores = model(history, candidates, mask)
    for row in range(2):
        for column in range(4):
            v = candidates[row, column]
            s = torch.zeros(8)
            for c in history[row][mask[row]]:
                x = model.hidden(torch.cat([v, c, v - c, v * c]))
                share = torch.sigmoid(x / (1 + 1e-8) ** 0.5)  # a new norm's running mean is 0, its variance 1
                s = s + model.weight(share * x + (1 - share) * model.dice.alpha * x) * c
            read = torch.cat([s, v]) if name == "din" else s
            torch.testing.assert_close(scores[row, column], model.head(model.mlp(read)).squeeze())


def test_dice_takes_a_single_row_in_training():
    layer = Dice(4).train()
    x = torch.randn(1, 4)
    torch.testing.assert_close(layer(x), torch.sigmoid(x / (1 + 1e-8) ** 0.5) * x)


@pytest.mark.parametrize("name", ["dot", "max", "dcn", "dcnv2", "gdcn", "deepfm", "pnn", "din", "din-reference", "dnn"])
def test_candidates_of_all_users_may_be_given_once(name):
    user = {"max": "poly", "din": "none", "din-reference": "none"}.get(name, "pooling")
    torch.manual_seed(0)
    users = torch.randn(3, 8) if user == "pooling" else torch.randn(3, 2, 8)
    candidates, mask = torch.randn(1, 4, 8), torch.ones(3, 2).bool()
    model = made(name, user)
    torch.testing.assert_close(model(users, candidates, mask), model(users, candidates.expand(3, 4, 8), mask))
