"""Recorded searches against `beam_search`. On a CPU a stand-in calls the recorded function again; the last tests need a GPU."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from minionerec.errors import ConstraintError
from minionerec.tree import BeamResult, CatalogTrie, beam_search, left_pad
from minionerec.tree.capture import CallRecorder, Recording
from minionerec.tree.fewer_kernels import twin
from minionerec.tree.graphs import SearchGraphs
from minionerec.tree.static_search import STATIC_MODELS, static_search, tree_tokens
from minionerec.tree.view import View
from tests.examples import examples
from tests.tree.conftest import VOCABULARY, catalogs, random_codes, tiny
from tests.tree.test_prior import random_view

OVER = ["vocabulary", "catalog"]


def random_prompts(rng, lengths):
    return left_pad([rng.integers(0, VOCABULARY, length).tolist() for length in lengths], 0)


def assert_same(ours, theirs, tolerance=1e-4):
    for field in fields(BeamResult):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if one.is_floating_point():
            torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
        else:
            assert one.dtype == other.dtype and torch.equal(one, other), field.name


def catalog(items=200, levels=3, **options):
    return CatalogTrie.from_codes(random_codes(np.random.default_rng(3), items, levels, 8, **options))


@pytest.mark.parametrize(("attention", "over"), [("sdpa", "vocabulary"), ("eager", "catalog")])
def test_replays_give_the_lists_of_beam_search(model, attention, over):
    """Prompts that fill their bucket and shorter ones, on one recording per bucket."""
    rng, trie = np.random.default_rng(0), catalog(80)
    model.set_attn_implementation(attention)
    graphs, options = SearchGraphs(model, CallRecorder()), {"trie": trie, "num_beams": 6, "normalise_over": over}
    for lengths in ((5, 9), (1, 16), (20,)):
        ids, mask = random_prompts(rng, lengths)
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
    model.set_attn_implementation("sdpa")
    assert (graphs.recorded, graphs.replayed, len(graphs)) == (2, 3, 2)


@examples(10)
@given(
    catalogs(most=30),
    st.lists(st.integers(1, 18), min_size=1, max_size=4),
    st.integers(1, 30),
    st.sampled_from(OVER),
    st.sampled_from(["none", "one mask", "masks", "hidden", "listed"]),
    st.sampled_from([(), (38,), (38, 39)]),
    st.integers(0, 2**20),
)
def test_random_tries_filters_and_widths(qwen2, codes, lengths, beams, over, kind, trailing, seed):
    rng = np.random.default_rng(seed)
    trie = CatalogTrie.from_codes(codes, trailing=trailing)
    graphs = SearchGraphs(qwen2, CallRecorder())
    for some in (lengths, [1 + length % 16 for length in lengths]):
        ids, mask = random_prompts(rng, some)
        view, _ = random_view(rng, trie, codes, len(some), kind)
        options = {"trie": view, "num_beams": beams, "normalise_over": over, "widest": int(rng.choice([beams, 4 * beams]))}
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(qwen2, ids, mask, **options))
    assert graphs.replayed == (2 if trie.depth > 1 else 0)


def test_widening_goes_on_from_a_replay(qwen2):
    rng = np.random.default_rng(0)
    trie = CatalogTrie.from_codes(random_codes(rng, 400, 3, 8))
    ids, mask = random_prompts(rng, [5, 3, 8, 2, 6, 7])
    graphs, model = SearchGraphs(tiny(seed=3), CallRecorder()), tiny(seed=3)
    options = {"trie": trie, "num_beams": 5, "normalise_over": "catalog"}
    narrow = graphs.beam_search(ids, mask, **options)
    assert 0 < narrow.exact.sum() < len(ids)
    for widest in (5, 20, 128):
        wide = graphs.beam_search(ids, mask, **options, widest=widest)
        assert_same(wide, beam_search(model, ids, mask, **options, widest=widest))
    assert wide.exact.sum() > narrow.exact.sum()
    assert graphs.recorded == 1


class Watch(TorchDispatchMode):
    """Notes each operation with its shapes, and refuses those that read tensors back or make shapes of what they hold."""

    REFUSED = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "repeat_interleave", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        tensors = [value for value in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        from_host = name == "lift_fresh" and tensors[0].dim() > 0  # on a GPU such a tensor would be copied from the host
        picked = name in ("index", "index_put", "index_put_") and any(index.dtype == torch.bool for index in tensors[1:])
        told = name == "repeat_interleave" and kwargs and kwargs.get("output_size") is not None  # how many there will be
        if (any(name.startswith(refused) for refused in self.REFUSED) and not told) or from_host or picked:
            raise AssertionError(f"{func} makes the host wait, or gives a shape that depends on data")
        result = func(*args, **(kwargs or {}))
        outputs = [value for value in torch.utils._pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
        self.calls.append((str(func), [(tuple(value.shape), value.stride(), value.dtype) for value in [*tensors, *outputs]]))
        return result


def everything_legal(trie, rows):
    return View.of_legal(tuple(torch.ones(rows, len(tokens), dtype=torch.bool) for tokens in trie.tokens))


@torch.no_grad()
def test_a_static_search_never_looks_at_its_tensors(model):
    """The same operations on the same shapes for any prompts; and a mode that would see it if one looked."""
    over = "catalog" if model.config.model_type in ("qwen3", "gpt2") else "vocabulary"
    rng, trie = np.random.default_rng(0), catalog(ragged=True)
    visible, lean = torch.zeros(2, 16, dtype=torch.bool), twin(model)
    calls = []
    for lengths in ((1, 16), (7, 3)):
        ids, _ = random_prompts(rng, (16, 16))
        for row, length in enumerate(lengths):
            visible[row] = torch.arange(16) >= 16 - length
        view = everything_legal(trie, 2)
        view.masks[0][:, rng.integers(8)] = False
        narrowed = replace(trie, view=view)
        assert narrowed.fan_outs == (8, 8, 5)  # read once for a trie, and kept
        with Watch() as watch:
            static_search(lean, ids, visible, narrowed, 10, over)
        calls.append(watch.calls)
    assert len(calls[0]) > 300 and calls[0] == calls[1]
    ordinary = {"trie": trie, "num_beams": 10, "normalise_over": over}
    with pytest.raises(AssertionError, match="makes the host wait"), Watch():
        beam_search(model, ids, visible.long(), **ordinary)


def mistral():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, num_hidden_layers=1, sliding_window=64, **sizes)).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(STATIC_MODELS - {"qwen2_item_text"}))  # of which test_graphs_mixed.py has it
def test_a_static_search_runs_without_any_data(kind):
    """On the device `meta` no tensor holds data: nothing can be read, and nothing be mixed with tensors of the host."""
    trie = catalog(ragged=True)
    there = replace(trie.to("meta"), view=everything_legal(trie, 3).to("meta"))
    vars(there)["fan_outs"] = trie.fan_outs
    model = twin(mistral() if kind == "mistral" else tiny(kind)).to("meta")
    ids, visible = (torch.zeros(3, 16, dtype=dtype, device="meta") for dtype in (torch.long, torch.bool))
    result = static_search(model, ids, visible, there, 10, "vocabulary" if kind in ("llama", "granite") else "catalog")
    assert result.tokens.shape == (3, 10, 3) and result.leaves.shape == result.scores.shape == (3, 10)
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        there.children(1, torch.zeros(3, 4, dtype=torch.long, device="meta"))


@examples(12)
@given(catalogs(), st.integers(1, 40))
def test_the_cache_has_room_for_every_tree_token(qwen2, codes, beams):
    """And no more: the search writes all of them."""
    trie = CatalogTrie.from_codes(codes)
    written = []
    if trie.depth > 1:
        embedding = qwen2.get_input_embeddings()
        hook = embedding.register_forward_pre_hook(lambda _, inputs: written.append(inputs[0].shape[1]))
        with torch.no_grad():
            static_search(qwen2, torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool), trie, beams, "catalog")
        hook.remove()
        assert sum(written) == 4 + tree_tokens(trie, beams)


def test_results_are_copies_and_recordings_are_kept_by_use(qwen2):
    rng, trie = np.random.default_rng(0), catalog()
    graphs = SearchGraphs(qwen2, CallRecorder(), most=2)
    options = {"trie": trie, "num_beams": 4}
    batches = {length: random_prompts(rng, [length]) for length in (5, 20, 40, 60)}
    with torch.inference_mode():  # later replays need not be in it
        first = graphs.beam_search(*batches[5], **options)
    kept = first.scores.clone()
    for length, recorded in ((20, 2), (5, 2), (40, 3), (5, 3), (20, 4), (60, 5), (20, 5)):
        assert_same(graphs.beam_search(*batches[length], **options), beam_search(qwen2, *batches[length], **options))
        assert graphs.recorded == recorded and len(graphs) <= 2
    assert torch.equal(first.scores, kept)


def test_views_share_a_recording_and_other_tries_have_their_own(qwen2):
    rng, trie = np.random.default_rng(0), catalog()
    graphs = SearchGraphs(qwen2, CallRecorder())
    ids, mask = random_prompts(rng, [5, 7])
    for hidden in ([[0, 1], []], [[5], [7, 8, 9]]):
        options = {"trie": trie.without(hidden), "num_beams": 6}
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(qwen2, ids, mask, **options))
    assert graphs.recorded == 1
    for number in range(2):  # a trie that is no more may leave its place in memory to the next
        options = {"trie": catalog(50 + number), "num_beams": 6}
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(qwen2, ids, mask, **options))
    assert graphs.recorded == 3


def test_weights_that_change_in_place_are_seen_and_moved_ones_are_recorded_again():
    rng, trie, model = np.random.default_rng(0), catalog(), tiny(seed=5)
    graphs = SearchGraphs(model, CallRecorder())
    ids, mask = random_prompts(rng, [5, 7])
    options = {"trie": trie, "num_beams": 6}

    def search(recorded):
        result = graphs.beam_search(ids, mask, **options)
        assert_same(result, beam_search(model, ids, mask, **options))
        assert graphs.recorded == recorded
        return result

    before = search(1)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert not torch.equal(search(1).scores, before.scores)
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    search(2)
    model.model.layers[0].mlp.down_proj.weight.data = torch.randn_like(model.model.layers[0].mlp.down_proj.weight)
    search(3)
    del model.model.layers[1]
    model.config.num_hidden_layers = 1
    search(4)
    model.forward = model.forward  # as a launcher wraps it; a search calls what is inside
    search(4)
    assert (len(graphs), graphs.replayed) == (1, 6)
    hook = model.model.layers[0].register_forward_hook(lambda *_: None)
    search(4)
    assert (len(graphs), graphs.replayed) == (0, 6)
    hook.remove()
    search(5)
    model.set_attn_implementation("eager")
    search(6)
    assert (len(graphs), graphs.replayed) == (1, 8)


class Failing:
    """A recorder that cannot record."""

    tried = 0

    def record(self, function):
        self.tried += 1
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

    begin = end = None


def reasons(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "minionerec.tree.graphs"]


def test_what_cannot_be_recorded_is_searched_as_ever_and_said_once(qwen2, caplog):
    rng, trie = np.random.default_rng(0), catalog()
    ids, mask = random_prompts(rng, [5, 7])
    options = {"trie": trie, "num_beams": 6, "normalise_over": "catalog"}
    expected = beam_search(qwen2, ids, mask, **options)
    caplog.set_level(logging.WARNING, "minionerec.tree.graphs")
    failing = Failing()
    graphs = SearchGraphs(qwen2, failing)
    for _ in range(3):
        assert_same(graphs.beam_search(ids, mask, **options), expected, 0)
    assert (failing.tried, graphs.recorded, graphs.replayed, len(graphs)) == (1, 0, 0, 0)
    assert reasons(caplog) == [
        "A search of 2 prompts of 16 tokens could not be recorded (CUDA error: operation not permitted when stream is "
        "capturing). It takes more launches, with the same lists."
    ]


def falcon():
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=False)
    return FalconForCausalLM(config).eval()


def dynamic_rope():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        rope_parameters=rope,
    )
    return LlamaForCausalLM(config).eval()


def with_adapters():
    model = tiny()
    model.model.layers[0].self_attn.q_proj.active_adapter = "default"  # as PEFT's layers have it; importing it takes long
    return model


def hooked():
    model = tiny()
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (falcon, "models of type falcon are not known to run without a look"),
        (dynamic_rope, "depend on padding (RoPE of type dynamic"),
        (with_adapters, "has adapters, which may be switched"),
        (hooked, "a hook of the model"),
    ],
)
def test_models_that_are_not_recorded(make, reason, caplog):
    caplog.set_level(logging.WARNING, "minionerec.tree.graphs")
    model, (ids, mask) = make(), random_prompts(np.random.default_rng(0), [5, 7])
    graphs, options = SearchGraphs(model, CallRecorder()), {"trie": catalog(), "num_beams": 6}
    for _ in range(2):
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options), 0)
    assert graphs.recorded == 0
    [said] = reasons(caplog)
    assert reason in said


def test_searches_that_are_not_recorded(qwen2, caplog, monkeypatch):
    caplog.set_level(logging.WARNING, "minionerec.tree.graphs")
    trie, (ids, mask) = catalog(), random_prompts(np.random.default_rng(0), [5, 7])
    graphs = SearchGraphs(qwen2, CallRecorder())
    one_level = CatalogTrie.from_codes(np.array([[1], [2], [3]]))
    monkeypatch.setattr("minionerec.tree.graphs._MOST_OF_REQUESTS", 100)
    cases = {"one level": one_level, "the filters of 2 prompts": trie.without([[0], []])}
    for searched in cases.values():
        options = {"trie": searched, "num_beams": 6, "normalise_over": "catalog"}
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(qwen2, ids, mask, **options), 0)
    options = {"trie": trie, "num_beams": 6}
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(qwen2, ids, mask, **options), 0)
    assert graphs.recorded == 0
    said = reasons(caplog)
    assert len(said) == 3
    for reason, line in zip([*cases, "autocast is on"], said, strict=True):
        assert reason in line


def test_mistakes_are_refused_as_by_beam_search(qwen2):
    trie, (ids, mask) = catalog(), random_prompts(np.random.default_rng(0), [5, 7])
    graphs = SearchGraphs(qwen2, CallRecorder())
    for wrong in (
        {"num_beams": 0},
        {"num_beams": 5, "widest": 4},
        {"num_beams": 5, "normalise_over": "words"},
        {"num_beams": 5, "trie": trie.without([[0], [], []])},
        {"num_beams": 5, "trie": CatalogTrie.from_codes(np.array([[1, VOCABULARY]]))},
    ):
        messages = []
        for search in (graphs.beam_search, lambda *prompts, **options: beam_search(qwen2, *prompts, **options)):
            with pytest.raises(ConstraintError) as refused:
                search(ids, mask, **{"trie": trie, **wrong})
            messages.append(str(refused.value))
        assert messages[0] == messages[1]
    with pytest.raises(ConstraintError, match="must not be empty and must be padded on the left"):
        graphs.beam_search(ids, mask.flip(1), trie=trie, num_beams=5)
    with pytest.raises(ConstraintError, match="in training mode"):
        SearchGraphs(tiny().train(), CallRecorder()).beam_search(ids, mask, trie=trie, num_beams=5)
    assert graphs.recorded == 0


def test_the_stand_in_refuses_what_a_graph_cannot_do():
    shapes = iter([(2, 3), (2, 3), (2, 4)])
    recording: Recording = CallRecorder().record(lambda: (torch.ones(next(shapes)),))
    recording.replay()
    with pytest.raises(RuntimeError, match=r"of shape \(2, 4\), not \(2, 3\)"):
        recording.replay()


def test_threads_take_turns(qwen2):
    """Two threads that filled the tensors of a recording at once would get one another's lists."""
    rng, trie = np.random.default_rng(0), catalog(40)
    graphs = SearchGraphs(qwen2, CallRecorder())
    batches = [random_prompts(rng, rng.integers(1, 17, 3)) for _ in range(12)]
    options = {"trie": trie, "num_beams": 6}
    with ThreadPoolExecutor(4) as threads:
        ours = list(threads.map(lambda batch: graphs.beam_search(*batch, **options), batches))
    for result, batch in zip(ours, batches, strict=True):
        assert_same(result, beam_search(qwen2, *batch, **options))
    assert (graphs.recorded, graphs.replayed) == (1, 12)


@pytest.mark.cuda
@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("kind", sorted(STATIC_MODELS - {"mistral", "qwen2_item_text"}))
def test_real_graphs_give_the_lists_of_beam_search(kind, over):
    """Several buckets that share a pool, replayed in turns, with filters and without; weights that change in between."""
    rng, model = np.random.default_rng(0), tiny(kind).cuda()
    trie = catalog().to("cuda")
    graphs = SearchGraphs(model)
    for turn in range(2):
        for lengths in ((5, 9, 3), (20,), (12, 1, 16), (40, 33)):
            ids, mask = (part.cuda() for part in random_prompts(rng, lengths))
            hidden = [rng.integers(0, 200, 9).tolist() for _ in lengths]
            for searched in (trie, trie.without(hidden)):
                options = {"trie": searched, "num_beams": 10, "normalise_over": over, "widest": 20}
                assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
        assert (graphs.recorded, graphs.replayed) == (6, 8 * turn + 8)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.1)


@pytest.mark.cuda
def test_real_graphs_on_another_stream_and_from_threads():
    rng, model, trie = np.random.default_rng(0), tiny().cuda(), catalog().to("cuda")
    graphs, options = SearchGraphs(model), {"trie": trie, "num_beams": 6}
    batches = [tuple(part.cuda() for part in random_prompts(rng, rng.integers(1, 17, 3))) for _ in range(12)]
    expected = [beam_search(model, *batch, **options) for batch in batches]

    def search(batch):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            result = graphs.beam_search(*batch, **options)
            torch.cuda.current_stream().synchronize()
        return result

    with ThreadPoolExecutor(4) as threads:
        for result, slow in zip(threads.map(search, batches), expected, strict=True):
            assert_same(result, slow)
    assert (graphs.recorded, graphs.replayed) == (1, 12)


@pytest.mark.cuda
def test_what_a_gpu_cannot_record_is_searched_as_ever(monkeypatch, caplog):
    """A real capture that fails half-way leaves the GPU usable."""
    caplog.set_level(logging.WARNING, "minionerec.tree.graphs")
    model, trie = tiny().cuda(), catalog().to("cuda")
    ids, mask = (part.cuda() for part in random_prompts(np.random.default_rng(0), [5, 7]))
    graphs, options = SearchGraphs(model), {"trie": trie, "num_beams": 6}

    def looking(*arguments):
        result = static_search(*arguments)
        assert float(result.scores.max()) <= 0  # the host waits
        return result

    monkeypatch.setattr("minionerec.tree.graphs.static_search", looking)
    for _ in range(2):
        assert_same(graphs.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
    assert graphs.recorded == 0 and len(reasons(caplog)) == 1
    monkeypatch.undo()
    again = SearchGraphs(model)
    assert_same(again.beam_search(ids, mask, **options), beam_search(model, ids, mask, **options))
    assert again.recorded == 1
