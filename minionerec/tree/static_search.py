"""Beam search in which no shape depends on what the tensors hold and the host waits for nothing, as a CUDA graph needs it.

It is `run_search` on a `PromptCache` of another kind: children are padded to the trie's largest fan-out, keys and values stand
in tensors of their final size, and padding on the left fills a prompt up to the length of its bucket. Padding is masked and
positions are counted without it, so that a prompt gives what it gives alone, but for rounding.
"""

from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from minionerec.tree.architecture import looks_at_the_row
from minionerec.tree.forward import attention_bias
from minionerec.tree.leaf_component import mixed_with_own
from minionerec.tree.prompt_cache import Normalise, PromptCache
from minionerec.tree.search import BeamResult, ranked, run_search
from minionerec.tree.trie import CatalogTrie

# Models whose forward was read and runs without a look at its tensors, and whose layers keep keys and values by `Cache.update`
# alone. tests/tree/test_graphs.py holds each of them to it. The forward of one with text vectors does look, for the items of
# a prompt: its embeddings are computed by `static_embeddings` instead.
STATIC_MODELS = frozenset({"gemma", "gpt2", "granite", "llama", "mistral", "qwen2", "qwen2_item_text", "qwen3"})


def not_static(model: PreTrainedModel) -> str | None:
    """Why searches of this model cannot be static, as the end of a sentence; None if they can.

    Args:
        model: possibly wrapped by PEFT.
    """
    if hasattr(model, "get_base_model") or any(hasattr(module, "active_adapter") for module in model.modules()):
        return "the model has adapters, which may be switched between two searches"
    if model.config.model_type not in STATIC_MODELS:
        return f"models of type {model.config.model_type} are not known to run without a look at their tensors"
    if what := looks_at_the_row(model):
        return f"the model's numbers depend on padding ({what})"
    if not all(parameter.numel() and parameter.device == model.device for parameter in model.parameters()):
        return "the model's weights are not on one device as a whole"
    return None


class _StaticLayer(DynamicLayer):
    """Keys and values of one layer in tensors of their final size; what is returned of them has the tokens written so far."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens, self._written = tokens, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the tensors, in the form of the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._all_keys, self._all_values = (
            states.new_empty(*states.shape[:-2], self._tokens, states.shape[-1]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write tokens behind those that are there: (batch, heads, tokens, head size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self._written = self._written, self._written + key_states.shape[-2]
        self._all_keys[..., begin : self._written, :] = key_states
        self._all_values[..., begin : self._written, :] = value_states
        self.keys, self.values = self._all_keys[..., : self._written, :], self._all_values[..., : self._written, :]
        return self.keys, self.values


def tree_tokens(trie: CatalogTrie, num_beams: int) -> int:
    """The tree tokens that a search writes behind each prompt."""
    beams, written = 1, 0
    for fan_out in trie.fan_outs[:-1]:
        beams = min(num_beams, beams * fan_out)
        written += beams
    return written


def static_prompts(
    model: PreTrainedModel, input_ids: torch.Tensor, visible: torch.Tensor, trie: CatalogTrie, over: Normalise, tokens: int
) -> PromptCache:
    """Compute prompts that were checked before, each once.

    Args:
        model: that `not_static` has nothing against.
        input_ids: (batch, length).
        visible: (batch, length) bool, False on padding, which stands on the left.
        trie: the valid SIDs, or a view of `View.of_legal`, mixed or not.
        over: `normalise_over`.
        tokens: that are written in all, prompts and tree tokens.
    """
    length = input_ids.shape[1]
    cache = Cache(layers=[_StaticLayer(tokens) for _ in range(model.config.num_hidden_layers)])
    # `longest` only serves to refuse long paths, and each call is checked before its tensors come here.
    prompts = PromptCache(model, trie, over, cache, visible, visible.sum(-1), trie.depth, input_ids, static=True)
    # A mask of all pairs, since transformers looks at one of all tokens to see whether it can be left out. Padding sees itself,
    # and so has finite values, which weigh nothing where it is masked; a row that sees nothing would be NaN.
    pairs = torch.ones(length, length, dtype=torch.bool, device=input_ids.device)
    allowed = (pairs.tril() & visible[:, None, None, :]) | torch.eye(length, dtype=torch.bool, device=input_ids.device)
    positions = (visible.long().cumsum(-1) - 1).clamp(min=0)
    embed = getattr(model.base_model, "static_embeddings", None)
    embeddings = None if embed is None else embed(input_ids, visible)
    bias = attention_bias(model, allowed, trie.depth)
    prompts.last = prompts.write(input_ids, bias, positions, last_only=True, embeddings=embeddings)
    prompts.trie = mixed_with_own(model, trie, prompts.last[:, 0])
    return prompts


def static_search(
    model: PreTrainedModel, input_ids: torch.Tensor, visible: torch.Tensor, trie: CatalogTrie, num_beams: int, over: Normalise
) -> BeamResult:
    """What `beam_search` gives; arguments as of `static_prompts`."""
    tokens = input_ids.shape[1] + tree_tokens(trie, num_beams)
    prompts = static_prompts(model, input_ids, visible, trie, over, tokens)
    return ranked(trie, run_search(prompts, num_beams, look=False), num_beams)
