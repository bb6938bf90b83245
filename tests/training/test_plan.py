import dataclasses
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from minionerec.config import Config, EvalConfig, MixtureConfig, ModelConfig, SftConfig
from minionerec.errors import ConfigError
from minionerec.model import adapters, checkpoint, scratch
from minionerec.model.base import base_model
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.training.plan import Devices, PackedShape, Plan, Shape, Validation, Work, flops, memory, sample_batches
from minionerec.training.rounded_copy import copy_bytes
from minionerec.tree import CatalogTrie, beam_search
from minionerec.tree.static_search import static_search
from tests.small import random_dataset, untrained_model
from tests.tree import test_graphs_mixed as mixed

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


def shape(parameters, **changes):
    """A shape that consists of parameters alone."""
    sizes = dict.fromkeys(Shape.__dataclass_fields__, 0)
    return Shape(**{**sizes, "parameters": parameters, "trainable": parameters, **changes})


NOTHING = Work("trees", 1, 1, 1, 1, 1, 1, (PackedShape(0, 0, 0),), (PackedShape(0, 0, 0),))


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    return dataset, index, *untrained_model(dataset, index, SIZES)


@pytest.mark.parametrize("train", ["full", "lora", "sid_rows"])
@pytest.mark.parametrize("tied", [True, False])
def test_counts_equal_the_real_models(parts, tmp_path, train, tied):
    dataset, index, model, tokenizer = parts
    if tied:
        real, words, config = model, tokenizer, SIZES
    else:
        made = LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, pad_token_id=None
        )
        base, words = LlamaForCausalLM(made), scratch.create(tokenizer_corpus(dataset), SIZES, 0)[1]
        checkpoint.save(base, words, tmp_path)
        real, words = checkpoint.load(tmp_path)
        checkpoint.add_sid_tokens(real, words, index, 0)
        config = ModelConfig(init="from_pretrained", path=str(tmp_path))
    drawn, _ = base_model(config, index, tokenizer_corpus(dataset), 0, weights=False)
    ids = checkpoint.sid_token_ids(words, index).unique().tolist()
    real.save_pretrained(tmp_path / "copy")
    real = type(real).from_pretrained(tmp_path / "copy")
    chosen = SftConfig(train=train)
    real, drawn = adapters.attach(real, chosen, ids), adapters.attach(drawn, chosen, ids)
    assert all(parameter.is_meta for parameter in drawn.parameters())
    found = Shape.of(drawn)
    assert found == Shape.of(real)
    assert found.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert found.trainable == sum(parameter.numel() for parameter in real.parameters() if parameter.requires_grad)
    assert (found.trainable == found.parameters) == (train == "full")
    if train == "full":
        assert found.body == found.parameters - (1 if tied else 2) * found.embedding


def test_static_memory_is_that_of_the_zero_paper():
    # Rajbhandari et al., 2020, figure 1: 7.5 billion parameters on 64 devices, mixed precision with Adam: 16.6 GB.
    size = 7_500_000_000
    found = memory(shape(size, weight_bytes=4 * size, trainable_bytes=4 * size), NOTHING, Devices(64, zero2=True, bf16=True))
    assert found["weights"] + found["gradients"] + found["optimizer"] == pytest.approx(16.6e9, rel=0.01)
    assert found["reduction bucket"] == 2 * 500_000_000


def test_rollouts_in_bfloat16_have_a_cache_and_a_copy_in_it():
    """Autocast does not reach the decoder (tests/rl/test_rollouts.py); DeepSpeed has cast the model already."""
    work = dataclasses.replace(NOTHING, cached=10)
    found = [
        memory(shape(50, layers=3, key_value_width=8), work, devices)
        for devices in (Devices(1), Devices(1, bf16=True), Devices(2, zero2=True, bf16=True))
    ]
    assert [parts["keys and values of searches"] for parts in found] == [2 * 3 * 8 * 10 * 4] + [2 * 3 * 8 * 10 * 2] * 2
    assert [parts.get("rounded copy for rollouts", 0) for parts in found] == [0, 100, 0]


@pytest.mark.parametrize(("dtype", "shared"), [("bfloat16", True), ("float16", False)])
def test_a_rounded_copy_for_validations_is_counted_once(dtype, shared):
    work = dataclasses.replace(NOTHING, validation=Validation(100, dtype, 2, 0, 0), cached=10)
    parts = memory(shape(50), work, Devices(1, bf16=True))
    assert parts["rounded copy for validations"] == 100
    assert parts.get("rounded copy for rollouts", 0) == (0 if shared else 100)


def test_validations_hold_what_their_searches_write():
    """Keys and values of 32 prompts of 200 tokens with 50 beams at two levels, and logits of 1,600 rows."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=301, num_hidden_layers=2, hidden_size=32, intermediate_size=48, **heads))
    found = Validation.of(Config(name="plan", eval=EvalConfig(dtype="bfloat16")), model, 200, (70, 3))
    assert found == Validation(copy_bytes(model, "bfloat16"), "bfloat16", 2, 32 * (200 + 2 * 50), 1600)
    other = Config(name="plan", eval=EvalConfig(normalise_over="catalog", cuda_graphs="off"))
    assert Validation.of(other, model, 200, (70, 3)) == Validation(0, "float32", 4, 9600, 0, graphs=False)
    parts = memory(Shape.of(model), dataclasses.replace(NOTHING, validation=found), Devices(1))
    assert parts["keys and values of searches"] == 9600 * 2 * 2 * 32 * 2 and parts["logits of searches"] == 1600 * 301 * (2 + 4)


def test_logits_of_searches_are_in_parts():
    """Of Qwen2.5's 151,936 tokens 110 rows at once on a CPU, and 883 on a GPU, where two models have two pools of graphs."""
    sizes = shape(1, vocabulary=151_936)
    work = dataclasses.replace(NOTHING, head_rows=500, cached=1, validation=Validation(0, "float32", 4, 0, 1600))
    found = [memory(sizes, work, Devices(1, gpus=gpus))["logits of searches"] for gpus in (False, True)]
    assert found == [110 * 151_936 * 8, 883 * 151_936 * 8]
    found = [memory(sizes, work, Devices(1, bf16=True, gpus=gpus))["logits of searches"] for gpus in (False, True)]
    assert found == [110 * 151_936 * 8, (500 * 6 + 883 * 8) * 151_936]
    both = dataclasses.replace(work, validation=Validation(100, "bfloat16", 2, 0, 1600))
    assert memory(sizes, both, Devices(1, bf16=True, gpus=True))["logits of searches"] == 883 * 151_936 * 6
    alone = dataclasses.replace(work, validation=None)
    assert memory(sizes, alone, Devices(1, bf16=True, gpus=True))["logits of searches"] == 500 * 151_936 * 6


class Live(TorchDispatchMode):
    """The most bytes of floating tensors of one shape that are alive at once."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.now, self.most, self.known = shape, 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            floating = torch.is_tensor(tensor) and tensor.is_floating_point()
            pointer = tensor.untyped_storage().data_ptr() if floating else 0
            if pointer and tuple(sorted(tensor.shape)) == self.shape and pointer not in self.known:
                self.known.add(pointer)
                self.now += tensor.untyped_storage().nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(tensor.untyped_storage(), self.free, pointer, tensor.untyped_storage().nbytes())
        return made

    def free(self, pointer, size):
        self.known.discard(pointer)
        self.now -= size


@torch.no_grad()
@pytest.mark.parametrize(("kind", "guide"), [("plain", None), ("plain", "prior"), ("output", None), ("both", "prior")])
def test_what_is_mixed_in_is_counted_as_searches_hold_it(kind, guide):
    model, rng = mixed.model_of(kind), np.random.default_rng(0)
    prior = guide and dataclasses.replace(mixed.random_guide(rng, guide, 2), share=torch.tensor([0.3, 0.7]))
    trie, of_recording = mixed.TRIE.mixed(prior) if guide else mixed.TRIE, mixed.static_trie(prior, 2)
    settings = {"eval": EvalConfig(batch_size=2, normalise_over="catalog", oracle_examples=0)}
    if guide:
        settings["mixture"] = MixtureConfig(components=["popularity"], validation=True)
    found = Validation.of(Config(name="plan", **settings), model, 16, (len(trie), 3))
    ids, _ = mixed.prompts_of(rng, (16, 16))
    once = 8 * 2 * len(trie) if guide else 0  # what was asked for, and as much again in the tensor of a recording
    seen, options = torch.ones_like(ids) > 0, {"trie": trie, "num_beams": 4, "normalise_over": "catalog"}
    for search, devices, graphs, before in (
        (lambda: beam_search(model, ids, **options), Devices(1), True, once),
        (lambda: beam_search(model, ids, **options), Devices(1, gpus=True), False, once),
        (lambda: static_search(model, ids, seen, of_recording, 4, "catalog"), Devices(1, gpus=True), True, 2 * once),
    ):
        with Live((2, len(trie))) as live:
            search()
        work = dataclasses.replace(NOTHING, validation=dataclasses.replace(found, graphs=graphs))
        parts = memory(Shape.of(model), work, devices)
        assert parts.get("what is mixed into searches", 0) == live.most + before


@pytest.mark.parametrize(
    ("rollouts", "validation", "devices", "both"),
    [
        ({}, {}, Devices(1), False),  # on a CPU one search follows the other
        ({}, {}, Devices(1, gpus=True), False),  # one model, whose graphs share a pool
        ({}, {}, Devices(1, bf16=True, gpus=True), True),  # rollouts ask a copy: two pools
        ({}, {"graphs": False}, Devices(1, bf16=True, gpus=True), False),  # eval.cuda_graphs off: nothing stays
        ({"beams": False}, {}, Devices(1, gpus=True), True),  # draws beside the pool of validations
        ({"beams": False}, {"graphs": False}, Devices(1, gpus=True), False),
    ],
)
def test_searches_count_together_only_if_graphs_keep_their_memory(rollouts, validation, devices, both):
    sizes = shape(1, layers=3, key_value_width=8, vocabulary=100)
    work = dataclasses.replace(
        NOTHING, cached=10, head_rows=500, validation=Validation(0, "float32", 4, 30, 5, **validation), **rollouts
    )
    parts = memory(sizes, work, devices)
    asked = 2 if devices.bf16 else 4
    of_rollouts, of_validations = (10 * 2 * 3 * 8 * asked, 500 * 100 * (asked + 4)), (30 * 2 * 3 * 8 * 4, 5 * 100 * 8)
    expected = tuple(map(sum, zip(of_rollouts, of_validations, strict=True))) if both else of_rollouts
    assert (parts["keys and values of searches"], parts["logits of searches"]) == expected


def test_static_memory_of_ddp_and_of_one_device():
    whole = shape(1000, weight_bytes=4000, trainable=250, trainable_bytes=1000)
    alone, ddp = memory(whole, NOTHING, Devices()), memory(whole, NOTHING, Devices(2))
    assert alone == {"weights": 4000, "gradients": 1000, "optimizer": 2000, "activations": 0, "logits": 0}
    assert ddp == {**alone, "reduction bucket": 1000}
    sharded = memory(whole, NOTHING, Devices(2, zero2=True))
    assert (sharded["weights"], sharded["gradients"], sharded["optimizer"]) == (4000, 500, 1500)


@pytest.mark.parametrize(("precision", "zero2"), [("float32", False), ("autocast", False), ("bfloat16", True)])
@pytest.mark.parametrize(("hidden", "key_value_heads"), [(64, 4), (96, 2)])
def test_activations_are_what_torch_keeps(precision, zero2, hidden, key_value_heads):
    """The bytes that one more layer keeps for the backward pass, without weights and their copies."""
    kept = {}
    for layers in (1, 2):
        made = Qwen2Config(
            vocab_size=50,
            hidden_size=hidden,
            intermediate_size=160,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=key_value_heads,
            tie_word_embeddings=True,
        )
        model = Qwen2ForCausalLM(made).train()
        model.set_attn_implementation("sdpa")
        if precision == "bfloat16":
            model = model.bfloat16()
        weights = {tuple(sorted(parameter.shape)) for parameter in model.parameters()}
        pointers = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        tensors = {}

        def keep(tensor, pointers=pointers, weights=weights, tensors=tensors):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in pointers and tuple(sorted(tensor.shape)) not in weights:
                tensors[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
        predicting = torch.zeros(2, 20, dtype=torch.bool)
        predicting[:, -1] = True
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"),
        ):
            model(
                input_ids=torch.zeros(2, 20, dtype=torch.long),
                attention_mask=mask,
                position_ids=torch.arange(20)[None].expand(2, -1),
                logits_to_keep=predicting,
                use_cache=False,
            )
        kept[layers] = sum(size for size, _ in tensors.values())
        batch = PackedShape(2, 20, 2)
        work = Work("trees", 1, 1, 1, 1, 1, 1, (batch,), (batch,))
        planned = memory(Shape.of(model), work, Devices(2 if zero2 else 1, zero2, precision != "float32"))["activations"]
    assert planned / 2 == pytest.approx(kept[2] - kept[1], rel=0.02)


def test_checkpointing_keeps_less_and_computes_more():
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=8))
    batch = PackedShape(4, 100, 12)
    work = Work("trees", 1, 1, 1, 1, 1, 1, (batch,), (batch,))
    some = Shape.of(model)
    plain, again = Devices(), Devices(checkpointing=True)
    assert memory(some, work, again)["activations"] < memory(some, work, plain)["activations"] / 4
    assert flops(some, batch, work, again) * 3 == flops(some, batch, work, plain) * 4


def test_flops_are_six_per_parameter_and_position():
    # Short rows and no labels leave Kaplan's 6 N per token.
    some = shape(1_000_000, body=1_000_000, trainable_body=1_000_000, hidden=64, heads_width=64, layers=2)
    assert flops(some, PackedShape(10, 4, 0), NOTHING, Devices()) == pytest.approx(6 * 1_000_000 * 40, rel=2e-3)


def test_the_sample_holds_each_unit_once_where_it_is_small():
    seen = []
    sizes = [3, 9, 1, 7, 5, 8]
    sample, largest = sample_batches(sizes, sizes, 2, lambda some: seen.append(some) or PackedShape(len(some), max(some), 1), 0)
    assert sorted(size for some in seen[:3] for size in some) == sorted(sizes) and len(sample) == 3
    assert largest == (PackedShape(2, 9, 1),) and sorted(seen[3]) == [8, 9]


def test_memory_is_that_of_the_worst_micro_batch_whether_of_positions_or_of_labels():
    """Units of (tokens, labels): long prompts with short answers, short prompts with long ones, and a few of both kinds."""

    def pack(some):
        return PackedShape(len(some), max(tokens for tokens, _ in some), sum(labels for _, labels in some))

    kinds = {"prompts": [(400, 3)] * 20, "labels": [(60, 50)] * 20, "both": [(300, 45)] * 4}
    sizes = {"hidden": 64, "heads_width": 64, "heads": 4, "intermediate": 128, "layers": 4, "vocabulary": 50_000}
    worst = {}
    for names in (["prompts"], ["labels"], ["both"], ["prompts", "labels"], ["prompts", "labels", "both"]):
        units = [unit for name in names for unit in kinds[name]]
        tokens, labels = ([unit[place] for unit in units] for place in (0, 1))
        sample, largest = sample_batches(units, tokens, 4, pack, 0, labels)
        work = Work("trees", 1, 1, 1, 1, 1, 1, sample, largest)
        worst[" ".join(names)] = sum(memory(shape(1, **sizes), work, Devices()).values())
    assert worst["labels"] > 2 * worst["prompts"] and worst["prompts labels"] == worst["labels"]
    assert worst["both"] > worst["labels"] and worst["prompts labels both"] == worst["both"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("train", ["sid_rows", "lora"])
def test_rows_that_train_cost_two_more_matrices(train, tied):
    """What PEFT has of the whole embedding beside the weights, in the forward and the backward pass."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=301, num_key_value_heads=2, tie_word_embeddings=tied, **sizes)).train()
    model = adapters.attach(model, SftConfig(train=train), [7, 8, 9])
    pointers = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with Live((32, 301)) as live:
        live.known |= pointers
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), logits_to_keep=1).logits.sum().backward()
    batch = PackedShape(1, 4, 1)
    some = Shape.of(model)
    work = Work("trees", 1, 1, 1, 1, 1, 1, (batch,), (batch,))
    assert memory(some, work, Devices())["copies for SID rows"] == live.most
    frozen = dataclasses.replace(some, token_rows=False)
    assert flops(some, batch, work, Devices()) - flops(frozen, batch, work, Devices()) == 2 * some.embedding
    assert "copies for SID rows" not in memory(frozen, work, Devices())


def test_a_search_holds_logits_and_their_logarithms():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=301, num_key_value_heads=2, **sizes)).eval()
    trie = CatalogTrie.from_codes(torch.tensor([[a, b, c] for a in (10, 11) for b in (20, 21) for c in (30, 31)]))
    with Live((8, 301)) as live, torch.no_grad():
        beam_search(model, torch.ones(2, 5, dtype=torch.long), trie=trie, num_beams=4)
    work = dataclasses.replace(NOTHING, validation=Validation(0, "float32", 4, 0, 8))
    assert memory(Shape.of(model), work, Devices())["logits of searches"] == live.most


def test_the_verdict_leaves_a_tenth():
    whole = shape(0, weight_bytes=9_000_000_000)
    plan = Plan("sft", whole, NOTHING, Devices(), 0)
    assert [plan.verdict(size) for size in (10, 9.5, 8.9)] == ["fits", "tight: less than a tenth is left", "does not fit"]


def test_the_plan_refuses_the_tokenizer_that_loading_refuses(tmp_path):
    model, tokenizer = scratch.create(["a red lamp"] * 5, SIZES, 0)
    tokenizer.add_tokens(["one", "more"])
    checkpoint.save(model, tokenizer, tmp_path)
    for weights in (False, True):
        with pytest.raises(ConfigError, match=r"but the model's vocabulary has only \d+ rows"):
            checkpoint.load(tmp_path, weights=weights)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"Expected a folder with config\.json and tokenizer files"):
        checkpoint.load(tmp_path, weights=False)
