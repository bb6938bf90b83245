"""TIGER, the lazy decoder and RPG against slow versions of themselves, and on a run."""

import itertools
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from minionerec.artifacts import Manifest
from minionerec.baselines import train
from minionerec.baselines.coded import coded_model, make_coded
from minionerec.baselines.coded.lazy import LazyCache, LazyDecoder, LazySizes
from minionerec.baselines.coded.rpg import CODES, RPG, RPGSizes
from minionerec.baselines.coded.tiger import END, TIGER, TigerSizes
from minionerec.baselines.lists import as_wide_as_choosing_needs, search_beams
from minionerec.baselines.train import _fresh, train_baseline
from minionerec.baselines.vectors import vectors_bytes, vectors_of
from minionerec.cli import main, parse
from minionerec.config import (
    BASELINES,
    CODED_BASELINES,
    GENERATIVE_BASELINES,
    NEURAL_BASELINES,
    VECTOR_BASELINES,
    BaselineConfig,
    Config,
    EvalConfig,
    SidConfig,
)
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import load_vectors, logprobs_of_scores
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.predictions import read_predictions
from minionerec.model.sequential import count_parameters
from minionerec.model.sequential.batches import make_batch
from minionerec.model.sequential.implementation import implementation, options_of
from minionerec.model.sequential.scorer import scorer
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts
from minionerec.recommend.recommender import Recommender
from minionerec.report.runs import read_run
from minionerec.sid import product
from minionerec.sid.index import SidIndex
from minionerec.training import epochs, machine, ranking
from minionerec.training.ranking import rank_split, without_history
from minionerec.training.ranking_data import PROTOCOLS, choosing_rows, from_dataset
from minionerec.tree import score_catalog
from minionerec.tree.search import run_search, search_prompts
from tests import small
from tests.launch import ROOT
from tests.model.sequential.models import ITEMS, LENGTH, batch_of, rows_of
from tests.recommend.conftest import SIZES, write_run

TINY_TIGER = TigerSizes(hidden_size=16, inner_size=24, layers=2, heads=2, head_size=8, dropout=0.0)
TINY_LAZY = LazySizes(hidden_size=16, layers=2, heads=2, dropout=0.0)
TINY_RPG = RPGSizes(hidden_size=16, inner_size=24, layers=2, heads=2, dropout=0.0, digits=3, temperature=0.1)
HISTORIES = [[3], [4, 9, 2, 7], [1, 30, 1, 5, 6, 7, 8], list(range(1, 13))]


def sid_codes(items=ITEMS, short=False):
    """Three levels, two items with one SID; with `short`, some SIDs have two levels only."""
    rng = np.random.default_rng(0)
    codes = np.stack([np.arange(items) // 6, np.arange(items) % 6, rng.integers(0, 4, items)], axis=1)
    if short:
        codes[::5, 2] = -1
    codes[1] = codes[0]
    return codes


def spread(model, seed=0):
    """Weights so far apart that scores differ by more than rounding."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def tiger(short=False, lists=50):
    torch.manual_seed(0)
    return spread(TIGER(sid_codes(short=short), LENGTH, TINY_TIGER, lists))


def lazy(short=False, lists=50):
    torch.manual_seed(0)
    return spread(LazyDecoder(sid_codes(short=short), LENGTH, TINY_LAZY, lists))


def rpg(items=ITEMS):
    torch.manual_seed(0)
    codes = np.random.default_rng(0).integers(0, CODES, (items, 3))
    codes[1] = codes[0]
    return spread(RPG(codes, LENGTH, TINY_RPG, 50))


def histories(targets=None):
    return batch_of(rows_of(HISTORIES, targets))


@pytest.mark.parametrize(
    ("vocabulary", "layers", "width", "inner", "heads", "head", "expected"),
    [
        (1025, 4, 128, 1024, 6, 64, 4_590_848),
        (562, 4, 128, 1024, 6, 64, 4_531_584),  # Industrial's SIDs
        (967, 4, 128, 1024, 6, 64, 4_583_424),  # LETTER's SIDs of Beauty
        (1026, 6, 128, 1024, 6, 64, 6_820_480),  # LIGER's
        (1025, 4, 384, 1024, 6, 64, 13_771_776),  # RQ-VAE-Recommender's width
    ],
)
def test_tiger_has_the_parameters_of_the_formula(vocabulary, layers, width, inner, heads, head, expected):
    codes = np.zeros((vocabulary - 4, 3), dtype=np.int64)  # two tokens besides codes; two levels of one code
    codes[:, 0] = np.arange(len(codes))
    sizes = TigerSizes(hidden_size=width, inner_size=inner, layers=layers, heads=heads, head_size=head)
    with torch.device("meta"):
        model = TIGER(codes, 20, sizes, 10)
    each = 4 * width * heads * head + 2 * width * inner
    formula = vocabulary * width + layers * (each + 2 * width) + layers * (each + 4 * width * heads * head + 3 * width)
    assert count_parameters(model) == formula + 64 * heads + 2 * width == expected


def test_the_lazy_decoder_has_the_parameters_of_the_formula():
    codes = np.zeros((558, 3), dtype=np.int64)
    codes[:, 0] = np.arange(558)
    v, d, s, n, levels = 560, 128, 10, 4, 3
    expected = 3 * v * d + 2 * d + s * d + d * d + d + n * (18 * d * d + 3 * d) + levels * d
    assert count_parameters(LazyDecoder(codes, s, LazySizes(), 10)) == expected == 1_414_656


@pytest.mark.parametrize(
    ("digits", "width", "inner", "expected"),
    [(16, 128, 512, 1_191_936), (16, 448, 1024, 8_528_384), (32, 448, 1024, 13_581_824)],
)
def test_rpg_has_the_parameters_of_the_formula(digits, width, inner, expected):
    codes = np.zeros((4, digits), dtype=np.int64)
    with torch.device("meta"):
        model = RPG(codes, 50, RPGSizes(hidden_size=width, inner_size=inner), 10)
    k, d, f = digits, width, inner
    formula = (k * CODES + 2) * d + 50 * d + 2 * (4 * d * d + 9 * d + 2 * d * f + f) + 2 * d + k * (d * d + d)
    assert count_parameters(model) == formula == expected


def test_an_epoch_is_chosen_by_a_narrow_search():
    for make in (tiger, lazy):
        model = make(lists=30)
        with pytest.raises(ZeroDivisionError), as_wide_as_choosing_needs(model):
            assert model.search(histories(), model.lists).leaves.shape[1] == 20
            raise ZeroDivisionError
        assert model.search(histories(), model.lists).leaves.shape[1] == 30
        with as_wide_as_choosing_needs(model, left_out=6):
            assert model.lists == 26  # 20 remain of every list
    narrow = tiger(lists=5)
    with as_wide_as_choosing_needs(narrow):
        assert narrow.lists == 5
    other = rpg()
    with as_wide_as_choosing_needs(other):
        assert other.lists == 50  # it searches nothing


@torch.no_grad()
def tiger_by_hand(model, history, item):
    """Log-probability of an item's SID by one plain forward per code."""
    tokens = model.tokens
    prompt = [token for number in history for token in tokens[number].tolist() if token >= 0]
    answer = [token for token in tokens[item].tolist() if token >= 0] + [END] * model.trie.trailing
    total = 0.0
    for step, token in enumerate(answer):
        logits = model.t5(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *answer[:step]]])).logits
        total += float(logits[0, -1].log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("short", [False, True])
def test_tiger_ranks_as_plain_forwards_do(short):
    model = tiger(short)
    assert model.trie.trailing == 0  # a SID of two codes is no beginning of another here
    scores = model.scores(histories())
    assert scores.shape == (4, ITEMS + 1) and (scores[:, 0] == -torch.inf).all()
    for row, history in enumerate(HISTORIES[:2]):
        expected = torch.tensor([tiger_by_hand(model, history, item) for item in range(1, ITEMS + 1)])
        torch.testing.assert_close(scores[row, 1:], expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(scores[:, 1], scores[:, 2])  # they share a SID


def test_tiger_writes_an_end_where_a_sid_is_the_beginning_of_another():
    codes = np.array([[0, 1, -1], [0, 1, 0], [0, 1, 1], [1, 0, 0]])
    torch.manual_seed(0)
    model = spread(TIGER(codes, LENGTH, TINY_TIGER, 10))
    batch = batch_of(rows_of([[1, 2], [4]], [1, 2]))
    assert model.trie.trailing == 1 and model.labels(torch.tensor([1, 2])).tolist() == [[2, 5, 1, -100], [2, 5, 6, 1]]
    expected = torch.tensor([[tiger_by_hand(model, history, item) for item in range(1, 5)] for history in ([1, 2], [4])])
    torch.testing.assert_close(model.scores(batch)[:, 1:], expected, atol=2e-5, rtol=1e-5)


def test_tigers_loss_is_the_mean_over_the_targets_codes():
    model = tiger()
    targets = [5, 6, 7, 30]
    with torch.no_grad():
        loss = model(histories(targets))
    by_hand = [tiger_by_hand(model, history, item) for history, item in zip(HISTORIES, targets, strict=True)]
    assert loss.item() == pytest.approx(-sum(by_hand) / 12, rel=1e-5)


def test_tigers_loss_has_the_gradients_of_transformers_own():
    """Histories of several lengths and SIDs of two, in one padded batch or in parts, against plain T5s of one row each."""
    targets, rows = [5, 6, 7, 30], []
    plain, codes = tiger(short=True).t5, tiger(short=True).tokens
    for history, target in zip(HISTORIES, targets, strict=True):
        prompt, answer = ([token for token in codes[items].flatten().tolist() if token >= 0] for items in (history, [target]))
        rows.append(plain(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).loss * len(answer))
    (sum(rows) / int((codes[targets] >= 0).sum())).backward()
    tables = ["shared.weight"]
    tables += [f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for half in ("encoder", "decoder")]
    for parts in (1, 3):
        model = tiger(short=True)
        model.buckets = parts
        model(histories(targets)).backward()
        for name in tables:
            ours, theirs = (t5.get_parameter(name).grad for t5 in (model.t5, plain))
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_narrow_beams_of_tiger_and_the_lazy_decoder_list_no_more_than_they_found():
    for model in (tiger(lists=5), lazy(lists=5)):
        scores, everything = model.scores(histories()), replace_lists(model, 50).scores(histories())
        listed = scores > -torch.inf
        assert ((listed.sum(1) >= 5) & (listed.sum(1) <= 6)).all()  # one SID has two items
        torch.testing.assert_close(scores[listed], everything[listed], atol=2e-5, rtol=1e-5)


def replace_lists(model, lists):
    model.lists = lists
    return model


@torch.no_grad()
def lazy_by_hand(model, history, item, over="vocabulary"):
    """Log-probability of an item's SID, each code from the whole sequence anew, as training computes it.

    Args:
        over: `vocabulary` means all codes of a level, `catalog` those that some SID has behind the codes so far.
    """
    batch = batch_of(rows_of([history]))
    context, visible = model.context(batch)
    answer = [token for token in model.tokens[item].tolist() if token >= 0]
    total = 0.0
    for level, token in enumerate(answer):
        x = torch.cat([model.start[None, None], model.decoder_codes(torch.tensor([answer[:level]], dtype=torch.long))], dim=1)
        causal = torch.ones(level + 1, level + 1, dtype=torch.bool).tril()
        for block in model.blocks:
            x, _ = block(x, context, visible, causal)
        logits = model.level_logits(level, x[:, -1])[0]
        if over == "catalog":
            sids = model.tokens[1:].tolist()
            legal = sorted({sid[level] - model.bounds[level] for sid in sids if sid[:level] == answer[:level]})
            logits = torch.full_like(logits, -torch.inf).index_copy(0, torch.tensor(legal), logits[legal])
        total += float(logits.log_softmax(-1)[token - model.bounds[level]])
    return total


@pytest.mark.parametrize("short", [False, True])
def test_the_lazy_decoder_ranks_as_whole_sequences_do(short):
    model = lazy(short)
    scores = model.scores(histories())
    for row, history in enumerate(HISTORIES[:3]):
        expected = torch.tensor([lazy_by_hand(model, history, item) for item in range(1, ITEMS + 1)])
        torch.testing.assert_close(scores[row, 1:], expected, atol=2e-5, rtol=1e-5)


def test_the_lazy_loss_is_the_sum_over_the_levels():
    model, targets = lazy(), [5, 6, 7, 30]
    with torch.no_grad():
        loss = model(histories(targets))
    by_hand = [lazy_by_hand(model, history, item) for history, item in zip(HISTORIES, targets, strict=True)]
    assert loss.item() == pytest.approx(-sum(by_hand) / 4, rel=1e-5)


def test_each_levels_probabilities_add_up():
    """After every prefix, where every code goes on some SID: over all codes of the level, so over the catalog, too."""
    codes = np.array(list(itertools.product(range(4), range(3), range(3))))
    torch.manual_seed(0)
    model, batch = spread(LazyDecoder(codes, LENGTH, TINY_LAZY, 50)), histories()
    cache, sums = LazyCache.compute(model, batch, model.trie), []
    child_logprobs = cache.child_logprobs

    def listen(*arguments):
        children = child_logprobs(*arguments)
        sums.append(children[2].exp().sum(-1))
        return children

    cache.child_logprobs = listen
    whole = run_search(cache, len(model.trie))
    assert [some.shape for some in sums] == [(4, 1), (4, 4), (4, 12)]
    for some in [*sums, whole.scores.exp().sum(1)]:
        torch.testing.assert_close(some, torch.ones_like(some), atol=1e-5, rtol=0)


@pytest.mark.parametrize("short", [False, True])
def test_over_the_catalog_the_lazy_decoder_scores_as_whole_sequences_do(short):
    """And the catalog adds up to 1, though few codes go on a SID."""
    model, batch = lazy(short), histories()
    found = run_search(LazyCache.compute(model, batch, model.trie, "catalog"), len(model.trie))
    scores = found.scores.gather(1, found.leaves.argsort(1))  # in the order of the leaves
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(4), atol=1e-5, rtol=0)
    leaves = model.trie.leaf_of_item.long()
    for row, history in enumerate(HISTORIES[:3]):
        expected = torch.tensor([lazy_by_hand(model, history, item, "catalog") for item in range(1, ITEMS + 1)])
        torch.testing.assert_close(scores[row, leaves], expected, atol=2e-5, rtol=1e-5)


def test_views_and_widening_hold():
    model, batch = lazy(), histories()
    view = model.trie.without([[2], [3, 4], [], [10]])
    narrowed = search_prompts(LazyCache.compute(model, batch, view), 50)
    whole = search_prompts(LazyCache.compute(model, batch, model.trie), 50)
    assert narrowed.exact.all()
    hidden = int(model.trie.leaf_of_item[2])
    assert hidden not in narrowed.leaves[0].tolist() and hidden in whole.leaves[0].tolist()
    wide = search_prompts(LazyCache.compute(model, batch, model.trie), 3, widest=50)
    assert wide.exact.all() and torch.equal(wide.leaves, whole.leaves[:, :3])


def test_the_lazy_decoder_knows_order_by_recency_alone_and_padding_not_at_all():
    model = lazy()
    history = HISTORIES[2]
    forward, backward = (model.scores(batch_of(rows_of([some]))) for some in (history, history[::-1]))
    assert (forward - backward)[:, 1:].abs().max() > 1e-3
    left = model.scores(batch_of(rows_of([history]), side="left"))
    torch.testing.assert_close(left, forward, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        model.recency.weight.zero_()
    forward, backward = (model.scores(batch_of(rows_of([some]))) for some in (history, history[::-1]))
    torch.testing.assert_close(forward, backward, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [tiger, lazy, rpg])
def test_a_row_does_not_depend_on_its_batch(make):
    model = make()
    together = model.scores(histories())
    for row, history in enumerate(HISTORIES):
        torch.testing.assert_close(model.scores(batch_of(rows_of([history])))[0, 1:], together[row, 1:], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_rpgs_scores_are_sums_over_its_codes_up_to_a_number_of_the_row():
    model = rpg()
    scores, logprobs = model.scores(histories())[:, 1:], model.digit_logprobs(histories())
    torch.testing.assert_close(logprobs.exp().sum(2), torch.ones(4, 3), atol=1e-5, rtol=0)
    codes = model.distinct[model.row_of][1:] - torch.arange(3) * CODES - 1
    gathered = torch.stack([logprobs[:, digit, codes[:, digit]] for digit in range(3)]).mean(0)
    difference = scores - gathered
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-5, rtol=1e-5)
    assert torch.equal(gathered.argmax(1), scores.argmax(1)) and torch.equal(scores[:, 0], scores[:, 1])


@torch.no_grad()
def test_items_of_one_row_of_codes_have_one_score_to_the_last_bit():
    torch.manual_seed(0)
    codes = np.random.default_rng(0).integers(0, 256, (701, 3))
    codes[350:700] = codes[:350]  # at other places of the product than their twins
    model = spread(RPG(codes, LENGTH, TINY_RPG, 50))
    scores = model.scores(histories())
    assert torch.equal(scores[:, 351:701], scores[:, 1:351])
    torch.testing.assert_close(scores, model.states(histories()) @ model.vectors().T, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_rpgs_loss_is_the_mean_of_plain_cross_entropies():
    model, targets = rpg(), [5, 6, 7, 30]
    vectors = model.digit_vectors(histories())
    losses = []
    for digit in range(3):
        table = functional.normalize(model.gpt2.wte.weight[1 + digit * CODES : 1 + (digit + 1) * CODES], dim=-1)
        labels = model.distinct[model.row_of][targets, digit] - 1 - digit * CODES
        losses.append(functional.cross_entropy(vectors[:, digit] @ table.T / 0.1, labels))
    assert model(histories(targets)).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@torch.no_grad()
def test_all_heads_of_a_fresh_rpg_say_the_same():
    torch.manual_seed(0)
    model = RPG(np.random.default_rng(0).integers(0, CODES, (ITEMS, 3)), LENGTH, TINY_RPG, 50).eval()
    vectors = model.digit_vectors(histories())
    torch.testing.assert_close(vectors, vectors[:, :1].expand_as(vectors))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run with data, semantic IDs and a file of item vectors."""
    folder = tmp_path_factory.mktemp("coded")
    config = small.config(folder, eval={"resamples": 40, "num_beams": 10})
    run(config, ("data", "sid"))
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((48, 24)).astype(np.float32))
    return config


TRAINED = {
    "tiger": {"hidden_size": 16, "inner_size": 16, "layers": 1, "heads": 2, "head_size": 8},
    "lazy": {"hidden_size": 16, "layers": 1, "heads": 2},
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_trains_resumes_and_evaluates_them(prepared, name, tmp_path, monkeypatch):
    options = BaselineConfig(model=name, epochs=2, max_history=6, top=10, learning_rate=1e-2, **TRAINED[name])
    config = replace(prepared, baseline=options)
    for stage in ("data", "sid"):
        shutil.copytree(config.folder / stage, tmp_path / stage)
    train_baseline(replace(config, out=str(tmp_path)))  # in one go
    with monkeypatch.context() as patched:

        def stop(*arguments, store=epochs.store):
            store(*arguments)
            raise KeyboardInterrupt

        patched.setattr(epochs, "store", stop)
        with pytest.raises(KeyboardInterrupt):
            train_baseline(config)
    trained, train_epoch = [], train.train_epoch
    monkeypatch.setattr(train, "train_epoch", lambda *arguments: trained.append(arguments[-1]) or train_epoch(*arguments))
    run(config, ("baseline",))
    assert trained == [1]
    folder = config.folder / "baselines" / name
    for file in ("model.safetensors", "test.parquet", "valid.parquet"):
        assert (folder / file).read_bytes() == (tmp_path / "baselines" / name / file).read_bytes()
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2
    manifest = Manifest.load(folder)
    assert {"data", "sid"} <= manifest.inputs.keys() and not (folder / "vectors.safetensors").exists()
    assert Manifest.load(config.folder / "eval" / name).metrics["HR@10"] == pytest.approx(
        manifest.metrics["test HR@10"], abs=0.1
    )
    assert not train_baseline(config)[1]  # current
    data = from_dataset(Dataset.load(config.folder / "data"), 6)
    model = make_coded(config, 26)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    ranks = rank_split(scorer(model, 6, data.protocol.side, torch.device("cpu")), data, "test").ranks
    assert np.mean(ranks < 10) == pytest.approx(manifest.metrics["test HR@10"])
    with pytest.raises(ArtifactError, match="needs the vectors of a baseline"):
        load_vectors(config.folder, name, Dataset.load(config.folder / "data"), "eval.assistant")


@pytest.fixture
def rpgs_run(tmp_path, monkeypatch):
    """A run with RPG, and with a language model that nobody trained; items 1 and 2 have one vector, and so one row of codes.

    Its 33 users have 266 items in the train split, as RPG needs 256.
    """
    monkeypatch.setattr(product, "_ROTATIONS", 1)
    dataset = small.leave_one_out({str(user): [8 * user + step for step in range(12)] for user in range(33)}, 268, 6)
    index = SidIndex(np.array(list(np.ndindex(7, 7, 6))[:268], np.int32), (7, 7, 6), dataset.digest)
    model, tokenizer = small.untrained_model(dataset, index, SIZES)
    vectors = np.random.default_rng(0).standard_normal((268, 8)).astype(np.float32)
    vectors[2] = vectors[1]
    np.save(tmp_path / "vectors.npy", vectors)
    sid = SidConfig(vectors=str(tmp_path / "vectors.npy"))
    write_run(tmp_path, Recommender(model, Prompts(dataset, index, tokenizer, Config().resolved_prompts)), sid)
    options = BaselineConfig(
        model="rpg", epochs=1, hidden_size=8, inner_size=8, layers=1, heads=2, digits=2, max_history=6, top=30
    )
    evaluation = EvalConfig(assistant="rpg", assistant_weight=0.5, num_beams=10, resamples=40, oracle_examples=0)
    config = Config(out=str(tmp_path), sid=sid, baseline=options, eval=evaluation)
    run(config, ("baseline",))
    return config


def test_rpg_in_a_run_leaves_the_vectors_of_its_lists_and_assists(rpgs_run):
    """Equal scores stand in either order, as a product of other numbers at once may round."""
    folder, dataset = rpgs_run.folder, Dataset.load(rpgs_run.folder / "data")
    assert "vectors" in Manifest.load(folder / "baselines/rpg").inputs
    vectors = load_vectors(folder, "rpg", dataset, "a test")
    for split in ("valid", "test"):
        stored = pl.read_parquet(folder / f"baselines/rpg/{split}.parquet")["items"].to_list()
        scores = vectors.scores(split, np.arange(33))
        assert len(stored) == 33 and {len({*items}) for items in stored} == {30}
        listed = np.take_along_axis(scores, np.array(stored), axis=1)
        np.testing.assert_allclose(listed, -np.sort(-scores, axis=1)[:, :30], atol=1e-5)
        assert (np.ptp(listed, axis=1) > 0.1).all()  # else nearly any items would do
        np.testing.assert_allclose(scores[:, 1], scores[:, 2], rtol=1e-12)
    run(rpgs_run, ("eval",))
    assert {"sft", "sft-d3", "rpg"} <= {row.name for row in read_run(folder)}
    assert Manifest.load(folder / "eval/sft-d3").config["d3"] == {"assistant": "rpg", "weight": 0.5}
    recommender = Recommender.load(folder, "sft")
    for row, prediction in enumerate([*read_predictions(folder / "eval/sft-d3/predictions.jsonl")][:3]):
        model = score_catalog(recommender.model, *recommender.encode([prediction.history]), trie=recommender.trie)[0].numpy()
        assistant = logprobs_of_scores(scores[[row]], "rpg")[0]
        expected = 0.5 * model[recommender.trie.leaf_of_item.numpy()] + 0.5 * assistant
        np.testing.assert_allclose(prediction.scores, expected[prediction.items], atol=1e-5)


def test_short_stored_lists_do_not_cut_the_metrics_short(prepared):
    """HR@20 of three beams would be HR@3, and of 20 beams HR@14 once the six items of a history are left out."""
    config = replace(prepared, baseline=BaselineConfig(model="lazy", top=3, **TRAINED["lazy"]))
    data = from_dataset(Dataset.load(config.folder / "data"), 6)
    longest = max(len(data.rows[split].history(row)) for split in ("valid", "test") for row in range(len(data.rows[split])))
    beams = [search_beams(replace(config, baseline=replace(config.baseline, top=top)), data) for top in (3, 60)]
    assert beams == [20 + longest, 60] and _fresh(config, data).lists == 20 + longest == 26


def test_every_metric_has_its_items_once_the_history_is_left_out(prepared):
    """A search as wide as the metrics' longest list ranks the history first and leaves it no 20 others."""
    data = from_dataset(Dataset.load(prepared.folder / "data"), 6)
    rows = data.rows["test"]
    model = make_coded(replace(prepared, baseline=BaselineConfig(model="lazy", max_history=6, **TRAINED["lazy"])), 48)
    ranks_history_first(model, rows)
    counts = {}
    for beams in (20, 26):
        model.lists = beams
        scores = without_history(scorer(model, 6, data.protocol.side, torch.device("cpu"))(rows), rows)
        counts[beams] = (~scores.isneginf()).sum(1)
    assert (counts[20] < 20).any() and (counts[26] >= 20).all()


def ranks_history_first(model, rows):
    """Train a generative model to repeat its history."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        newest = replace(rows, target=rows.flat[rows.stop - 1])
        model.train()(make_batch(newest, layout="padded", side="right", max_history=6)).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_wider_search_is_another_baseline_and_the_others_keep_their_keys(prepared):
    """`top` of the small run is below 26 beams, so its key names them; with 26 the list says it."""
    keys = {}
    for top in (10, 26):
        options = BaselineConfig(model="lazy", epochs=1, max_history=6, top=top, learning_rate=1e-2, **TRAINED["lazy"])
        manifest, _ = train_baseline(replace(prepared, baseline=options, replace=True))
        keys[top] = manifest.config["baseline"].get("beams")
    assert keys == {10: 26, 26: None}


def test_a_few_rows_choose_the_epoch_and_all_rows_are_measured(prepared, monkeypatch):
    data = from_dataset(Dataset.load(prepared.folder / "data"), 6)
    drawn = [choosing_rows(data, 7, seed).rows for seed in (1, 1, 2)]
    assert [len(rows["valid"]) for rows in drawn] == [7, 7, 7] and drawn[0]["test"] is data.rows["test"]
    stops = [rows["valid"].stop.tolist() for rows in drawn]
    assert stops[0] == stops[1] != stops[2] and {*stops[0]} < {*data.rows["valid"].stop.tolist()}
    assert choosing_rows(data, len(data.rows["valid"]), 1) is data
    options = BaselineConfig(model="lazy", epochs=1, max_history=6, valid_examples=7, **TRAINED["lazy"])
    counted = []
    ranked = ranking.rank_split
    for module in (train, ranking):
        monkeypatch.setattr(
            module,
            "rank_split",
            lambda score, rows, split, *a, **k: counted.append(len(rows.rows[split])) or ranked(score, rows, split, *a, **k),
        )
    train_baseline(replace(prepared, baseline=options, replace=True))
    assert counted == [7, len(data.rows["test"]), len(data.rows["valid"])]
    with pytest.raises(ConfigError, match=r"valid_examples is 7, but no epoch is chosen: markov is not trained"):
        BaselineConfig(model="markov", valid_examples=7)
    with pytest.raises(ConfigError, match=r"but no epoch is chosen: the weights are given"):
        BaselineConfig(weights="x", valid_examples=7)


def test_long_searches_take_few_rows_at_once(monkeypatch):
    model, batch = lazy(), histories()
    whole = model.scores(batch)
    monkeypatch.setattr(coded_model, "_PAIRS", len(model.trie) ** 2)
    sizes = []
    search = model.search
    monkeypatch.setattr(model, "search", lambda part, beams: sizes.append(len(part.items)) or search(part, beams))
    torch.testing.assert_close(model.scores(batch), whole, atol=2e-5, rtol=1e-5)
    assert sizes == [1] * 4


def test_vectors_that_do_not_fit_into_the_memory_are_refused_before_training(prepared, monkeypatch):
    data = from_dataset(Dataset.load(prepared.folder / "data"), LENGTH)
    model = rpg(data.items)
    needed = vectors_bytes(model, data)
    left = vectors_of(model, data, BaselineConfig(max_history=LENGTH), torch.device("cpu"))
    assert needed == left.items.nbytes + sum(states.nbytes for states in left.states.values())
    assert left.items.shape[1] == 3 * 16  # a row has 16 numbers for each of 3 digits
    assert vectors_bytes(lazy(), data) == 0 == vectors_bytes(model, replace(data, protocol=PROTOCOLS["recbole"]))
    monkeypatch.setattr(machine, "machine_memory", lambda: 2 * needed)
    machine.check_vectors_memory(BaselineConfig(model="rpg"), needed)
    monkeypatch.setattr(machine, "machine_memory", lambda: 2 * needed - 1)
    with pytest.raises(ConfigError, match=r"rpg leaves .* take 0\.0 GB .* lower baseline\.hidden_size or baseline\.digits\."):
        machine.check_vectors_memory(BaselineConfig(model="rpg"), needed)
    config = replace(prepared, baseline=BaselineConfig(model="gru4rec", hidden_size=4, epochs=1))
    monkeypatch.setattr(machine, "machine_memory", lambda: 100)
    with pytest.raises(ConfigError, match=r"gru4rec leaves .* lower baseline\.hidden_size\."):
        train_baseline(config)
    assert not list((config.folder / "baselines").glob("gru4rec*"))


def test_training_lowers_the_loss_of_every_model():
    targets = [5, 6, 7, 30]
    for model in (tiger(), lazy(), rpg()):
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(20):
            loss = model(histories(targets))
            loss.backward()
            assert all(parameter.grad is not None for name, parameter in model.named_parameters())
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def test_rpgs_codes_come_from_the_items_of_the_train_split(monkeypatch):
    monkeypatch.setattr(product, "_ROTATIONS", 2)  # which items they come from does not depend on it
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 4)).astype(np.float32)
    codes = RPG.codes_of(vectors, np.arange(260), RPGSizes(digits=2), 0)
    assert codes.shape == (300, 2) and codes.min() >= 0 and codes.max() < CODES
    changed = vectors.copy()
    changed[260:] = rng.standard_normal((40, 4))  # of other items, which no codebook has seen
    assert np.array_equal(RPG.codes_of(changed, np.arange(260), RPGSizes(digits=2), 0)[:260], codes[:260])
    with pytest.raises(ConfigError, match=r"fits 256 codes per digit .* only 255 items"):
        RPG.codes_of(vectors, np.arange(255), RPGSizes(digits=2), 0)
    with pytest.raises(ConfigError, match=r"baseline\.digits is 30, but the item vectors have only 4 dimensions"):
        RPG.codes_of(vectors, np.arange(260), RPGSizes(digits=30), 0)


def test_baselines_without_vectors_are_known_before_they_are_imported():
    classes = {name: implementation(line) for name, line in (NEURAL_BASELINES | CODED_BASELINES).items()}
    assert {name for name, model in classes.items() if not model.has_vectors} == {*GENERATIVE_BASELINES}
    assert {name for name in CODED_BASELINES if "vectors" in classes[name].reads} == {*VECTOR_BASELINES}


def test_what_they_cannot_be_trained_on_is_refused(prepared, tmp_path, capsys):
    with pytest.raises(ConfigError, match="tiger needs semantic IDs or item vectors, which a file of sequences does not have"):
        BaselineConfig(model="tiger", protocol="recbole", sequences="x")
    with pytest.raises(ConfigError, match="weights of lazy belong to the codes of one catalog"):
        BaselineConfig(model="lazy", weights="x")
    assert main(["baseline", "--config", str(prepared.folder), "--baseline.model", "rpg"]) == 2
    assert "items. Choose another baseline, such as sasrec." in " ".join(capsys.readouterr().err.split())
    fresh = small.config(tmp_path)
    run(fresh, ("data",))
    with pytest.raises(ArtifactError, match="Make it first: minionerec sid"):
        train_baseline(replace(fresh, baseline=BaselineConfig(model="tiger")))
    with pytest.raises(ConfigError, match="Some SID is the beginning of another"):
        LazyDecoder(np.array([[0, -1], [0, 1]]), 5, TINY_LAZY, 10)
    with pytest.raises(ConfigError, match=r"baseline\.hidden_size 10 does not split into 4 heads"):
        LazyDecoder(sid_codes(), 5, LazySizes(hidden_size=10), 10)


STAGES = {  # that scripts/rivals.sh starts, by preset
    "industrial-sdpo": ("run",),
    "industrial-d3": ("data prepare", "sid", "sft", "baseline", "eval"),
    "industrial-letter-tiger": (
        "data prepare",
        "baseline --baseline.model sasrec --baseline.hidden_size 32",
        "sid",
        "baseline",
        "eval",
    ),
    **dict.fromkeys(
        [f"industrial-{name}-{size}" for name in ("lcrec", "bigrec") for size in ("tiny", "smollm2")],
        ("data prepare", "sid", "sft", "eval"),
    ),
    **dict.fromkeys(
        [*(f"industrial-{name}" for name in ("tiger", "lazy", "rpg", "liger")), "beauty-tiger", "beauty-lazy"],
        ("data prepare", "sid", "baseline"),
    ),
}


def started(*words, **environment):
    """The lines that scripts/rivals.sh starts."""
    command = ["bash", str(ROOT / "scripts/rivals.sh"), *words]
    given = {**os.environ, "RUN_PYTHON": "echo", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=given).stdout.splitlines()


def test_the_script_starts_every_rival_s_stages():
    """And gives vectors to those alone that read them."""
    reads = {"industrial-rpg", "industrial-liger", "industrial-letter-tiger"}
    expected = {
        preset: [
            f"-m minionerec {stage} --config {preset} --out runs/{preset} --data.path my files"
            + " --sid.vectors my vectors.npy" * (preset in reads)
            + " --seed 3"
            for stage in stages
        ]
        for preset, stages in STAGES.items()
    }
    lines = started(*STAGES, "--", "--seed", "3", DATA="my files", VECTORS="my vectors.npy")
    assert lines == [line for stages in expected.values() for line in stages]
    assert {line.split()[line.split().index("--config") + 1] for line in started()} == {
        preset for preset in STAGES if preset.startswith("industrial") and "smollm2" not in preset
    }


@pytest.mark.parametrize("preset", ["industrial-d3", "industrial-letter-tiger", "beauty-tiger", "beauty-lazy"])
def test_what_the_script_starts_is_taken(preset):
    for line in started(preset):
        words = line.split()[2:]
        name = "data prepare" if words[0] == "data" else words[0]
        config = parse(name, words[len(name.split()) :])
        if name == "baseline":  # an option that its model does not take is refused
            options_of(config.baseline, implementation(BASELINES[config.baseline.model]))
    assert config.name == preset and config.folder == Path("runs") / preset
    if preset == "industrial-letter-tiger":
        assert config.baseline.model == "tiger" and config.sid.method == "letter"


def test_the_script_refuses_what_is_no_rival():
    for arguments, message in (
        (["beauty-sasrec"], "beauty-sasrec is not industrial-sdpo, -d3, -tiger, -letter-tiger, -lazy, -rpg, -liger, -lcrec-"),
        (["industrial-tiger", "beauty-sasrec"], "beauty-sasrec is not"),  # before the first one is trained
        (["industrial-tiger", "--baseline.epochs", "1"], "go behind --: scripts/rivals.sh PRESET -- --baseline.epochs"),
    ):
        command = ["bash", str(ROOT / "scripts/rivals.sh"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "RUN_PYTHON": "false"})
        assert done.returncode == 2 and message in done.stderr
    for name in ("tiger", "lazy", "rpg", "liger"):
        config = parse("baseline", ["--config", f"industrial-{name}"])
        assert config.baseline.model == name and config.baseline.max_history == config.data.max_history == 10
