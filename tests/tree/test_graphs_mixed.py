"""Recorded searches of what is mixed: with priors and assistants, and of models with text vectors; also on a GPU."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.errors import ConstraintError
from minionerec.model.item_text import ItemTextConfig, ItemTextForCausalLM, _Paths, unit_vectors
from minionerec.tree import Assistant, CatalogTrie, Prior, beam_search, left_pad
from minionerec.tree.capture import CallRecorder
from minionerec.tree.fewer_kernels import twin
from minionerec.tree.graphs import SearchGraphs
from minionerec.tree.static_search import static_search
from tests.tree.conftest import VOCABULARY, random_codes, tiny
from tests.tree.test_graphs import Watch, assert_same, everything_legal, reasons
from tests.tree.test_prior import random_prior, random_view

CODES = random_codes(np.random.default_rng(3), 200, 3, 8, ragged=True)
TRIE = CatalogTrie.from_codes(CODES)
TEXTS = {"input": {"text_input": True}, "output": {"text_output": True}, "both": {"text_input": True, "text_output": True}}
KINDS = ["plain", *TEXTS, "replaced"]
VIEWS = ["none", "hidden", "listed", "masks", "one mask", "none"]
# Together these have all that is not in a search of a model alone.
STATIC = [("plain", "prior"), ("plain", "assistant"), ("input", None), ("output", None), ("both", "prior"), ("replaced", None)]


def model_of(kind):
    """A model whose text vectors, if it has any, count for as much as its tokens."""
    if kind == "plain":
        return tiny()
    texts = {"text_input": True, "text_replaces": True} if kind == "replaced" else TEXTS[kind]
    sizes = tiny().config.to_dict()
    about = {name: sizes[name] for name in sizes if name not in ("model_type", "architectures", "initializer_range")}
    torch.manual_seed(1)
    config = ItemTextConfig(**about, items=len(CODES), levels=3, dimensions=12, initializer_range=0.3, **texts)
    config._attn_implementation = "sdpa"
    model = ItemTextForCausalLM(config).eval()
    model.model.texts.sid_tokens.copy_(torch.from_numpy(CODES))
    model.model.texts.vectors.copy_(unit_vectors(np.random.default_rng(2).normal(size=(len(CODES), 12))))
    return model


def prompts_of(rng, lengths):
    """Prompts of about as many tokens as that, cut anywhere, which hold complete SIDs."""
    texts = []
    for length in lengths:
        tokens = []
        while len(tokens) < length:
            tokens += [token for token in CODES[rng.integers(len(CODES))].tolist() if token >= 0]
            tokens += rng.integers(0, VOCABULARY, rng.integers(3)).tolist()
        texts.append(tokens[-length:])
    return left_pad(texts, VOCABULARY - 1)


def random_guide(rng, kind, requests, dtype=torch.float64):
    if kind == "prior":
        prior = random_prior(rng, requests, len(TRIE), 3.0, zeros=0.3)
        return Prior(prior.leaves.to(dtype), prior.share)
    leaves = torch.tensor(3 * rng.standard_normal((requests, len(TRIE))), dtype=dtype).log_softmax(1)
    return Assistant(leaves, torch.tensor(rng.choice([0.0, 0.3, 0.7, 1.0], requests), dtype=torch.float32))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def machine(request):
    """Where a stand-in records, and where CUDA does."""
    return Machine(request.param)


class Machine:
    def __init__(self, device):
        self.device, self.trie = device, TRIE.to(device)

    def graphs(self, model):
        return SearchGraphs(model.to(self.device), CallRecorder() if self.device == "cpu" else None)

    def prompts(self, rng, lengths):
        return [part.to(self.device) for part in prompts_of(rng, lengths)]

    def options(self, rng, guide, view, requests, over="catalog"):
        trie, _ = random_view(rng, self.trie, CODES, requests, view)
        if guide is not None:
            dtype = torch.float32 if rng.random() < 0.5 else torch.float64
            trie = trie.mixed(random_guide(rng, guide, requests, dtype).to(self.device))
        return {"trie": trie, "num_beams": 8, "normalise_over": over}


def guides_of(kind):
    """What may be mixed into searches of a model."""
    return [None, "prior"] if kind in ("output", "both") else [None, "prior", "assistant"]


@pytest.mark.parametrize("kind", KINDS)
def test_replays_give_the_lists_of_beam_search(machine, kind):
    """Two recordings for each kind of guide, one of them with filters; prompts that fill their bucket, and shorter ones."""
    rng, model = np.random.default_rng(0), model_of(kind)
    graphs, searched = machine.graphs(model), 0
    for guide in guides_of(kind):
        for view, lengths in zip(VIEWS, [(5, 9, 16, 12), (3, 7, 11, 13), (16, 16, 1, 2)] * 2, strict=True):
            ids, mask = machine.prompts(rng, lengths)
            options = machine.options(rng, guide, view, len(lengths)) | {"widest": int(rng.choice([8, 32]))}
            assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
            searched += 1
    assert (graphs.recorded, graphs.replayed) == (2 * len(guides_of(kind)), searched)


def test_rows_that_are_not_filled_change_nothing(machine):
    """The bucket of 17 rows is that of 18: the last rows and the columns of longer prompts hold what was there before."""
    rng, model = np.random.default_rng(0), model_of("both")
    graphs = machine.graphs(model)
    for lengths in ((16,) * 18, (3,) * 17, (9,) * 18):
        ids, mask = machine.prompts(rng, lengths)
        options = machine.options(rng, "prior", "hidden", len(lengths))
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
    assert (graphs.recorded, graphs.replayed) == (1, 3)


def test_recordings_of_as_many_rows_share_what_is_written_to_for_each_request(machine):
    """Each search writes its own filters and mixtures there, whichever recording was replayed before."""
    rng, model = np.random.default_rng(0), tiny()
    graphs = machine.graphs(model)
    for turn in range(2):
        for lengths in ((5, 9), (20, 30), (5, 9, 3)):
            for guide in ("prior", "assistant"):
                ids, mask = machine.prompts(rng, lengths)
                options = machine.options(rng, guide, "hidden", len(lengths)) | {"num_beams": 6 + turn}
                assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
    kept = [kept.graph for kept in graphs._graphs.values()]
    assert len(kept) == 12
    for tensors in ([graph.trie.guide.leaves for graph in kept], [graph.trie.view.masks[0] for graph in kept]):
        assert len({tensor.data_ptr() for tensor in tensors}) == 4  # two numbers of rows, two kinds of guides


def test_an_assistant_over_the_vocabulary_and_guides_of_no_weight(machine):
    rng, model = np.random.default_rng(0), tiny()
    graphs, (ids, mask) = machine.graphs(model), machine.prompts(rng, (5, 9))
    options = machine.options(rng, "assistant", "hidden", 2, "vocabulary")
    assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
    leaves = torch.full((2, len(TRIE)), 1 / len(TRIE), device=machine.device)
    alone = {"num_beams": 8, "normalise_over": "catalog"}
    for guide in (Prior(leaves, 0 * leaves[:, 0]), Assistant(leaves.log(), 0 * leaves[:, 0] + 1)):
        ours = graphs.beam_search(ids, mask, trie=machine.trie.mixed(guide), **alone)
        assert_same(ours, beam_search(model, ids, mask, trie=machine.trie, **alone))
    assert graphs.replayed == 3


def static_trie(guide, rows):
    """As a recording has it: filters and what is mixed in stand in tensors of its own."""
    trie = replace(TRIE, view=everything_legal(TRIE, rows), guide=None if guide is None else guide.zeros(rows))
    vars(trie).update(fan_outs=TRIE.fan_outs, highest_token=TRIE.highest_token)
    return trie


@torch.no_grad()
@pytest.mark.parametrize(("kind", "guide"), STATIC)
def test_a_static_search_never_looks_at_its_tensors(kind, guide):
    """The same operations on the same shapes for any prompts, filters and guides."""
    rng = np.random.default_rng(0)
    model = model_of(kind)
    _ = getattr(model, "leaf_trie", None)  # looked at once for a model
    lean, calls = twin(model), []
    for lengths in ((1, 16), (7, 3)):
        (ids, _), wanted = prompts_of(rng, (16, 16)), guide and random_guide(rng, guide, 2)
        visible = torch.stack([torch.arange(16) >= 16 - length for length in lengths])
        trie = static_trie(wanted, 2)
        trie.view.masks[0][:, rng.integers(8)] = False
        if wanted:
            trie.guide.fill(wanted)
        with Watch() as watch:
            static_search(lean, ids, visible, trie, 10, "catalog")
        calls.append(watch.calls)
    assert len(calls[0]) > 300 and calls[0] == calls[1]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "guide"), STATIC)
def test_a_static_search_runs_without_any_data(kind, guide):
    model = model_of(kind)
    paths = None if kind == "plain" else model.model.texts.paths
    lean = twin(model).to("meta")
    if paths is not None:  # as they would be there, if they could be computed without data
        there = (
            paths.trie.to("meta"),
            tuple(keys.to("meta") for keys in paths.keys),
            paths.base,
            paths.leaf_vectors.to("meta"),
        )
        lean.model.texts._paths = _Paths(*there)
    ids, visible = (torch.zeros(3, 16, dtype=dtype, device="meta") for dtype in (torch.long, torch.bool))
    trie = static_trie(guide and random_guide(np.random.default_rng(0), guide, 1), 3).to("meta")
    vars(trie).update(fan_outs=TRIE.fan_outs, highest_token=TRIE.highest_token)
    assert static_search(lean, ids, visible, trie, 10, "catalog").leaves.shape == (3, 10)


@torch.no_grad()
def test_items_of_prompts_are_found_as_the_model_finds_them():
    """Whatever stands in the columns of the padding: here tokens that would complete the SID that the prompt begins within."""
    rng = np.random.default_rng(0)
    sid = next(row for row in CODES.tolist() if row[2] >= 0)
    for kind in ("input", "replaced"):
        inner = model_of(kind).model
        ids, mask = left_pad([[*sid[1:], *CODES[7].tolist(), 5], *(prompts_of(rng, (9, 4))[0].tolist())], 0)
        kept, inner.layers = inner.layers, torch.nn.ModuleList()  # leaves the embeddings, as the last norm has them
        expected = inner(input_ids=ids, attention_mask=mask).last_hidden_state
        wider, visible = (torch.nn.functional.pad(part, (3, 0)) for part in (ids, mask))
        wider = wider.masked_fill(visible == 0, sid[0])
        static = inner.norm(inner.static_embeddings(wider, visible.bool()))
        ordinary = inner(input_ids=wider, attention_mask=visible).last_hidden_state
        inner.layers = kept
        for found in (static, ordinary):
            torch.testing.assert_close(found[:, 3:][mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_text_vectors_and_weights_that_change_are_seen(machine):
    rng, model = np.random.default_rng(0), model_of("both")
    graphs, (ids, mask) = machine.graphs(model), machine.prompts(rng, (5, 9))
    options = machine.options(rng, "prior", "none", 2)

    def search(recorded):
        result = graphs.beam_search(ids, mask, **options)
        assert_same(result, beam_search(model, ids, mask, **options))
        assert graphs.recorded == recorded
        return result.scores

    before = search(1)
    with torch.no_grad():
        model.text_out.weight.mul_(1.5)
        model.model.text_in.weight.mul_(0.5)
    assert not torch.equal(search(1), before)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["model.texts.vectors"] = state["model.texts.vectors"].roll(1, 0)
    before = search(1)
    model.load_state_dict(state)  # writes where the tensors are; what was computed of them is made anew
    assert not torch.equal(search(2), before)


def test_what_a_second_distribution_forbids_is_refused_as_by_beam_search(machine):
    rng, model = np.random.default_rng(0), model_of("both")
    graphs, (ids, mask) = machine.graphs(model), machine.prompts(rng, (5, 9))
    mistakes = (
        machine.options(rng, "assistant", "none", 2),
        machine.options(rng, None, "none", 2, "vocabulary"),
        machine.options(rng, None, "none", 2) | {"trie": CatalogTrie.from_codes(CODES[:-9], machine.device)},
        machine.options(rng, "prior", "none", 3),
    )
    for options in mistakes:
        messages = []
        for search in (graphs.beam_search, lambda *prompts, **options: beam_search(model, *prompts, **options)):
            with pytest.raises(ConstraintError) as refused:
                search(ids, mask, **options)
            messages.append(str(refused.value))
        assert messages[0] == messages[1]
    assert graphs.recorded == 0


@torch.no_grad()
def test_a_second_distribution_that_diverged_is_refused(machine):
    rng, model = np.random.default_rng(0), model_of("output")
    graphs, (ids, mask) = machine.graphs(model), machine.prompts(rng, (5, 9))
    options = machine.options(rng, None, "none", 2)
    graphs.beam_search(ids, mask, **options)
    model.text_out.weight.fill_(torch.nan)
    with pytest.raises(ConstraintError, match="those of request 0 add up to nan"):
        graphs.beam_search(ids, mask, **options)


def test_what_is_mixed_in_and_filters_may_be_too_large_together(machine, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "minionerec.tree.graphs")
    rng, model = np.random.default_rng(0), tiny()
    graphs, (ids, mask) = machine.graphs(model), machine.prompts(rng, (5, 9))
    nodes, leaves = sum(map(len, TRIE.tokens)), 8 * len(TRIE)
    monkeypatch.setattr("minionerec.tree.graphs._MOST_OF_REQUESTS", 2 * (nodes + leaves) - 1)
    for view, replayed in (("none", 1), ("hidden", 1)):
        options = machine.options(rng, "prior", view, 2)
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
        assert graphs.replayed == replayed
    [said] = reasons(caplog)
    assert f"the filters of 2 prompts, and what is mixed in for them, take {2 * (nodes + leaves)} bytes" in said
