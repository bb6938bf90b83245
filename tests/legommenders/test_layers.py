"""The layers against literal loops over their equations."""

import math

import torch
from torch.nn import functional

from minionerec.legommenders.layers import AdditiveAttention, FastformerLayer, masked_mean, masked_softmax, places


def test_additive_attention_is_the_loop():
    torch.manual_seed(0)
    layer = AdditiveAttention(4, 7).requires_grad_(False)
    vectors, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]]).bool()
    for row, real, result in zip(vectors, mask, layer(vectors, mask), strict=True):
        scores = [layer.weight.weight[0] @ torch.tanh(layer.dense.weight @ x + layer.dense.bias) for x in row[real]]
        total = sum(math.exp(score) for score in scores)
        expected = sum(math.exp(score) / total * x for score, x in zip(scores, row[real], strict=True))
        torch.testing.assert_close(result, expected)


def test_fastformer_is_the_loop_over_its_equations():
    torch.manual_seed(0)
    layer, heads, size = FastformerLayer(6, 3, 0.0), 3, 2
    states, mask = torch.randn(1, 4, 6), torch.tensor([[True, True, False, True]])
    real = [0, 1, 3]
    q, k = layer.query(states[0]), layer.key(states[0])
    attended = torch.zeros(4, 6)
    for head in range(heads):
        part = slice(head * size, head * size + size)
        alpha = torch.stack([layer.query_weight.weight[head] @ q[i] / math.sqrt(size) for i in real]).softmax(0)
        attended[:, part] = sum(a * q[i, part] for a, i in zip(alpha, real, strict=True))
    p = k * attended[0]
    keys = torch.zeros(6)
    for head in range(heads):
        part = slice(head * size, head * size + size)
        beta = torch.stack([layer.key_weight.weight[head] @ p[i] / math.sqrt(size) for i in real]).softmax(0)
        keys[part] = sum(b * p[i, part] for b, i in zip(beta, real, strict=True))
    for i in real:
        r = layer.transform(keys * q[i]) + q[i]
        x = layer.norm(states[0, i] + layer.dense(r))
        expected = layer.last_norm(x + layer.outer(functional.gelu(layer.inner(x))))
        torch.testing.assert_close(layer(states, mask)[0, i], expected)


def test_a_row_of_nothing_real_gives_zeros_and_no_nan_in_the_gradient():
    scores = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False] * 3])
    shares = masked_softmax(scores, mask, 1)
    shares[:, 0].sum().backward()
    assert shares[1].eq(0).all() and torch.isclose(shares[0].sum(), torch.tensor(1.0)) and shares[0, 1] == 0
    assert scores.grad.isfinite().all() and scores.grad[1].eq(0).all()
    assert masked_mean(torch.ones(1, 2, 3), torch.zeros(1, 2).bool()).eq(0).all()


def test_places_count_what_is_real():
    assert places(torch.tensor([[0, 1, 0, 1, 1, 0]]).bool()).tolist() == [[0, 0, 0, 1, 2, 2]]
