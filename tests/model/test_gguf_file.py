"""GGUF files, written here as llama.cpp writes them: read whole and exactly, or refused in one line."""

import shutil

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from minionerec.errors import ConfigError
from minionerec.model import checkpoint, pretrained
from tests.model import gguf_files

pytest.importorskip("gguf", reason="the extra gguf is not installed")

TEXTS = [
    "The user's items, oldest first: 12 345  6,7",
    "a  1 b   22\n\n\tc ",
    "naïve cafe\u0301 東京 🙂 ½",
    "I'LL we've <|im_start|>user<|im_end|>",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "cache"))


def qwen2(tokenizer):
    """The tokenizer that transformers makes of this vocabulary for a Qwen2."""
    fields = gguf_files.vocabulary_of(tokenizer)
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Qwen2Tokenizer(tokenizer.get_vocab(), merges)
    made.add_special_tokens({"additional_special_tokens": gguf_files.SPECIAL})
    return made


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_weights_and_logits_are_those_of_the_model(tmp_path, kind, tied):
    changes = {"split": Qwen2Tokenizer().backend_tokenizer.pre_tokenizer, "tokenizer__ggml__pre": "qwen2"}
    changes = changes if kind == "qwen2" else {}
    model, tokenizer = gguf_files.write_model(tmp_path / "a.gguf", kind, tied=tied, **changes)
    loaded, words = checkpoint.load(tmp_path / "a.gguf")
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, values in loaded.state_dict().items():
        assert torch.equal(values, expected[name]), name
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    ids = words(TEXTS[:1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    for text in TEXTS:
        expected = qwen2(tokenizer)(text)["input_ids"] if kind == "qwen2" else tokenizer.encode(text).ids
        assert words(text)["input_ids"] == expected, text
    assert words.eos_token_id == words.pad_token_id == 2 and words.bos_token_id == 1
    assert words.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"
    assert loaded.config.rms_norm_eps == 1e-5 and loaded.config.rope_parameters["rope_theta"] == 100_000.0


@pytest.mark.parametrize("form", ["Q4_1", "Q4_0", "Q8_0", "F16", "BF16"])
def test_numbers_are_those_that_transformers_own_reader_gives(tmp_path, form):
    gguf_files.write_model(tmp_path / "a.gguf", "llama", form)
    own = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    loaded, _ = checkpoint.load(tmp_path / "a.gguf")
    for name, values in own.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values), name


def test_a_folder_with_one_file_is_that_file_and_of_several_one_is_named(tmp_path):
    gguf_files.write_model(tmp_path / "model/a.gguf".replace("model/", ""), "llama")
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "a.gguf").rename(folder / "a.gguf")
    assert pretrained.resolve(folder) == pretrained.resolve(folder / "a.gguf")
    assert pretrained.identity(folder) == pretrained.identity(folder / "a.gguf") != None  # noqa: E711
    shutil.copyfile(folder / "a.gguf", folder / "b.gguf")
    with pytest.raises(ConfigError, match=r"holds 2 GGUF files \(a\.gguf, b\.gguf\)\. Name one"):
        pretrained.resolve(folder)
    (folder / "model.safetensors").touch()  # a folder of transformers, with a GGUF file beside
    assert pretrained.resolve(folder) == folder


def test_rows_that_fill_the_embedding_are_no_tokens(tmp_path):
    gguf_files.write_model(tmp_path / "a.gguf", "llama", rows=416)
    loaded, words = checkpoint.load(tmp_path / "a.gguf")
    assert checkpoint.vocabulary_rows(loaded) == 416 > len(words) and "[PAD415]" not in words.get_vocab()


def test_digits_are_split_before_spaces_are(tmp_path):
    """transformers' own reader takes the split of GPT-2 for SmolLM's, which differs where spaces precede a digit."""
    _, tokenizer = gguf_files.write_model(tmp_path / "a.gguf", "llama")
    _, words = checkpoint.load(tmp_path / "a.gguf")
    own = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    expected = tokenizer.encode("a  1").ids
    assert words("a  1")["input_ids"] == expected != own("a  1")["input_ids"]


REFUSED = {
    "architecture": ({"general__architecture": "mamba"}, "architecture is 'mamba'; llama, qwen2, qwen3 can be read exactly"),
    "part of several": ({"split__count": 3}, r"one of 3 parts\. Join them first"),
    "scaled positions": ({"llama__rope__scaling__type": "yarn"}, r"llama\.rope\.scaling\.type is 'yarn', which this reader"),
    "experts": ({"llama__expert_count": 4}, r"llama\.expert_count is 4, which this reader does not know"),
    "a window": ({"llama__attention__sliding_window": 64}, r"llama\.attention\.sliding_window is 64"),
    "layers of unequal width": ({"llama__feed_forward_length": [96, 96]}, r"feed_forward_length is \[96, 96\]"),
    "half a rotation": ({"llama__rope__dimension_count": 8}, r"rope\.dimension_count is 8, but a head is 16 wide"),
    "another vocabulary": ({"llama__vocab_size": 7}, r"vocab_size is 7, but token_embd\.weight has \d+ rows"),
    "a missing setting": ({"drop": ["llama.block_count"]}, r"does not say llama\.block_count"),
    "a missing tensor": ({"drop": ["blk.1.ffn_up.weight"]}, r"lacks model\.layers\.1\.mlp\.up_proj\.weight\. Is it cut off"),
    "two missing tensors": ({"drop": ["output_norm.weight", "blk.0.attn_q.weight"]}, "lacks .* and 1 other tensors"),
    "no embedding": ({"drop": ["token_embd.weight"]}, r"token_embd\.weight is missing"),
    "another bias": (
        {"blk__0__attn_q__bias": np.ones(64, np.float32)},
        r"no place for the tensor blk\.0\.attn_q\.bias",
    ),
    "scaled rotation": ({"rope_freqs__weight": np.ones(8, np.float32)}, r"rope_freqs\.weight \(scaled rotary positions\)"),
    "one more layer": ({"blk__2__ffn_up__weight": np.ones((96, 64), np.float32)}, r"no place for the tensor blk\.2\.ffn_up"),
    "another shape": ({"output_norm__weight": np.ones(32, np.float32)}, r"output_norm\.weight has the shape \(32,\).*\(64,\)"),
    "not a number": ({"output_norm__weight": np.full(64, np.nan, np.float32)}, r"output_norm\.weight holds NaN or infinity"),
    "SentencePiece": ({"tokenizer__ggml__model": "llama"}, r"tokenizer is of kind 'llama'.*gpt-2, smollm, qwen2, llama-bpe"),
    "another split": ({"tokenizer__ggml__pre": "tekken"}, r"with the split 'tekken'.*Put the original model's tokenizer\.json"),
    "no split": ({"drop": ["tokenizer.ggml.pre"]}, "with the split None"),
    "no tokens": ({"drop": ["tokenizer.ggml.tokens"]}, "holds no tokenizer"),
    "no merges": ({"drop": ["tokenizer.ggml.merges"]}, r"tokenizer\.ggml\.merges is missing"),
    "no end": ({"drop": ["tokenizer.ggml.eos_token_id"]}, r"no end-of-sequence token"),
    "an end beyond the vocabulary": ({"tokenizer__ggml__eos_token_id": 4000}, "eos_token_id is 4000; there are"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_exactly_is_refused_with_the_reason(tmp_path, changes, reason):
    gguf_files.write_model(tmp_path / "a.gguf", "llama", **changes)
    with pytest.raises(ConfigError, match=reason) as caught:
        checkpoint.load(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)
    assert [*(tmp_path / "cache").rglob("model.safetensors")] == [] or "no end" in reason


def test_a_token_twice_and_a_byte_that_is_missing(tmp_path):
    fields = gguf_files.vocabulary_of(gguf_files.bpe(gguf_files.by_digit()))
    tokens = fields["tokenizer.ggml.tokens"]
    gguf_files.write_model(tmp_path / "a.gguf", tokenizer__ggml__tokens=[*tokens[:-1], tokens[-2]])
    with pytest.raises(ConfigError, match="lists a token twice"):
        checkpoint.load(tmp_path / "a.gguf")
    byte = tokens.index("Ã")
    gguf_files.write_model(tmp_path / "b.gguf", tokenizer__ggml__tokens=[*tokens[:byte], "something", *tokens[byte + 1 :]])
    with pytest.raises(ConfigError, match="the byte 0xc3 is no token"):
        checkpoint.load(tmp_path / "b.gguf")
    control = tokens.index("Ą")  # the control character 4, which no text has
    gguf_files.write_model(tmp_path / "c.gguf", tokenizer__ggml__tokens=[*tokens[:control], "x" * 9, *tokens[control + 1 :]])
    assert (
        checkpoint.load(tmp_path / "c.gguf")[1].decode(checkpoint.load(tmp_path / "c.gguf")[1]("a\x04b")["input_ids"]) == "ab"
    )


@pytest.mark.parametrize("share", [0, 0.3, 0.8, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path, share):
    gguf_files.write_model(tmp_path / "a.gguf")
    content = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigError, match=r"a\.gguf: not a readable GGUF file"):
        checkpoint.load(tmp_path / "a.gguf")


def test_a_tokenizer_that_transformers_would_read_otherwise_is_refused(tmp_path):
    """All tokenizers of a Qwen2 are read as Qwen2's, whatever their files say."""
    gguf_files.write_model(tmp_path / "a.gguf", "qwen2")  # with SmolLM's split
    with pytest.raises(ConfigError, match=r"reads the tokenizer of this architecture as a Qwen2Tokenizer.*'smollm'"):
        checkpoint.load(tmp_path / "a.gguf")


def test_tokenizer_files_next_to_the_file_take_its_place(tmp_path):
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gguf_files.write_model(tmp_path / "a.gguf", split=split, tokenizer__ggml__pre="gpt-2")
    checkpoint.load(tmp_path / "a.gguf")[1].save_pretrained(tmp_path / "original")
    gguf_files.write_model(tmp_path / "b.gguf", split=split, tokenizer__ggml__pre="unheard-of")
    for path in (tmp_path / "original").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    _, words = checkpoint.load(tmp_path / "b.gguf")
    assert words(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(tmp_path / "original")(TEXTS)["input_ids"]
    gguf_files.write_model(tmp_path / "b.gguf")  # learnt with another split
    with pytest.raises(ConfigError, match=r"tokenizer\.json: token \d+ is .* but in b\.gguf it is .*another model's"):
        checkpoint.load(tmp_path / "b.gguf")
