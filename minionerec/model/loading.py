"""Reading the files of a causal LM and its tokenizer, which others wrote: whatever would not be read whole is refused."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from minionerec.errors import ConfigError, MiniOneRecError
from minionerec.model import item_text  # noqa: F401  registers its architecture

# What training wrappers put before every name, and how the weights are saved without it.
_PREFIXES = {
    "_orig_mod.": "torch.compile: save the model's _orig_mod",
    "module.": "DDP or DeepSpeed: save the unwrapped model",
    "base_model.model.": "PEFT: save what merge_and_unload() returns",
}


def read(path: str | Path, dtype: str, weights: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a model and its tokenizer from a folder or, by name, from the hub; see `checkpoint.load`.

    Raises:
        ConfigError: the files are missing, unreadable, of an adapter, of a T5, quantised, or do not belong together.
    """
    with _readable(path, weights, "causal LM"):
        config = _configuration(path)
        if config.is_encoder_decoder and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ConfigError(
                f"{path}: has an encoder and a decoder ({config.model_type}), but SFT and RL train causal language models, "
                "such as Qwen2.5. A T5 that writes semantic IDs is TIGER, which is trained from scratch: minionerec baseline "
                "--baseline.model tiger."
            )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        _refuse_empty(path, tokenizer)
        options = {"dtype": getattr(torch, dtype), "attn_implementation": attention_of(config), "trust_remote_code": False}
        if weights:
            return _with_weights(path, AutoModelForCausalLM, options), tokenizer
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **options), tokenizer


def read_layers(path: str | Path, weights: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a sentence encoder, or a causal LM without its head, in float32, and its tokenizer, which pads at the end.

    Args:
        weights: False gives all parameters on the meta device, with none in memory.

    Raises:
        ConfigError: as `read`; or it is an encoder with a decoder.
    """
    with _readable(path, weights, "sentence encoder or causal LM"):
        config = _configuration(path)
        if config.is_encoder_decoder:
            raise ConfigError(f"{path}: has an encoder and a decoder ({config.model_type}); expected one stack of layers.")
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        _refuse_empty(path, tokenizer)
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        options = {"dtype": torch.float32, "attn_implementation": attention_of(config), "trust_remote_code": False}
        if weights:
            return _with_weights(path, AutoModel, options, not_needed="pooler."), tokenizer
        with torch.device("meta"):
            return AutoModel.from_config(config, **options), tokenizer


@contextmanager
def _readable(path: str | Path, weights: bool, kind: str) -> Iterator[None]:
    """Whatever goes wrong while reading becomes a ConfigError that names the path."""
    try:
        yield
    except MiniOneRecError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: " * (not isinstance(error, OSError | ValueError)) + " ".join(str(error).split())
        files = "config.json, model.safetensors and tokenizer files" if weights else "config.json and tokenizer files"
        raise ConfigError(
            f"{path}: not a loadable {kind} ({reason[:300]}). Expected a folder with {files}, or a hub name that can be "
            "reached."
        ) from error


def _configuration(path: str | Path) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        ConfigError: it is of an adapter, or the weights are quantised.
    """
    if find_adapter_config_file(str(path)):
        raise ConfigError(
            f"{path}: this is a PEFT adapter (adapter_config.json), not a whole model. Merge it into its base: PeftModel"
            ".from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder); save the tokenizer there too."
        )
    config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    _refuse_quantised(path, config)
    return config


def attention_of(config: PretrainedConfig) -> str | dict[str, str]:
    """The attention implementation that takes tree masks and that the architecture has: sdpa, else eager.

    In a composite model it is that of the text model; the towers for images and sounds keep their own.
    """
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    name = "sdpa" if architecture is None or architecture._supports_sdpa else "eager"
    return {"text_config": name} if "text_config" in config.sub_configs else name


def _refuse_quantised(path: str | Path, config: PretrainedConfig) -> None:
    for part in (config, config.get_text_config(decoder=True)):
        if settings := getattr(part, "quantization_config", None):
            method = settings.get("quant_method") if isinstance(settings, Mapping) else type(settings).__name__
            raise ConfigError(
                f"{path}: the weights are quantised ({method}), which cannot be trained; take the original model."
            )


def _refuse_empty(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A folder without tokenizer files gives a tokenizer of the model's kind that knows only its special tokens."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ConfigError(f"{path}: there are no tokenizer files (tokenizer.json); copy them from the model's original folder.")


def _with_weights(path: str | Path, kind: Any, options: Mapping[str, Any], not_needed: str | None = None) -> PreTrainedModel:
    """The model with all its weights, and nothing but the weights.

    Args:
        kind: the class of transformers that reads it.
        not_needed: how the names of weights begin that may be missing.

    Raises:
        ConfigError: a weight is missing, has another shape, or has no place in the model.
    """
    loaded: Any = kind.from_pretrained(
        path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    model, info = loaded
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ConfigError(
            f"{path}: {name} has the shape {tuple(found)} in the weights, but config.json asks for {tuple(expected)}. Take the "
            "config.json of these weights."
        )
    if not_needed is not None:
        missing = [name for name in missing if not name.startswith(not_needed)]
    if missing:
        raise ConfigError(
            f"{path}: the weights lack {_listed(missing)}, which would stay random. {_way_out(missing, unexpected)}"
        )
    if without_place := _without_place(model, unexpected):
        raise ConfigError(
            f"{path}: config.json has no place for {_listed(without_place)} of the weights, which would be left out. Take the "
            "config.json of these weights (num_hidden_layers, attention_bias, ...)."
        )
    text = model.config.get_text_config(decoder=True)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if text.tie_word_embeddings and len({id(end.weight) for end in ends if end is not None}) > 1:
        text.tie_word_embeddings = model.config.tie_word_embeddings = False  # the file has a head of its own: keep it
    return cast(PreTrainedModel, model)


def _listed(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} other tensors" if len(names) > 1 else "")


def _way_out(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    for prefix, how in _PREFIXES.items():
        if {prefix + name for name in missing} & set(unexpected):
            return f"The names in the file begin with {prefix!r} ({how})."
    if unexpected:
        return f"The file holds {_listed(unexpected)} instead: is config.json of another model?"
    return "Is a shard missing, or is config.json of a larger model?"


def _without_place(model: PreTrainedModel, unexpected: Sequence[str]) -> list[str]:
    """The tensors that belong to a part which the model has: a further layer, a bias. Heads for other uses may stay out."""
    modules = dict(model.named_modules())
    layers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, torch.nn.ModuleList))
    return [name for name in unexpected if name.startswith(layers) or name.rpartition(".")[0] in modules]
