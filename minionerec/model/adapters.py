"""Training a part of a model: its upper layers; or through PEFT low-rank adapters (LoRA) with the SID rows, or these alone.

New tokens have to learn their rows, so LoRA trains them too: PEFT's trainable tokens keep those rows apart, as parameters of
their own, and do not touch the matrix that they belong to, so neither gradient nor moments nor weight decay reach another row.
The embedding and an untied head each have such rows; a tied head shares the embedding's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minionerec.config import SftConfig, YesNoConfig
from minionerec.config.extras import require_package
from minionerec.errors import ConfigError


def attach(
    model: PreTrainedModel, config: SftConfig | YesNoConfig, token_ids: list[int], section: str = "sft", first: int = 0
) -> PreTrainedModel:
    """The model prepared for a section's `train`: unchanged for `full`, else in a PEFT model that freezes all other parameters.

    Args:
        token_ids: the SID tokens, whose rows train; none if there are none.
        section: its name, for messages.
        first: layers below this one get no adapters.

    Raises:
        ConfigError: PEFT is not installed; a LoRA target is not in the model; the head has a bias.
    """
    if config.train == "full":
        return model
    try:
        import peft  # an optional extra, and slow to import
    except ImportError:
        raise ConfigError(
            f"{section}.train {config.train} needs PEFT, which is not installed: pip install 'minionerec[lora]'."
        ) from None
    head = model.get_output_embeddings()
    if token_ids and getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"{section}.train is {config.train}, but the model's head has a bias, which PEFT's trainable tokens leave out; use "
            "full."
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
            target_modules=_linear(model, first, config.lora_targets) if first else config.lora_targets or "all-linear",
            trainable_token_indices=dict.fromkeys(names, token_ids) if token_ids else None,
        )
    # From a base on disk PEFT would learn that the vocabulary has grown, and save whole embedding matrices with each adapter.
    model.name_or_path = ""
    try:
        adapted: Any = peft.get_peft_model(model, peft_config)
    except ValueError as error:
        raise ConfigError(f"{section}.lora_targets {config.lora_targets}: {str(error).splitlines()[0]}") from None
    return adapted


def inject(model: nn.Module, names: list[str], *, rank: int, alpha: int, dropout: float) -> None:
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


def _linear(model: PreTrainedModel, first: int, targets: list[str] | None) -> list[str]:
    """The full names of the linear modules in the layers from `first` on; None as `targets` takes all of them."""
    upper = {id(module) for layer in layers_of(model)[first:] for module in layer.modules()}
    linear = [name for name, module in model.named_modules() if id(module) in upper and isinstance(module, nn.Linear | Conv1D)]
    return [name for name in linear if targets is None or name.rpartition(".")[2] in targets]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's layers, first one first.

    Raises:
        ConfigError: they are in no list of their number.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"{type(model).__name__}: its {count} layers are not found, so none can be frozen; leave tune_from out.")


def first_tuned(model: PreTrainedModel, tune_from: int | None, section: str) -> int:
    """The first layer that trains, counted from 0.

    Args:
        tune_from: a negative number counts from the end; None is 0.
        section: the section of `tune_from`, for the message.

    Raises:
        ConfigError: the model has no such layer.
    """
    if tune_from is None:
        return 0
    count = len(layers_of(model))
    if not -count <= tune_from < count:
        raise ConfigError(
            f"{section}.tune_from is {tune_from}, but the model has {count} layers: choose {-count} to {count - 1}."
        )
    return tune_from % count


def freeze_below(model: PreTrainedModel, first: int, embeddings: bool) -> None:
    """Let the layers below `first` stay as they are, and the embeddings too if asked for (a tied head with them)."""
    frozen: list[nn.Module] = list(layers_of(model)[:first])
    for module in [*frozen, *([model.get_input_embeddings()] if embeddings else [])]:
        module.requires_grad_(False)


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
