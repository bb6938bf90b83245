"""A small Qwen2 and its byte-level BPE tokenizer, made from nothing but the catalog's text and the prompts."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, set_seed

from minionerec.config import ModelConfig

END, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT = 2048


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Qwen2Tokenizer:
    """Byte-level BPE, so that any text can be written: at most `vocabulary` entries, learnt from `texts`.

    Text is split as Qwen2 splits it, because no other way would survive: transformers reads every tokenizer in a Qwen2's folder
    as Qwen2's, so a text would have other tokens after saving and loading.
    """
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen2.normalizer, qwen2.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learnt["merges"]]
    return Qwen2Tokenizer(learnt["vocab"], merges, eos_token=END, pad_token=PAD, model_max_length=CONTEXT)


def create(texts: Sequence[str], config: ModelConfig, seed: int) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """A random Qwen2 of `config`'s sizes with tied embeddings, and its tokenizer.

    Args:
        texts: what the tokenizer learns from.
        seed: of the weights.
    """
    tokenizer = train_tokenizer(texts, config.vocabulary)
    set_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.set_attn_implementation("sdpa")
    return model, tokenizer
