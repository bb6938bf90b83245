"""Which of the causal language models that transformers knows are equal on trees: all types, tiny, with random weights.

Each type is built with two layers, or one layer of each kind that its default has, with matrices drawn from N(0, .25) so that
texts differ by nats. `pack` with `tree_logprobs`, and beam search, are compared with texts computed one by one, on paths as
long as the attention window, and on longer ones unless they are refused. A type is

- equal: all log-probabilities within 1e-3 nats and the same ranked list;
- refused: the guard or the self-test says why;
- different: neither. There must be none;
- not built: this script could not make a tiny one.

    scripts/python benchmarks/model_types.py [TYPE ...]        # all types take about three minutes on one core
"""

import argparse
import inspect
import logging
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minionerec.errors import ConstraintError
from minionerec.model.loading import attention_of
from minionerec.tree import Branch, CatalogTrie, beam_search, pack, tree_logprobs
from minionerec.tree.self_test import check_exact

VOCABULARY, PATH, LONG_PATH, CODES = 64, 12, 40, 3
LARGEST = 30_000_000  # parameters of a model that is still tried
HEADS, WIDTH, INNER = 4, 32, 48
# What a configuration may call its sizes; each takes those that it has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "dim_model"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff"), INNER),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), INNER // 2),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(
        ("head_dim", "global_head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "dim_head"), WIDTH // HEADS
    ),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "index_head_dim", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "index_n_heads"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), VOCABULARY),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size"), PATH),
    **dict.fromkeys(("window_size", "keep_window_size"), 32),
    **dict.fromkeys(("local_attention", "attention_window_size", "local_attention_window_len"), 2 * PATH),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), WIDTH // HEADS),
    **{"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True, "rotary_dim": 4},
}
TRIES: tuple[dict[str, Any], ...] = ({}, {"num_key_value_heads": HEADS}, {"head_dim": None, "num_key_value_heads": HEADS})
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_SMALL_IMAGES = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 28}
# What some types need beyond their sizes; None takes a field away.
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1], "layer_types": None, "num_hidden_layers": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "dots1": {"n_shared_experts": 1},
    "gemma3": {"vision_config": {"model_type": "siglip_vision_model", "patch_size": 14, **_SMALL_IMAGES}},
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "recurrent_gemma": {"layer_types": None, "num_hidden_layers": 3},
    "zamba": {"layer_types": None, "num_hidden_layers": 4},
    "zaya": {"num_experts_per_tok": 1},
}


class Result(NamedTuple):
    """What became of a type: `equal`, `refused`, `different` or `not built`, and why."""

    kind: str
    outcome: str
    detail: str


def _fields(config_class: type[PretrainedConfig]) -> set[str]:
    accepted = set(inspect.signature(config_class.__init__).parameters) | set(getattr(config_class, "attribute_map", {}))
    for parent in config_class.__mro__:
        accepted |= set(getattr(parent, "__annotations__", {}))
    return accepted


def _tiny(config_class: type[PretrainedConfig], changes: dict[str, Any], extra: dict[str, Any]) -> PretrainedConfig:
    """A configuration of this class with the smallest sizes, and with one layer of each kind that its default has."""
    sizes = {name: value for name, value in (SIZES | changes).items() if name in _fields(config_class) and value is not None}
    parts = {
        name: _tiny(part, changes, {})
        for name, part in config_class.sub_configs.items()
        if issubclass(part, PretrainedConfig) and name not in extra
    }
    kinds = list(dict.fromkeys(getattr(config_class(), "layer_types", None) or ()))
    if len(kinds) > 1 and "layer_types" in _fields(config_class):
        sizes |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    return config_class(**{name: value for name, value in {**sizes, **parts, **extra}.items() if value is not None})


def tiny_model(kind: str, changes: dict[str, Any]) -> PreTrainedModel:
    """A tiny model of a type with random weights.

    Raises:
        ValueError: it would be large. Transformers raises others for sizes that do not fit together.
    """
    config = _tiny(CONFIG_MAPPING[kind], changes, EXTRA.get(kind, {}))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"the smallest that was tried has {size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention_of(config)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def compare(model: PreTrainedModel) -> float:
    """The largest difference between trees and texts computed one by one, in nats; infinite if a ranked list differs.

    Raises:
        ConstraintError: the model is refused.
    """
    check_exact(model)
    within = _compare(model, PATH)
    try:
        return max(within, _compare(model, LONG_PATH))
    except ConstraintError:  # beyond a window and the like
        return within


def _compare(model: PreTrainedModel, path: int) -> float:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, VOCABULARY - 4, (path + 1 - CODES,), generator=generator).tolist()
    codes = torch.randperm(VOCABULARY, generator=generator).tolist()
    sids = [[codes[0], codes[1], codes[2]], [codes[0], codes[1], codes[3]], [codes[0], codes[4], codes[5]], codes[6:9]]
    texts = torch.tensor([[*prompt, *sid] for sid in sids])
    with torch.no_grad():
        alone = torch.stack([model(input_ids=text[None]).logits[0].float().log_softmax(-1) for text in texts])
        batch = pack([Branch(prompt, sid) for sid in sids], row_tokens=128)
        together = tree_logprobs(model, batch).logprobs.view(len(sids), CODES)
        trie = CatalogTrie.from_codes(torch.tensor(sids))
        beams = beam_search(model, torch.tensor([prompt]), trie=trie, num_beams=len(sids))
    expected = alone[:, len(prompt) - 1 : -1].gather(-1, texts[:, len(prompt) :, None]).squeeze(-1)
    order = expected.sum(1).argsort(descending=True)
    if beams.tokens[0].tolist() != [sids[number] for number in order]:
        return float("inf")
    return float(torch.cat([(together - expected).flatten(), beams.scores[0] - expected.sum(1)[order]]).abs().max())


def result(kind: str) -> Result:
    """Build a type, in the first shape of `TRIES` that computes anything, and compare it."""
    failures: dict[str, str] = {}
    for changes in TRIES:
        try:
            difference = compare(tiny_model(kind, changes))
            return Result(kind, "equal" if difference < 1e-3 else "different", f"{difference:.1e} nats")
        except ConstraintError as error:
            failures["refused"] = str(error)
            if error.__cause__ is None:  # an error of the model's own may come from sizes that do not fit together
                break
        except Exception as error:  # noqa: BLE001  anything may be wrong with sizes that a type was not made for
            failures["not built"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return Result(kind, *next((name, failures[name]) for name in ("refused", "not built") if name in failures))


def table(results: Sequence[Result]) -> list[str]:
    """The results in Markdown: a row for each outcome and reason, with the types that it holds for."""
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for kind, outcome, detail in results:
        reason = detail.partition(" as training and search do: ")[2].partition(". Take a decoder")[0] or detail
        reason = re.sub(
            r"^A \w+ cannot be computed on trees: |\. docs/models\.md .*| \(\w+ \([\w.]+\)[^)]*\)|, \w+ \([\w.]+\)", "", reason
        )
        reason = {"equal": "", "not built": "this script makes no tiny one: the self-test tells at load"}.get(outcome, reason)
        rows[outcome, reason].append(kind)
    order = ("different", "equal", "refused", "not built")
    lines = ["| outcome | types | why |", "| --- | --- | --- |"]
    for (outcome, reason), kinds in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), -len(row[1]), row[0][1])):
        lines.append(f"| {outcome} ({len(kinds)}) | {', '.join(sorted(kinds))} | {reason.replace('|', '/')} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", help="names such as qwen2 (default: all)")
    types = parser.parse_args().types or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    results = []
    for kind in types:
        results.append(result(kind))
        print(f"{kind}: {results[-1].outcome} ({results[-1].detail[:200]})", file=sys.stderr, flush=True)
    print(f"transformers {transformers_version}, {len(results)} types", *table(results), sep="\n")


if __name__ == "__main__":
    main()
