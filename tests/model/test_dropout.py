import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from minionerec.errors import ConfigError
from minionerec.model.dropout import add_dropout

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.randint(60, (2, 7), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("kind", "config"), [(Qwen2ForCausalLM, Qwen2Config), (LlamaForCausalLM, LlamaConfig), (GemmaForCausalLM, GemmaConfig)]
)
def test_values_are_dropped_in_training_only_and_the_mean_stays(kind, config):
    torch.manual_seed(0)
    model = kind(config(num_key_value_heads=2, head_dim=16, **SIZES))
    plain = logits(model.eval())
    before = set(model.state_dict())
    handles = add_dropout(model, 0.3)
    assert set(model.state_dict()) == before
    assert torch.equal(logits(model), plain)
    model.train()
    first, second = logits(model), logits(model)
    assert not torch.equal(first, second) and not torch.equal(first, plain)
    for handle in handles:
        handle.remove()
    assert torch.equal(logits(model), plain)


def test_the_named_share_of_each_part_becomes_zero():
    model = Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **SIZES)).train()
    add_dropout(model, 0.3)
    parts = [model.model.embed_tokens, model.model.layers[0].mlp, model.model.layers[1].self_attn, model.model.norm]
    shares = {}
    for number, part in enumerate(parts):
        part.register_forward_hook(
            lambda _, __, out, number=number: shares.update({number: (out[0] if isinstance(out, tuple) else out).eq(0)})
        )
    torch.manual_seed(0)
    model(IDS.repeat(20, 1))
    assert [dropped.float().mean().item() for dropped in shares.values()] == pytest.approx([0.3] * 4, abs=0.02)


def test_no_dropout_leaves_the_model_alone_and_another_architecture_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2))
    assert add_dropout(model, 0.0) == []
    with pytest.raises(ConfigError, match=r"sft.dropout is 0.1, but a GPT2LMHeadModel .* set it to 0"):
        add_dropout(model, 0.1)
