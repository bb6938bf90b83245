"""The one prompt builder: examples of a task as token ids, the same for SFT, RL and evaluation."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from minionerec.artifacts import content_hash
from minionerec.config import TaskName
from minionerec.data.dataset import Dataset, SplitName
from minionerec.errors import ConfigError
from minionerec.prompts.tasks import TASKS, TEMPLATES, Example
from minionerec.sid.index import SidIndex


@dataclass(frozen=True)
class TokenExample:
    """An example as token ids; prompt and completion are tokenised apart, so that no token spans the two.

    Attributes:
        is_sid: the completion is a SID, a path of the catalogue's trie.
        row: the split's row whose history the prompt shows; None for a task without history.
    """

    prompt: list[int]
    completion: list[int]
    target: int
    group: int
    is_sid: bool
    row: int | None = None


def templates_digest() -> str:
    """Identifies the wording of all tasks; part of the key of every artefact that depends on it."""
    return content_hash(TEMPLATES)


def build_examples(
    task: TaskName,
    dataset: Dataset,
    index: SidIndex,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: SplitName,
    stride: int = 1,
    context: int | None = None,
) -> list[TokenExample]:
    """All examples of a task, in the order of the split (or of the catalogue).

    Args:
        stride: see `history_sid_to_sid`; 1 for RL and evaluation, which use whole histories.
        context: most tokens the model can read, prompt and completion together; None where unlimited.

    Raises:
        ConfigError: an example is longer than the context.
    """
    return encode(list(TASKS[task](dataset, index, split, stride)), tokenizer, context)


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
) -> list[TokenExample]:
    """Examples of several tasks in random order, at most `count` of them, with whole histories.

    Raises:
        ConfigError: an example is longer than the context.
    """
    examples = [example for task in tasks for example in TASKS[task](dataset, index, split, 1)]
    random.Random(seed).shuffle(examples)
    return encode(examples[:count], tokenizer, context)


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, context: int | None) -> list[TokenExample]:
    """Texts to token ids; a text completion is ended by the tokenizer's end token, a SID ends by itself.

    Raises:
        ConfigError: an example is longer than the context, or the tokenizer makes nothing of it.
    """
    if not examples:
        return []
    # A tokenizer that begins every text with a token of its own (Llama's <s>) does so here too, once, before the prompt.
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    completions = tokenizer([example.completion for example in examples], add_special_tokens=False)["input_ids"]
    built = []
    for example, prompt, completion in zip(examples, prompts, completions, strict=True):
        if example.kind == "text":
            completion = [*completion, tokenizer.eos_token_id]
        if not prompt or not completion:
            raise ConfigError(
                f"The tokenizer makes no tokens of {(example.completion if prompt else example.prompt)[:40]!r}; its files are "
                "incomplete (tokenizer.json?)."
            )
        if context is not None and len(prompt) + len(completion) > context:
            raise ConfigError(
                f"Item {example.target}, prompt {example.prompt[:40]!r}...: {len(prompt) + len(completion)} tokens, the model "
                f"reads {context}. Lower data.max_history, or shorten the item's title."
            )
        built.append(TokenExample(prompt, completion, example.target, example.group, example.kind == "sid", example.row))
    return built


def tokenizer_corpus(dataset: Dataset) -> list[str]:
    """What a from-scratch tokenizer learns from: item texts, titles, and the prompts' wording as often as items."""
    wording = [part for pair in TEMPLATES.values() for part in pair]
    texts = dataset.catalog["text"].to_list()
    return [*texts, *dataset.catalog["title"].to_list(), *(wording * len(texts))]
