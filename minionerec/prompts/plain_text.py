"""Item texts that hold nothing but text: what a tokenizer would read as a SID or as a special token is broken up."""

import re

from transformers import PreTrainedTokenizerBase

_SID_TOKEN = r"<[a-z]_\d+>"  # as `sid.index.token_string` writes it, of this catalog or of another


class PlainText:
    """Breaks up the tokens in a text, by a space behind their first character.

    A tokenizer reads `<|endoftext|>` in a title as the end of the answer, and `<a_1>` as a code. A model would learn from such
    a title that answers end in the middle, or that another item follows.

    >>> from transformers import Qwen2Tokenizer
    >>> plain = PlainText(Qwen2Tokenizer(eos_token="<|endoftext|>"))
    >>> plain("title <a_1><b_2> decoy <|endoftext|>")
    'title < a_1>< b_2> decoy < |endoftext|>'

    Args:
        tokenizer: whose special tokens count; tokens that it adds for ordinary text (line breaks, HTML tags) stay.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = {token for token in added | set(tokenizer.all_special_tokens) if len(token.strip()) > 1}
        longest_first = sorted(special, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join([_SID_TOKEN, *map(re.escape, longest_first)]))

    def __call__(self, text: str) -> str:
        """The text, unchanged if it holds no token."""
        while (plain := self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
            text = plain
        return text

    def holds_token(self, text: str) -> bool:
        """Whether the text would be changed."""
        return self._pattern.search(text) is not None
