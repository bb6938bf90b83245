"""A model's twin that shares its weights and computes the same numbers, but for rounding, in fewer kernels and fewer bytes.

A recorded search on a GPU is bound by small kernels at one prompt, and by memory traffic at many. Two things cost most there
and can be had for less:

- An RMS norm is written as eight kernels in transformers; PyTorch has one.
- Keys and values that several heads share are copied once for each head before attention with a mask. Instead, the queries of
  these heads can stand below one another as more queries of one head: the same products, and nothing is copied.

The twin is for recordings (`tree/graphs.py`) and knows nothing of hooks or later changes of the model's modules. What
`torch.compile` made of a module the twin does not have: copies of modules are not compiled.
"""

import copy
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

GROUPED = "minionerec_grouped"  # the attention that `grouped_attention` computes, as transformers names it
_TOLERANCE = 1e-5  # of an RMS norm of numbers and weights of size 1 computed in float32
_SCALES = (1e-3, 1.0, 1e2)  # of the numbers that a norm is tried on; the smallest square is as small as a norm's epsilon


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The model with fused norms and, if all layers have `sdpa` attention alike, grouped heads; its modules stay as they are.

    Args:
        model: one that `static_search.not_static` has nothing against.
    """
    configs: dict[int, PretrainedConfig] = {}
    if model.config._attn_implementation == "sdpa" and len(heads_per_key(model)) <= 1:
        for module in model.modules():
            config = getattr(module, "config", None)
            if isinstance(config, PretrainedConfig) and id(config) not in configs:
                configs[id(config)] = copy.copy(config)
                configs[id(config)]._attn_implementation_internal = GROUPED
    return _twin(model, configs, {})


def _twin(module: Any, configs: dict[int, PretrainedConfig], made: dict[int, torch.nn.Module]) -> Any:
    """A shallow copy of a module with twins of its children.

    Args:
        configs: by the `id` of a configuration, the one that takes its place.
        made: by the `id` of a module, its twin, since a module may be a child of several.
    """
    if id(module) not in made:
        epsilon = rms_epsilon(module)
        if epsilon is not None:
            made[id(module)] = _FusedNorm(module.weight, epsilon)
        else:
            twin_of = copy.copy(module)
            children = {name: child and _twin(child, configs, made) for name, child in module._modules.items()}
            object.__setattr__(twin_of, "_modules", children)
            if id(config := getattr(module, "config", None)) in configs:
                twin_of.config = configs[id(config)]
            made[id(module)] = twin_of
    return made[id(module)]


class _FusedNorm(torch.nn.Module):
    """An RMS norm as one kernel, with another module's weight."""

    def __init__(self, weight: torch.nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(states, self.weight.shape, self.weight, self.epsilon)


@torch.no_grad()
def rms_epsilon(module: torch.nn.Module) -> float | None:
    """The epsilon of a module that is an RMS norm and nothing else; None of any other.

    Whether it is one is tried in float32 on numbers of three sizes, not judged by its name: Gemma's adds 1 to its weight. It is
    tried with random weights: its own may be 0, which hides what it computes, and training may change them after a recording.
    """
    parameters = dict(module.named_parameters())
    epsilon = next(
        (value for name in ("variance_epsilon", "eps") if isinstance(value := getattr(module, name, None), float)), None
    )
    if epsilon is None or list(parameters) != ["weight"] or parameters["weight"].dim() != 1 or list(module.buffers()):
        return None
    tried: Any = copy.deepcopy(module).float()
    weight = tried.weight
    random = torch.Generator(weight.device).manual_seed(0)
    weight.normal_(generator=random)
    states = torch.randn(len(_SCALES), 4, len(weight), generator=random, device=weight.device)
    states *= torch.tensor(_SCALES, device=weight.device)[:, None, None]
    ours, theirs = torch.nn.functional.rms_norm(states, weight.shape, weight, epsilon), tried(states)
    same = isinstance(theirs, torch.Tensor) and theirs.shape == ours.shape
    return epsilon if same and torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE) else None


def heads_per_key(model: PreTrainedModel) -> set[int]:
    """How many heads share keys and values, which may differ from layer to layer; empty if no layer says."""
    numbers = (getattr(module, "num_key_value_groups", None) for module in model.modules())
    return {number for number in numbers if isinstance(number, int)}


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of heads that share keys and values, without a copy of these for each head.

    Args:
        query: (batch, heads, queries, head size).
        key, value: (batch, groups, keys, head size); consecutive heads share a group.
        attention_mask: (batch, 1, heads / groups x queries, keys), added to the products (`grouped_mask`).
        scaling: of the products; None for one over the root of the head size.

    Returns:
        (batch, queries, heads, head size), and no weights.
    """
    del module
    batch, heads, queries, size = query.shape
    below = query.reshape(batch, key.shape[1], -1, size)
    mixed = torch.nn.functional.scaled_dot_product_attention(below, key, value, attn_mask=attention_mask, scale=scaling)
    # Kernels differ in how they lay out their result; not all of them can be viewed so.
    return mixed.reshape(batch, heads, queries, size).transpose(1, 2).contiguous(), None


def grouped_mask(model: PreTrainedModel, allowed: torch.Tensor) -> torch.Tensor:
    """The mask of `grouped_attention`, made once for all layers.

    Args:
        model: a twin.
        allowed: (batch, 1, queries, keys) bool, True where a query may attend.
    """
    dtype = next(model.parameters()).dtype
    added = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
    (shared,) = heads_per_key(model) or {1}
    return added.repeat(1, 1, shared, 1)


AttentionInterface.register(GROUPED, grouped_attention)
