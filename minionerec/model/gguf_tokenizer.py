"""The tokenizer that a GGUF file describes: its vocabulary and merges are in the file, its way of splitting text by name only.

Byte-level BPE is rebuilt for the names in `_SPLITS`, which stand for a way of splitting that is known exactly. A file with
another one needs the original model's tokenizer files next to it.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minionerec.errors import ConfigError

_Split = tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]
_SPECIAL = {  # the file's names of special tokens, and transformers'
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token",
}
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # kinds of tokens
# Control characters, bytes that UTF-8 does not have, and the first bytes of planes without characters: a vocabulary that was
# learnt from texts may lack them. The original tokenizer, too, then leaves them out.
_RARE = {*range(0x20), 0x7F, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)} - set(b"\t\n\r")
_WAY_OUT = (
    "Put the original model's tokenizer.json and tokenizer_config.json next to the file, or take the original model's folder."
)
# What a tokenizer must split in the same way before and after it was saved.
_SAMPLES = (
    "The user's items, oldest first: 12 345  6,7\n\n\tA title (1995)   ",
    "naïve cafe\u0301 — 東京 🙂 ½ ٣",
    "I'LL we've  don't; x_y=3.14",
)


def _gpt2() -> _Split:
    return None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> _Split:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return None, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def _qwen2() -> _Split:
    backend = Qwen2Tokenizer().backend_tokenizer
    return backend.normalizer, backend.pre_tokenizer


def _llama3() -> _Split:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return None, pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_SPLITS: dict[str, Callable[[], _Split]] = {"gpt-2": _gpt2, "smollm": _smollm, "qwen2": _qwen2, "llama-bpe": _llama3}
_WHOLE_WORDS = ("llama-bpe",)  # a piece of text that is a token is taken as it is, whatever merges would make of it


def special_ids(fields: Mapping[str, Any]) -> dict[str, int | None]:
    """The special tokens' ids as transformers' configuration names them; None if the file names none."""
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {ours: fields.get(f"tokenizer.ggml.{name}") for ours, name in names.items()}


def write(file: Path, fields: Mapping[str, Any], tokenizer_files: Mapping[str, Path], folder: Path) -> None:
    """Write the tokenizer into a folder that holds the model's configuration.

    Args:
        fields: the file's metadata.
        tokenizer_files: of the original model, by name; empty to rebuild the tokenizer.

    Raises:
        ConfigError: the tokenizer cannot be rebuilt exactly, or the files are another model's.
    """
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokenizer_files:
        for name, path in tokenizer_files.items():
            shutil.copyfile(path, folder / name)
        _check_vocabulary(file, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), tokens)
        return
    if not tokens:
        raise ConfigError(f"{file}: holds no tokenizer. {_WAY_OUT}")
    rebuilt = _rebuilt(file, fields, tokens)
    rebuilt.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    samples = [*_SAMPLES, "".join(rebuilt.all_special_tokens)]
    if again.get_vocab() != rebuilt.get_vocab() or again(samples)["input_ids"] != rebuilt(samples)["input_ids"]:
        raise ConfigError(
            f"{file}: transformers reads the tokenizer of this architecture as a {type(again).__name__}, which splits text "
            f"otherwise than tokenizer.ggml.pre {fields['tokenizer.ggml.pre']!r} says. {_WAY_OUT}"
        )


def _check_vocabulary(file: Path, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str] | None) -> None:
    """Refuse a tokenizer that gives a text another id than the file does.

    Raises:
        ConfigError: it does.
    """
    if not tokens:
        return
    for text, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        found = tokens[number] if number < len(tokens) else None
        if found != text:
            raise ConfigError(
                f"{file.parent / 'tokenizer.json'}: token {number} is {text!r}, but in {file.name} it is {found!r}. The "
                "tokenizer is another model's; take this model's, or move it away."
            )


def _rebuilt(file: Path, fields: Mapping[str, Any], tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """The tokenizer from the file's metadata.

    Raises:
        ConfigError: it is no byte-level BPE, its way of splitting is not known, or a part is missing.
    """
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise ConfigError(
            f"{file}: the tokenizer is of kind {kind!r} with the split {split!r}. Byte-level BPE (gpt2) with one of the splits "
            f"{known} can be rebuilt exactly. {_WAY_OUT}"
        )
    kinds = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    count = len(tokens)
    while count and kinds[count - 1] == _UNUSED:  # fills the embedding up to a round number of rows
        count -= 1
    vocabulary = {text: number for number, text in enumerate(tokens[:count])}
    if len(vocabulary) < count or len(kinds) != len(tokens):
        raise ConfigError(f"{file}: the vocabulary lists a token twice, or its list of kinds has another length. {_WAY_OUT}")
    if missing := [byte for byte, letter in bytes_to_unicode().items() if letter not in vocabulary and byte not in _RARE]:
        raise ConfigError(f"{file}: the byte {missing[0]:#x} is no token, so some texts cannot be written. {_WAY_OUT}")
    merges: Any = [tuple(merge.split(" ")) for merge in fields.get("tokenizer.ggml.merges", ())]
    if not merges:
        raise ConfigError(f"{file}: tokenizer.ggml.merges is missing. {_WAY_OUT}")
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split in _WHOLE_WORDS))
    normalizer, backend.pre_tokenizer = _SPLITS[split]()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder, backend.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        texts = [text for text, kind in zip(tokens, kinds, strict=True) if kind == wanted]
        add = backend.add_special_tokens if special else backend.add_tokens
        add([AddedToken(text, normalized=False, special=special) for text in texts])
    return _with_special_tokens(file, fields, tokens, backend)


def _with_special_tokens(
    file: Path, fields: Mapping[str, Any], tokens: Sequence[str], backend: Tokenizer
) -> PreTrainedTokenizerFast:
    options: dict[str, Any] = {"model_max_length": fields[f"{fields['general.architecture']}.context_length"]}
    for name, ours in _SPECIAL.items():
        if (number := fields.get(f"tokenizer.ggml.{name}")) is not None:
            if not 0 <= number < len(tokens):
                raise ConfigError(f"{file}: tokenizer.ggml.{name} is {number}; there are {len(tokens)} tokens. {_WAY_OUT}")
            options[ours] = tokens[number]
    # llama.cpp's default for this split; for the others it adds nothing that the file does not ask for.
    begins = fields.get("tokenizer.ggml.add_bos_token", fields["tokenizer.ggml.pre"] == "llama-bpe")
    for name, adds in (("add_bos_token", begins), ("add_eos_token", fields.get("tokenizer.ggml.add_eos_token", False))):
        if adds:
            options[name] = True
    if (template := fields.get("tokenizer.chat_template")) is not None:
        options["chat_template"] = template
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)
