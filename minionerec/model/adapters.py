"""Training a part of a model through PEFT: low-rank adapters (LoRA) with the SID rows, or the SID rows alone.

New tokens have to learn their rows, so LoRA trains them too: PEFT's trainable tokens keep those rows apart, as parameters of
their own, and do not touch the matrix that they belong to, so neither gradient nor moments nor weight decay reach another row.
The embedding and an untied head each have such rows; a tied head shares the embedding's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from minionerec.config import SftConfig
from minionerec.config.extras import require_package
from minionerec.errors import ConfigError


def attach(model: PreTrainedModel, config: SftConfig, token_ids: list[int]) -> PreTrainedModel:
    """The model prepared for `sft.train`: unchanged for `full`, else in a PEFT model that freezes all other parameters.

    Args:
        token_ids: the SID tokens, whose rows train.

    Raises:
        ConfigError: PEFT is not installed; a LoRA target is not in the model; the head has a bias.
    """
    if config.train == "full":
        return model
    try:
        import peft  # an optional extra, and slow to import
    except ImportError:
        raise ConfigError(
            f"sft.train {config.train} needs PEFT, which is not installed: pip install 'minionerec[lora]'."
        ) from None
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"sft.train is {config.train}, but the model's head has a bias, which PEFT's trainable tokens leave out; use full."
        )
    tied = head.weight is model.get_input_embeddings().weight
    layers = [model.get_input_embeddings(), *([] if tied else [head])]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    peft_config: Any
    if config.train == "sid_rows":
        peft_config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=token_ids, target_modules=names)
    else:
        peft_config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_targets or "all-linear",
            trainable_token_indices=dict.fromkeys(names, token_ids),
        )
    # From a base on disk PEFT would learn that the vocabulary has grown, and save whole embedding matrices with each adapter.
    model.name_or_path = ""
    try:
        adapted: Any = peft.get_peft_model(model, peft_config)
    except ValueError as error:
        raise ConfigError(f"sft.lora_targets {config.lora_targets}: {str(error).splitlines()[0]}") from None
    return adapted


def inject(model: torch.nn.Module, names: list[str], *, rank: int, alpha: int, dropout: float) -> None:
    """Put low-rank adapters beside linear layers of a model, in place, and freeze all its other parameters.

    Args:
        names: the linear layers, as `named_modules` calls them.

    Raises:
        ConfigError: PEFT is not installed.
    """
    require_package("peft", "training low-rank adapters")
    import peft

    adapters = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    peft.inject_adapter_in_model(adapters, model)


def merge(model: PreTrainedModel, folder: Path, base: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Write a PEFT model's adapter into a folder and merge it into the base's weights; another model is returned unchanged.

    Args:
        base: loads the base model anew, with the SID rows that the same seed gives. The adapter is merged into these weights,
            because DeepSpeed rounds all weights to bfloat16 when it trains in that, the frozen ones too.
    """
    if not hasattr(model, "peft_config"):
        return model
    import peft

    adapted: Any = model
    adapted.save_pretrained(folder, save_embedding_layers=False)
    merged: PreTrainedModel = peft.PeftModel.from_pretrained(base(), folder).merge_and_unload()
    merged.tie_weights()
    return merged
