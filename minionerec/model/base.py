"""The base model that SFT begins from: loaded or made from nothing, with the catalog's SID tokens."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from minionerec.config import ModelConfig
from minionerec.model import checkpoint, item_text, scratch
from minionerec.sid.index import SidIndex


def base_model(
    config: ModelConfig,
    index: SidIndex,
    texts: Sequence[str],
    seed: int,
    *,
    vectors: Callable[[], np.ndarray] | None = None,
    titles: Sequence[str] = (),
    weights: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untrained model and its tokenizer, with the SID tokens of a catalog.

    Args:
        config: where the model comes from.
        index: the catalog's SIDs.
        texts: what the tokenizer of a from-scratch model learns from.
        seed: of a from-scratch model's weights, and of the SID tokens' rows.
        vectors: gives the items' text vectors, (items, dimensions) float32; needed, and called, for a model with item texts.
            Without weights only their shape counts.
        titles: the items' titles, for `sid_init: text`.
        weights: False gives all parameters by shape and width on the meta device, with none in memory; a plan needs no more.

    Raises:
        ConfigError: the model cannot be loaded (`checkpoint.load`), or `sid_init` is `text` and no item has a title; and what
            `vectors` raises.
    """
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    if config.init == "from_scratch":
        with nullcontext() if weights else torch.device("meta"):
            model, tokenizer = scratch.create(texts, config, seed)
    else:
        model, tokenizer = checkpoint.load(str(config.path), config.dtype, weights)
    if weights:
        checkpoint.add_sid_tokens(model, tokenizer, index, seed, config.sid_init, titles)
    else:
        checkpoint.add_tokens(model, tokenizer, index)
    if config.item_texts:
        if vectors is None:
            raise TypeError("A model with item texts needs the items' vectors.")
        model = item_text.with_item_texts(
            cast(Qwen2ForCausalLM, model),
            checkpoint.sid_token_ids(tokenizer, index),
            vectors(),
            text_input=config.text_input,
            text_output=config.text_output,
            seed=seed,
            weights=weights,
        )
    return model, tokenizer
