"""`plm`: a pretrained language model reads the items' texts; its word states become item vectors.

The states after layer `lego.plm.tune_from` are computed once for all items, and kept in the cache folder. The layers above are
trained, whole or by adapters; without any, only the linear layer and the sum are (the decoupled row of Legommenders). Unlike
in Legommenders, which computes states after k layers and goes on with layer k + 1, no layer is skipped.
"""

import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from minionerec.artifacts import cache_folder, content_hash
from minionerec.config import LegoConfig, LegoPlmConfig
from minionerec.distributed import distributed_state
from minionerec.errors import ConfigError, DataError
from minionerec.legommenders.fields import ItemFields
from minionerec.legommenders.items import ItemEncoder
from minionerec.legommenders.layers import AdditiveAttention, masked_mean
from minionerec.model import adapters, loading, pretrained
from minionerec.sid.sentence_encoders import minilm_folder
from minionerec.sid.vector_cache import read_cache, write_cache

log = logging.getLogger(__name__)

_BATCH = 64  # texts
_CHECKED = 4  # texts that show whether a model can be split
_TOLERANCE = 1e-4  # of their states, relative to the largest


class PretrainedWords(ItemEncoder):
    """States of a text's words, the layers above, a linear layer, and a sum over the words.

    Attributes:
        layers_above: the layers that are trained; None if all states are kept.
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor

    def __init__(self, config: LegoConfig, fields: ItemFields) -> None:
        super().__init__(config.width)
        if not fields.sentences:
            raise DataError("The item encoder plm reads texts, but no field of lego.fields is one. Name one, e.g. title.")
        folder = plm_folder(config.plm)
        model, tokenizer = loading.read_layers(folder, weights=False)
        layers = len(_stack(folder, model))
        first = first_trained(config.plm, layers)
        tokens = tokenise(tokenizer, fields.sentences, _longest(config.plm, model))
        path = _cache_path(folder, first, tokens)
        lengths = torch.tensor([len(ids) for ids in tokens])
        states = read_cache(path, int(lengths.sum())) if path is not None else None
        if states is None or first < layers:
            model, _ = loading.read_layers(folder, weights=True)
        if states is None:
            log.info("Computing the states of %d texts with %s", len(tokens), config.plm.path)
            states = packed_states(model.eval().to(distributed_state().device), tokens, first)
            model.cpu()
            if path is not None:
                write_cache(path, states)
        self.register_buffer("rows", torch.from_numpy(np.array(states)), persistent=False)
        self.register_buffer("lengths", lengths, persistent=False)
        self.register_buffer("starts", lengths.cumsum(0) - lengths, persistent=False)
        self.layers_above = LayersAbove(folder, model, first, tokens[:_CHECKED], config.plm) if first < layers else None
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(self.rows.shape[1], config.width)
        self.sum = AdditiveAttention(config.width, config.hidden) if config.plm.pooling == "additive" else None
        self.last = config.plm.pooling == "last"

    def forward(self, items: Tensor) -> Tensor:
        """(n, width)."""
        lengths = self.lengths[items]
        mask = torch.arange(int(lengths.max()), device=items.device) < lengths[:, None]
        places = self.starts[items][:, None] + torch.arange(mask.shape[1], device=items.device)
        states = self.rows[places.where(mask, 0)] * mask[..., None]
        if self.layers_above is not None:
            states = self.layers_above(states, mask)
        vectors = self.linear(self.dropout(states))
        if self.sum is not None:
            return self.sum(vectors, mask)
        return vectors[torch.arange(len(items), device=items.device), lengths - 1] if self.last else masked_mean(vectors, mask)


class LayersAbove(nn.Module):
    """A pretrained model from some layer on: it reads the states after the layer before and gives the last states.

    The layers below hand on what they are given, and a hook puts the states before the first layer above. So whatever the
    architecture computes beside its layers, such as masks and positions, it computes itself.
    """

    def __init__(
        self, folder: str | Path, model: PreTrainedModel, first: int, sample: list[list[int]], config: LegoPlmConfig
    ) -> None:
        """Args:
            folder: where the model lies, for messages.
            model: the whole one; its layers below `first` are dropped.
            sample: texts on which the split model must give what the whole one gives.

        Raises:
            ConfigError: it does not.
        """
        super().__init__()
        model.eval()
        states = torch.from_numpy(packed_states(model, sample, first))
        whole = torch.from_numpy(packed_states(model, sample, len(_stack(folder, model))))
        stack = _stack(folder, model)
        for number in range(first):
            stack[number] = _Through()
        embeddings: Any = model.get_input_embeddings()
        model.set_input_embeddings(nn.Embedding(1, embeddings.embedding_dim))  # words were looked up before the states
        self.model = model
        self.given: Tensor | None = None
        stack[first].register_forward_pre_hook(self._give, with_kwargs=True)
        self._check(folder, states, whole, [len(ids) for ids in sample])
        model.requires_grad_(False)
        above = [(name, layer) for name, layer in model.named_modules() if any(layer is one for one in stack[first:])]
        if config.lora_rank:
            names = [
                f"{name}.{inner}" for name, layer in above for inner, linear in layer.named_modules() if _is_linear(linear)
            ]
            adapters.inject(model, names, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
        else:
            for _, layer in above:
                layer.requires_grad_(True)
        model.train()

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width) of the model."""
        self.given = states
        options = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        last: Tensor = self.model(inputs_embeds=states, attention_mask=mask.long(), **options).last_hidden_state
        self.given = None
        return last

    def _give(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self.given, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self.given}

    def _check(self, folder: str | Path, states: Tensor, whole: Tensor, lengths: list[int]) -> None:
        """Raises ConfigError if the layers above do not give the whole model's states."""
        with torch.no_grad():
            parts = [self(part[None], torch.ones(1, len(part), dtype=torch.bool))[0] for part in states.split(lengths)]
        error = (torch.cat(parts) - whole).abs().max() / whole.abs().max()
        if not error <= _TOLERANCE:
            raise ConfigError(
                f"lego.plm.path {folder}: a {type(self.model).__name__} cannot be split at a layer: its upper layers alone "
                f"give other states (relative error {error:.1e}). Set lego.plm.tune_from null, or take another model."
            )


class _Through(nn.Module):
    """In place of a layer whose result is kept: hands on what it is given."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Its first argument."""
        return hidden_states


def plm_folder(config: LegoPlmConfig) -> str | Path:
    """What transformers can read of `lego.plm.path`: a folder, or a name of the hub.

    Raises:
        ConfigError: the package of `minilm` is not installed; or as `pretrained.resolve`.
    """
    if config.path == "minilm":
        return minilm_folder("lego.plm.path", "give --lego.plm.path FOLDER")
    return pretrained.resolve(config.path)


def first_trained(config: LegoPlmConfig, layers: int) -> int:
    """The first layer that is trained, from 0; as many as there are if none is.

    Raises:
        ConfigError: the model has no such layer.
    """
    if config.tune_from is None:
        return layers
    first = config.tune_from + layers if config.tune_from < 0 else config.tune_from
    if not 0 <= first < layers:
        raise ConfigError(
            f"lego.plm.tune_from is {config.tune_from}, but {config.path} has {layers} layers; expected 0 to {layers - 1}, or "
            f"-{layers} to -1, or null to train none."
        )
    return first


def tokenise(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], longest: int) -> list[list[int]]:
    """Token ids of every text, with the tokenizer's own special tokens; a text without any token gives one padding token."""
    ids = tokenizer(list(sentences), truncation=True, max_length=longest, padding=False)["input_ids"]
    return [list(text) or [tokenizer.pad_token_id] for text in ids]


def packed_states(model: PreTrainedModel, tokens: list[list[int]], layer: int) -> np.ndarray:
    """States after some number of layers, all texts in a row: (tokens, width) float32.

    The states after all layers are the model's last ones, with its final norm.
    """
    last = layer == len(_stack("", model))
    parts: list[np.ndarray] = [np.empty(0)] * len(tokens)
    order = sorted(range(len(tokens)), key=lambda number: len(tokens[number]))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        lengths = torch.tensor([len(tokens[number]) for number in batch])
        ids = nn.utils.rnn.pad_sequence([torch.tensor(tokens[number]) for number in batch], batch_first=True)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        with torch.no_grad():
            output = model(
                input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device), output_hidden_states=not last
            )
        states = output.last_hidden_state if last else output.hidden_states[layer]
        for number, row, length in zip(batch, states, lengths.tolist(), strict=True):
            parts[number] = row[:length].float().cpu().numpy()
    return np.concatenate(parts)


def _stack(folder: str | Path, model: PreTrainedModel) -> nn.ModuleList:
    """The model's layers.

    Raises:
        ConfigError: it has no list of `num_hidden_layers` layers.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"lego.plm.path {folder}: no stack of layers was found in a {type(model).__name__}. Take another model.")


def _longest(config: LegoPlmConfig, model: PreTrainedModel) -> int:
    """Tokens of a text at most, by the configuration and by the model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None) or config.max_tokens
    for name, module in model.named_modules():  # those of RoBERTa's kin begin behind the padding token's number
        if name.endswith("position_embeddings") and (padding := getattr(module, "padding_idx", None)) is not None:
            limit -= padding + 1
    if config.max_tokens > limit:
        log.warning("lego.plm.max_tokens %d is lowered to %d, the model's limit", config.max_tokens, limit)
    return min(config.max_tokens, limit)


def _cache_path(folder: str | Path, first: int, tokens: list[list[int]]) -> Path | None:
    """Where the states are kept; nowhere for a model of the hub, whose content is not known."""
    identity = pretrained.identity(folder)
    if identity is None:
        return None
    return (
        cache_folder()
        / "embeddings"
        / f"{content_hash(['states', identity, metadata.version('transformers'), first, tokens])}.npy"
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)
