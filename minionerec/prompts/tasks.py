"""The training tasks: each turns the dataset into (prompt, completion) texts, with its wording in one place.

SFT, RL and evaluation take their prompts from here and from nowhere else. A prompt is a function of the example's inputs
only, never of its answer. SIDs are written without separators: their tokens are atomic and levels tell them apart, while a
space would cost a token of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from minionerec.config import TaskName
from minionerec.data.dataset import Dataset, SplitName
from minionerec.sid.index import SidIndex

TEMPLATES: dict[TaskName, tuple[str, str]] = {
    # The list is simply continued: a history is then a prefix of every longer one, and all of them are computed at once.
    "history_sid_to_sid": ("The user's items, oldest first:{sids}", "{sid}"),
    "title_to_sid": ("The item with the title {title}:", "{sid}"),
    "sid_to_title": ("The title of the item{sid}:", " {title}"),
}


@dataclass(frozen=True)
class Example:
    """One (prompt, completion) pair.

    Attributes:
        target: index of the item that the completion names.
        group: examples of a task with the same group are expected to share the beginning of their prompts.
        kind: whether the completion is a SID (none is the beginning of another) or text (ended by the tokenizer's end token).
        row: the split's row whose history the prompt shows, counted from 0; None for a task without history.
    """

    prompt: str
    completion: str
    target: int
    group: int
    kind: Literal["sid", "text"]
    row: int | None = None


def history_sid_to_sid(dataset: Dataset, index: SidIndex, split: SplitName, stride: int) -> Iterator[Example]:
    """History SIDs to the next item's SID, one example per row of the split, in order.

    With a stride above 1 a history begins at the next multiple of it in the user's sequence, so that neighbours share their
    beginning; up to `stride - 1` of its oldest items are left out.
    """
    prompt, completion = TEMPLATES["history_sid_to_sid"]
    sids = [index.text(item) for item in range(len(index.codes))]
    frame = dataset.split(split)
    groups: dict[tuple[str, int], int] = {}
    columns = (frame[name].to_list() for name in ("user", "history", "target", "position"))
    for row, (user, history, target, position) in enumerate(zip(*columns, strict=True)):
        begin = position - len(history)
        skipped = min(-begin % stride, len(history) - 1)
        yield Example(
            prompt.format(sids="".join(sids[item] for item in history[skipped:])),
            completion.format(sid=sids[target]),
            target,
            groups.setdefault((user, begin + skipped), len(groups)),
            "sid",
            row,
        )


def title_to_sid(dataset: Dataset, index: SidIndex, split: SplitName, stride: int) -> Iterator[Example]:
    """An item's title to its SID, one example per item of the catalogue; the split plays no part."""
    prompt, completion = TEMPLATES["title_to_sid"]
    for item, title in enumerate(dataset.catalog["title"].to_list()):
        yield Example(prompt.format(title=title), completion.format(sid=index.text(item)), item, item // stride, "sid")


def sid_to_title(dataset: Dataset, index: SidIndex, split: SplitName, stride: int) -> Iterator[Example]:
    """An item's SID to its title, one example per item of the catalogue; the split plays no part."""
    prompt, completion = TEMPLATES["sid_to_title"]
    for item, title in enumerate(dataset.catalog["title"].to_list()):
        yield Example(prompt.format(sid=index.text(item)), completion.format(title=title), item, item // stride, "text")


TASKS: dict[TaskName, Callable[[Dataset, SidIndex, SplitName, int], Iterator[Example]]] = {
    "history_sid_to_sid": history_sid_to_sid,
    "title_to_sid": title_to_sid,
    "sid_to_title": sid_to_title,
}
