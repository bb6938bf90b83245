"""The training tasks: each turns the dataset into examples, in the words that the configuration asks for.

SFT, RL and evaluation take their prompts from here and from nowhere else. A prompt is a function of the example's inputs
only, never of its answer. Our own words write SIDs without separators: their tokens are atomic and levels tell them apart,
while a space would cost a token of its own.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from minionerec.config import PromptsConfig, TaskName
from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.released import prose
from minionerec.errors import DataError
from minionerec.prompts.wordings import RELEASED_EVALUATION, WORDINGS, Wording
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


def examples_of(
    task: TaskName, dataset: Dataset, index: SidIndex, split: SplitName, stride: int, prompts: PromptsConfig
) -> Iterator[Example]:
    """All examples of a task, in the order of the split's rows, or of the catalog for a task without history.

    If a task has several wordings, the row's or item's number chooses one, so that every stage asks about it alike.

    Args:
        stride: above 1, a history begins at the next multiple of it in the user's sequence, so that neighbours share their
            beginning; up to `stride - 1` of its oldest items are left out.

    Raises:
        DataError: the task needs descriptions, and the catalog has none.
    """
    if "description" in task and not any(_descriptions(dataset)):
        raise DataError(f"The task {task} needs descriptions, and the catalog has none; leave it out of the tasks.")
    if task.startswith("history"):
        return _of_histories(task, dataset, index, split, stride, prompts)
    return _of_items(task, _wording(task, prompts), dataset, index, stride, prompts.category)


def question_of(history: Sequence[int], dataset: Dataset, index: SidIndex, prompts: PromptsConfig) -> Question:
    """What the recommending task asks about a history.

    Args:
        history: item indices, oldest first, at least one.
    """
    task: TaskName = "history_sid_to_sid"
    written = _item_writer(task, dataset, index, prompts)
    return _history_question(task, tuple(written(item) for item in history), 0, prompts)


def _wording(task: TaskName, prompts: PromptsConfig) -> Wording:
    if prompts.eval_style == "released" and task == "history_sid_to_sid":
        return RELEASED_EVALUATION
    return WORDINGS[prompts.wording or "plain"][task]


def _descriptions(dataset: Dataset) -> list[str]:
    """One line of prose per item, whatever form the files keep it in; empty where an item has none."""
    catalog = dataset.catalog
    if "description" not in catalog.columns:
        return [""] * len(catalog)
    return [" ".join(prose(text).split()) for text in catalog["description"].to_list()]


def _choice(choices: tuple[str, ...], task: TaskName, number: int) -> str:
    return choices[zlib.crc32(f"{task} {number}".encode()) % len(choices)] if len(choices) > 1 else choices[0]


def _around(question: str, slot: str, category: str) -> tuple[str, str]:
    before, _, after = question.replace("{category}", category).partition("{" + slot + "}")
    return before, after


def _answer(task: TaskName, dataset: Dataset, index: SidIndex) -> tuple[str, list[str]]:
    """The name of what the completion holds, and its value for every item; empty where an item has none."""
    slot = task.rpartition("_to_")[2]
    values = {
        "sid": lambda: [index.text(item) for item in range(len(index.codes))],
        "title": lambda: dataset.catalog["title"].to_list(),
        "description": lambda: _descriptions(dataset),
    }
    return slot, values[slot]()


def _item_writer(task: TaskName, dataset: Dataset, index: SidIndex, prompts: PromptsConfig) -> Callable[[int], str]:
    """A function of an item that returns how a task's histories write it."""
    part = _wording(task, prompts).part
    if not task.startswith("history_title"):
        return lambda item: part.replace("{}", index.text(item))
    titles = dataset.catalog["title"].to_list()
    return lambda item: part.replace("{}", titles[item])


def _history_question(task: TaskName, parts: tuple[str, ...], number: int, prompts: PromptsConfig) -> Question:
    """A task's question about a history.

    Args:
        parts: the items as they are written.
        number: chooses between several wordings.
    """
    wording, slot = _wording(task, prompts), "titles" if task.startswith("history_title") else "sids"
    before, after = _around(_choice(wording.questions, task, number), slot, prompts.category)
    return Question(
        instruction=_choice(wording.instructions, task, number).replace("{category}", prompts.category),
        before=before,
        parts=parts,
        separator=wording.separator,
        after=after,
        breakable=slot == "titles",
        mark=wording.part.partition("{}")[0],
        newest=True,
    )


def _of_histories(
    task: TaskName, dataset: Dataset, index: SidIndex, split: SplitName, stride: int, prompts: PromptsConfig
) -> Iterator[Example]:
    slot, answers = _answer(task, dataset, index)
    completion = _wording(task, prompts).completion
    written = list(map(_item_writer(task, dataset, index, prompts), range(len(index.codes))))
    frame = dataset.split(split)
    groups: dict[tuple[str, int], int] = {}
    columns = (frame[name].to_list() for name in ("user", "history", "target", "position"))
    for row, (user, history, target, position) in enumerate(zip(*columns, strict=True)):
        if not answers[target]:
            continue
        begin = position - len(history)
        skipped = min(-begin % stride, len(history) - 1)
        yield Example(
            _history_question(task, tuple(written[item] for item in history[skipped:]), row, prompts),
            completion=completion.replace("{" + slot + "}", answers[target]),
            target=target,
            group=groups.setdefault((user, begin + skipped), len(groups)),
            is_sid=slot == "sid",
            row=row,
        )


def _of_items(
    task: TaskName, wording: Wording, dataset: Dataset, index: SidIndex, stride: int, category: str
) -> Iterator[Example]:
    slot, answers = _answer(task, dataset, index)
    given = task.partition("_to_")[0]
    questions: list[tuple[str, ...]]
    if given == "sid":
        questions = [(index.text(item),) for item in range(len(index.codes))]
    else:
        texts = dataset.catalog["title"].to_list() if given == "title" else _descriptions(dataset)
        questions = [tuple(text.split(" ")) if text else () for text in texts]
    for item, (parts, answer) in enumerate(zip(questions, answers, strict=True)):
        if not parts or not answer:
            continue
        before, after = _around(_choice(wording.questions, task, item), given, category)
        question = Question(
            instruction=_choice(wording.instructions, task, item).replace("{category}", category),
            before=before,
            parts=parts,
            separator=" ",
            after=after,
            breakable=given != "sid",
        )
        yield Example(
            question,
            completion=wording.completion.replace("{" + slot + "}", answer),
            target=item,
            group=item // stride,
            is_sid=slot == "sid",
        )
