import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 40
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny(kind: str = "qwen2", seed: int = 0, attention: str = "sdpa"):
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    models = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
    }
    config, model, extra = models[kind]
    # Large random weights give peaked, well separated scores.
    made = model(config(**_SIZES, **extra, initializer_range=0.3, attn_implementation=attention))
    return made.eval()


@pytest.fixture(scope="session", params=["qwen2", "llama", "gemma"])
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="session")
def qwen2():
    return tiny()
