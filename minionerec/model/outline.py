"""A causal LM on the meta device: all its parameters by shape and width, none in memory, no weights read."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minionerec.config import ModelConfig
from minionerec.errors import ConfigError
from minionerec.model import scratch
from minionerec.model.checkpoint import add_tokens, check_tokenizer
from minionerec.sid.index import SidIndex


def outline(path: str | Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What `checkpoint.load` loads, without its weights: only the configuration and the tokenizer are read.

    Raises:
        ConfigError: either is not there; or see `check_tokenizer`.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{path}: no plan without the model's config.json and tokenizer files ({reason}). Expected a folder that holds "
            "them, or a hub name that can be reached; the weights are not needed."
        ) from None
    check_tokenizer(path, tokenizer, model)
    return model, tokenizer


def base_outline(
    config: ModelConfig, index: SidIndex, texts: Sequence[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model that SFT begins from, with the catalog's SID tokens.

    Args:
        texts: what the tokenizer of a from-scratch model learns from.

    Raises:
        ConfigError: see `outline`.
    """
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    if config.init == "from_scratch":
        with torch.device("meta"):
            model, tokenizer = scratch.create(texts, config, seed)
    else:
        model, tokenizer = outline(str(config.path), config.dtype)
    add_tokens(model, tokenizer, index)
    return model, tokenizer
