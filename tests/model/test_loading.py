"""Folders that others wrote: what cannot be read whole is refused in one line that says what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, T5Config

from minionerec.errors import ConfigError
from minionerec.model import checkpoint, loading, scratch
from tests.model.test_checkpoint import SIZES, TEXTS

LAYER = "model.layers.0.self_attn."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    checkpoint.save(*scratch.create(TEXTS, SIZES, 0), folder)
    return folder


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "model")


def rewrite(folder, change):
    """Replace the weights by what a function makes of them."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def configure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_weights_under_a_wrappers_names_are_not_taken_for_a_model(folder, prefix):
    rewrite(folder, lambda weights: {prefix + name: values for name, values in weights.items()})
    with pytest.raises(ConfigError, match=rf"lack lm_head\.weight and \d+ other tensors.*begin with '{prefix}'"):
        checkpoint.load(folder)


WEIGHTS = {
    "a layer left out": (
        lambda weights: {name: values for name, values in weights.items() if not name.startswith("model.layers.0")},
        r"lack model\.layers\.0\.input_layernorm\.weight and \d+ other tensors, which would stay random. Is a shard missing",
    ),
    "one tensor left out": (
        lambda weights: {name: values for name, values in weights.items() if name != "model.norm.weight"},
        r"lack model\.norm\.weight, which would stay random",
    ),
    "another layer": (
        lambda weights: {**weights, "model.layers.1.mlp.up_proj.weight": torch.ones(2)},
        r"no place for model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "norms of another model": (lambda weights: {**weights, LAYER + "q_norm.weight": torch.ones(2)}, r"no place for .*q_norm"),
    "another bias": (lambda weights: {**weights, LAYER + "o_proj.bias": torch.ones(32)}, r"no place for .*o_proj\.bias"),
    "another width": (
        lambda weights: {**weights, LAYER + "q_proj.weight": torch.ones(8, 32)},
        r"q_proj\.weight has the shape \(8, 32\) in the weights, but config\.json asks for \(32, 32\)",
    ),
    "NaN": (lambda weights: {**weights, "model.norm.weight": torch.full((32,), torch.nan)}, "give NaN or infinity"),
}


@pytest.mark.parametrize(("change", "reason"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fill_the_model_are_refused(folder, change, reason):
    rewrite(folder, change)
    with pytest.raises(ConfigError, match=reason):
        checkpoint.load(folder)


def test_heads_for_other_uses_and_old_buffers_may_stay_out(folder):
    buffers = {LAYER + "rotary_emb.inv_freq": torch.ones(8), "model.rotary_emb.inv_freq": torch.ones(8)}
    rewrite(folder, lambda weights: {**weights, **buffers, "v_head.weight": torch.ones(3)})
    checkpoint.load(folder)


def test_a_head_of_its_own_is_kept_though_the_configuration_says_tied(folder, tmp_path):
    rewrite(folder, lambda weights: {**weights, "lm_head.weight": 2 * weights["model.embed_tokens.weight"]})
    model, tokenizer = checkpoint.load(folder)
    tokenizer.add_tokens(["<a_1>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    checkpoint.save(model, tokenizer, tmp_path / "again")
    again, _ = checkpoint.load(tmp_path / "again")
    rows = len(tokenizer) - 1
    assert torch.equal(again.lm_head.weight[:rows], 2 * again.model.embed_tokens.weight[:rows])


def test_a_vocabulary_that_is_not_the_weights_names_tensor_and_shapes(folder):
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    configure(folder, vocab_size=432)
    with pytest.raises(ConfigError, match=rf"embed_tokens\.weight has the shape \({rows}, 32\).* asks for \(432, 32\)"):
        checkpoint.load(folder)


QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_refused_in_one_line(folder, method, weights):
    configure(folder, quantization_config=QUANTISED[method])
    with pytest.raises(ConfigError, match=rf"the weights are quantised \({method}\).* take the original model") as error:
        checkpoint.load(folder, weights=weights)
    assert "\n" not in str(error.value)


def damage(name, text):
    return lambda folder: (folder / name).write_text(text)


FILES = {
    "configuration is a list": (damage("config.json", "[]"), "not a loadable causal LM"),
    "configuration nested without end": (damage("config.json", "[" * 100_000), "not a loadable causal LM"),
    "kind of model is a list": (lambda folder: configure(folder, model_type=["qwen2"]), "not a loadable causal LM"),
    "text for a number": (lambda folder: configure(folder, num_attention_heads="x"), "num_attention_heads.*expected int"),
    "tokenizer settings are a list": (damage("tokenizer_config.json", "[]"), "not a loadable causal LM"),
    "tokenizer is empty": (damage("tokenizer.json", "{}"), "not a loadable causal LM"),
    "tokenizer is a list": (damage("tokenizer.json", "[1]"), "not a loadable causal LM"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "there are no tokenizer files"),
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(("change", "reason"), FILES.values(), ids=FILES)
def test_damaged_files_are_refused_without_a_traceback(folder, change, reason, weights):
    change(folder)
    with pytest.raises(ConfigError, match=reason):
        checkpoint.load(folder, weights=weights)


def test_an_adapter_is_not_a_model(base, tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(checkpoint.load(base)[0], settings).save_pretrained(tmp_path)
    for weights in (True, False):
        with pytest.raises(ConfigError, match=r"this is a PEFT adapter .*merge_and_unload"):
            checkpoint.load(tmp_path, weights=weights)


def test_layers_without_the_head_are_those_of_the_whole_model(base):
    layers, tokenizer = loading.read_layers(base, weights=True)
    whole, _ = checkpoint.load(base)
    ids = tokenizer(["a red lamp"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(layers(input_ids=ids).last_hidden_state, whole.model(input_ids=ids).last_hidden_state)
    assert tokenizer.padding_side == "right" and loading.read_layers(base, weights=False)[0].device.type == "meta"


@pytest.mark.parametrize("weights", [True, False])
def test_a_t5_is_no_base_model_but_a_baseline(tmp_path, weights):
    T5Config(num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"\(t5\), but SFT and RL train causal .* TIGER, .* --baseline\.model tiger\.$"):
        checkpoint.load(tmp_path, weights=weights)


def test_layers_of_an_encoder_with_a_decoder_are_refused(tmp_path):
    T5Config(num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has an encoder and a decoder \(t5\)"):
        loading.read_layers(tmp_path, weights=True)


def test_an_encoder_may_lack_its_pooler_but_no_layer(tmp_path, base):
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9))
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if not name.startswith("pooler.")}
    model.config.save_pretrained(tmp_path)
    checkpoint.load(base)[1].save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loading.read_layers(tmp_path, weights=True)
    save_file({name: weight for name, weight in weights.items() if "layer.1" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"the weights lack encoder\.layer\.1"):
        loading.read_layers(tmp_path, weights=True)
