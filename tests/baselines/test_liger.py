"""LIGER against slow versions of itself and against TIGER, and on a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minionerec.artifacts import Manifest
from minionerec.baselines import coded
from minionerec.baselines.coded import make_coded
from minionerec.baselines.coded.liger import LIGER, LigerSizes
from minionerec.baselines.coded.tiger import TIGER, TigerSizes
from minionerec.baselines.train import train_baseline
from minionerec.cli import main
from minionerec.config import BaselineConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, DataError
from minionerec.eval.lists import RankedLists
from minionerec.model.sequential import count_parameters
from minionerec.model.sequential.scorer import scorer
from minionerec.pipeline import run
from minionerec.training.ranking import rank_split
from minionerec.training.ranking_data import from_dataset
from tests import small
from tests.baselines.test_coded import HISTORIES, TINY_TIGER, histories, sid_codes, spread
from tests.model.sequential.models import ITEMS, LENGTH, batch_of, rows_of

TEXTS = np.random.default_rng(1).standard_normal((ITEMS, 10)).astype(np.float32)
COLD = np.array([4, 11, 27])  # numbered from 0
TRAINED = np.setdiff1d(np.arange(ITEMS), COLD)
TINY = LigerSizes(**vars(TINY_TIGER), input_dropout=0.0, temperature=0.1)


def liger(lists=50, codes=None, texts=TEXTS, **sizes):
    torch.manual_seed(0)
    codes = sid_codes() if codes is None else codes
    return spread(LIGER(codes, LENGTH, replace(TINY, **sizes), lists, texts, TRAINED))


def tiger_with(model):
    """A TIGER with the same T5."""
    other = TIGER(sid_codes(), LENGTH, TINY_TIGER, model.lists)
    other.t5.load_state_dict(model.t5.state_dict())
    return other.eval()


def reads_codes_alone(model, monkeypatch):
    """Take away everything that LIGER puts into the encoder beside the codes."""

    def embedded(batch, _):
        ids, mask = model.prompts(batch)
        return model.t5.shared(ids), mask

    monkeypatch.setattr(model, "embedded", embedded)
    return model


@torch.no_grad()
def read_by_hand(model, history):
    """The encoder's states of one history, cell by cell, (codes, hidden)."""
    cells = []
    for place, item in enumerate(history):
        for level, code in enumerate(model.tokens[item].tolist()):
            if code >= 0:
                total = model.t5.shared.weight[code] + model.text_mlp(model.texts[item])
                cells.append(model.norm(total + model.item_positions.weight[place] + model.levels.weight[level]))
    return model.t5.encoder(inputs_embeds=torch.stack(cells)[None]).last_hidden_state


@torch.no_grad()
def dense_by_hand(model, history, item):
    """cos(query, v(item)) / temperature."""
    query, vector = read_by_hand(model, history)[0, -1], model.text_mlp(model.texts[item])
    return float(query @ vector / query.norm() / vector.norm() / model.temperature)


@torch.no_grad()
def written_by_hand(model, history, item):
    """Log-probability of an item's SID by one plain forward per code."""
    encoded, total, answer = read_by_hand(model, history), 0.0, [token for token in model.tokens[item].tolist() if token >= 0]
    for step, token in enumerate(answer):
        decoded = torch.tensor([[0, *answer[:step]]])
        logits = model.t5(encoder_outputs=(encoded,), decoder_input_ids=decoded).logits
        total += float(logits[0, -1].log_softmax(-1)[token])
    return total


def test_the_parameters_are_those_of_the_formula():
    codes = np.zeros((1022, 3), dtype=np.int64)
    codes[:, 0] = np.arange(len(codes))
    sizes = {"hidden_size": 128, "inner_size": 1024, "layers": 6, "heads": 6, "head_size": 64}
    model = LIGER(codes, 20, LigerSizes(**sizes), 10, np.ones((1022, 768), np.float32), np.arange(1022))
    text, inner, width, slots, levels = 768, 1024, 128, 20, 3
    beside = (text + 1) * inner + (inner + 1) * width + slots * width + levels * width + 2 * width
    tiger = count_parameters(TIGER(codes, 20, TigerSizes(**sizes), 10))
    assert tiger == 6_820_480 and count_parameters(model) == tiger + beside  # LIGER's T5 with 1,026 tokens


def test_without_texts_and_dense_part_it_is_tiger_to_the_last_bit(monkeypatch):
    model = reads_codes_alone(liger(dense_weight=0.0), monkeypatch)
    tiger, batch = tiger_with(model), histories([5, 6, 7, 30])
    assert torch.equal(model(batch), tiger(batch))
    assert torch.equal(model.scores(batch), tiger.scores(batch))
    model.lists = tiger.lists = 5
    assert torch.equal(model.scores(batch), tiger.scores(batch)) and model.scores(batch).isneginf().any()


@pytest.mark.parametrize("short", [False, True])
def test_the_dense_part_ranks_as_a_loop_over_items_does(short):
    model = liger(codes=sid_codes(short=short))
    scores = model.dense_scores(histories())
    assert scores.shape == (4, ITEMS + 1) and (scores[:, 0] == -torch.inf).all()
    for row, history in enumerate(HISTORIES):
        by_hand = torch.tensor([dense_by_hand(model, history, item) for item in range(1, ITEMS + 1)])
        torch.testing.assert_close(scores[row, 1:], by_hand, atol=2e-5, rtol=1e-5)
        assert torch.equal(scores[row, 1:].argsort(descending=True)[:5], by_hand.argsort(descending=True)[:5])


def test_items_of_one_text_have_one_score_to_the_last_bit():
    texts = TEXTS.copy()
    texts[-9:] = texts[:9]
    scores = liger(texts=texts).dense_scores(histories())
    assert torch.equal(scores[:, -9:], scores[:, 1:10])


def test_its_beams_score_as_plain_forwards_do():
    model = liger(dense_weight=0.0, codes=sid_codes(short=True))
    scores = model.scores(histories())
    for row, history in enumerate(HISTORIES[:3]):
        by_hand = torch.tensor([written_by_hand(model, history, item) for item in range(1, ITEMS + 1)])
        torch.testing.assert_close(scores[row, 1:], by_hand, atol=2e-5, rtol=1e-5)


def test_the_loss_is_that_of_both_parts():
    targets = [6, 7, 8, 30]
    model = liger(dense_weight=0.5)
    both = zip(HISTORIES, targets, strict=True)
    codes = -sum(written_by_hand(model, history, item) for history, item in both) / 12
    dense = 0.0
    for history, target in zip(HISTORIES, targets, strict=True):
        logits = torch.tensor([dense_by_hand(model, history, item + 1) for item in TRAINED])  # cold items are no candidates
        dense += float(-logits.log_softmax(0)[int(np.flatnonzero(target == TRAINED + 1)[0])]) / 4
    with torch.no_grad():
        assert model(histories(targets)).item() == pytest.approx(codes + 0.5 * dense, rel=1e-5)


@pytest.mark.parametrize("make", [liger, lambda **fields: spread(TIGER(sid_codes(short=True), LENGTH, buckets(**fields), 5))])
def test_buckets_change_neither_loss_nor_gradients(make):
    """SIDs of two lengths, so that a part's share of the codes is not its share of the rows."""
    batch, found = histories([6, 7, 8, 30]), []
    for count in (1, 3, 9):
        torch.manual_seed(0)
        model = make(buckets=count, **({"codes": sid_codes(short=True)} if make is liger else {}))
        widths, written = [], model.written
        model.written = lambda part, written=written, widths=widths: widths.append(len(part.items)) or written(part)
        loss = model(batch)
        loss.backward()
        assert max(widths) == {1: 4, 3: 2, 9: 1}[count]
        found.append((loss.detach(), [parameter.grad for parameter in model.parameters()]))
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradients, found[0][1], atol=1e-5, rtol=1e-4)


def buckets(**fields):
    return replace(TINY_TIGER, **fields)


def test_candidates_are_what_beams_reached_and_the_cold_items():
    model, batch = liger(lists=5), histories()
    scores, dense = model.scores(batch), model.dense_scores(batch)
    generative = TIGER.scores.__get__(model)(batch)
    listed = ~scores.isneginf()
    assert torch.equal(listed, ~generative.isneginf() | torch.isin(torch.arange(ITEMS + 1), torch.from_numpy(COLD + 1)))
    assert torch.equal(scores[listed], dense[listed])
    beams = ~generative.isneginf()
    assert (beams.sum(1) <= 6).all() and (listed.sum(1) >= 6).all() and (listed.sum(1) <= 9).all()


def test_with_as_many_beams_as_items_the_dense_part_ranks_alone():
    model, batch = liger(lists=ITEMS), histories()
    assert torch.equal(model.scores(batch), model.dense_scores(batch))


def test_texts_count_by_direction_and_not_by_their_unit():
    one, other = liger(), liger(texts=1000 * TEXTS)
    torch.testing.assert_close(one.scores(histories()), other.scores(histories()), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one.scores(histories()), liger(texts=TEXTS[::-1].copy()).scores(histories()), atol=1e-2)


def test_rows_do_not_depend_on_their_batch_or_padding_but_on_order():
    model = liger()
    together = model.scores(histories())
    for row, history in enumerate(HISTORIES):
        for side in ("right", "left"):
            alone = model.scores(batch_of(rows_of([history]), side=side))
            torch.testing.assert_close(alone[0, 1:], together[row, 1:], atol=2e-5, rtol=1e-5)
    turned = model.scores(batch_of(rows_of([HISTORIES[2][::-1]])))
    assert (turned[0, 1:] - together[2, 1:]).abs().max() > 1e-3


def test_every_weight_learns():
    model = liger().train()
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(20):
        loss = model(histories([6, 7, 8, 30]))
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    saved = model.state_dict()
    assert not {"texts", "seen", "place", "tokens"} & saved.keys()  # they belong to the run's data
    other = liger(texts=TEXTS)
    other.load_state_dict(saved)
    assert torch.equal(other.eval().scores(histories()), model.eval().scores(histories()))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run with data and semantic IDs of its texts."""
    config = small.config(tmp_path_factory.mktemp("liger"), eval={"resamples": 40, "num_beams": 10})
    run(config, ("data", "sid"))
    sizes = {"hidden_size": 16, "inner_size": 16, "layers": 1, "heads": 2, "head_size": 8}
    options = BaselineConfig(model="liger", epochs=2, max_history=6, top=10, learning_rate=1e-2, **sizes)
    return replace(config, baseline=options)


def test_a_run_trains_and_evaluates_it(prepared):
    run(prepared, ("baseline",))
    manifest = Manifest.load(prepared.folder / "baselines" / "liger")
    assert {"data", "sid", "vectors"} <= manifest.inputs.keys()
    assert Manifest.load(prepared.folder / "eval" / "liger").metrics["HR@10"] == pytest.approx(
        manifest.metrics["test HR@10"], abs=0.1
    )
    stored = RankedLists.read(prepared.folder / "eval" / "liger" / "predictions.jsonl")
    assert not stored.exact.any()  # a beam search may have missed something
    assert not train_baseline(prepared)[1]  # current
    dataset = Dataset.load(prepared.folder / "data")
    model = make_coded(prepared, 26)
    seen = {*dataset.train["target"]} | {item for history in dataset.train["history"] for item in history}
    assert {*(model.seen - 1).tolist()} == seen and model.texts.shape[0] == len(dataset.catalog) + 1
    model.load_state_dict(load_file(prepared.folder / "baselines" / "liger" / "model.safetensors"))
    data = from_dataset(dataset, 6)
    ranks = rank_split(scorer(model, 6, data.protocol.side, torch.device("cpu")), data, "test").ranks
    assert np.mean(ranks < 10) == pytest.approx(manifest.metrics["test HR@10"])


def test_other_vectors_make_it_stale_and_bad_ones_are_refused(prepared, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((48, 8)).astype(np.float32)
    file = tmp_path / "vectors.npy"
    np.save(file, vectors)
    config = replace(prepared, out=str(tmp_path / "run"), sid=replace(prepared.sid, vectors=str(file)), replace=False)
    config = replace(config, baseline=replace(config.baseline, epochs=1))
    run(config, ("data", "sid"))
    assert train_baseline(config)[1] and not train_baseline(config)[1]
    vectors[5] = np.nan
    np.save(file, vectors)
    with pytest.raises(DataError, match=r"1 items are not finite .*rows 5 of the catalog"):
        train_baseline(config)
    vectors[5] = 1.0
    np.save(file, vectors)
    with pytest.raises(ConfigError, match="input vectors: changed"):
        train_baseline(config)


def test_a_catalog_without_vectors_is_refused_before_training(prepared, capsys):
    dataset = Dataset.load(prepared.folder / "data")
    blank = replace(dataset, catalog=dataset.catalog.with_columns(text=np.full(len(dataset.catalog), "")))
    with pytest.raises(DataError, match=r"liger reads item vectors, but the catalog has no texts.*--sid\.vectors FILE\.npy"):
        coded._vectors(replace(prepared, out=str(prepared.folder / "none")), blank)
    nowhere = ["--out", str(prepared.folder / "none"), "--sid.vectors", str(prepared.folder / "none.npy")]
    assert main(["baseline", "--config", str(prepared.folder), "--baseline.model", "liger", *nowhere]) == 2
    assert "none.npy: no such file; expected a .npy file" in " ".join(capsys.readouterr().err.split())
    assert not (prepared.folder / "none").exists()  # before the stage begins
    with pytest.raises(ConfigError, match=r"baseline\.dense_weight is set, but tiger does not take it"):
        train_baseline(replace(prepared, baseline=BaselineConfig(model="tiger", dense_weight=1.0)))
