import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Lfm2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from minionerec.config import ModelConfig
from minionerec.errors import CatalogError, ConfigError
from minionerec.model import checkpoint, scratch
from minionerec.sid.index import SidIndex

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, vocabulary=320)
TEXTS = ["a red lamp", "a blue chair, quite old", "Amélie (2001)"] * 5


def index(size: int = 8) -> SidIndex:
    return SidIndex(np.array([[0, 1, 2], [3, 4, 5]], dtype=np.int32), (size,) * 3, "digest")


@pytest.fixture
def made():
    return scratch.create(TEXTS, SIZES, 0)


def test_any_text_survives_the_tokenizer(made):
    for text in ("Amélie", "日本 ☂ tabs\tand\nlines", "  two  spaces", "<a_1>"):
        assert made[1].decode(made[1](text)["input_ids"]) == text


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_apart_old_rows_stay_and_ties_hold(made, tied):
    _, tokenizer = made
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,  # as real checkpoints have: more rows than tokens
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    old = model.get_input_embeddings().weight[: len(tokenizer)].clone()
    known = len(tokenizer)
    assert checkpoint.add_sid_tokens(model, tokenizer, index(), seed=1) == 24
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = layer.weight[known : known + 24]
        assert torch.pdist(rows).min() > 0.3 * torch.pdist(old).median()
        assert 0.5 < rows.std() / old.std() < 2
    assert torch.equal(model.get_input_embeddings().weight[:known], old)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_save_and_load_give_the_same_model_and_tokens(made, tmp_path):
    model, tokenizer = made
    checkpoint.add_sid_tokens(model, tokenizer, index(), seed=1)
    checkpoint.save(model, tokenizer, tmp_path)
    loaded, words = checkpoint.load(tmp_path)
    text = "a red<a_3><b_4><c_5> lamp"
    assert words(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert words.decode(words(text)["input_ids"]) == text
    ids = torch.tensor([words(text)["input_ids"]])
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    expected = [words("<a_0><b_1><c_2>")["input_ids"], words("<a_3><b_4><c_5>")["input_ids"]]
    assert checkpoint.sid_token_ids(words, index()).tolist() == expected
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_adding_twice_adds_nothing(made):
    model, tokenizer = made
    checkpoint.add_sid_tokens(model, tokenizer, index(), seed=1)
    size, weights = len(tokenizer), model.get_input_embeddings().weight.clone()
    assert checkpoint.add_sid_tokens(model, tokenizer, index(), seed=2) == 0
    assert torch.equal(model.get_input_embeddings().weight, weights)  # trained rows are kept
    assert len(tokenizer) == size == checkpoint.vocabulary_rows(model)


def test_tokenizer_without_the_catalog(made):
    model, tokenizer = made
    checkpoint.add_sid_tokens(model, tokenizer, index(), seed=1)
    with pytest.raises(CatalogError, match=r"lacks 6 of the catalog's 30 SID tokens, the first is <a_8>"):
        checkpoint.sid_token_ids(tokenizer, index(10))


def test_nothing_loadable(tmp_path):
    with pytest.raises(ConfigError, match="not a loadable causal LM"):
        checkpoint.load(tmp_path)
    with pytest.raises(ConfigError, match="not a loadable causal LM"):
        checkpoint.load(tmp_path / "no such model")


def saved(made, folder, change):
    """A base model on disk whose tokenizer was changed."""
    model, tokenizer = made
    change(tokenizer)
    checkpoint.save(model, tokenizer, folder)
    return folder


def test_a_tokenizer_without_end_or_padding_token(made, tmp_path):
    folder = saved(made, tmp_path, lambda tokenizer: setattr(tokenizer, "pad_token", None))
    tokenizer = checkpoint.load(folder)[1]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None
    saved(made, folder, lambda tokenizer: setattr(tokenizer, "eos_token", None))
    with pytest.raises(ConfigError, match=r"no end-of-sequence token \(eos_token\)"):
        checkpoint.load(folder)


def test_a_vocabulary_smaller_than_the_tokenizer(made, tmp_path):
    rows = len(made[1])
    folder = saved(made, tmp_path, lambda tokenizer: tokenizer.add_tokens(["one", "more"]))
    with pytest.raises(ConfigError, match=rf"a token with id {rows + 1}, but the model's vocabulary has only {rows} rows"):
        checkpoint.load(folder)


def test_a_padding_token_may_lie_outside_the_vocabulary(made, tmp_path):
    folder = saved(made, tmp_path, lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<nothing>"}))
    model, tokenizer = checkpoint.load(folder)
    assert tokenizer.pad_token_id == checkpoint.vocabulary_rows(model)


def another_model(config, tokenizer, folder):
    """A base model of another architecture on disk, with random weights."""
    torch.manual_seed(0)
    checkpoint.save(AutoModelForCausalLM.from_config(config), tokenizer, folder)
    return folder


def sizes_for(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


@pytest.mark.parametrize("weights", [True, False])
def test_a_model_with_layers_that_ignore_masks_is_refused_with_and_without_weights(made, tmp_path, weights):
    config = Lfm2Config(**sizes_for(made[1]), layer_types=["conv", "full_attention"])
    folder = another_model(config, made[1], tmp_path)
    with pytest.raises(ConfigError, match=r"A Lfm2ForCausalLM cannot be computed on trees.* kind conv \(short convolution"):
        checkpoint.load(folder, weights=weights)


@pytest.mark.parametrize("weights", [True, False])
def test_a_model_without_sdpa_is_loaded_with_eager_attention(made, tmp_path, weights):
    folder = another_model(Gemma2Config(**sizes_for(made[1]), head_dim=8, sliding_window=12), made[1], tmp_path)
    model, _ = checkpoint.load(folder, weights=weights)
    assert model.config._attn_implementation == "eager"


def test_what_structure_does_not_show_is_found_on_the_weights(made, tmp_path, monkeypatch):
    folder = saved(made, tmp_path, lambda tokenizer: None)
    attention = "transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer.forward"
    original = Qwen2DecoderLayer.forward

    def forward(self, hidden_states, *args, **kwargs):
        return original(self, hidden_states + 3 * hidden_states.roll(1, dims=1), *args, **kwargs)

    monkeypatch.setattr(attention, forward)
    checkpoint.load(folder, weights=False)
    with pytest.raises(ConfigError, match=r"Qwen2ForCausalLM gives other numbers on a tree .* nats per token"):
        checkpoint.load(folder)
