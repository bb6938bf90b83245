"""What is claimed of each neural baseline: size, what a history's result depends on, and what learns."""

import dataclasses
import pkgutil
import re
from importlib import import_module
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from minionerec.baselines.trivial import TrivialRecommender
from minionerec.cli import parse, preset
from minionerec.config import (
    BASELINE_OPTIONS,
    BASELINES,
    CODED_BASELINES,
    NEURAL_BASELINES,
    TRIVIAL_BASELINES,
    BaselineConfig,
    BaselineName,
)
from minionerec.errors import ArtifactError, ConfigError
from minionerec.model import sequential
from minionerec.model.sequential import count_parameters, make, model_class, weights
from minionerec.model.sequential.encoder import EncoderModel
from minionerec.model.sequential.implementation import implementation
from minionerec.model.sequential.pswrec import BANDS, PSWRec
from minionerec.model.sequential.scorer import scorer
from minionerec.model.sequential.sequential_model import SequentialModel
from minionerec.report.baseline_tables import published_rows
from minionerec.statistics.ranking import hit_rate, ndcg
from minionerec.training.ranking import rank_split
from minionerec.training.ranking_data import from_sequences
from tests.model.sequential.models import ITEMS, LENGTH, batch_of, random_rows, rows_of, small, those
from tests.shared import shared

NEVER_LEARN = {"wearec": r"gate_param", "trm4rec": r"^z_[ar]$"}


def states_everywhere(model, items):
    """States read at every cell of one full history, (length, hidden)."""
    batch = batch_of(rows_of([items]))
    if hasattr(model, "filled"):  # bert4rec reads out masks; here it reads the items as they are
        return model.filled(batch.items, batch, torch.arange(LENGTH))
    return model.states(batch._replace(readout=torch.arange(LENGTH), lengths=torch.tensor([LENGTH])))


def test_every_name_of_the_configuration_has_a_class_with_all_claims_and_a_label_of_its_own():
    assert set(get_args(BaselineName)) == set(BASELINES)
    assert len(BASELINES) == len(NEURAL_BASELINES) + len(TRIVIAL_BASELINES) + len(CODED_BASELINES)
    assert len({baseline.label for baseline in BASELINES.values()} - {""}) == len(BASELINES)
    accepted = set()
    for name in BASELINES:
        baseline = implementation(BASELINES[name])
        assert issubclass(baseline, TrivialRecommender if name in TRIVIAL_BASELINES else SequentialModel), name
        options = {field.name for field in dataclasses.fields(baseline.options)}
        assert options <= set(BASELINE_OPTIONS), f"{name} takes options that section baseline has not"
        accepted |= options
    assert accepted == set(BASELINE_OPTIONS), "section baseline has options that no baseline takes"
    for name in NEURAL_BASELINES:
        model = model_class(name)
        assert {type(model.causal), type(model.padding_free), type(model.knows_order)} == {bool}, name
        assert model.padding_free or model.layout == "padded", f"{name}: padding enters its result, so it cannot be packed"


def test_every_model_stands_in_the_table():
    modules = [import_module(f"{sequential.__name__}.{module.name}") for module in pkgutil.iter_modules(sequential.__path__)]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    usable = {value for value in classes if issubclass(value, SequentialModel) and hasattr(value, "options")}
    assert usable == {model_class(name) for name in NEURAL_BASELINES}, "give the class a line in config/baseline.py"


@pytest.mark.parametrize("table", ["beauty", "lastfm"])
def test_parameter_counts_are_the_published_ones(table):
    published = published_rows(table)
    checked = 0
    for row in published["rows"]:
        if "parameters" in row:
            config = parse("baseline", ["--config", row["preset"]])
            assert count_parameters(make(config.baseline, published["items"])) == row["parameters"], row["name"]
            checked += 1
    assert checked == {"beauty": 17, "lastfm": 6}[table]


@pytest.mark.parametrize("table", ["beauty", "lastfm"])
def test_published_cells_are_arithmetically_possible(table):
    # With one target, NDCG grows from a to b by between dHR / log2(b + 1) and dHR / log2(a + 2); cells are rounded.
    for row in published_rows(table)["rows"]:
        cells = row.get("published", {})
        cutoffs = sorted(int(name.removeprefix("HR@")) for name in cells if name.startswith("HR@"))
        for low, high in pairwise(cutoffs):
            hits, gain = (cells[f"{name}@{high}"] - cells[f"{name}@{low}"] for name in ("HR", "NDCG"))
            least, most = hits / torch.tensor(high + 1.0).log2(), hits / torch.tensor(low + 2.0).log2()
            assert least - 2e-4 <= gain <= most + 2e-4, (row["name"], low, high)


WEIGHTS = {"lastfm-wearec": "wearec", "lastfm-pswrec-v5": "v5", "lastfm-pswrec-v13": "v13"}
# On valid, measured here with the published weights; test is the published row.
VALID = {
    "lastfm-wearec": (0.0697, 0.0463, 0.1055, 0.0576, 0.1450, 0.0675),
    "lastfm-pswrec-v5": (0.0541, 0.0360, 0.0963, 0.0495, 0.1394, 0.0602),
    "lastfm-pswrec-v13": (0.0596, 0.0397, 0.0972, 0.0517, 0.1266, 0.0591),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_published_weights_reproduce_their_row(name):
    config = parse("baseline", ["--config", name]).baseline
    data = from_sequences(shared("data/sequential/LastFM.txt"), config.protocol, config.max_history)
    model = make(config, data.items)
    assert weights.load(model, shared(f"reference/lastfm_weights/{WEIGHTS[name]}.safetensors")) == {}
    row = next(row for row in published_rows("lastfm")["rows"] if row["preset"] == name)
    expected = {"valid": list(VALID[name]), "test": list(row["published"].values())}
    for split, values in expected.items():
        ranks = rank_split(scorer(model, config.max_history, data.protocol.side, torch.device("cpu")), data, split).ranks
        assert [round(metric(ranks, k), 4) for k in (5, 10, 20) for metric in (hit_rate, ndcg)] == values


@pytest.mark.parametrize("name", those(causal=True))
def test_causal_models_do_not_see_the_future(name):
    model = small(name)
    torch.manual_seed(1)
    history = torch.randint(1, ITEMS + 1, (LENGTH,)).tolist()
    if hasattr(model, "gru"):  # reads out at a history's end only: a prefix must not change what is carried on
        whole = model.gru(model.item_embeddings(torch.tensor([history])))[0]
        other = model.gru(model.item_embeddings(torch.tensor([[*history[:7], *[1] * (LENGTH - 7)]])))[0]
        torch.testing.assert_close(whole[:, :7], other[:, :7])
        return
    changed = [*history[:7], *(1 + item % ITEMS for item in history[7:])]
    with torch.no_grad():
        before, after = states_everywhere(model, history), states_everywhere(model, changed)
    torch.testing.assert_close(before[:7], after[:7], rtol=1e-4, atol=1e-5)
    assert (before[7:] - after[7:]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("name", [name for name in those(causal=False) if issubclass(model_class(name), EncoderModel)])
def test_other_encoders_do(name):
    model = small(name)
    torch.manual_seed(1)
    history = torch.randint(1, ITEMS + 1, (LENGTH,)).tolist()
    changed = [*history[:-2], *(1 + item % ITEMS for item in history[-2:])]
    with torch.no_grad():
        before, after = states_everywhere(model, history), states_everywhere(model, changed)
    assert (before[2] - after[2]).abs().max() > 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NEURAL_BASELINES)
def test_padding_plays_a_part_only_where_stated(name, side):
    model = small(name)
    batch = batch_of(rows_of([[3, 7, 7, 9]]), side=side)
    with torch.no_grad():
        before = model.scores(batch)
        model.item_embeddings.weight[0] += torch.randn(16)  # another padding vector; not among the items that are scored
        after = model.scores(batch)
    same = torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-4, atol=1e-5)
    # PSWRec's filters look back only, so with padding on the right they see none of it.
    assert same == (model.padding_free or (isinstance(model, PSWRec) and side == "right"))


@pytest.mark.parametrize("name", ["gru4rec", "caser", "gru4rec-released"])
def test_the_side_of_padding_does_not_matter_to_models_without_positions(name):
    model, rows = small(name), random_rows(20)
    with torch.no_grad():
        torch.testing.assert_close(model.scores(batch_of(rows, side="left")), model.scores(batch_of(rows, side="right")))


def test_caser_reads_its_window_and_no_more():
    model = small("caser", window=5)
    long, short = [1, 2, 3, 4, 5, 6, 7, 8], [9, 4, 5, 6, 7, 8]
    with torch.no_grad():
        scores = model.scores(batch_of(rows_of([long, short, [30, *short[2:]]])))
    torch.testing.assert_close(scores[0], scores[1])
    assert (scores[0] - scores[2]).abs().max() > 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shortest", [0, 1])
@pytest.mark.parametrize("name", those(layout="packed"))
def test_sharing_a_row_changes_no_result(name, side, shortest):
    model, rows = small(name), random_rows(40, shortest=shortest)
    packed, padded = batch_of(rows, "packed", side), batch_of(rows, "padded", side)
    assert packed.items.numel() < 0.8 * padded.items.numel()
    with torch.no_grad():
        torch.testing.assert_close(model.scores(packed), model.scores(padded), rtol=1e-4, atol=1e-4)
    losses, gradients = [], []
    for batch in (packed, padded):
        model.zero_grad()
        torch.manual_seed(2)  # bert4rec draws masks, here for single items
        loss = model(batch)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_stopping_the_gru_at_the_end_changes_no_gradient(side):
    model, rows = small("gru4rec", dropout=0.0), random_rows(40)
    batch = batch_of(rows, side="right")
    whole = model.dense(model.gru(model.item_embeddings(batch.items))[0]).flatten(0, 1)[batch.readout]  # over padding, too
    losses = (model(batch_of(rows, side=side)), torch.nn.functional.cross_entropy(model.logits(whole), batch.targets))
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_bert4rec_masks_the_same_items_in_every_layout():
    model, rows = small("bert4rec", mask_ratio=0.5), random_rows(30, shortest=0)
    drawn = []
    for layout, side in (("packed", "right"), ("padded", "right"), ("padded", "left")):
        torch.manual_seed(2)
        batch = batch_of(rows, layout, side)
        drawn.append(model.draw_masks(batch).flatten()[batch.cells()].tolist())
    assert drawn[0] == drawn[1] == drawn[2] and 0.3 < sum(drawn[0]) / len(drawn[0]) < 0.7


def variants():
    yield from ((name, {}) for name in NEURAL_BASELINES)
    for rope in (True, False):
        for full in (True, False):
            for layers in (1, 2):
                yield "trm4rec", {"positions": True, "rope": rope, "full_backpropagation": full, "layers": layers}


@pytest.mark.parametrize(("name", "options"), list(variants()))
def test_gradient_reaches_what_should_learn(name, options):
    model = small(name, **options).train()
    for layer in (part for part in model.modules() if isinstance(part, torch.nn.Dropout)):
        layer.p = 0.1
    model(batch_of(random_rows(64), model.layout)).backward()
    still = {key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().any()}
    expected = NEVER_LEARN.get(name, "(?!)")
    if options.get("full_backpropagation"):
        expected = "(?!)"
    assert all(re.search(expected, key) for key in still), still
    assert bool(still) == (expected != "(?!)")


def examples_of_a_rule(knows_order):
    """Histories with their next items, whose rule depends on the order or not."""
    starts = range(1, ITEMS + 1)
    if knows_order:  # the last item plus one, around a ring
        return [[1 + (start - 1 + step) % ITEMS for step in range(5 + start % 5)] for start in starts]
    # Items come in blocks of five; after some of the last four comes the first.
    first = {start: start - (start - 1) % 5 for start in starts}
    return [[*(first[start] + 1 + (start + step) % 4 for step in range(1 + start % 4)), first[start]] for start in starts]


@pytest.mark.parametrize("name", NEURAL_BASELINES)
def test_models_learn_a_rule(name):
    # bert4rec has to learn it from the few masks in its histories.
    torch.manual_seed(0)
    options = {"dropout": 0.1} if "dropout" in {field.name for field in dataclasses.fields(model_class(name).options)} else {}
    if name == "bert4rec":
        options = {"dropout": 0.0, "attention_dropout": 0.0}
    config = BaselineConfig(model=name, protocol="recbole", sequences="-", max_history=LENGTH, hidden_size=16, **options)
    model = make(config, ITEMS)
    sequences = examples_of_a_rule(model.knows_order) * (2 if name == "bert4rec" else 1)
    rows = rows_of([sequence[:-1] for sequence in sequences], [sequence[-1] for sequence in sequences])
    batch = batch_of(rows, model.layout)
    rate, steps, share = (1e-2, 450, 0.3) if name == "bert4rec" else (2e-2, 120 if "released" in name else 40, 0.9)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    with torch.no_grad():
        best = model.eval().scores(batch)[:, 1:].argmax(1) + 1
    assert (best == batch.targets).float().mean() > share


def test_bert4rec_scores_the_last_ten_masks_and_none_at_the_oldest_item():
    model = small("bert4rec")
    model.most_labels = 3
    batch = batch_of(rows_of([[1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 12]]), "packed")
    scored = model.labels(batch.segments > 0, batch)  # every item masked
    assert sorted(batch.items[scored].tolist()) == [4, 5, 6, 8, 10, 11, 12]
    seen = model.with_mask_last(batch).flatten()
    cells = batch.readout[:, None] - torch.arange(1, -1, -1)
    assert seen[cells].tolist() == [[6, model.mask_id], [8, model.mask_id], [12, model.mask_id]]


def test_bert4rec_masks_the_last_item_or_a_share_of_all():
    torch.manual_seed(0)
    model, batch = small("bert4rec", mask_ratio=0.4), batch_of(random_rows(50), "packed")
    drawn = [model.draw_masks(batch) for _ in range(200)]
    last = torch.zeros_like(drawn[0]).view(-1)
    last[batch.readout] = True
    only_last = [torch.equal(masked.view(-1), last) for masked in drawn]
    assert 70 < sum(only_last) < 130
    pairs = zip(drawn, only_last, strict=True)
    shares = [float(masked[batch.segments > 0].float().mean()) for masked, is_last in pairs if not is_last]
    assert abs(sum(shares) / len(shares) - 0.4) < 0.02
    assert not any(masked[batch.segments == 0].any() for masked in drawn)


def test_trm4rec_is_its_recursion_written_out():
    model = small("trm4rec", layers=2, positions=True, full_backpropagation=True)
    items = torch.tensor([[4, 9, 2, 2, 7]])
    x = 4.0 * model.item_embeddings(items)[0] + model.position_embeddings.weight[:5]  # sqrt(16) = 4

    def rms(v):
        return v / (v.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    def rotate(v):  # pairs (c, c + 4) of a head of 8 turn by position x 10000^(-c / 4)
        turned = v.clone()
        for position in range(5):
            for c in range(4):
                angle = torch.tensor(position * 10000.0 ** (-c / 4))
                a, b = v[position, c], v[position, c + 4]
                turned[position, c], turned[position, c + 4] = (
                    a * angle.cos() - b * angle.sin(),
                    b * angle.cos() + a * angle.sin(),
                )
        return turned

    def apply(block, v):
        q, k, val = (v @ block.qkv.weight.T).split(16, -1)
        heads = []
        for h in range(2):
            cut = slice(8 * h, 8 * h + 8)
            scores = rotate(q[:, cut]) @ rotate(k[:, cut]).T / 8**0.5
            heads.append(scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9).softmax(-1) @ val[:, cut])
        v = rms(v + torch.cat(heads, -1) @ block.out_proj.weight.T)
        gate, up = (v @ block.gate_up.weight.T).chunk(2, -1)
        return rms(v + (gate * gate.sigmoid() * up) @ block.down.weight.T)

    with torch.no_grad():
        z_a, z_r = model.z_a.expand(5, -1), model.z_r.expand(5, -1)
        for _ in range(4):
            for block in model.blocks:
                z_r = apply(block, z_r + z_a + x)
                z_a = apply(block, z_a + z_r)
        computed = model.states(batch_of(rows_of([items[0].tolist()]), "packed"))
    torch.testing.assert_close(computed[0], z_a[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_fearec_rolls_by_the_strongest_delays(training):
    model = small("fearec")
    attn = model.encoder.layers[0].attn.train(training)
    torch.manual_seed(2)
    x = torch.randn(3, LENGTH, 16)
    with torch.no_grad():
        q, k, v = attn.projections(x)
        computed = attn.context(x, torch.zeros(()))
    # correlation[b, d] = mean over heads and channels of sum_t q[t + d] k[t]
    correlation = torch.stack([(q.roll(-delay, 2) * k).sum(2).mean((1, 2)) for delay in range(LENGTH)], 1)
    for row in range(3):
        delays = (correlation.mean(0) if training else correlation[row]).topk(2).indices  # floor(ln 12) = 2
        share = correlation[row, delays].softmax(0)
        expected = sum(s * v[row].roll(-int(delay), 1) for s, delay in zip(share, delays, strict=True))
        torch.testing.assert_close(computed[row], expected, rtol=1e-4, atol=1e-4)


def test_published_fearec_contrasts_a_second_draw_with_another_history():
    model = small("fearec-published", dropout=0.0)  # in evaluation mode: all draws are the same
    rows, others = random_rows(5), random_rows(5, seed=1)
    batch, partners = batch_of(rows), batch_of(others)
    with torch.no_grad():
        first, other = model.states(batch), model.states(partners)
        loss, views = 0.0, torch.cat([first, other])
        for own in range(10):
            rest = [place for place in range(10) if place != own]
            loss += (torch.logsumexp(views[rest] @ views[own], 0) - views[(own + 5) % 10] @ views[own]) / 10
        spectra = torch.tensor([[abs(value) for value in np.fft.rfft(row, norm="ortho")] for row in (first - other).numpy()])
        expected = torch.nn.functional.cross_entropy(model.logits(first), batch.targets) + 0.1 * loss + 0.1 * spectra.mean()
        torch.testing.assert_close(model(batch, partners), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_released_models_rank_by_an_output_layer_and_never_padding(loss):
    model, batch = small("sasrec-released", loss=loss), batch_of(random_rows(2000))
    with torch.no_grad():
        states, scores = model.states(batch), model.scores(batch)
        assert scores[:, 0].isneginf().all()
        torch.testing.assert_close(scores[:, 1:], states @ model.vectors()[1:].T + model.output.bias)
        own = scores[:, 1:].gather(1, batch.targets[:, None] - 1)
        if loss == "softmax":
            expected = (scores[:, 1:].logsumexp(1, keepdim=True) - own).mean()
        else:  # in expectation over the other item
            softplus = torch.nn.functional.softplus(scores[:, 1:])
            others = (softplus.sum(1, keepdim=True) - softplus.gather(1, batch.targets[:, None] - 1)) / (ITEMS - 1)
            expected = (torch.nn.functional.softplus(-own) + others).mean() / 2
        drawn = torch.stack([model(batch) for _ in range(20)]).mean()
    torch.testing.assert_close(drawn, expected, rtol=1e-5 if loss == "softmax" else 5e-3, atol=1e-6)


def test_hstu_sums_without_a_softmax():
    model = small("hstu", layers=1, heads=1)
    layer, history = model.layers[0], [3, 8, 8, 1]
    with torch.no_grad():
        x = 4.0 * model.item_embeddings(torch.tensor(history)) + model.position_embeddings.weight[:4]
        u, v, q, k = torch.nn.functional.silu(layer.uvqk(layer.input_norm(x))).chunk(4, -1)
        gathered = sum(torch.nn.functional.silu(q[3] @ k[j] + layer.distance_bias[3 - j]) / LENGTH * v[j] for j in range(4))
        expected = x[3] + layer.output(layer.output_norm(gathered) * u[3])
        computed = model.states(batch_of(rows_of([history]), "packed"))
    torch.testing.assert_close(computed[0], expected, rtol=1e-4, atol=1e-5)


def test_the_average_of_depthwise_filters_is_one_filter():
    bank = small("pswrec-v13").phase_filter
    h = torch.randn(2, LENGTH, 16)
    with torch.no_grad():
        real, _ = bank(h)
        for band, (convolution, (kernel, dilation)) in enumerate(zip(bank.real_convs, BANDS, strict=True)):
            padded = torch.nn.functional.pad(h.transpose(1, 2), ((kernel - 1) * dilation, 0))
            torch.testing.assert_close(real[:, band], convolution(padded).mean(1), rtol=1e-4, atol=1e-5)


def test_pswrec_v5_leaves_quiet_cells_out_of_the_smoothness():
    model, batch = small("pswrec-v5", phase_weight=1.0), batch_of(random_rows(10))
    ranked = torch.nn.functional.cross_entropy(model.scores(batch), batch.targets)
    assert model(batch) - ranked > 1e-3
    with torch.no_grad():
        for filters in model.phase_filter.parameters():
            filters *= 1e-5  # every magnitude is below 1e-3 now
        ranked = torch.nn.functional.cross_entropy(model.scores(batch), batch.targets)
        assert model(batch) == ranked


@pytest.mark.parametrize("name", ["pswrec-v12", "pswrec-v13"])
def test_with_two_heads_the_later_bands_play_no_part(name):
    model, batch = small(name, heads=2, phase_weight=1.0), batch_of(random_rows(10), side="left")
    model(batch).backward()
    for part in (model.phase_filter.real_convs, model.phase_filter.imag_convs):
        learns = [bool(filters.weight.grad.abs().any()) for filters in part]
        assert learns == [True, True, False, False]


def test_options_that_a_model_does_not_take_are_refused():
    config = BaselineConfig(model="gru4rec", protocol="recbole", sequences="-", heads=2)
    with pytest.raises(
        ConfigError, match=r"baseline.heads is set, but gru4rec does not take it. It takes dropout, hidden_size"
    ):
        make(config, ITEMS)
    config = BaselineConfig(model="fearec", protocol="recbole", sequences="-", attention_dropout=0.5)
    with pytest.raises(ConfigError, match=r"baseline\.attention_dropout is set, but fearec does not take it"):
        make(config, ITEMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "sasrec", "hidden_size": 10, "heads": 3}, "hidden_size 10 does not split into 3 heads"),
        ({"model": "wearec", "max_history": 9}, "max_history is 9; the Haar branch"),
        ({"model": "pswrec-v13", "heads": 8}, "heads is 8; each head takes a band"),
        ({"model": "trm4rec", "positions": False, "rope": False}, "would not know the order"),
        ({"model": "caser-released", "max_history": 3}, "max_history is 3; the filters of caser-released cover 4"),
        ({"model": "caser", "window": 3}, "window is 3"),
        ({"model": "caser", "window": 60}, "window is 60"),
    ],
)
def test_impossible_models(options, message):
    with pytest.raises(ConfigError, match=message):
        make(BaselineConfig(protocol="recbole", sequences="-", **options), ITEMS)


def test_weights_survive_a_file_and_mistakes_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    saved = small("sasrec", seed=1)
    weights.save(saved, path)
    other = small("sasrec", seed=2)
    weights.load(other, path)
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(ArtifactError, match=r"not weights of GRU4Rec: missing dense\.bias"):
        weights.load(small("gru4rec"), path)
    with pytest.raises(ArtifactError, match=r"item_embeddings.weight is \(31, 16\), the model has \(32, 16\)"):
        weights.load(make(BaselineConfig(protocol="recbole", sequences="-", max_history=LENGTH, hidden_size=16), 31), path)
    path.write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        weights.load(other, path)


# Ours and the published code's names of tensors, replaced in this order.
RECBOLE = (
    (r"^item_embeddings\.", "item_embedding."),
    (r"^embedding\.position_embeddings\.", "position_embedding."),
    (r"^embedding\.layer_norm\.", "LayerNorm."),
    (r"\.attn\.out_proj\.", ".attn.dense."),
    (r"\.ffn\.", ".feed_forward."),
    (r"\.layer_norm\.", ".LayerNorm."),
)
TRANSFORMER = ((r"^encoder\.layers\.", "trm_encoder.layer."), (r"\.attn\.", ".multi_head_attention."))
LIGHTSANS = (
    (r"\.theta_(key|value)$", r".attpooling_\1.theta"),
    (r"\.position_(q|k)\w+\.", r".pos_\1_linear."),
    (r"\.position_norm\.", ".pos_ln."),
)
HYBRID = (
    (r"^encoder\.layers\.", "item_encoder.layer."),
    (r"\.attn\.(query|key|value)\.", r".attn.\1_layer."),
    (r"\.attn\.", ".hybrid_attention."),
)
TRM = (
    (r"^item_embeddings\.", "item_embedding."),
    (r"^position_embeddings\.", "position_embedding."),
    (r"^blocks\.", "trm_blocks."),
    (r"\.qkv\.", ".self_attn.qkv_proj."),
    (r"\.out_proj\.", ".self_attn.o_proj."),
    (r"\.(gate_up|down)\.", r".mlp.\1_proj."),
    (r"^z_a$", "z_answer_init"),
    (r"^z_r$", "z_reason_init"),
)
LASTFM = ((r"^embedding\.position_embeddings\.", "position_embeddings."), (r"^embedding\.layer_norm\.", "LayerNorm."))
PUBLISHED_NAMES = {
    "sasrec": (*RECBOLE, *TRANSFORMER),
    "bert4rec": (
        *RECBOLE,
        *TRANSFORMER,
        (r"^head\.", "output_ffn."),
        (r"^head_norm\.", "output_ln."),
        (r"^item_bias$", "output_bias"),
    ),
    "lightsans": (*RECBOLE, *TRANSFORMER, *LIGHTSANS),
    "fearec": (*RECBOLE, *HYBRID),
    "fearec-published": (*RECBOLE, *HYBRID),
    "gru4rec": (*RECBOLE, (r"^gru\.", "gru_layers.")),
    "trm4rec": TRM,
    "wearec": (
        *LASTFM,
        (r"^encoder\.layers\.", "item_encoder.blocks."),
        (r"\.attn\.", ".layer."),
        (r"\.ffn\.", ".feed_forward."),
        (r"\.layer_norm\.", ".LayerNorm."),
    ),
    "pswrec-v5": LASTFM,
    "pswrec-v12": LASTFM,
    "pswrec-v13": LASTFM,
    "pswrec-v13-without-rotation": (*LASTFM, (r"\.magnitude_scale$", ".gamma"), (r"\.phase_bias_scale$", ".phase_bias")),
}


def published_file(model, patterns, path, prefix=""):
    """A model's weights under the published code's names."""
    theirs = {}
    for name, values in model.state_dict().items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        theirs[prefix + name] = (values[None, None] if name.startswith("z_") else values).contiguous()
    if patterns is TRM and model.rope:
        theirs |= {f"{prefix}rotary_emb.{name}_cached": torch.zeros(LENGTH, 8) for name in ("cos", "sin")}
    save_file(theirs, path)
    return theirs


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in PUBLISHED_NAMES] + [("trm4rec", {"positions": True, "rope": False, "layers": 2})],
)
def test_names_of_the_published_code_are_understood(name, options, prefix, tmp_path):
    model, loaded = small(name, seed=1, **options), small(name, seed=2, **options)
    theirs = published_file(model, PUBLISHED_NAMES[name], tmp_path / "theirs.safetensors", prefix)
    assert theirs.keys() != model.state_dict().keys()
    assert weights.load(loaded, tmp_path / "theirs.safetensors") == {}  # by name, none by shape
    expected, values_by_name = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(values, values_by_name[key]) for key, values in expected.items())


def test_what_is_missing_and_what_is_left_over_is_named_as_in_the_file(tmp_path):
    model = small("bert4rec")
    patterns = (*PUBLISHED_NAMES["bert4rec"], (r"^output_ffn\.", "head_of_another_kind."))
    published_file(model, patterns, tmp_path / "theirs.safetensors")
    with pytest.raises(
        ArtifactError,
        match=r"missing head\.bias, head\.weight; unknown head_of_another_kind\.bias, head_of_another_kind\.weight",
    ):
        weights.load(model, tmp_path / "theirs.safetensors")


def test_an_unknown_name_is_matched_by_shape_where_that_is_certain(tmp_path):
    model = small("pswrec-v13-without-rotation", seed=1)
    theirs = {name.replace("magnitude_scale", "amp_logits"): values for name, values in model.state_dict().items()}
    save_file(theirs, tmp_path / "theirs.safetensors")
    matched = weights.load(small("pswrec-v13-without-rotation"), tmp_path / "theirs.safetensors")
    assert matched["encoder.layers.0.attn.magnitude_scale"] == "encoder.layers.0.attn.amp_logits" and len(matched) == 2


def test_every_row_of_the_tables_has_a_preset():
    for table in ("beauty", "lastfm"):
        names = [row["preset"] for row in published_rows(table)["rows"]]
        assert len(set(names)) == len(names)
        for name in names:
            assert yaml.safe_load(preset(name).read_text())["name"] == name
