"""Each model's scores against its equations, written out slowly and apart from our layers, in double precision."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minionerec.model.sequential.pswrec import BANDS
from tests.model.sequential.models import ITEMS, LENGTH, batch_of, rows_of, small

HIDDEN = 16
HISTORIES = ([5], [1, 2], [7, 7, 3, 30, 12], list(range(10, 21)), [(5 * i) % ITEMS + 1 for i in range(LENGTH)])


def norm(x: Tensor, layer) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * layer.weight + layer.bias


def linear(x: Tensor, layer) -> Tensor:
    return x @ layer.weight.T + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def feed_forward(x: Tensor, layer) -> Tensor:
    return norm(x + linear(gelu(linear(x, layer.dense_1)), layer.dense_2), layer.layer_norm)


def softmax(x: Tensor, dim: int) -> Tensor:
    powers = (x - x.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def heads_of(x: Tensor, heads: int) -> list[Tensor]:
    """(width, hidden) to one (width, size) per head."""
    return list(x.split(x.shape[1] // heads, 1))


def visible(items: Tensor, causal: bool) -> Tensor:
    """The additive mask, (width, width)."""
    mask = torch.full((len(items), len(items)), -10_000.0, dtype=torch.float64)
    for query in range(len(items)):
        for key in range(len(items)):
            if items[key] > 0 and (key <= query or not causal):
                mask[query, key] = 0
    return mask


def embedded(model, items: Tensor) -> Tensor:
    table = model.embedding.position_embeddings.weight
    return norm(model.item_embeddings.weight[items] + table, model.embedding.layer_norm)


def attended(x: Tensor, attn, weights: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    """The residual block around an attention whose weights are given per head, from queries and keys."""
    q, k, v = (heads_of(linear(x, part), attn.heads) for part in (attn.query, attn.key, attn.value))
    gathered = torch.cat([weights(head, q[head], k[head]) @ v[head] for head in range(attn.heads)], 1)
    return norm(x + linear(gathered, attn.out_proj), attn.layer_norm)


def transformer(model, x: Tensor, mask: Tensor) -> Tensor:
    for layer in model.encoder.layers:
        x = attended(x, layer.attn, lambda _, q, k: softmax(q @ k.T / math.sqrt(q.shape[1]) + mask, 1))
        x = feed_forward(x, layer.ffn)
    return x


def sasrec(model, items: Tensor, last: int) -> Tensor:
    state = transformer(model, embedded(model, items), visible(items, causal=True))[last]
    return model.item_embeddings.weight @ state


def bert4rec(model, items: Tensor, last: int) -> Tensor:
    moved = torch.cat([items, torch.zeros(1, dtype=torch.long)])
    moved[last + 1] = ITEMS + 1  # the mask behind the last item
    moved = moved[1:]
    state = transformer(model, embedded(model, moved), visible(moved, causal=False))[last]
    state = norm(gelu(linear(state, model.head)), model.head_norm)
    return model.item_embeddings.weight[: ITEMS + 1] @ state + model.item_bias


def lightsans(model, items: Tensor, last: int) -> Tensor:
    x = norm(model.item_embeddings.weight[items], model.embedding.layer_norm)
    for layer in model.encoder.layers:
        attn = layer.attn
        q, k, v = linear(x, attn.query), linear(x, attn.key), linear(x, attn.value)
        pooled_k = softmax(k @ attn.theta_key, 0).T @ k  # (interests, hidden)
        pooled_v = softmax(v @ attn.theta_value, 0).T @ v
        p = norm(model.embedding.position_embeddings.weight, attn.position_norm)
        pq, pk = linear(p, attn.position_query) / math.sqrt(HIDDEN), linear(p, attn.position_key)
        gathered = []
        for cut in torch.arange(HIDDEN).split(HIDDEN // attn.heads):
            scale = math.sqrt(len(cut))
            to_items = softmax(q[:, cut] @ pooled_k[:, cut].T / scale, 0)  # over the queries
            to_positions = softmax(pq[:, cut] @ pk[:, cut].T / scale, 0)
            gathered.append(to_items @ pooled_v[:, cut] + to_positions @ v[:, cut])
        x = norm(x + linear(torch.cat(gathered, 1), attn.out_proj), attn.layer_norm)
        x = feed_forward(x, layer.ffn)
    return model.item_embeddings.weight @ x[last]


def fearec(model, items: Tensor, last: int) -> Tensor:
    x = embedded(model, items)
    for layer in model.encoder.layers:
        attn = layer.attn
        q, k, v = linear(x, attn.query), linear(x, attn.key), linear(x, attn.value)
        # How well queries fit keys that lie `delay` cells back, around the end, per channel.
        agreement = torch.stack([(q.roll(-delay, 0) * k).sum(0).mean() for delay in range(LENGTH)])
        best, delays = agreement.topk(int(math.log(LENGTH)))
        gathered = sum(share * v.roll(-int(delay), 0) for share, delay in zip(softmax(best, 0), delays, strict=True))
        x = norm(x + linear(gathered, attn.out_proj), attn.layer_norm)
        x = feed_forward(x, layer.ffn)
    return model.item_embeddings.weight @ x[last]


def gru4rec(model, items: Tensor, last: int) -> Tensor:
    state = torch.zeros(model.gru.hidden_size, dtype=torch.float64)
    for item in items[: last + 1]:
        from_item = (model.gru.weight_ih_l0 @ model.item_embeddings.weight[item]).chunk(3)
        from_state = (model.gru.weight_hh_l0 @ state).chunk(3)
        reset, update = (1 / (1 + torch.exp(-(a + b))) for a, b in zip(from_item[:2], from_state[:2], strict=True))
        state = (1 - update) * torch.tanh(from_item[2] + reset * from_state[2]) + update * state
    return model.item_embeddings.weight @ linear(state, model.dense)


def waves(model, h: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part per band and cell, (bands, width): filters over each channel, then the mean over channels."""
    parts = torch.zeros(2, len(BANDS), LENGTH, dtype=torch.float64)
    for part, convolutions in enumerate((model.phase_filter.real_convs, model.phase_filter.imag_convs)):
        for band, (kernel, dilation) in enumerate(BANDS):
            for cell in range(LENGTH):
                for tap in range(kernel):
                    source = cell - (kernel - 1 - tap) * dilation
                    if source >= 0:
                        parts[part, band, cell] += (convolutions[band].weight[:, 0, tap] * h[source]).mean()
    return parts[0], parts[1]


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Every pair of channels (c, c + half) turned by its cell's angle."""
    a, b = x.chunk(2, 1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], 1)


def phase_weights(name: str, attn, magnitude: Tensor, phase: Tensor, mask: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
    """Attention weights of one version."""
    difference = phase[:, :, None] - phase[:, None, :]  # (bands, width, width)

    def of_v5(head: int, q: Tensor, k: Tensor) -> Tensor:
        share = softmax(attn.band_logits[head], 0)
        heard = (magnitude > 1e-3).double()
        agreement = sum((share[s] + 1e-8) * difference[s].cos() * heard[s][:, None] * heard[s][None] for s in range(len(BANDS)))
        m = share @ magnitude
        harmonic = 2 * m[:, None] * m[None] / (m[:, None] + m[None] + 1e-8)
        bias = attn.phase_bias_scale[head].exp() * harmonic * agreement
        weights = softmax(q @ k.T / math.sqrt(q.shape[1]) + bias + mask, 1) / (1 + torch.exp(-attn.phase_gate_scale * bias))
        return weights / (weights.sum(1, keepdim=True) + 1e-9)

    def of_v12(head: int, q: Tensor, k: Tensor) -> Tensor:
        angle = phase[head] * (magnitude[head] > 1e-3)
        scores = rotated(q, angle) @ rotated(k, angle).T / math.sqrt(q.shape[1])
        for i in range(LENGTH):
            for j in range(LENGTH):
                if i != j and torch.cos(angle[i] - angle[j]) < 0:
                    scores[i, j] = -1e9
        return softmax(scores + mask, 1)

    def of_v13(head: int, q: Tensor, k: Tensor) -> Tensor:
        scale = (1 + attn.gamma.flatten()[head] * magnitude[head])[:, None]
        return softmax(rotated(scale * q, phase[head]) @ rotated(scale * k, phase[head]).T / math.sqrt(q.shape[1]) + mask, 1)

    def without_rotation(head: int, q: Tensor, k: Tensor) -> Tensor:
        relative = magnitude / (magnitude.mean(0) + 1e-8)
        scale = (1 + 0.5 * torch.tanh((1 + attn.magnitude_scale[head].exp()).log() @ relative))[:, None]
        share = softmax(attn.band_logits[head], 0) + 1e-8
        agreement = sum(share[s] * difference[s].cos() for s in range(len(BANDS)))
        bias = (1 + attn.phase_bias_scale[head].exp()).log() * agreement / 2
        return softmax((scale * q) @ (scale * k).T / math.sqrt(q.shape[1]) + bias + mask, 1)

    versions = {"pswrec-v5": of_v5, "pswrec-v12": of_v12, "pswrec-v13": of_v13}
    return versions.get(name, without_rotation)


def pswrec(name: str) -> Callable[[torch.nn.Module, Tensor, int], Tensor]:
    def scores(model, items: Tensor, last: int) -> Tensor:
        x = embedded(model, items)
        if name != "pswrec-v5":
            x = norm(x, model.embedding.layer_norm)
        real, imaginary = waves(model, x)
        magnitude = (real.square() + imaginary.square() + 1e-8).sqrt()
        phase = torch.atan2(imaginary, real if name == "pswrec-v5" else real + 1e-8)
        mask = visible(items, causal=True)
        for layer in model.encoder.layers:
            x = attended(x, layer.attn, phase_weights(name, layer.attn, magnitude, phase, mask))
            x = feed_forward(x, layer.ffn)
        return model.item_embeddings.weight @ x[last]

    return scores


def wearec(model, items: Tensor, last: int) -> Tensor:
    x = embedded(model, items)
    for layer in model.encoder.layers:
        attn, gathered = layer.attn, []
        adapted = linear(gelu(linear(x.mean(0), attn.adaptive_mlp[0])), attn.adaptive_mlp[2]).view(attn.heads, -1, 2)
        for head, own in enumerate(heads_of(x, attn.heads)):
            spectrum = torch.fft.rfft(own, dim=0, norm="ortho")
            spectrum = spectrum * attn.base_filter[head] * (1 + adapted[head, :, :1])
            spectrum = spectrum + attn.base_bias[head] + adapted[head, :, 1:]
            wavelet = torch.empty_like(own)
            for pair in range(LENGTH // 2):
                even, odd = own[2 * pair], own[2 * pair + 1]
                detail = (even - odd) / 2 * attn.complex_weight[0, head, pair]
                wavelet[2 * pair], wavelet[2 * pair + 1] = (even + odd) / 2 + detail, (even + odd) / 2 - detail
            gathered.append(0.7 * wavelet + 0.3 * torch.fft.irfft(spectrum, n=LENGTH, dim=0, norm="ortho"))
        x = norm(x + torch.cat(gathered, 1), attn.layer_norm)
        x = feed_forward(x, layer.ffn)
    return model.item_embeddings.weight @ x[last]


def outputs(model, state: Tensor) -> Tensor:
    return torch.cat([torch.tensor([-torch.inf], dtype=torch.float64), linear(state, model.output)])


def their_gru4rec(model, items: Tensor, last: int) -> Tensor:
    gru, state = model.gru, torch.zeros(HIDDEN, dtype=torch.float64)
    for item in items[: last + 1]:
        from_item = (gru.weight_ih_l0 @ model.item_embeddings.weight[item] + gru.bias_ih_l0).chunk(3)
        from_state = (gru.weight_hh_l0 @ state + gru.bias_hh_l0).chunk(3)
        reset, update = (1 / (1 + torch.exp(-(a + b))) for a, b in zip(from_item[:2], from_state[:2], strict=True))
        state = (1 - update) * torch.tanh(from_item[2] + reset * from_state[2]) + update * state
    return outputs(model, state)


def their_caser(model, items: Tensor, last: int) -> Tensor:
    image, features = model.item_embeddings.weight[items], []
    for height, convolution in zip((2, 3, 4), model.horizontal, strict=True):
        for weight, bias in zip(convolution.weight[:, 0], convolution.bias, strict=True):
            places = range(LENGTH - height + 1)
            features.append(max((image[place : place + height] * weight).sum() + bias for place in places).clamp(min=0))
    place_weights = model.vertical.weight[0, 0, :, 0]
    features += [((image[:, channel] * place_weights).sum() + model.vertical.bias[0]).clamp(min=0) for channel in range(HIDDEN)]
    return outputs(model, torch.stack(features))


def their_sasrec(model, items: Tensor, last: int) -> Tensor:
    def usual(x: Tensor, layer) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    x = (model.item_embeddings.weight[items] + model.position_embeddings.weight) * (items > 0)[:, None]
    queries = usual(x, model.input_norm)
    scores = linear(queries, model.query) @ linear(x, model.key).T / math.sqrt(HIDDEN)
    gathered = softmax(scores + visible(items, causal=True), 1) @ linear(x, model.value)
    y = usual(gathered + queries, model.middle_norm)
    inner = linear(linear(y, model.dense_1).clamp(min=0), model.dense_2)
    return outputs(model, usual(usual(y + inner, model.inner_norm), model.output_norm)[last])


def esasrec(model, items: Tensor, last: int) -> Tensor:
    def normed(x: Tensor, layer) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias

    from_newest = torch.tensor([last - cell if items[cell] > 0 else 0 for cell in range(len(items))])
    x = model.item_embeddings.weight[items] + model.position_embeddings.weight[from_newest]
    x = x * (items > 0)[:, None]
    for block in model.blocks:
        queries = normed(x, block.query_norm)
        gathered = []
        for q, k, v in zip(
            heads_of(linear(queries, block.query), block.heads),
            heads_of(linear(x, block.key), block.heads),
            heads_of(linear(x, block.value), block.heads),
            strict=True,
        ):
            weights = softmax(q @ k.T / math.sqrt(q.shape[1]) + visible(items, causal=True), 1)
            gathered.append(weights @ v)
        z = normed(queries + linear(torch.cat(gathered, 1), block.out_proj), block.inner_norm)
        x = z + linear(linear(z, block.dense_1).clamp(min=0), block.dense_2)
    return normed(x, model.output_norm)[last] @ model.item_embeddings.weight.T


PEERS = {
    "sasrec-sampled": esasrec,
    "gru4rec-released": their_gru4rec,
    "caser-released": their_caser,
    "sasrec-released": their_sasrec,
    "sasrec": sasrec,
    "bert4rec": bert4rec,
    "lightsans": lightsans,
    "fearec": fearec,
    "gru4rec": gru4rec,
    "wearec": wearec,
    **{name: pswrec(name) for name in ("pswrec-v5", "pswrec-v12", "pswrec-v13", "pswrec-v13-without-rotation")},
}


@pytest.mark.parametrize(
    ("name", "side"),
    # BERT4Rec drops the first cell of the row; that is its oldest item only with padding on the right, as specified.
    [(name, side) for name in PEERS for side in ("left", "right") if (name, side) != ("bert4rec", "left")],
)
def test_scores_are_those_of_the_equations(name, side):
    model = small(name).double()
    batch = batch_of(rows_of(HISTORIES), side=side)
    with torch.no_grad():
        scores = model.scores(batch)
        for row, history in enumerate(HISTORIES):
            items = torch.zeros(LENGTH, dtype=torch.long)
            first = LENGTH - len(history) if side == "left" else 0
            items[first : first + len(history)] = torch.tensor(history)
            history = (
                (torch.tensor(history), len(history) - 1) if name.startswith("gru4rec") else (items, first + len(history) - 1)
            )
            expected = PEERS[name](model, *history)
            # The Fourier transforms of fearec and wearec are in single precision.
            tolerance = 1e-4 if name in ("fearec", "wearec") else 1e-9
            torch.testing.assert_close(scores[row], expected, rtol=tolerance, atol=tolerance)
