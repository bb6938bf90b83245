"""The words of every task: ours, the released code's, and several of ours for each.

The sentences under `released` are those of MiniOneRec (github.com/AkaliKong/MiniOneRec, `data.py`, Apache License 2.0), its
spelling included; all others are ours, and so are those that the released code does not have.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from minionerec.config import RECOMMENDING, PromptsConfig, TaskName
from minionerec.errors import ConfigError

HEADER = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. \n\n"
    "### Instruction:\n{instruction}\n\n### User Input: \n{question}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Wording:
    """How one task is put into words.

    Attributes:
        instructions: the request in general; only styles with an instruction show it. Each example takes one.
        questions: the request about the example, with a slot for what `Task.shows`. Each example takes one.
        completion: the answer, with a slot for what `Task.asks`.
        part: how each SID or title of a history is written.
        separator: what stands between the items of a history.
    """

    instructions: tuple[str, ...]
    questions: tuple[str, ...]
    completion: str
    part: str = "{}"
    separator: str = ""


_RECOMMEND = ("Recommend the user's next item.",)
_IDENTIFY = ("Tell which item it is.",)
_DESCRIBE = ("Tell what the item is.",)

PLAIN: dict[TaskName, Wording] = {
    # The list is simply continued: a history is then a prefix of every longer one, and all of them are computed at once.
    "history_sid_to_sid": Wording(_RECOMMEND, ("The user's items, oldest first:{sids}",), "{sid}"),
    "title_to_sid": Wording(_IDENTIFY, ("The item with the title {title}:",), "{sid}"),
    "sid_to_title": Wording(_DESCRIBE, ("The title of the item{sid}:",), " {title}"),
    "sid_to_description": Wording(_DESCRIBE, ("The description of the item{sid}:",), " {description}"),
    "description_to_sid": Wording(_IDENTIFY, ("The item with the description {description}:",), "{sid}"),
    "history_sid_to_title": Wording(
        _RECOMMEND, ("The user's items, oldest first:{sids}\nThe title of the next item:",), " {title}"
    ),
    "history_sid_to_description": Wording(
        _RECOMMEND, ("The user's items, oldest first:{sids}\nThe description of the next item:",), " {description}"
    ),
    "history_title_to_title": Wording(
        _RECOMMEND,
        ("The titles of the user's items, oldest first:{titles}\nThe title of the next item:",),
        " {title}",
        "\n- {}",
    ),
    "history_title_to_sid": Wording(
        _RECOMMEND, ("The titles of the user's items, oldest first:{titles}\nThe next item:",), "{sid}", "\n- {}"
    ),
}

# Several ways to ask for the same (LC-Rec, arXiv 2311.09049, has about 17 for each of its tasks; these are ours). The first is
# what evaluation asks. A task that is not here has its wording of PLAIN.
SEVERAL: dict[TaskName, Wording] = {
    "history_sid_to_sid": Wording(
        _RECOMMEND,
        (
            "The user's items, oldest first:{sids}",
            "A customer bought these items one after the other:{sids}\nThe next one:",
            "Here is what a user has chosen so far:{sids}\nWhat comes next?",
            "Items in order of purchase:{sids}\nRecommend one more:",
            "After{sids} this user will want:",
            "Shopping history:{sids}\nNext item:",
            "Given the sequence{sids} predict the item that follows:",
            "Someone has had{sids} until now. Their next item is:",
        ),
        "{sid}",
    ),
    "title_to_sid": Wording(
        _IDENTIFY,
        (
            "The item with the title {title}:",
            "Which item is called {title}?",
            "Find the item named {title}:",
            "{title} is the title of:",
        ),
        "{sid}",
    ),
    "sid_to_title": Wording(
        _DESCRIBE,
        (
            "The title of the item{sid}:",
            "What is{sid} called?",
            "Name the item{sid}:",
            "The item{sid} is sold as:",
        ),
        " {title}",
    ),
    "sid_to_description": Wording(
        _DESCRIBE,
        (
            "The description of the item{sid}:",
            "What is{sid} like?",
            "Describe the item{sid}:",
            "The item{sid} is sold with the text:",
        ),
        " {description}",
    ),
    "description_to_sid": Wording(
        _IDENTIFY,
        (
            "The item with the description {description}:",
            "Which item is described as follows? {description}",
            "Find the item that fits this text: {description}\nThe item:",
            "{description}\nThis text is about:",
        ),
        "{sid}",
    ),
    "history_sid_to_title": Wording(
        _RECOMMEND,
        (
            "The user's items, oldest first:{sids}\nThe title of the next item:",
            "A customer bought{sids}\nWhat is the next item called?",
            "Shopping history:{sids}\nName the next item:",
            "After{sids} this user will want the item with the title:",
        ),
        " {title}",
    ),
    "history_sid_to_description": Wording(
        _RECOMMEND,
        (
            "The user's items, oldest first:{sids}\nThe description of the next item:",
            "A customer bought{sids}\nDescribe the next item:",
            "Shopping history:{sids}\nWhat the next item is like:",
            "After{sids} this user will want an item like this:",
        ),
        " {description}",
    ),
    "history_title_to_title": Wording(
        _RECOMMEND,
        (
            "The titles of the user's items, oldest first:{titles}\nThe title of the next item:",
            "A customer bought:{titles}\nWhat is the next item called?",
            "Shopping history:{titles}\nName the next item:",
            "Titles in order of purchase:{titles}\nThe title that follows:",
        ),
        " {title}",
        "\n- {}",
    ),
    "history_title_to_sid": Wording(
        _RECOMMEND,
        (
            "The titles of the user's items, oldest first:{titles}\nThe next item:",
            "A customer bought:{titles}\nRecommend one more item:",
            "Shopping history:{titles}\nNext item:",
            "Titles in order of purchase:{titles}\nThe item that follows:",
        ),
        "{sid}",
        "\n- {}",
    ),
}

_IDENTIFICATION = ("Answer the question about item identification.",)
_FUSED = ("Can you recommend the next item for the user based on their interaction history?",)

RELEASED: dict[TaskName, Wording] = {
    "history_sid_to_sid": Wording(
        ("Can you predict the next possible item that the user may expect?",),
        (
            "The user has interacted with items {sids} in chronological order. Can you predict the next possible item that the "
            "user may expect?",
        ),
        "{sid}",
        separator=", ",
    ),
    "title_to_sid": Wording(_IDENTIFICATION, ("Which item has the title: {title}?",), "{sid}"),
    "sid_to_title": Wording(_IDENTIFICATION, ('What is the title of item "{sid}"?',), "{title}"),
    "sid_to_description": Wording(_IDENTIFICATION, ('What is the description of item "{sid}"?',), "{description}"),
    "description_to_sid": Wording(
        _IDENTIFICATION,
        ('An item can be described as follows: "{description}". Which item is it describing?',),
        "{sid}",
    ),
    "history_sid_to_title": Wording(
        _FUSED,
        (
            "The user has sequentially interacted with items {sids}. Can you recommend the next item for him? Tell me the "
            "title of the item",
        ),
        "{title}",
        separator=", ",
    ),
    "history_sid_to_description": Wording(
        _FUSED,
        (
            "The user has sequentially interacted with items {sids}. Can you recommend the next item for him? Tell me the "
            "description of the item",
        ),
        "{description}",
        separator=", ",
    ),
    "history_title_to_title": Wording(
        (
            "Given a list of {category} the user recetenly enjoy, please write a new {category} that the user may bought",
            "Considering the {category} that has recently captured the user's interest, kindly create a compilation of other "
            "{category} that the user might have played prior to this.",
            "Based on the user's current gaming preference, please draft a list of potential {category} they may have "
            "experienced beforehand.",
            "Reflecting on the {category} the user has taken pleasure in recently, we request that you formulate a list of "
            "{category} that may have preceded the user's current enjoyment.",
            "In light of the recent gaming enjoyment expressed by the user, please assemble a list of {category} that could "
            "potentially include past titles the user has engaged with.",
            "Taking into account the {category} that has lately provided enjoyment to the user, please put together an "
            "inventory of {category} the user might have explored previously.",
            "Given the user's newfound enjoyment of a particular {category}, would you kindly generate a roster of other "
            "{category} that might resonate with their past gaming experiences?",
            "In response to the user's recent fondness for a specific {category}, we seek your assistance in listing possible "
            "{category} the user may have delighted in earlier.",
            "With respect to the {category} currently enjoyed by the user, please compile a suggestive list of {category} they "
            "may have played in the past.",
            "Bearing in mind the {category} that the user has recently been enthralled by, please construct a catalog of other "
            "{category} that the user potentially partook in beforehand.",
            "In relation to the user's recent entertainment with a given {category}, it would be appreciated if you could "
            "curate a list of {category} that might form part of the user's previous gaming history.",
        ),
        ("The user has palyed the following {category}s before: {titles}",),
        '"{title}"',
        '"{}"',
        ",\t",
    ),
    "history_title_to_sid": Wording(
        (
            "Based on the user's historical interaction with item titles, predict the semantic ID of the next item they may "
            "expect.",
        ),
        (
            "The user has interacted with the following {category} items in chronological order: {titles}. Can you predict the "
            "next item the user may expect?",
        ),
        "{sid}",
        '"{}"',
        ", ",
    ),
}

# What the released code's evaluation script asks instead of the sentence that was trained; the header is the same.
RELEASED_EVALUATION = dataclasses.replace(
    RELEASED["history_sid_to_sid"],
    questions=(
        "Can you predict the next possible item the user may expect, given the following chronological interaction history: "
        "{sids}",
    ),
)

WORDINGS: dict[Literal["plain", "released", "several"], dict[TaskName, Wording]] = {
    "plain": PLAIN,
    "released": RELEASED,
    "several": SEVERAL,
}


def wording_of(task: TaskName, prompts: PromptsConfig) -> Wording:
    """The words of a task that the configuration asks for.

    Raises:
        ConfigError: the task is not put into words everywhere.
    """
    if prompts.eval_style == "released" and task == RECOMMENDING:
        return RELEASED_EVALUATION
    if missing := [name for name in ("plain", "released") if task not in WORDINGS[name]]:
        raise ConfigError(
            f"The task {task} has no wording under {' and '.join(missing)}. A task needs a Wording in both PLAIN and "
            "RELEASED of minionerec/prompts/wordings.py; repeat ours if the released code does not have the task."
        )
    return WORDINGS[prompts.wording or "plain"].get(task, PLAIN[task])
