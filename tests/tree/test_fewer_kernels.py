"""The twin of a model has its weights and its numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from minionerec.tree.fewer_kernels import GROUPED, grouped_attention, grouped_mask, rms_epsilon, twin
from tests.examples import examples
from tests.tree.conftest import tiny


@torch.no_grad()
def with_all_weights(model):
    """No weight of a norm is 1 and no bias 0, as they are in a new model."""
    random = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gemma", "granite", "gpt2"])
def test_a_twin_computes_what_its_model_computes_and_leaves_it_as_it_is(kind):
    model = with_all_weights(tiny(kind))
    ids = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    allowed[1, :, :, 0] = False  # the second text has a padding token, which sees itself
    allowed |= torch.eye(7, dtype=torch.bool)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 3, 4, 5]])
    kinds, expected = [type(module) for module in model.modules()], model(ids, attention_mask=allowed, position_ids=positions)
    lean = twin(model)
    assert lean.config._attn_implementation == GROUPED
    found = lean(ids, attention_mask=grouped_mask(lean, allowed), position_ids=positions)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-5)
    assert [id(one) for one in lean.parameters()] == [id(one) for one in model.parameters()]
    assert [type(module) for module in model.modules()] == kinds
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {"sdpa"}
    assert torch.equal(model(ids, attention_mask=allowed, position_ids=positions).logits, expected.logits)


def test_eager_attention_stays():
    assert twin(tiny(attention="eager")).config._attn_implementation == "eager"


def test_layers_that_share_keys_differently_keep_their_attention():
    model = tiny()
    model.model.layers[0].self_attn.num_key_value_groups = 1
    assert twin(model).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("kind", "fused"), [("qwen2", 5), ("qwen3", 9), ("gemma", 0), ("gpt2", 0)])
def test_rms_norms_are_told_by_what_they_compute(kind, fused):
    """Gemma adds 1 to the weight; GPT-2 has layer norms."""
    model = tiny(kind)
    assert sum(rms_epsilon(module) is not None for module in model.modules()) == fused
    assert sum(type(module).__name__ == "_FusedNorm" for module in twin(model).modules()) == fused


class Doubling(LlamaRMSNorm):
    def forward(self, states):
        return 2 * super().forward(states)


class OfAnotherEpsilon(LlamaRMSNorm):
    def forward(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-8)


def test_what_resembles_an_rms_norm_stays():
    assert rms_epsilon(LlamaRMSNorm(8, 1e-5)) == 1e-5
    assert rms_epsilon(Doubling(8)) is None and rms_epsilon(OfAnotherEpsilon(8)) is None
    biased = LlamaRMSNorm(8)
    biased.bias = torch.nn.Parameter(torch.zeros(8))
    assert rms_epsilon(biased) is None


def test_what_a_norm_computes_is_told_whatever_its_weights_are():
    """Weights of 0 make all norms equal, until training changes them where they are."""
    root, other = LlamaRMSNorm(8, 1e-5), torch.nn.LayerNorm(8, bias=False)
    for norm in (root, other):
        torch.nn.init.zeros_(norm.weight)
    assert rms_epsilon(root) == 1e-5 and rms_epsilon(other) is None
    assert not root.weight.any()  # its own weights stay


@examples(15)
@given(
    st.sampled_from([(4, 1), (4, 2), (6, 3), (3, 3)]), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 999)
)
def test_grouped_heads_are_attention_with_copied_keys(heads, queries, keys, transposed, seed):
    heads, groups = heads
    random = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(2, number, length, 4, generator=random)
        for number, length in ((heads, queries), (groups, keys), (groups, keys))
    )
    allowed = torch.rand(2, 1, queries, keys, generator=random) < 0.5
    allowed[..., 0] = True
    shared = heads // groups
    copied = (each.repeat_interleave(shared, dim=1) for each in (key, value))
    expected = scaled_dot_product_attention(query, *copied, attn_mask=allowed, scale=0.3).transpose(1, 2)
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min).repeat(1, 1, shared, 1)

    def as_kernels_lay_it_out(*arguments, **named):  # some return a view of (batch, queries, heads, head size)
        result = scaled_dot_product_attention(*arguments, **named)
        return result.transpose(1, 2).contiguous().transpose(1, 2) if transposed else result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", as_kernels_lay_it_out)
        found, weights = grouped_attention(None, query, key, value, added, scaling=0.3, dropout=0.0)
    assert weights is None and found.is_contiguous()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
