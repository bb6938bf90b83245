"""Which models a tree computes exactly, judged by their structure, and how long a path each of them allows.

A tree writes many texts into one row. A token's output is right only if it depends on nothing but the token, its position and
the tokens that the mask shows it. Three kinds of layers break this: layers that read their neighbours in the row whatever the
mask says (convolution, recurrence), layers that count positions along the row, and layers that treat long texts differently
from short ones. The first two are refused. The third are exact up to some length, which `limits` gives. What structure does not
show is found by running the loaded model on a small tree, see `tree/self_test.py`.
"""

import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from minionerec.errors import ConstraintError

# Layer kinds (`config.layer_types`) whose attention follows the mask; the last four are feed-forward layers.
_FOLLOW_THE_MASK = frozenset({"full_attention", "sliding_attention", "chunked_attention", "moe", "mlp", "sparse", "dense"})
_SLIDING = frozenset({"sliding_attention", "local"})  # GPT-Neo says "local", in `attention_layers`
_WINDOWED = _SLIDING | {"chunked_attention"}
_LAID_BY_MASKS = frozenset({"sliding_window", "sliding_window_size", "attention_chunk_size"})
_KINDS_IN_WORDS = {
    "linear_attention": "linear attention, which sums up all earlier tokens of the row",
    "conv": "short convolution, which mixes neighbours of the row",
    "hybrid": "attention joined with a recurrence or convolution along the row",
    "hybrid_sliding": "attention joined with a recurrence or convolution along the row",
    "indexed_attention": "attention to the best keys of the row, by an index that search does not keep",
    "compressed_sparse_attention": "attention to compressed blocks of the row",
    "heavily_compressed_attention": "attention to compressed blocks of the row",
    "minimax_m3_sparse": "attention to chosen blocks of the row",
}
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_TOWERS = ("vision", "visual", "image", "img", "audio", "speech")  # of a composite model: texts do not pass them
_DISTANCES = frozenset({"alibi", "relative_key", "relative_key_query"})


@dataclass(frozen=True)
class Limit:
    """How long a path, or a row, may be for the tree to be exact.

    Attributes:
        tokens: tokens that are computed; the last token of a completion is a label and never computed.
        what: the limit in words, such as "attention window".
        kind: `window` bounds a path, but a text outside any tree may be longer; `path` bounds every text; `row` bounds all
            tokens of a row together.
    """

    tokens: int
    what: str
    kind: str


@dataclass(frozen=True)
class Exactness:
    """What the structure of a model says: why no tree is exact (None if trees are), and the limits within which they are."""

    refusal: str | None
    limits: tuple[Limit, ...]


_exactness: "weakref.WeakKeyDictionary[PreTrainedModel, Exactness]" = weakref.WeakKeyDictionary()


def exactness(model: PreTrainedModel) -> Exactness:
    """Judge a model, which may be wrapped by PEFT or lie on the meta device; each model is looked at once."""
    model = getattr(model, "get_base_model", lambda: model)()
    if model not in _exactness:
        _exactness[model] = Exactness(_refusal(model), tuple(_limits(model.config.get_text_config(decoder=True))))
    return _exactness[model]


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model whose layers do not follow a tree mask, or whose prompts are read by an encoder.

    Raises:
        ConstraintError: it has such layers; the message names their kind. Or it is an encoder-decoder.
    """
    reason = exactness(model).refusal
    if reason is not None and getattr(model.config, "is_encoder_decoder", False):
        raise ConstraintError(
            f"A {type(model).__name__} is an encoder-decoder. Searches and exact scores take a T5; log-probabilities on trees, "
            "by which SFT and RL train, are for decoder-only models. A T5 that writes semantic IDs is trained without trees: "
            "minionerec baseline --baseline.model tiger."
        )
    if reason is not None:
        raise ConstraintError(
            f"A {type(model).__name__} cannot be computed on trees, as training and search do: {reason}. Take a decoder whose "
            "layers are attention that follows a mask, such as Qwen2, Qwen3 or Llama; docs/models.md lists them."
        )


def check_length(model: PreTrainedModel, path: int, row: int = 0, *, windows: bool = True) -> None:
    """Refuse paths or rows that are longer than those for which trees are exact.

    Args:
        path: tokens of the longest path that are computed, its prompt included.
        row: tokens of the longest row that are computed.
        windows: False for texts that no tree mask is laid over: layers with a window then compute them as they should.

    Raises:
        ConstraintError: a path or a row is too long; the message names the limit.
    """
    for limit in exactness(model).limits:
        length = row if limit.kind == "row" else path
        if length > limit.tokens and (windows or limit.kind != "window"):
            rows = limit.kind == "row"
            raise ConstraintError(
                f"A {'row' if rows else 'path'} of {length} tokens is longer than the model's {limit.what} of {limit.tokens}, "
                "beyond which a tree does not give the model's own numbers. "
                + ("Take smaller rows (sft.row_tokens), fewer beams or a shorter " if rows else "Shorten the ")
                + "prompt (data.max_history)."
            )


def longest_text(model: PreTrainedModel) -> int | None:
    """Tokens of the longest text that the model reads and a tree computes exactly, apart from windows; None if unlimited."""
    config = model.config.get_text_config(decoder=True)
    bounds = [limit.tokens for limit in exactness(model).limits if limit.kind == "path"]
    positions = getattr(config, "max_position_embeddings", None)
    return min([*bounds, *([positions] if positions else [])], default=None)


def looks_at_the_row(model: PreTrainedModel) -> str | None:
    """What in the model depends on the length of a row or on the longest text of a batch, in words; None if nothing does."""
    for kind in _rope_kinds(model.config.get_text_config(decoder=True)):
        if _depends_on_length(kind):
            return f"RoPE of type {kind}, whose frequencies follow the longest text of a batch"
    return next((limit.what for limit in exactness(model).limits if limit.kind == "row"), None)


def _refusal(model: PreTrainedModel) -> str | None:
    """Why no tree is exact for this model; None if nothing in its structure says so."""
    config = model.config.get_text_config(decoder=True)
    parameters = inspect.signature(type(model).forward).parameters  # a launcher may have wrapped the instance's own
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if "position_ids" not in parameters:
        return "its forward takes no position_ids and numbers tokens by their place in the row"
    if "logits_to_keep" not in parameters:
        return "its forward takes no logits_to_keep, by which a tree picks the tokens to predict"
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in _FOLLOW_THE_MASK:
            return f"it has layers of kind {kind}" + (f" ({_KINDS_IN_WORDS[kind]})" if kind in _KINDS_IN_WORDS else "")
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", None) in _DISTANCES:
        return "its attention adds a bias for the distance of two tokens in the row (ALiBi or relative positions)"
    for name, module in _decoder(model).named_modules():
        if any(tower in name for tower in _TOWERS):
            continue
        kind = f"{type(module).__name__} ({name})"
        if isinstance(module, _CONVOLUTIONS):
            return f"it has a convolution, {kind}, which mixes neighbours of the row"
        if isinstance(getattr(module, "A_log", None), torch.nn.Parameter):
            return f"it has a recurrent layer, {kind}, which sums up all earlier tokens of the row"
        if getattr(module, "is_causal", None) is False and "cross" not in name:
            return f"its attention sees later tokens too ({kind} is not causal; is config.is_decoder unset?)"
        if "position" in name and isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            return f"it numbers positions from its padding token on ({kind}), which position_ids leave out"
    return None


def _decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The part that reads text: not the image or audio tower of a composite model."""
    decoder: torch.nn.Module | None = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model if decoder is None else decoder


def _limits(config: PretrainedConfig) -> Iterator[Limit]:
    # 1. Windows: a tree mask shows a token its whole path, and a window would hide the beginning. Windows of other names are
    #    laid by the model's own code, over the mask (GPT-Neo): they count the tokens of the row.
    windows = {window for layer in _layers(config) for window in _windows(layer).items()}
    for name, size in sorted(windows):
        what = "attention window" if name == "sliding_window" else f"attention window ({name})"
        yield Limit(size, what, "window" if name in _LAID_BY_MASKS else "row")
    # 2. RoPE whose frequencies change for all tokens once the longest text of a batch exceeds a length.
    for rope, kind in zip(_ropes(config), _rope_kinds(config), strict=True):
        if _depends_on_length(kind):
            original = [rope.get("original_max_position_embeddings"), getattr(config, "original_max_position_embeddings", None)]
            lengths = [length for length in (*original, getattr(config, "max_position_embeddings", None)) if length]
            if lengths:
                yield Limit(int(min(lengths)), f"original length (RoPE of type {kind})", "path")
    # 3. Positions of a table: there are no more. RoPE and models without positions have no table.
    if not _ropes(config) and (positions := getattr(config, "max_position_embeddings", None)):
        yield Limit(positions, "table of positions", "path")
    # 4. Llama 4 scales queries by their place in the row, in steps of `floor_scale`.
    if getattr(config, "attn_temperature_tuning", False) and (scale := getattr(config, "floor_scale", None)):
        yield Limit(int(scale) - 1, "first step of attention temperatures (floor_scale - 1)", "row")
    # 5. Layers that keep the best few keys of the row (Doge): within that number they keep all.
    if keys := getattr(config, "keep_window_size", None):
        yield Limit(keys, "number of keys that attention keeps (keep_window_size)", "row")
    # 6. BigBird cuts longer rows into blocks; shorter ones have full attention.
    if getattr(config, "attention_type", None) == "block_sparse":
        uncut = (5 + 2 * config.num_random_blocks) * config.block_size
        yield Limit(uncut, "longest row that is not cut into blocks (block_size)", "row")


def _windows(config: PretrainedConfig) -> dict[str, int]:
    """The attention windows that some layer uses, by the field of the configuration."""
    layers = set(getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ())
    if layers and not layers & _WINDOWED:
        return {}
    names = [] if layers and not layers & _SLIDING else [name for name in vars(config) if _names_a_window(name)]
    if not layers or "chunked_attention" in layers:
        names.append("attention_chunk_size")
    if not layers and getattr(config, "use_sliding_window", True) is False:  # Mistral and others do not name their layers
        names = [name for name in names if name != "sliding_window"]
    values: dict[str, Any] = {name: getattr(config, name, None) for name in names}
    return {name: size for name, size in values.items() if type(size) is int and size > 0}


def _names_a_window(name: str) -> bool:
    """Whether a field is a number of tokens, not of layers, and not the one that bounds a row."""
    return "window" in name and not any(other in name for other in ("layers", "pattern", "use_", "num_", "keep_"))


def _ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The RoPE settings, one for each kind of layer if they differ; empty for a model without RoPE."""
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return []
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def _rope_kinds(config: PretrainedConfig) -> list[str]:
    return [rope.get("rope_type", rope.get("type", "default")) for rope in _ropes(config)]


def _depends_on_length(rope_kind: str) -> bool:
    return rope_kind == "longrope" or "dynamic" in rope_kind


@dataclass(frozen=True)
class Widths:
    """Sizes of the decoder layers; of the widest, if layers differ.

    Attributes:
        heads: their number.
        attention, key_value, feed_forward: widths of all heads together, of all key-value heads, of the inner layer.
    """

    heads: int
    attention: int
    key_value: int
    feed_forward: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Widths":
        """The sizes that the configuration of a text decoder gives."""
        sizes: list[tuple[int, ...]] = []
        for layer in _layers(config):
            heads: int = layer.num_attention_heads
            key_value_heads: int = getattr(layer, "num_key_value_heads", None) or heads
            head: int = getattr(layer, "head_dim", None) or layer.hidden_size // heads
            inner: int | list[int] = (
                getattr(layer, "intermediate_size", None) or getattr(layer, "d_ff", None) or 4 * layer.hidden_size
            )  # T5 calls it d_ff
            inner = max(inner) if isinstance(inner, list | tuple) else inner  # Gemma-3n has one per layer
            sizes.append((heads, heads * head, key_value_heads * head, inner))
        return cls(*map(max, zip(*sizes, strict=True)))


def _layers(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configuration of each layer if they differ, else the one for all."""
    return list(config.per_layer_config) if getattr(config, "is_heterogeneous", False) else [config]
