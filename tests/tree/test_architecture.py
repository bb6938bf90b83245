"""Which models trees compute exactly: by structure, by the self-test on their weights, and up to which length."""

import pytest
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BigBirdConfig,
    BloomConfig,
    CodeGenConfig,
    DogeConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3_5TextConfig,
    RobertaConfig,
    XGLMConfig,
)

from minionerec.errors import ConstraintError
from minionerec.tree import (
    Branch,
    CatalogTrie,
    beam_search,
    forward,
    pack,
    prompt_cache,
    score_catalog,
    self_test,
    tree_logprobs,
)
from minionerec.tree.architecture import check_model, exactness, longest_text
from tests.tree.conftest import tiny

BERT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {**BERT, "num_key_value_heads": 2}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
MIXED = ["sliding_attention", "full_attention"]
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")}
FALCON = {name: value for name, value in BERT.items() if name != "intermediate_size"}


def random_model(config):
    """A model whose matrices are N(0, .25), so that texts differ by nats; eager if it has no sdpa."""
    attention = "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.25, generator=generator)
    return model


EQUAL = {
    "attention-only LFM2": Lfm2Config(**SIZES, layer_types=["full_attention"] * 2),
    "BERT as a decoder": BertConfig(**BERT, is_decoder=True),
    "CodeGen": CodeGenConfig(**GPT, rotary_dim=4),
    "Doge": DogeConfig(**SIZES),
    "Falcon": FalconConfig(**FALCON),
    "Gemma-2": Gemma2Config(**SIZES, head_dim=8, sliding_window=12, layer_types=MIXED),
    "Gemma-3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=12, layer_types=MIXED),
    "GPT-J": GPTJConfig(**GPT, rotary_dim=4),
    "GPT-Neo": GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=32,
    ),
    "GPT-OSS": GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, sliding_window=12),
    "Llama-4": Llama4TextConfig(
        **SIZES, intermediate_size_mlp=48, head_dim=8, num_local_experts=2, attention_chunk_size=12, pad_token_id=0
    ),
    "Mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=12),
    "XGLM": XGLMConfig(vocab_size=64, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
}
REFUSED = {
    "Qwen3.5": (
        Qwen3_5TextConfig(**SIZES, **LINEAR, layer_types=["linear_attention", "full_attention"]),
        "kind linear_attention",
    ),
    "LFM2": (Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), r"kind conv \(short convolution"),
    "BART": (
        BartConfig(vocab_size=64, d_model=32, decoder_layers=1, encoder_layers=1, decoder_ffn_dim=48, encoder_ffn_dim=48),
        "takes no position_ids",
    ),
    "BLOOM": (BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), "takes no position_ids"),
    "Falcon with ALiBi": (FalconConfig(**FALCON, alibi=True), "bias for the distance .*ALiBi"),
    "BERT": (BertConfig(**BERT), "sees later tokens too .* is config.is_decoder unset"),
    "RoBERTa": (RobertaConfig(**BERT, is_decoder=True), "numbers positions from its padding token on"),
}


@pytest.fixture
def no_guard(monkeypatch):
    """Structure is not looked at, so that the self-test and the numbers have to tell."""
    for module in (self_test, forward, prompt_cache):
        monkeypatch.setattr(module, "check_model", lambda model: None)


@pytest.mark.parametrize("config", EQUAL.values(), ids=EQUAL)
def test_allowed_models_give_the_numbers_of_plain_forwards(config):
    """Paths of 12 tokens, which is the window of those that have one; the last token of a completion is never computed."""
    model = random_model(config)
    self_test.check_exact(model)
    tokens = torch.randint(3, 60, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    prompt, completions = tokens[:10], [[*tokens[10:12], 7], [*tokens[10:12], 9], [tokens[12], tokens[13], 5]]
    texts = torch.tensor([[*prompt, *completion] for completion in completions])
    with torch.no_grad():
        plain = torch.stack([model(input_ids=text[None]).logits[0].float().log_softmax(-1) for text in texts])
        logprobs = tree_logprobs(
            model, pack([Branch(prompt, completion) for completion in completions], row_tokens=64)
        ).logprobs
    expected = plain[:, 9:12].gather(-1, texts[:, 10:, None]).squeeze(-1)
    torch.testing.assert_close(logprobs.view(3, 3), expected, atol=2e-5, rtol=0)
    trie = CatalogTrie.from_codes(torch.tensor(completions))
    scores = expected.sum(1)[[completions.index(sid) for sid in trie.sids.tolist()]]
    result = beam_search(model, torch.tensor([prompt]), trie=trie, num_beams=3)
    torch.testing.assert_close(result.scores[0], scores.sort(descending=True).values, atol=5e-5, rtol=0)
    torch.testing.assert_close(score_catalog(model, torch.tensor([prompt]), trie=trie)[0], scores, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED)
def test_layers_that_do_not_follow_a_mask_are_refused_by_their_kind(config, reason):
    with torch.device("meta"):  # structure needs no weights
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConstraintError, match=reason):
        check_model(model)
    with pytest.raises(ConstraintError, match=reason):
        tree_logprobs(model, pack([Branch([1], [2])], row_tokens=4))
    trie = CatalogTrie.from_codes(torch.tensor([[1, 2]]))
    with pytest.raises(ConstraintError, match=reason):
        beam_search(model.eval(), torch.tensor([[1]]), trie=trie, num_beams=1)


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED)
def test_the_self_test_finds_them_by_their_numbers(config, reason, no_guard):
    model = random_model(config).train()
    state = torch.get_rng_state()
    with pytest.raises(ConstraintError, match=r"gives other numbers on a tree|cannot be computed on trees"):
        self_test.check_exact(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_the_self_test_tells_rounding_from_a_wrong_layer_at_any_scale(no_guard, dtype, scale):
    right, wrong = random_model(Qwen2Config(**SIZES)), random_model(REFUSED["Qwen3.5"][0])
    for model in (right, wrong):
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(scale / 0.25)
        model.to(dtype)
    self_test.check_exact(right)
    with pytest.raises(ConstraintError, match=r"gives other numbers|cannot be computed"):
        self_test.check_exact(wrong)


LENGTHS = {
    "window": (MistralConfig(**SIZES, head_dim=8, sliding_window=12), "attention window of 12"),
    "window of some layers": (
        Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=12, layer_types=MIXED),
        "attention window of 12",
    ),
    "chunks": (EQUAL["Llama-4"], r"attention window \(attention_chunk_size\) of 12"),
    "table of positions": (GPT2Config(**{**GPT, "n_positions": 12}), "table of positions of 12"),
    "dynamic RoPE": (
        LlamaConfig(
            **SIZES, max_position_embeddings=12, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        ),
        r"original length \(RoPE of type dynamic\) of 12",
    ),
    "longrope": (
        Phi3Config(**SIZES, pad_token_id=0, original_max_position_embeddings=12, rope_parameters=LONG_ROPE),
        r"original length \(RoPE of type longrope\) of 12",
    ),
}


@pytest.mark.parametrize(("config", "limit"), LENGTHS.values(), ids=LENGTHS)
def test_a_path_may_have_the_last_exact_length_and_no_token_more(config, limit):
    model = random_model(config)
    prompt = torch.randint(3, 60, (1, 11), generator=torch.Generator().manual_seed(1))
    trie = CatalogTrie.from_codes(torch.tensor([[5, 6], [5, 7], [8, 7]]))
    with torch.no_grad():
        alone = [model(torch.cat([prompt, sid[None]], 1)).logits[0, 10:12].float().log_softmax(-1) for sid in trie.sids[:, :1]]
    steps = [float(logprobs[[0, 1], sid].sum()) for logprobs, sid in zip(alone, trie.sids, strict=True)]
    assert score_catalog(model, prompt, trie=trie)[0].tolist() == pytest.approx(steps, abs=5e-5)
    assert pack([Branch(prompt[0].tolist(), [5, 6])], row_tokens=64).longest == 12
    longer = torch.cat([prompt, prompt[:, :1]], dim=1)
    with pytest.raises(ConstraintError, match=f"A path of 13 tokens is longer than the model's {limit}"):
        score_catalog(model, longer, trie=trie)
    with pytest.raises(ConstraintError, match=f"A path of 13 tokens is longer than the model's {limit}"):
        tree_logprobs(model, pack([Branch(longer[0].tolist(), [5, 6])], row_tokens=64))


def test_padding_does_not_count_as_path():
    model = random_model(LENGTHS["window"][0])
    prompt = torch.randint(3, 60, (1, 11), generator=torch.Generator().manual_seed(1))
    trie = CatalogTrie.from_codes(torch.tensor([[5, 6], [8, 7]]))
    padded = torch.nn.functional.pad(prompt, (5, 0))
    scores = score_catalog(model, padded, (torch.arange(16) >= 5).long()[None], trie=trie)
    torch.testing.assert_close(scores, score_catalog(model, prompt, trie=trie), atol=1e-5, rtol=0)


ROWS = {
    "best keys of the row": (DogeConfig(**SIZES, keep_window_size=16), "number of keys"),
    "window of the row": (EQUAL["GPT-Neo"], r"attention window \(window_size\)"),
    "temperatures": (
        Llama4TextConfig(**SIZES, intermediate_size_mlp=48, head_dim=8, num_local_experts=2, floor_scale=17, pad_token_id=0),
        "first step of attention temperatures",
    ),
}


@pytest.mark.parametrize(("config", "limit"), ROWS.values(), ids=ROWS)
def test_a_row_may_have_the_last_exact_length_and_no_token_more(config, limit):
    model, prompt = random_model(config), [3, 14, 15, 9, 26]
    branches = [Branch(prompt, [first, 20]) for first in range(30, 41)]
    with torch.no_grad():
        alone = [tree_logprobs(model, pack([branch], row_tokens=16)).logprobs for branch in branches]
        together = tree_logprobs(model, pack(branches, row_tokens=16)).logprobs
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=0)
    with pytest.raises(ConstraintError, match=f"A row of 17 tokens is longer than the model's {limit} .*of 16"):
        tree_logprobs(model, pack([*branches, Branch(prompt, [50, 20])], row_tokens=32))


def test_a_composite_model_has_the_limits_of_its_text_model():
    text = Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=12, layer_types=MIXED, max_position_embeddings=100)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text))
    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    check_model(model)
    assert [(limit.tokens, limit.kind) for limit in exactness(model).limits] == [(12, "window")]
    assert longest_text(model) == 100


def test_the_context_ends_where_trees_stop_to_be_exact():
    assert longest_text(tiny("gpt2")) == 300
    assert longest_text(random_model(LENGTHS["longrope"][0])) == 12
    assert longest_text(random_model(LENGTHS["window"][0])) == MistralConfig().max_position_embeddings


def test_rows_that_would_be_cut_into_blocks_are_beyond_the_limit():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(BigBirdConfig(**BERT, is_decoder=True, block_size=4, num_random_blocks=1))
    assert (28, "row") in [(limit.tokens, limit.kind) for limit in exactness(model).limits]
