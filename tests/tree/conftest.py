import json

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from minionerec.tree import NO_TOKEN, CatalogTrie
from tests.shared import shared

VOCABULARY = 40
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny(kind: str = "qwen2", seed: int = 0, attention: str = "sdpa", vocabulary: int = VOCABULARY):
    torch.manual_seed(seed)
    models = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
        "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 3.0}),  # logits are not just the head's
        "gpt2": (GPT2Config, GPT2LMHeadModel, {"n_positions": 300}),  # learnt absolute positions
    }
    config, model, extra = models[kind]
    sizes = {**_SIZES, "vocab_size": vocabulary, **extra}
    # Large random weights give peaked, well separated scores.
    return model(config(**sizes, initializer_range=0.3, attn_implementation=attention)).eval()


@pytest.fixture(scope="session", params=["qwen2", "qwen3", "llama", "gemma", "granite", "gpt2"])
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="session")
def qwen2():
    return tiny()


def random_codes(rng, items, levels, fan_out=5, ragged=False):
    """Token ids of a random catalog; ragged ones end early at random, none as the beginning of another."""
    codes = np.stack([rng.integers(level * 8, level * 8 + fan_out, items) for level in range(levels)], axis=1)
    if ragged:
        # An odd first token marks short SIDs, an even one long ones.
        for row in codes:
            if row[0] % 2:
                row[1 + row[0] % levels :] = NO_TOKEN
    return codes


def paths(codes, trailing=()):
    """The distinct SIDs as tuples, in the trie's order, and what is generated for each."""
    sids = sorted({tuple(row) for row in np.asarray(codes).tolist()})
    return sids, [(*(token for token in sid if token != NO_TOKEN), *trailing) for sid in sids]


def brute_force(model, prompt, codes, normalise_over="vocabulary", trailing=()):
    """Score each SID on its own, the slow and obvious way: (SIDs,) in the trie's order."""
    _, generated = paths(codes, trailing)
    scores = []
    for path in generated:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *path]])).logits[0].double()
        score = 0.0
        for step, token in enumerate(path):
            row = logits[len(prompt) - 1 + step]
            if normalise_over == "catalog":
                legal = {other[step] for other in generated if other[:step] == path[:step] and len(other) > step}
                row = torch.full_like(row, -torch.inf).index_copy(0, torch.tensor(sorted(legal)), row[sorted(legal)])
            score += float(row.log_softmax(-1)[token])
        scores.append(score)
    return torch.tensor(scores)


@st.composite
def catalogs(draw, most=50):
    """Random code matrices: depth, fan-out, ragged or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    return random_codes(
        rng, draw(st.integers(1, most)), draw(st.integers(1, 4)), draw(st.integers(1, 7)), ragged=draw(st.booleans())
    )


@pytest.fixture(scope="session")
def industrial():
    """The trie of the shipped Industrial catalog, its item codes, and a model that knows its tokens (ids from 40 on)."""
    index = json.loads(shared("data/amazon/index/Industrial_and_Scientific.index.json").read_text())
    tokens = sorted({token for sid in index.values() for token in sid})
    ids = {token: VOCABULARY + number for number, token in enumerate(tokens)}
    codes = np.array([[ids[token] for token in index[str(item)]] for item in range(len(index))])
    return CatalogTrie.from_codes(codes), codes, tiny(seed=1, vocabulary=VOCABULARY + len(tokens))
