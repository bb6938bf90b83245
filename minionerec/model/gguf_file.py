"""A GGUF file as a folder that transformers reads: every setting and every tensor finds its place, or the file is refused.

transformers has a reader of its own, but leaves out what it does not know: tensors without a name in its tables, settings such
as scaled rotary positions, ways of splitting text. Such a model would be another model. So this module reads the architectures
in `_ARCHITECTURES`, whose whole layout it knows, with the package `gguf`, and refuses the rest. Weights are kept exactly as the
file has them: blocks of quantised numbers become float32, plain numbers keep their format.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from minionerec.artifacts import check_disk_space
from minionerec.errors import ConfigError, MiniOneRecError
from minionerec.model import gguf_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor


class _Architecture(NamedTuple):
    """How llama.cpp writes an architecture.

    Attributes:
        settings: of transformers' configuration, beyond those that the file gives.
        interleaved: the rows of queries and keys are in another order than in transformers, pairs of the rotation together.
    """

    settings: Mapping[str, Any]
    interleaved: bool


_ARCHITECTURES = {  # by the name that the file and transformers both use
    "llama": _Architecture({"attention_bias": False, "mlp_bias": False}, interleaved=True),
    "qwen2": _Architecture({"use_sliding_window": False}, interleaved=False),
    "qwen3": _Architecture({"use_sliding_window": False, "attention_bias": False}, interleaved=False),
}
_MODULES = {  # by the name in the file; below `blk.N.` those of a layer
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NEEDED = {  # settings of the architecture, and transformers' names
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_READ = (  # settings that may be missing
    *("attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("rope.freq_base", "rope.dimension_count", "vocab_size"),
)
_WITHOUT_EFFECT: dict[str, Any] = {"rope.scaling.type": "none", "rope.scaling.finetuned": False, "expert_count": 0}
_WAY_OUT = "Take the original model's folder (config.json, model.safetensors and tokenizer files)."
_OPTIONS = {"format": "pt"}  # of a safetensors file, so that transformers takes it


def convert(file: Path, tokenizer_files: Mapping[str, Path], folder: Path) -> None:
    """Write a GGUF file's model and tokenizer into a folder.

    Args:
        tokenizer_files: of the original model, by name; they take the place of what the file says of its tokenizer.

    Raises:
        ConfigError: the file is damaged, or cannot be read exactly: an unknown architecture, setting, tensor, quantisation or
            way of splitting text; a tensor is missing or has another shape.
        ArtifactError: the disk is too small.
    """
    with _readable(file):
        from gguf import GGUFReader

        reader = GGUFReader(str(file))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config, architecture = _config(file, fields, {tensor.name: tensor for tensor in reader.tensors})
        config.save_pretrained(folder)
        gguf_tokenizer.write(file, fields, tokenizer_files, folder)
        save_file(_weights(file, reader, config, architecture, folder), folder / "model.safetensors", _OPTIONS)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Any failure inside, of whatever library, says that the file cannot be read."""
    try:
        yield
    except (MiniOneRecError, ModuleNotFoundError):
        raise
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read or written ({error}).") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{file}: not a readable GGUF file ({type(error).__name__}: {reason[:300]}). Is it cut off? Fetch it again."
        ) from error


def _config(
    file: Path, fields: Mapping[str, Any], tensors: Mapping[str, "ReaderTensor"]
) -> tuple[PretrainedConfig, _Architecture]:
    """The model's configuration.

    Raises:
        ConfigError: a setting is missing, or says something that transformers' model of this name does not do.
    """
    name = fields.get("general.architecture")
    if name not in _ARCHITECTURES:
        raise ConfigError(f"{file}: the architecture is {name!r}; {', '.join(_ARCHITECTURES)} can be read exactly. {_WAY_OUT}")
    if fields.get("split.count", 0) > 1:
        raise ConfigError(f"{file}: one of {fields['split.count']} parts. Join them first: llama-gguf-split --merge.")
    settings = {key.removeprefix(f"{name}."): value for key, value in fields.items() if key.startswith(f"{name}.")}
    if missing := [key for key in _NEEDED if key not in settings]:
        raise ConfigError(f"{file}: the file does not say {name}.{missing[0]}. {_WAY_OUT}")
    for key, value in settings.items():
        if key in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[key]:
            continue
        if key not in (*_NEEDED, *_READ) or not isinstance(value, int | float):
            raise ConfigError(f"{file}: {name}.{key} is {_cut(value)}, which this reader does not know. {_WAY_OUT}")
    heads = settings["attention.head_count"]
    width = settings.get("attention.key_length", settings["embedding_length"] // heads)  # of a head
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(key, width) != width:
            raise ConfigError(f"{file}: {name}.{key} is {settings[key]}, but a head is {width} wide. {_WAY_OUT}")
    architecture, vocabulary = _ARCHITECTURES[name], _vocabulary(file, settings, tensors)
    config = AutoConfig.for_model(
        name,
        **{transformers_name: _plain(settings[key]) for key, transformers_name in _NEEDED.items()},
        num_key_value_heads=settings.get("attention.head_count_kv", heads),
        head_dim=width,
        rope_parameters={"rope_type": "default", "rope_theta": _plain(settings.get("rope.freq_base", 10_000.0))},
        vocab_size=vocabulary,
        dtype=_kept_as(tensors["token_embd.weight"]),
        tie_word_embeddings="output.weight" not in tensors,
        **gguf_tokenizer.special_ids(fields),
        **architecture.settings,
    )
    config.architectures = [type(_empty_model(config)).__name__]
    return config, architecture


def _plain(value: float) -> float:
    """A float32 of the file as the shortest decimal number that rounds to it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _vocabulary(file: Path, settings: Mapping[str, Any], tensors: Mapping[str, "ReaderTensor"]) -> int:
    if "token_embd.weight" not in tensors:
        raise ConfigError(f"{file}: the tensor token_embd.weight is missing. {_WAY_OUT}")
    rows = int(tensors["token_embd.weight"].shape[-1])
    if settings.get("vocab_size", rows) != rows:
        raise ConfigError(f"{file}: vocab_size is {settings['vocab_size']}, but token_embd.weight has {rows} rows. {_WAY_OUT}")
    return rows


def _empty_model(config: PretrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _weights(
    file: Path, reader: "GGUFReader", config: PretrainedConfig, architecture: _Architecture, folder: Path
) -> dict[str, torch.Tensor]:
    """All weights of the model, by transformers' names.

    Raises:
        ConfigError: a tensor is missing or has no place, its shape is another, or it holds NaN or infinity.
        ArtifactError: the disk is too small.
    """
    shapes = {name: tuple(weight.shape) for name, weight in _empty_model(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    check_disk_space(
        folder, 4 * sum(map(int, map(np.prod, shapes.values()))), "Set MINIONEREC_CACHE to a folder on another disk."
    )
    weights = {}
    for tensor in reader.tensors:
        name = _transformers_name(tensor.name)
        if name not in shapes:
            scaled = " (scaled rotary positions)" * (tensor.name == "rope_freqs.weight")
            raise ConfigError(f"{file}: a {config.model_type} has no place for the tensor {tensor.name}{scaled}. {_WAY_OUT}")
        values = _values(file, tensor)
        if tuple(values.shape) != shapes[name]:
            raise ConfigError(
                f"{file}: {tensor.name} has the shape {tuple(values.shape)}, but the file's settings ask for {shapes[name]}."
            )
        if architecture.interleaved and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _in_halves(values, config.head_dim)
        weights[name] = values.contiguous()
    if missing := [name for name in shapes if name not in weights]:
        more = f" and {len(missing) - 1} other tensors" if len(missing) > 1 else ""
        raise ConfigError(f"{file}: the file lacks {missing[0]}{more}. Is it cut off? {_WAY_OUT}")
    return weights


def _transformers_name(name: str) -> str:
    """A tensor's name in transformers; the name itself if it is not known."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)", name)
    if found is None or found[2] not in _MODULES:
        return name
    layer, module, kind = found.groups()
    return f"{'' if layer is None else f'model.layers.{layer}.'}{_MODULES[module]}.{kind}"


def _values(file: Path, tensor: "ReaderTensor") -> torch.Tensor:
    """A tensor's numbers: float32 if they were quantised, else in the format of the file."""
    from gguf import dequantize

    try:
        numbers = dequantize(tensor.data, tensor.tensor_type)
    except RuntimeError:  # not implemented there
        raise ConfigError(
            f"{file}: {tensor.name} is quantised as {tensor.tensor_type.name}, which the package gguf cannot read. {_WAY_OUT}"
        ) from None
    if not np.isfinite(numbers).all():
        raise ConfigError(f"{file}: {tensor.name} holds NaN or infinity. {_WAY_OUT}")
    return torch.from_numpy(np.array(numbers, dtype=np.float32)).to(_kept_as(tensor))


def _kept_as(tensor: "ReaderTensor") -> torch.dtype:
    """The number format that holds a tensor's numbers exactly."""
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(tensor.tensor_type.name, torch.float32)


def _in_halves(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of queries or keys in transformers' order.

    llama.cpp rotates neighbouring rows of a head (0, 1), (2, 3), ...; transformers rotates row i with row i + width / 2.

    Args:
        width: of a head.
    """
    heads = rows.shape[0] // width
    return rows.reshape(heads, width // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
