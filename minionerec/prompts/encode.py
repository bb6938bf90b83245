"""Examples as token ids, cut to what the model can read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from minionerec.config import PromptsConfig
from minionerec.errors import ConfigError
from minionerec.prompts.chat import chat_renderer
from minionerec.prompts.tasks import Example, Question
from minionerec.prompts.wordings import HEADER


@dataclass(frozen=True)
class TokenExample:
    """An example as token ids. Prompt and completion are tokenized separately, so that no token spans the two.

    Attributes:
        target: index of the item that the completion names.
        group: examples of a task with the same group are expected to share the beginning of their prompts.
        is_sid: the completion is a SID, a path of the catalog's trie.
        row: the split's row whose history the prompt shows; None for a task without history.
        cut: something was left out because the example was too long.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    target: int
    group: int
    is_sid: bool
    row: int | None = None
    cut: bool = False


class Encoder:
    """Turns examples into token ids.

    A text completion ends with the tokenizer's end token; a SID needs none, because no SID is the beginning of another.

    An example longer than `context` or `prompts.max_tokens` is cut. A text completion is first cut to half the limit and loses
    its end token. Then the prompt is shortened: a history loses its oldest items, a text its last words, and a single long word
    its last characters. A SID is never cut.

    Args:
        context: tokens that the model can read, prompt and completion together; None if unlimited.
        levels: tokens of the longest SID.

    Attributes:
        limit: tokens of the longest example, prompt and completion together; None if unlimited.

    Raises:
        ConfigError: the style is chat, and the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptsConfig, context: int | None, levels: int) -> None:
        self._tokenizer, self._config, self._levels = tokenizer, config, levels
        self._render, self._appended = _renderer(config.style, tokenizer), appended_tokens(tokenizer)
        self.limit = min((limit for limit in (context, config.max_tokens) if limit is not None), default=None)

    def examples(self, examples: Sequence[Example]) -> list[TokenExample]:
        """Prompts and completions of the examples, in their order.

        Raises:
            ConfigError: an example is too long even with one item or character, or the tokenizer makes no tokens of it.
        """
        if not examples:
            return []
        prompts = self._tokens([self.text(example.question) for example in examples])
        completions = self._answers([example.completion for example in examples])
        encoded = []
        for example, prompt, completion in zip(examples, prompts, completions, strict=True):
            if not example.is_sid:
                completion = [*completion, self._tokenizer.eos_token_id]
            if not prompt or not completion:
                raise self._no_tokens(example.completion if prompt else example.question.text())
            # A prompt must not tell how long its answer is, so every SID reserves the room of the longest.
            reserved = self._levels if example.is_sid else len(completion)
            cut = self.limit is not None and len(prompt) + reserved > self.limit
            if self.limit is not None and cut:
                if not example.is_sid:
                    completion = completion[: max(self.limit // 2, 1)]
                    reserved = len(completion)
                prompt, _ = self._shortened(example.question, self.limit - reserved, f"Item {example.target}")
            encoded.append(TokenExample(prompt, completion, example.target, example.group, example.is_sid, example.row, cut))
        return encoded

    def texts(self, completions: Sequence[str]) -> list[list[int]]:
        """Answers that are texts, each as it is trained unless it is cut: with the end token behind it."""
        return [[*tokens, self._tokenizer.eos_token_id] for tokens in self._answers(completions)]

    def _answers(self, completions: Sequence[str]) -> list[list[int]]:
        # Only the plain style continues the prompt's text; after a header or a chat turn a leading space would be wrong.
        plain = self._config.style == "plain"
        answers = [completion if plain else completion.lstrip() for completion in completions]
        ids: list[list[int]] = self._tokenizer(answers, add_special_tokens=False)["input_ids"]
        return ids

    def prompts(self, questions: Sequence[Question], room: int | None = None) -> list[tuple[list[int], int]]:
        """The prompts of questions whose answer is not known yet, each with how many oldest items were left out.

        Args:
            room: tokens of the longest answer; None for the longest SID.

        Raises:
            ConfigError: a prompt is too long even with one item, or the tokenizer makes no tokens of it.
        """
        prompts, room = [], self._levels if room is None else room
        for question, prompt in zip(questions, self._tokens([self.text(question) for question in questions]), strict=True):
            if not prompt:
                raise self._no_tokens(question.text())
            parts = len(question.parts)
            if self.limit is not None and len(prompt) + room > self.limit:
                prompt, parts = self._shortened(question, self.limit - room, "A history")
            prompts.append((prompt, len(question.parts) - parts))
        return prompts

    def shortest(self, questions: Sequence[Question]) -> int:
        """Tokens of the longest of these prompts if each is cut to one item, or to one character of it."""
        texts = {self.text(question, *((1, 1, 1) if question.breakable else (1,))) for question in questions}
        return max(map(len, self._tokens(sorted(texts))))

    def text(self, question: Question, *limits: int) -> str:
        """A whole prompt, with at most so many parts of the question, words of a part and characters of a word."""
        return self._render(question.instruction, question.text(*limits))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        # A tokenizer that begins every text with a token of its own (Llama's <s>) does so here too, once, before the prompt;
        # a chat template brings its own. What it puts behind a text (an end token) would stand between prompt and answer.
        framed = self._config.style != "chat"
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=framed)["input_ids"]
        return [tokens[: len(tokens) - self._appended] for tokens in ids] if framed and self._appended else ids

    def _shortened(self, question: Question, room: int, asker: str) -> tuple[list[int], int]:
        """The prompt with as many parts as fit into `room` tokens, or as many words or characters of a single part.

        Returns:
            the prompt, and how many parts are left of it.

        Args:
            asker: whom an error names.
        """

        def with_at_most(*limits: int) -> list[int]:
            return self._tokens([self.text(question, *limits)])[0]

        prompt, parts = _longest_fit(with_at_most, len(question.parts), room)
        if len(prompt) > room and question.breakable:
            words = question.parts[-1 if question.newest else 0].removeprefix(question.mark).split(" ")
            prompt, _ = _longest_fit(partial(with_at_most, 1), len(words), room)
            if len(prompt) > room:
                prompt, _ = _longest_fit(partial(with_at_most, 1, 1), len(words[0]), room)
        if len(prompt) > room and self.limit is not None:
            bound = "prompts.max_tokens is" if self.limit == self._config.max_tokens else "the model reads"
            raise ConfigError(
                f"{asker}, prompt {question.text(1)[:40]!r}...: {len(prompt) + self.limit - room} tokens with one "
                f"{'character' if question.breakable else 'item'} left of it, {bound} {self.limit}. Take a model that reads "
                "more, a shorter prompts.style, or shorten the item's text."
            )
        return prompt, parts

    @staticmethod
    def _no_tokens(text: str) -> ConfigError:
        return ConfigError(
            f"The tokenizer makes no tokens of {text[:40]!r}; its files are incomplete (is tokenizer.json missing?)."
        )


def _longest_fit(with_at_most: Callable[[int], list[int]], parts: int, room: int) -> tuple[list[int], int]:
    """The longest prompt of at most `room` tokens and its number of parts, by bisection; with one part if none fits."""
    low, high = 1, parts
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(with_at_most(middle)) <= room else (low, middle - 1)
    return with_at_most(low), low


def _renderer(style: str, tokenizer: PreTrainedTokenizerBase) -> Callable[[str, str], str]:
    """A function of instruction and question that returns the whole prompt's text.

    Raises:
        ConfigError: the style is chat, and the tokenizer has no chat template that can be used.
    """
    if style == "plain":
        return lambda instruction, question: question
    if style == "alpaca":
        return lambda instruction, question: HEADER.replace("{instruction}", instruction).replace("{question}", question, 1)
    return chat_renderer(tokenizer)


def appended_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of its own a tokenizer puts behind every text, such as an end token."""
    text, framed = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    behind = [len(framed) - end for end in range(len(text), len(framed) + 1) if framed[end - len(text) : end] == text]
    return min(behind, default=0) if text else 0
