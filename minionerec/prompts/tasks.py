"""The training tasks: each turns the dataset into examples, in the words that the configuration asks for.

SFT, RL and evaluation take their prompts from here and from nowhere else. A prompt is a function of the example's inputs
only, never of its answer. Our own words write SIDs without separators: their tokens are atomic and levels tell them apart,
while a space would cost a token of its own.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl

from minionerec.config import RECOMMENDING, TASKS, PromptsConfig, TaskName
from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.texts import readable
from minionerec.errors import DataError
from minionerec.prompts.wordings import Wording, wording_of
from minionerec.sid.index import SidIndex


@dataclass(frozen=True)
class Question:
    """A prompt in parts, so that one that is too long can be cut.

    Attributes:
        instruction: shown by styles that have one.
        before, parts, separator, after: the question; the parts are the items of a history or the words of a text.
        breakable: whether a part may be cut inside: a text, not a SID.
        mark: what stands before the text in each part, such as a list's dash.
        newest: whether a cut keeps the last parts (of a history) or the first (of a text).
    """

    instruction: str
    before: str
    parts: tuple[str, ...]
    separator: str
    after: str
    breakable: bool
    mark: str = ""
    newest: bool = False

    def text(self, count: int | None = None, words: int | None = None, characters: int | None = None) -> str:
        """The question with at most `count` parts, each of at most so many words and characters; None for all."""
        parts = self.parts if count is None else self.parts[-count:] if self.newest else self.parts[:count]
        if words is not None:
            texts = (part.removeprefix(self.mark) for part in parts)
            parts = tuple(self.mark + " ".join(text.split(" ")[:words])[:characters] for text in texts)
        return self.before + self.separator.join(parts) + self.after


@dataclass(frozen=True)
class Example:
    """A question and its answer as text.

    Attributes:
        target: index of the item that the completion names.
        group: examples of a task with the same group are expected to share the beginning of their prompts.
        is_sid: whether the completion is a SID (none is the beginning of another), not a text (ended by an end token).
        row: the split's row whose history the prompt shows, counted from 0; None for a task without history.
    """

    question: Question
    completion: str
    target: int
    group: int
    is_sid: bool
    row: int | None = None


@dataclass(frozen=True)
class ItemTexts:
    """What prompts show of the items, in the catalog's order.

    Attributes:
        titles: one per item.
        descriptions: one line of prose per item, whatever form the files keep it in; empty if an item has none.
    """

    titles: Sequence[str]
    descriptions: Sequence[str]


@dataclass(frozen=True)
class Words:
    """Whose words examples are put into, and which of a task's several wordings.

    Attributes:
        prompts: the section `prompts`, its wording chosen.
        epoch: of a training, from 0, which draws anew in each if `prompts.wording` is `several`; None if nothing is drawn.
        asked: the number of the wording that is asked with if nothing is drawn.
        plain: makes an item's text safe to tokenise (`PlainText`); by default texts stay as they are.
    """

    prompts: PromptsConfig
    epoch: int | None = None
    asked: int = 0
    plain: Callable[[str], str] = str

    def of(self, task: TaskName) -> Wording:
        """The words of a task."""
        return wording_of(task, self.prompts)

    def choice(self, choices: tuple[str, ...], task: TaskName, number: int) -> str:
        """One of a task's sentences for a row or an item.

        The released code draws one at random; here the number of the row or item chooses, so that every stage asks about it
        alike. `several` draws by number and epoch in training.
        """
        if len(choices) == 1:
            return choices[0]
        if self.prompts.wording != "several":
            return choices[zlib.crc32(f"{task} {number}".encode()) % len(choices)]
        if self.epoch is None:
            return choices[self.asked]
        # Not a CRC, which is linear: between two epochs the draws of all rows would differ in one and the same way.
        digest = hashlib.sha256(f"{task} {number} {self.epoch}".encode()).digest()
        return choices[int.from_bytes(digest[:8]) % len(choices)]


def item_texts(dataset: Dataset, plain: Callable[[str], str] = str) -> ItemTexts:
    """The texts of a catalog's items.

    Args:
        plain: makes a text safe to tokenise (`PlainText`); by default texts stay as they are.
    """
    catalog = dataset.catalog
    lines = catalog["description"].to_list() if "description" in catalog.columns else [""] * len(catalog)
    return ItemTexts(
        [plain(title) for title in catalog["title"].to_list()], [plain(" ".join(readable(text).split())) for text in lines]
    )


def examples_of(
    task: TaskName,
    dataset: Dataset,
    index: SidIndex,
    split: SplitName,
    stride: int,
    words: Words,
    places: np.ndarray | None = None,
) -> Iterator[Example]:
    """The examples of a task, in the order of the split's rows, or of the catalog for a task without history.

    Args:
        stride: above 1, a history begins at the next multiple of it in the user's sequence, so that neighbours share their
            beginning; up to `stride - 1` of its oldest items are left out.
        places: of which rows, or items, ascending, some of `places_of`; None for all.

    Raises:
        DataError: the task needs descriptions, and the catalog has none.
    """
    texts = item_texts(dataset, words.plain)
    if TASKS[task].needs_descriptions and not any(texts.descriptions):
        raise DataError(f"The task {task} needs descriptions, and the catalog has none; leave it out of the tasks.")
    if places is None:
        places = places_of(task, dataset, split)
    if TASKS[task].reads_history:
        return _of_histories(task, dataset.split(split), places, texts, index, stride, words)
    return _of_items(task, places, texts, index, stride, words)


def places_of(task: TaskName, dataset: Dataset, split: SplitName, rows: np.ndarray | None = None) -> np.ndarray:
    """The rows of a split of which a task has examples, ascending; of a task without history, the items.

    An item without a title has no example that shows it or answers with it; so has one without a description.

    Args:
        rows: (rows,) bool, which rows count; a task without history has no rows. None for all.
    """
    kind = TASKS[task]
    answers = _have(kind.asks, dataset)
    if not kind.reads_history:
        return np.flatnonzero(answers & _have(kind.shows, dataset))
    there = answers[dataset.split(split)["target"].to_numpy()]
    return np.flatnonzero(there if rows is None else there & rows)


def _have(kind: str, dataset: Dataset) -> np.ndarray:
    """Which items have a title or a description, (items,) bool; all have a SID."""
    if kind == "title":
        return (dataset.catalog["title"] != "").to_numpy()
    if kind == "description":
        return np.array([bool(text) for text in item_texts(dataset).descriptions], dtype=bool)
    return np.ones(len(dataset.catalog), dtype=bool)


def question_of(
    history: Sequence[int], index: SidIndex, words: Words, task: TaskName = RECOMMENDING, titles: Sequence[str] = ()
) -> Question:
    """What a task asks about a history.

    Args:
        history: item indices, oldest first, at least one.
        titles: of all items, for a task that shows them.
    """
    written = _item_writer(task, ItemTexts(titles, ()), index, words)
    return _history_question(task, tuple(written(item) for item in history), 0, words)


def _around(question: str, slot: str, category: str) -> tuple[str, str]:
    before, _, after = question.replace("{category}", category).partition("{" + slot + "}")
    return before, after


def _answers(task: TaskName, texts: ItemTexts, index: SidIndex, completion: str) -> Callable[[int], str]:
    """A function of an item that returns the completion about it, made from the wording's `completion`."""
    asks = TASKS[task].asks

    def answer(item: int) -> str:
        value = index.text(item) if asks == "sid" else (texts.titles if asks == "title" else texts.descriptions)[item]
        return completion.replace("{" + asks + "}", value)

    return cache(answer)


def _item_writer(task: TaskName, texts: ItemTexts, index: SidIndex, words: Words) -> Callable[[int], str]:
    """A function of an item that returns how a task's histories write it."""
    part = words.of(task).part
    if TASKS[task].shows == "sids":
        return lambda item: part.replace("{}", index.text(item))
    return lambda item: part.replace("{}", texts.titles[item])


def _history_question(task: TaskName, parts: tuple[str, ...], number: int, words: Words) -> Question:
    """A task's question about a history.

    Args:
        parts: the items as they are written.
        number: chooses between several wordings.
    """
    wording, shows = words.of(task), TASKS[task].shows
    before, after = _around(words.choice(wording.questions, task, number), shows, words.prompts.category)
    return Question(
        instruction=words.choice(wording.instructions, task, number).replace("{category}", words.prompts.category),
        before=before,
        parts=parts,
        separator=wording.separator,
        after=after,
        breakable=shows == "titles",
        mark=wording.part.partition("{}")[0],
        newest=True,
    )


def _of_histories(
    task: TaskName, frame: pl.DataFrame, places: np.ndarray, texts: ItemTexts, index: SidIndex, stride: int, words: Words
) -> Iterator[Example]:
    answer = _answers(task, texts, index, words.of(task).completion)
    written = cache(_item_writer(task, texts, index, words))
    groups: dict[tuple[str, int], int] = {}
    chosen = frame if len(places) == len(frame) else frame[places]
    columns = (chosen[name].to_list() for name in ("user", "history", "target", "position"))
    for row, user, history, target, position in zip(places.tolist(), *columns, strict=True):
        begin = position - len(history)
        skipped = min(-begin % stride, len(history) - 1)
        yield Example(
            _history_question(task, tuple(written(item) for item in history[skipped:]), row, words),
            completion=answer(target),
            target=target,
            group=groups.setdefault((user, begin + skipped), len(groups)),
            is_sid=TASKS[task].answers_with_sid,
            row=row,
        )


def _of_items(
    task: TaskName, places: np.ndarray, texts: ItemTexts, index: SidIndex, stride: int, words: Words
) -> Iterator[Example]:
    wording, shows = words.of(task), TASKS[task].shows
    answer = _answers(task, texts, index, wording.completion)
    shown = texts.titles if shows == "title" else texts.descriptions
    for item in places.tolist():
        parts = (index.text(item),) if shows == "sid" else tuple(shown[item].split(" "))
        before, after = _around(words.choice(wording.questions, task, item), shows, words.prompts.category)
        question = Question(
            instruction=words.choice(wording.instructions, task, item).replace("{category}", words.prompts.category),
            before=before,
            parts=parts,
            separator=" ",
            after=after,
            breakable=shows != "sid",
        )
        yield Example(
            question,
            completion=answer(item),
            target=item,
            group=item // stride,
            is_sid=TASKS[task].answers_with_sid,
        )
