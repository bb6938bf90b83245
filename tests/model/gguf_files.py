"""Tiny GGUF files, written as llama.cpp writes them: names, order of rows, metadata."""

import json

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "The user's items, oldest first: red lamp number 12, blue chair number 345",
    "The title of the item: naïve old table (1995)",
    "we've 3.14 spoons   and I'LL take 2",
] * 4
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def bpe(split, size=400):
    """Byte-level BPE with a way of splitting text, learnt from `TEXTS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    return tokenizer


def by_digit():
    """How SmolLM splits text."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def small_model(kind, vocabulary, tied=True, seed=0):
    """A random model whose rows are as long as a block of quantised numbers."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=tied,
        initializer_range=0.3,
        **sizes,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
    return model


def gguf_name(name):
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        number, _, module = module.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{_NAMES[module]}.{kind}"
    return f"{_NAMES[module]}.{kind}"


def tensors_of(model):
    """The tensors by their names in the file; a Llama's queries and keys with pairs of the rotation together."""
    config = model.config
    tensors = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.numpy()
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = values.reshape(-1, 2, config.head_dim // 2, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        tensors[gguf_name(name)] = np.ascontiguousarray(values)
    return tensors


def settings_of(model):
    config, kind = model.config, model.config.model_type
    return {
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.key_length": config.head_dim,
        f"{kind}.attention.value_length": config.head_dim,
        f"{kind}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{kind}.rope.freq_base": config.rope_parameters["rope_theta"],
        f"{kind}.vocab_size": config.vocab_size,
    }


def vocabulary_of(tokenizer, rows=None):
    """The metadata of a byte-level BPE; an embedding of more `rows` is filled up as llama.cpp does."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kinds = [3 if token in SPECIAL else 1 for token in tokens]
    filling = range(len(tokens), rows or len(tokens))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{number}]" for number in filling)],
        "tokenizer.ggml.token_type": [*kinds, *(5 for _ in filling)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def write(path, architecture, fields, tensors, quantised="F32"):
    """Write a file.

    Args:
        quantised: number format of the matrices; vectors are float32.
    """
    import gguf
    from gguf.quants import quantize

    writer = gguf.GGUFWriter(str(path), architecture)
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_string(name, value)
    form = gguf.GGMLQuantizationType[quantised]
    for name, values in tensors.items():
        if values.ndim > 1 and form != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, quantize(values, form), raw_dtype=form)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path, kind="llama", quantised="F32", split=None, tied=True, rows=None, drop=(), **changes):
    """A whole file of a random model; returns the model and its tokenizer.

    Args:
        rows: of the embedding; None for one per token.
        drop: names of fields and tensors that are left out.
        changes: fields (dots as two underscores) and tensors to set.
    """
    tokenizer = bpe(split or by_digit())
    model = small_model(kind, rows or tokenizer.get_vocab_size(), tied)
    fields = {**settings_of(model), **vocabulary_of(tokenizer, rows)}
    tensors = tensors_of(model)
    for name, value in changes.items():
        (tensors if isinstance(value, np.ndarray) else fields)[name.replace("__", ".")] = value
    fields = {name: value for name, value in fields.items() if name not in drop}
    write(path, kind, fields, {name: value for name, value in tensors.items() if name not in drop}, quantised)
    return model, tokenizer
