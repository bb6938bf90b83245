"""Titles that a model shall write: every item has one, and each fits where it is trained and written."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from minionerec.config import TASKS, EvalConfig, PromptsConfig, TaskName
from minionerec.data.texts import check_titled
from minionerec.distributed import is_main_process
from minionerec.errors import ConfigError, DataError
from minionerec.prompts.builder import Prompts

log = logging.getLogger(__name__)


def one_line(text: str) -> str:
    """A text without line breaks and repeated spaces."""
    return " ".join(text.split())


def catalog_titles(prompts: Prompts, needed_by: str) -> list[str]:
    """The titles of all items, as prompts show them.

    Args:
        needed_by: the field that ranks items by their titles.

    Raises:
        DataError: an item has no title, so no list could hold it.
    """
    check_titled(prompts.dataset.catalog, needed_by)
    return [one_line(title) for title in prompts.titles]


def check_written(prompts: Prompts, room: int, warns: bool = True) -> int:
    """Say which titles are too long to be written freely.

    Args:
        room: most tokens of a written title (`eval.title_tokens`).
        warns: False only refuses.

    Returns:
        how many items have a longer one.

    Raises:
        ConfigError: all titles are longer, or a title of `room` tokens leaves no room for a prompt.
        DataError: an item has no title.
    """
    catalog_titles(prompts, "eval.grounding")
    _check_room(prompts, room, room)
    lengths = [len(answer) - 1 for answer in prompts.title_answers]  # the end token need not be written
    if prompts.context is not None:
        cut = _too_long(
            prompts, lengths, prompts.context, "more tokens than the model reads", "lose their end when they are compared"
        )
        _report(cut, "Shorten them.", warns=warns)
    long = _too_long(prompts, lengths, room, "more tokens than eval.title_tokens", "can never be written whole")
    return _report(long, _raise(prompts, room, lengths) if long.number else "", warns=warns)


def _check_room(prompts: Prompts, title_tokens: int, room: int) -> None:
    """Refuse an `eval.title_tokens` beside which a prompt may find no place.

    Args:
        room: tokens that prompts leave for a title, `title_tokens` or fewer.

    Raises:
        ConfigError: there are too many of them.
    """
    if prompts.limit is not None and room + (shortest := prompts.shortest_title_prompt) > prompts.limit:
        raise ConfigError(
            f"eval.title_tokens is {title_tokens}, but prompt and title together may have {prompts.limit} tokens "
            f"(prompts.max_tokens, or what the model reads), and a prompt can be cut to {shortest} at best. "
            + (
                f"Lower eval.title_tokens to {prompts.limit - shortest}."
                if shortest < prompts.limit
                else f"Nothing fits beside it: that takes {_training(prompts, shortest + 1)}, or an evaluation without titles "
                "(eval.grounding none, eval.title_trie false)."
            )
        )


def _raise(prompts: Prompts, room: int, lengths: Sequence[int]) -> str:
    """What to do if `eval.title_tokens`, which is `room`, is less than the longest title has."""
    longest = max(lengths)
    needed = longest + prompts.shortest_title_prompt
    if prompts.limit is None or needed <= prompts.limit:
        return f"Raise eval.title_tokens to {longest}."
    most = prompts.limit - prompts.shortest_title_prompt
    helps = most > room and most >= min(lengths)
    advice = f"Raise eval.title_tokens to {most}, the most that leaves a prompt. " if helps else ""
    return f"{advice}For all titles it must be {longest}, which takes {_training(prompts, needed)}."


def _training(prompts: Prompts, tokens: int) -> str:
    """What lets prompt and title together have so many tokens, which are more than `prompts.limit`."""
    needed = "a training"
    if prompts.context is not None and prompts.context < tokens:
        needed += f" of a model that reads {tokens} tokens"
    if prompts.config.max_tokens is not None and prompts.config.max_tokens < tokens:
        needed += f" with prompts.max_tokens {tokens}"
    return needed


def check_whole(prompts: Prompts, title_tokens: int) -> None:
    """Refuse titles that cannot be searched whole.

    Args:
        title_tokens: `eval.title_tokens`.

    Raises:
        DataError: an item has no title, or one that leaves no room for a prompt.
        ConfigError: `title_tokens` leaves none.
    """
    catalog_titles(prompts, "eval.title_trie")
    lengths = [len(answer) for answer in prompts.title_answers]
    item, shortest = lengths.index(max(lengths)), prompts.shortest_title_prompt
    if prompts.context is not None and lengths[item] + shortest > prompts.context:
        raise DataError(
            f"The title of item {item} ({prompts.dataset.catalog['item_id'][item]!r}) has {lengths[item]} tokens with its end, "
            f"and a prompt can be cut to {shortest} at best, but the model reads {prompts.context}. Take a model that reads "
            "more, shorten the title, or set eval.title_trie false."
        )
    _check_room(prompts, title_tokens, min(lengths[item], title_tokens))


def check_evaluated(prompts: Prompts, asked: PromptsConfig, config: EvalConfig) -> None:
    """Refuse titles that an evaluation with these options cannot write or search.

    Args:
        prompts: of the model; what they have tokenised is used again where evaluation asks as they do.
        asked: the section `prompts` that evaluation asks with, its wording chosen.

    Raises:
        ConfigError: `eval.title_tokens` leaves no room for a prompt, or for no title.
        DataError: an item has no title, or one that leaves no room for a prompt.
    """
    if asked != prompts.config:
        prompts = replace(prompts, config=asked)
    if config.grounding != "none":
        check_written(prompts, config.title_tokens, warns=False)
    if config.title_trie:
        check_whole(prompts, config.title_tokens)


def check_trained(prompts: Prompts, tasks: Sequence[TaskName]) -> int:
    """Say which titles are too long to be learnt to their end, if a task answers with titles.

    An answer is cut, to half of what an example may have, only if its prompt does not fit beside it.

    Returns:
        how many items have a longer one; 0 without such a task or such a limit.

    Raises:
        ConfigError: all titles are longer, and the tasks ask for no SIDs.
    """
    if prompts.limit is None or not any(TASKS[task].asks == "title" for task in tasks):
        return 0
    lengths = [len(answer) for answer in prompts.title_answers]
    whole = 2 * max(lengths)
    long = _too_long(
        prompts,
        lengths,
        prompts.limit // 2,
        "more tokens, the end included, than half of an example (prompts.max_tokens, or what the model reads)",
        "lose their end wherever the prompt needs the room, so that the model does not learn it",
    )
    advice = f"To learn all whole takes {_training(prompts, whole)}." if whole > prompts.limit else ""
    return _report(long, advice, some_are_right=any(TASKS[task].answers_with_sid for task in tasks))


class _TooLong(NamedTuple):
    """Titles that are longer than a limit.

    Attributes:
        number: how many.
        all: whether these are all titles.
        found: sentences that say so; empty for none.
    """

    number: int
    all: bool
    found: str


def _too_long(prompts: Prompts, lengths: Sequence[int], most: int, what: str, why: str) -> _TooLong:
    """Those of some titles that have more than `most` tokens, which is `what`, and `why` that matters."""
    long = [item for item, length in enumerate(lengths) if length > most]
    if not long:
        return _TooLong(0, False, "")
    first = f"the first is item {long[0]} ({prompts.dataset.catalog['item_id'][long[0]]!r}) with {lengths[long[0]]}"
    found = f"The titles of {len(long):,} of {len(lengths):,} items have {what}, {most}; {first}. They {why}."
    return _TooLong(len(long), len(long) == len(lengths), found)


def _report(long: _TooLong, advice: str, some_are_right: bool = False, warns: bool = True) -> int:
    """Warn of titles that are too long, and refuse if all are; returns their number.

    Args:
        some_are_right: there is something else to learn, so all may be too long.
        warns: False only refuses.
    """
    if long.all and not some_are_right:
        raise ConfigError(f"{long.found} No title is left that could be right. {advice}")
    if long.number and warns and is_main_process():
        log.warning("%s %s", long.found, advice)
    return long.number
