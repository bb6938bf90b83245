"""The one prompt builder: examples of a task as token ids, the same for SFT, RL and evaluation."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from minionerec.config import DEFAULT_TASKS, PromptsConfig, TaskName
from minionerec.data.dataset import Dataset, SplitName
from minionerec.errors import ConfigError
from minionerec.prompts.tasks import Example, examples_of
from minionerec.prompts.wordings import HEADER, WORDINGS, wordings_digest
from minionerec.sid.index import SidIndex

PLAIN = PromptsConfig()
WHOLE: Mapping[TaskName, float] = MappingProxyType({})  # shares: of every task all examples

_One = TypeVar("_One")


@dataclass(frozen=True)
class TokenExample:
    """An example as token ids; prompt and completion are tokenised apart, so that no token spans the two.

    Attributes:
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


def prompts_section(prompts: PromptsConfig) -> dict[str, Any]:
    """What the key of an artefact says of its prompts: the section's values, and the words themselves by their digest."""
    return {**asdict(prompts), "words": wordings_digest()}


def check_prompts(made: Mapping[str, Any], prompts: PromptsConfig, folder: str) -> None:
    """Compare the prompts that a model was trained with to those that it is to be asked with.

    Args:
        made: the `config` of the model's manifest.

    Raises:
        ConfigError: they differ; a model that was never asked like this answers badly, and nothing would say why.
    """
    now, then = prompts_section(prompts.for_training()), made["prompts"]
    for name, value in now.items():
        if value != then.get(name):
            what = "words of this version" if name == "words" else f"prompts.{name} {value}"
            raise ConfigError(
                f"{folder} was trained with other prompts ({name}: {then.get(name)}), but now it is to be asked with {what}. "
                "Train it again, or set the section prompts as it was. To measure the released code's mistake of asking "
                "differently in evaluation: prompts.eval_style released."
            )


def build_examples(
    task: TaskName,
    dataset: Dataset,
    index: SidIndex,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: SplitName,
    stride: int = 1,
    context: int | None = None,
    prompts: PromptsConfig = PLAIN,
) -> list[TokenExample]:
    """All examples of a task, in the order of the split (or of the catalog).

    Args:
        stride: see `examples_of`; 1 for RL and evaluation, which use whole histories.
        context: most tokens the model can read, prompt and completion together; None where unlimited.

    Raises:
        ConfigError: see `encode`.
        DataError: see `examples_of`.
    """
    return encode(list(examples_of(task, dataset, index, split, stride, prompts)), tokenizer, context, prompts)


def share_of(task: TaskName, examples: Sequence[_One], shares: Mapping[TaskName, float], seed: int) -> Sequence[_One]:
    """The share of a task's examples that is taken, drawn with the seed, in their order; at least one of them.

    Args:
        shares: fraction by task, above 0 and at most 1; a task that is not named is taken whole.
    """
    share = shares.get(task, 1.0)
    if share >= 1 or not examples:
        return examples
    chosen = random.Random(f"{seed} {task}").sample(range(len(examples)), max(1, round(share * len(examples))))
    return [examples[place] for place in sorted(chosen)]


def sample_examples(
    tasks: Sequence[TaskName],
    dataset: Dataset,
    index: SidIndex,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: SplitName,
    count: int | None,
    seed: int,
    context: int | None = None,
    prompts: PromptsConfig = PLAIN,
    shares: Mapping[TaskName, float] = WHOLE,
) -> list[TokenExample]:
    """Examples of several tasks in random order, at most `count` of them, with whole histories.

    Args:
        shares: see `share_of`; `count` are drawn from what they leave.

    Raises:
        ConfigError: see `encode`.
        DataError: see `examples_of`.
    """
    examples: list[Example] = []
    for task in tasks:
        examples += share_of(task, list(examples_of(task, dataset, index, split, 1, prompts)), shares, seed)
    random.Random(seed).shuffle(examples)
    return encode(examples[:count], tokenizer, context, prompts)


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, context: int | None, prompts: PromptsConfig = PLAIN
) -> list[TokenExample]:
    """Texts to token ids; a text completion is ended by the tokenizer's end token, a SID ends by itself.

    An example longer than `context` or `prompts.max_tokens` is cut: a text that is to be written to half of the limit, without
    an end; then a history loses its oldest items, a text its last words, a single word (a
    text without spaces) its last characters. A SID is never cut.

    Raises:
        ConfigError: an example is too long with one item or character left; the tokenizer makes nothing of it, or has no chat
            template.
    """
    if not examples:
        return []
    dress = _dresser(prompts.style, tokenizer)
    limit = min((most for most in (context, prompts.max_tokens) if most is not None), default=None)

    def tokens_of(texts: list[str]) -> list[list[int]]:
        # A tokenizer that begins every text with a token of its own (Llama's <s>) does so here too, once, before the prompt;
        # a chat template brings its own.
        found: list[list[int]] = tokenizer(texts, add_special_tokens=prompts.style != "chat")["input_ids"]
        return found

    asked = tokens_of([dress(example.instruction, example.question()) for example in examples])
    answers = [example.completion if prompts.style == "plain" else example.completion.lstrip() for example in examples]
    completions = tokenizer(answers, add_special_tokens=False)["input_ids"]
    built = []
    for example, prompt, completion in zip(examples, asked, completions, strict=True):
        if example.kind == "text":
            completion = [*completion, tokenizer.eos_token_id]
        if not prompt or not completion:
            raise ConfigError(
                f"The tokenizer makes no tokens of {(example.completion if prompt else example.question())[:40]!r}; its files "
                "are incomplete (tokenizer.json?)."
            )
        cut = limit is not None and len(prompt) + len(completion) > limit
        if limit is not None and cut:
            if example.kind == "text":
                completion = completion[: max(limit // 2, 1)]

            def shorter(*most: int, example: Example = example) -> list[int]:
                return tokens_of([dress(example.instruction, example.question(*most))])[0]

            room = limit - len(completion)
            prompt = _fit(shorter, len(example.parts), room)
            if len(prompt) > room and example.breakable:  # a single title that is too long, or a single word
                words = example.parts[-1 if example.newest else 0].removeprefix(example.mark).split(" ")
                prompt = _fit(partial(shorter, 1), len(words), room)
                if len(prompt) > room:
                    prompt = _fit(partial(shorter, 1, 1), len(words[0]), room)
            if len(prompt) + len(completion) > limit:
                bound = "prompts.max_tokens is" if limit == prompts.max_tokens else "the model reads"
                raise ConfigError(
                    f"Item {example.target}, prompt {example.question(1)[:40]!r}...: {len(prompt) + len(completion)} tokens "
                    f"with one {'character' if example.breakable else 'item'} left of it, {bound} {limit}. Take a model that "
                    "reads more, a shorter prompts.style, or shorten the item's text."
                )
        is_sid = example.kind == "sid"
        built.append(TokenExample(prompt, completion, example.target, example.group, is_sid, example.row, cut))
    return built


def _fit(shorter: Callable[[int], list[int]], parts: int, room: int) -> list[int]:
    """The longest prompt of at most `room` tokens, by bisection over the number of parts; with one part where none fits."""
    low, high = 1, parts
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(shorter(middle)) <= room else (low, middle - 1)
    return shorter(low)


def _dresser(style: str, tokenizer: PreTrainedTokenizerBase) -> Callable[[str, str], str]:
    """A function of instruction and question that gives the whole prompt's text.

    Raises:
        ConfigError: the style is chat, and the tokenizer has no chat template.
    """
    if style == "plain":
        return lambda instruction, question: question
    if style == "alpaca":
        return lambda instruction, question: HEADER.replace("{instruction}", instruction).replace("{question}", question, 1)
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            "prompts.style is chat, but the model's tokenizer has no chat template. Take an instruct model, or prompts.style "
            "plain."
        )

    def chat(instruction: str, question: str) -> str:
        message = [{"role": "user", "content": f"{instruction}\n\n{question}"}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    return chat


def tokenizer_corpus(dataset: Dataset, prompts: PromptsConfig = PLAIN, tasks: Sequence[TaskName] = ()) -> list[str]:
    """What a from-scratch tokenizer learns from: item texts, titles, and the prompts' wording as often as items.

    Args:
        tasks: those that are trained; the words of the default ones are in anyway, as evaluation uses some.
    """
    wording = []
    for task in dict.fromkeys((*DEFAULT_TASKS, *tasks)):
        made = WORDINGS[prompts.wording or "plain"][task]
        wording += [*made.questions, made.completion]
        wording += [] if prompts.style == "plain" else [*made.instructions, HEADER]
    texts = dataset.catalog["text"].to_list()
    return [*texts, *dataset.catalog["title"].to_list(), *(wording * len(texts))]
