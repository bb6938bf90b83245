"""Tiny random language models in folders: a sentence encoder and two kinds of causal LM."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from minionerec.config import ModelConfig
from minionerec.model import scratch
from tests.legommenders.parts import item_fields

LAYERS = 3
MODELS = ("bert", "gpt2", "qwen2")
_WORDS = ("a", "cat", "dog", "the", "lazy", "sat", "moon", "war", "love", "space", "music", "story", "number")


def save_models(folder: Path) -> Path:
    """Write each of `MODELS` with a tokenizer into a folder of its name."""
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[EOS]", *_WORDS))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[EOS]", pad_token="[PAD]")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 12}
    bert = BertModel(BertConfig(**sizes, vocab_size=len(vocabulary), max_position_embeddings=16))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=LAYERS, n_head=2, vocab_size=len(vocabulary), n_positions=16))
    small = ModelConfig(hidden_size=8, intermediate_size=12, layers=LAYERS, heads=2, vocabulary=300)
    qwen2, own = scratch.create(item_fields().sentences, small, 0)  # a Qwen2 has a tokenizer of its own kind
    for name, model, its_tokenizer in (("bert", bert, tokenizer), ("gpt2", gpt2, tokenizer), ("qwen2", qwen2, own)):
        for weight in model.parameters():  # norms that are not 1, so that a norm too many or too few shows
            weight.data += 0.1 * torch.randn_like(weight)
        model.save_pretrained(folder / name)
        its_tokenizer.save_pretrained(folder / name)
    return folder
