"""The tasks that a language model is trained on: what each shows and what it asks for."""

from dataclasses import dataclass
from typing import Literal

TaskName = Literal[
    "history_sid_to_sid",
    "title_to_sid",
    "sid_to_title",
    "sid_to_description",
    "description_to_sid",
    "history_sid_to_title",
    "history_sid_to_description",
    "history_title_to_title",
    "history_title_to_sid",
]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        shows: what the prompt shows: the SIDs or titles of a history, or the SID, title or description of one item.
        asks: what the completion holds of the next item, or of the item that is shown.
    """

    shows: Literal["sids", "titles", "sid", "title", "description"]
    asks: Literal["sid", "title", "description"]

    @property
    def reads_history(self) -> bool:
        """The prompt shows a user's history; otherwise it shows one item."""
        return self.shows in ("sids", "titles")

    @property
    def answers_with_sid(self) -> bool:
        """The completion is a SID; otherwise it is a text."""
        return self.asks == "sid"

    @property
    def needs_descriptions(self) -> bool:
        """The task makes no sense for a catalog without descriptions."""
        return "description" in (self.shows, self.asks)


# The words of a task stand in prompts/wordings.py, once in ours and once in the released code's.
TASKS: dict[TaskName, Task] = {
    "history_sid_to_sid": Task("sids", "sid"),
    "title_to_sid": Task("title", "sid"),
    "sid_to_title": Task("sid", "title"),
    "sid_to_description": Task("sid", "description"),
    "description_to_sid": Task("description", "sid"),
    "history_sid_to_title": Task("sids", "title"),
    "history_sid_to_description": Task("sids", "description"),
    "history_title_to_title": Task("titles", "title"),
    "history_title_to_sid": Task("titles", "sid"),
}
NAMING: TaskName = "history_title_to_title"  # what a model is asked whose written titles are grounded (`eval.grounding`)
RECOMMENDING: TaskName = "history_sid_to_sid"  # what evaluation and the validations ask, whatever is trained
DEFAULT_TASKS: tuple[TaskName, ...] = (RECOMMENDING, "title_to_sid", "sid_to_title")
# The released code's five classes: SidSFT, SidItemFeat (both directions), FusionSeqRec, SFTData, TitleHistory2SidSFT.
RELEASED_TASKS: tuple[TaskName, ...] = (
    *DEFAULT_TASKS,
    "history_sid_to_title",
    "history_title_to_title",
    "history_title_to_sid",
)
