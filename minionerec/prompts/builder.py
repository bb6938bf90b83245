"""The one prompt builder: examples of a task as token ids, in the same words for SFT, RL, evaluation and single histories."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from minionerec.config import DEFAULT_TASKS, NAMING, RECOMMENDING, PromptsConfig, TaskName
from minionerec.data.dataset import Dataset, SplitName
from minionerec.errors import CatalogError, DataError
from minionerec.model.checkpoint import sid_token_ids
from minionerec.prompts import cache
from minionerec.prompts.encode import Encoder, TokenExample
from minionerec.prompts.plain_text import PlainText
from minionerec.prompts.tasks import Example, Words, examples_of, item_texts, places_of, question_of
from minionerec.prompts.wordings import HEADER, wording_of
from minionerec.sid.index import SidIndex
from minionerec.tree import NO_TOKEN

_DEFAULT = PromptsConfig()
WHOLE: Mapping[TaskName, float] = MappingProxyType({})  # shares: of every task all examples


@dataclass(frozen=True)
class HistoryPrompt:
    """A prompt that asks for the item after a history.

    Attributes:
        tokens: ids, without padding.
        cut: how many of the history's oldest items it leaves out, because the model reads no more.
    """

    tokens: list[int]
    cut: int


@dataclass(frozen=True)
class Prompts:
    """Everything that a run's prompts are made from.

    Attributes:
        config: the section `prompts` with its wording chosen, see `Config.resolved_prompts`.
        context: tokens that the model reads, prompt and completion together; None if unlimited.
        epoch, asked: which of a task's several wordings (`prompts.wording: several`), see `Words`.
    """

    dataset: Dataset
    index: SidIndex
    tokenizer: PreTrainedTokenizerBase
    config: PromptsConfig = field(default_factory=PromptsConfig)
    context: int | None = None
    epoch: int | None = None
    asked: int = 0

    def places(self, task: TaskName, split: SplitName, rows: np.ndarray | None = None) -> np.ndarray:
        """The rows of a split, or the items, of which a task has examples, ascending; see `places_of`."""
        return places_of(task, self.dataset, split, rows)

    def examples(
        self, task: TaskName, split: SplitName, stride: int = 1, places: np.ndarray | None = None
    ) -> list[TokenExample]:
        """The examples of a task, in the order of the split's rows, or of the catalog for a task without history.

        They are cached on disk, except with slow tokenizers, whose behaviour has no digest.

        Args:
            stride: above 1, a history begins at the next multiple of it in the user's sequence, so that neighbours share their
                beginning; up to `stride - 1` of its oldest items are left out. RL and evaluation use whole histories.
            places: some of `places`, ascending; None for all.

        Raises:
            ConfigError: an example is too long even with one item or character, or the tokenizer has no chat template.
            DataError: the task needs descriptions, and the catalog has none.
        """

        def encoded() -> list[TokenExample]:
            return self._encoder.examples(list(self._examples(task, split, stride, places)))

        if places is not None and np.array_equal(places, self.places(task, split)):
            places = None

        tokenizer_digest = cache.tokenizer_digest(self.tokenizer)
        if tokenizer_digest is None:
            return encoded()
        key: dict[str, Any] = {
            "catalog": cache.frame_digest(self.dataset.catalog),
            "split": [split, cache.frame_digest(self.dataset.split(split))],
            "sids": cache.sids_digest(self.index),
            "tokenizer": tokenizer_digest,
            "task": task,
            "stride": stride,
            "prompts": self.config,
            "context": self.context,
            "drawn": [self.epoch, self.asked] if self.config.wording == "several" else None,
        }
        if places is not None:
            key["places"] = hashlib.sha256(places.astype(np.int64).tobytes()).hexdigest()
        return cache.cached(key, encoded)

    def sample(
        self,
        tasks: Sequence[TaskName],
        split: SplitName,
        count: int | None,
        seed: int,
        shares: Mapping[TaskName, float] = WHOLE,
        rows: np.ndarray | None = None,
    ) -> list[TokenExample]:
        """At most `count` examples of several tasks in random order, with whole histories.

        Args:
            count: None for all.
            shares: see `share_of`; `count` are drawn from what the shares leave.
            rows: (rows,) bool, the rows that are asked about; shares are taken of what it leaves. None for all.

        Raises:
            ConfigError: an example is too long even with one item or character, or the tokenizer has no chat template.
            DataError: a task needs descriptions, and the catalog has none.
        """
        places = {task: share_of(task, self.places(task, split, rows), shares, seed) for task in tasks}
        order = list(range(sum(map(len, places.values()))))
        random.Random(seed).shuffle(order)
        order = order[:count]
        examples: dict[int, Example] = {}  # by their number before the shuffle
        first = 0
        for task, of_task in places.items():
            drawn = np.sort([number for number in order if first <= number < first + len(of_task)]).astype(np.int64)
            examples |= zip(drawn.tolist(), self._examples(task, split, 1, of_task[drawn - first]), strict=True)
            first += len(of_task)
        return self._encoder.examples([examples[number] for number in order])

    def ask(self, history: Sequence[int]) -> list[int]:
        """The prompt that asks for the next item after a history, exactly as a split's row with this history is asked.

        Args:
            history: item indices, oldest first. Models are trained on at most `data.max_history` items.

        Raises:
            CatalogError: an item index is not in the catalog.
            ConfigError: the prompt is too long even with one item, or the tokenizer has no chat template.
            DataError: the history is empty.
        """
        return self.history_prompts([history])[0].tokens

    def history_prompts(self, histories: Sequence[Sequence[int]]) -> list[HistoryPrompt]:
        """The prompts of several histories; `ask` gives each alone, and raises the errors that this raises."""
        items = len(self.index.codes)
        for history in histories:
            if not len(history):
                raise DataError("The history is empty. Give at least one item index to recommend from.")
            for item in history:
                if not 0 <= item < items:
                    raise CatalogError(f"The history has item index {item}, but the catalog has the indices 0 to {items - 1}.")
        questions = [question_of(history, self.index, self._words) for history in histories]
        return [HistoryPrompt(tokens, cut) for tokens, cut in self._encoder.prompts(questions)]

    @cached_property
    def titles(self) -> Sequence[str]:
        """The titles of all items, as prompts show them."""
        return item_texts(self.dataset, self._plain).titles

    @cached_property
    def title_answers(self) -> list[list[int]]:
        """The titles of all items as answers of training, uncut: token ids, the end token last."""
        completion = wording_of(NAMING, self.config).completion
        return self._encoder.texts([completion.replace("{title}", title) for title in self.titles])

    @property
    def limit(self) -> int | None:
        """Tokens of the longest example, prompt and answer together; None if unlimited."""
        return self._encoder.limit

    def title_prompts(self, histories: Sequence[Sequence[int]], room: int) -> list[HistoryPrompt]:
        """The prompts that ask for the title of the next item, shown the titles of a history.

        Args:
            histories: item indices, oldest first, at least one each.
            room: tokens that the answer may have. It does not depend on the answer, so the prompt tells nothing of it.

        Raises:
            ConfigError: a prompt is too long even with one character, or the tokenizer has no chat template.
        """
        questions = [question_of(history, self.index, self._words, NAMING, self.titles) for history in histories]
        return [HistoryPrompt(tokens, cut) for tokens, cut in self._encoder.prompts(questions, room)]

    @cached_property
    def shortest_title_prompt(self) -> int:
        """Tokens that every prompt which asks for a title can be cut to, whatever the history."""
        titles = sorted(set(self.titles))
        return self._encoder.shortest([question_of([0], self.index, self._words, NAMING, [title]) for title in titles])

    def written_title(self, answer: str) -> str:
        """The title in an answer to such a prompt: without the words around it, such as quotes, and safe to tokenise."""
        before, _, after = wording_of(NAMING, self.config).completion.partition("{title}")
        return self._plain(answer.strip().removeprefix(before.strip()).removesuffix(after.strip()).strip())

    def template(self) -> dict[str, str]:
        """How a prompt that asks for the next item is written, for programs that do not have this one.

        Returns:
            `text`, with `{history}` where the items stand; `item`, with `{sid}` in it; and the `separator` between items.
        """
        question = question_of([0], self.index, self._words)
        return {
            "text": self._encoder.text(replace(question, parts=("{history}",))),
            "item": wording_of(RECOMMENDING, self.config).part.replace("{}", "{sid}"),
            "separator": question.separator,
        }

    @cached_property
    def sid_tokens(self) -> torch.Tensor:
        """The SIDs of all items as token ids, (items, levels); see `sid_token_ids`.

        Raises:
            CatalogError: the tokenizer lacks a SID token, or splits one; or a SID is the beginning of another.
        """
        self.index.check_ends()
        return sid_token_ids(self.tokenizer, self.index)

    @property
    def sid_token_set(self) -> list[int]:
        """Every token that some item's SID has, ascending."""
        return self.sid_tokens[self.sid_tokens != NO_TOKEN].unique().tolist()

    @cached_property
    def texts_with_tokens(self) -> int:
        """Items whose title or description holds what the tokenizer would read as a SID or as a special token.

        It is broken up wherever a prompt or an answer shows it, see `PlainText`.
        """
        texts, holds_token = item_texts(self.dataset), self._plain.holds_token
        return sum(map(holds_token, map(" ".join, zip(texts.titles, texts.descriptions, strict=True))))

    @property
    def wordings(self) -> int:
        """How many wordings the recommending task has from which `asked` chooses; 1 unless `prompts.wording` is `several`."""
        return len(self._words.of(RECOMMENDING).questions) if self.config.wording == "several" else 1

    @property
    def _words(self) -> Words:
        return Words(self.config, self.epoch, self.asked, self._plain)

    def _examples(self, task: TaskName, split: SplitName, stride: int, places: np.ndarray | None) -> Iterator[Example]:
        return examples_of(task, self.dataset, self.index, split, stride, self._words, places)

    @cached_property
    def _plain(self) -> PlainText:
        return PlainText(self.tokenizer)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.tokenizer, self.config, self.context, self.index.levels)


def share_of(task: TaskName, places: np.ndarray, shares: Mapping[TaskName, float], seed: int) -> np.ndarray:
    """The share of a task's examples that is used, drawn with the seed and kept in order; at least one example.

    Args:
        places: of all its examples.
        shares: fraction by task, above 0 and at most 1; a task without a share is used whole.
    """
    share = shares.get(task, 1.0)
    if share >= 1 or not len(places):
        return places
    drawn = random.Random(f"{seed} {task}").sample(range(len(places)), max(1, round(share * len(places))))
    return places[np.sort(drawn)]


def tokenizer_corpus(dataset: Dataset, prompts: PromptsConfig = _DEFAULT, tasks: Sequence[TaskName] = ()) -> list[str]:
    """What a from-scratch tokenizer learns from: item texts, titles, and the prompts' wording as often as items.

    Args:
        tasks: the tasks that are trained. The words of the default tasks are always included, because evaluation uses some.
    """
    words = []
    for task in dict.fromkeys((*DEFAULT_TASKS, *tasks)):
        wording = wording_of(task, prompts)
        words += [*wording.questions, wording.completion]
        words += [] if prompts.style == "plain" else [*wording.instructions, HEADER]
    texts = dataset.catalog["text"].to_list()
    return [*texts, *dataset.catalog["title"].to_list(), *(words * len(texts))]
